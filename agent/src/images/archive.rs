//! Image archives: OCI layouts in a tar file, written and read, and what `docker save` wrote
//! before it wrote OCI layouts. Gzip-compressed archives are read too.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use super::image::{MANIFEST, hex_digest};
use super::{Blob, Data, Descriptor, Image, ImageError, normalize};

/// containerd's annotation with the full name.
const NAME: &str = "io.containerd.image.name";
/// OCI's annotation: a tag, or a full name from some tools.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Nothing that is parsed into memory (manifests, configurations) is larger than this, in bytes.
const LARGEST_DOCUMENT: u64 = 8 << 20;

impl Image {
    /// Writes an OCI archive that containerd, docker and podman load.
    pub fn write_archive(&self, path: &Path) -> Result<(), ImageError> {
        let failed = || ImageError::file("writing", path);
        let mut tar = tar::Builder::new(File::create(path).map_err(failed())?);
        let mut add = |name: &str, size: u64, data: &mut dyn Read| {
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o644);
            header.set_size(size);
            tar.append_data(&mut header, name, data)
        };
        let layout = br#"{"imageLayoutVersion":"1.0.0"}"#;
        add("oci-layout", layout.len() as u64, &mut layout.as_slice()).map_err(failed())?;
        let index = self.index().to_string();
        add("index.json", index.len() as u64, &mut index.as_bytes()).map_err(failed())?;
        for blob in &self.blobs {
            let name = format!("blobs/{}", blob.descriptor.digest.replace(':', "/"));
            let mut data = blob.open();
            add(&name, blob.descriptor.size, &mut data).map_err(failed())?;
        }
        tar.into_inner().and_then(|file| file.sync_all()).map_err(failed())
    }

    fn index(&self) -> serde_json::Value {
        let manifests: Vec<_> = self
            .names
            .iter()
            .map(|name| {
                let tag = name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
                serde_json::json!({
                    "mediaType": self.target.media_type, "digest": self.target.digest, "size": self.target.size,
                    "annotations": { NAME: name, REF_NAME: tag },
                })
            })
            .collect();
        serde_json::json!({ "schemaVersion": 2, "manifests": manifests })
    }
}

impl Blob {
    /// The blob's bytes, from their start.
    pub fn open(&self) -> Box<dyn Read + Send + '_> {
        match &self.data {
            Data::Memory(bytes) => Box::new(bytes.as_slice()),
            Data::File { file, offset } => Box::new(Part { file, offset: *offset }.take(self.descriptor.size)),
        }
    }
}

/// Reads a shared file from an offset on, without moving its position.
struct Part<'a> {
    file: &'a File,
    offset: u64,
}

impl Read for Part<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.file.read_at(buffer, self.offset)?;
        self.offset += read as u64;
        Ok(read)
    }
}

/// The images of an archive. Those without a name in the archive have none here either.
///
/// The result reads from the file later, so its content must stay as it is until the import is
/// done. A compressed archive is unpacked into a temporary file without a name.
pub fn read(path: &Path) -> Result<Vec<Image>, ImageError> {
    let archive = Archive::open(path)?;
    if archive.files.contains_key("index.json") {
        return archive.oci_images();
    }
    if archive.files.contains_key("manifest.json") {
        return archive.docker_images();
    }
    Err(archive.wrong("it has neither index.json nor manifest.json"))
}

/// Where each member's bytes are in a tar file.
struct Archive {
    path: PathBuf,
    file: Arc<File>,
    /// member name → offset and size in bytes
    files: HashMap<String, (u64, u64)>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    manifests: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    #[serde(flatten)]
    descriptor: Descriptor,
    #[serde(default)]
    annotations: HashMap<String, String>,
}

#[derive(Deserialize)]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

impl Archive {
    fn open(path: &Path) -> Result<Self, ImageError> {
        let failed = || ImageError::file("reading", path);
        let mut file = File::open(path).map_err(failed())?;
        let mut magic = [0; 2];
        let compressed = file.read_exact(&mut magic).is_ok() && magic == [0x1f, 0x8b];
        file.rewind().map_err(failed())?;
        if compressed {
            let mut output = tempfile::tempfile().map_err(ImageError::file("unpacking to a temporary file", path))?;
            std::io::copy(&mut flate2::read::MultiGzDecoder::new(file), &mut output).map_err(failed())?;
            output.rewind().map_err(failed())?;
            file = output;
        }
        let not_tar =
            |error: std::io::Error| ImageError::NotAnArchive { path: path.to_owned(), why: error.to_string() };
        let mut files = HashMap::new();
        let mut tar = tar::Archive::new(file);
        for entry in tar.entries_with_seek().map_err(not_tar)? {
            let entry = entry.map_err(not_tar)?;
            let name = entry.path().map_err(not_tar)?.to_string_lossy().trim_start_matches("./").to_owned();
            files.insert(name, (entry.raw_file_position(), entry.size()));
        }
        Ok(Self { path: path.to_owned(), file: Arc::new(tar.into_inner()), files })
    }

    fn wrong(&self, why: impl Into<String>) -> ImageError {
        ImageError::NotAnArchive { path: self.path.clone(), why: why.into() }
    }

    fn document(&self, name: &str) -> Result<Vec<u8>, ImageError> {
        let (offset, size) = *self.files.get(name).ok_or_else(|| self.wrong(format!("it lacks {name}")))?;
        if size > LARGEST_DOCUMENT {
            return Err(self.wrong(format!("{name} has {size} bytes")));
        }
        let descriptor = Descriptor { media_type: String::new(), digest: String::new(), size };
        let data = Data::File { file: self.file.clone(), offset };
        let mut bytes = Vec::new();
        let blob = Blob { descriptor, data, references: Vec::new() };
        blob.open().read_to_end(&mut bytes).map_err(ImageError::file("reading", &self.path))?;
        Ok(bytes)
    }

    fn parse<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<T, ImageError> {
        serde_json::from_slice(&self.document(name)?).map_err(|error| self.wrong(format!("{name}: {error}")))
    }

    fn oci_images(&self) -> Result<Vec<Image>, ImageError> {
        let index: Index = self.parse("index.json")?;
        let mut images: Vec<Image> = Vec::new();
        for entry in index.manifests {
            let name = entry.annotations.get(NAME).or_else(|| {
                // only a full name: a bare tag says nothing about the repository
                entry.annotations.get(REF_NAME).filter(|name| name.contains(['/', ':']))
            });
            let names = name.map(|name| normalize(name)).transpose()?.into_iter().collect::<Vec<_>>();
            if let Some(same) = images.iter_mut().find(|image| image.target.digest == entry.descriptor.digest) {
                same.names.extend(names);
                continue;
            }
            let mut blobs = Vec::new();
            self.collect(&entry.descriptor, &mut blobs)?;
            images.push(Image { names, target: entry.descriptor, blobs });
        }
        Ok(images)
    }

    /// Adds what `descriptor` refers to, then the blob itself. The other platforms of an index may
    /// be missing from an archive; a manifest's own parts may not.
    fn collect(&self, descriptor: &Descriptor, blobs: &mut Vec<Blob>) -> Result<(), ImageError> {
        let member = format!("blobs/{}", descriptor.digest.replace(':', "/"));
        let is_index = descriptor.media_type.contains("index") || descriptor.media_type.contains("manifest.list");
        let mut references = Vec::new();
        if is_index {
            let index: Index = self.parse(&member)?;
            for (number, child) in index.manifests.iter().enumerate() {
                references.push((format!("m.{number}"), child.descriptor.digest.clone()));
                if self.files.contains_key(&format!("blobs/{}", child.descriptor.digest.replace(':', "/"))) {
                    self.collect(&child.descriptor, blobs)?;
                }
            }
        } else if descriptor.media_type == MANIFEST || descriptor.media_type.contains("manifest.v2") {
            let manifest: Manifest = self.parse(&member)?;
            references.push(("config".to_owned(), manifest.config.digest.clone()));
            for (number, layer) in manifest.layers.iter().enumerate() {
                references.push((format!("l.{number}"), layer.digest.clone()));
                self.collect(layer, blobs)?;
            }
            self.collect(&manifest.config, blobs)?;
        }
        let (offset, size) = *self.files.get(&member).ok_or_else(|| self.wrong(format!("it lacks {member}")))?;
        if size != descriptor.size {
            return Err(self.wrong(format!("{member} has {size} bytes, its descriptor says {}", descriptor.size)));
        }
        let data = Data::File { file: self.file.clone(), offset };
        blobs.push(Blob { descriptor: descriptor.clone(), data, references });
        Ok(())
    }

    fn docker_images(&self) -> Result<Vec<Image>, ImageError> {
        let list: Vec<Box<RawValue>> = self.parse("manifest.json")?;
        list.iter().map(|raw| self.docker_image(raw.get())).collect()
    }

    fn docker_image(&self, text: &str) -> Result<Image, ImageError> {
        let image: DockerImage =
            serde_json::from_str(text).map_err(|error| self.wrong(format!("manifest.json: {error}")))?;
        let names =
            image.repo_tags.unwrap_or_default().iter().map(|name| normalize(name)).collect::<Result<Vec<_>, _>>()?;
        let config =
            Blob::memory("application/vnd.oci.image.config.v1+json", self.document(&image.config)?, Vec::new());
        let layers = image.layers.iter().map(|name| self.layer(name)).collect::<Result<Vec<_>, _>>()?;
        Ok(Image::from_parts(names, config, layers))
    }

    fn layer(&self, name: &str) -> Result<Blob, ImageError> {
        let (offset, size) = *self.files.get(name).ok_or_else(|| self.wrong(format!("it lacks {name}")))?;
        let media_type = "application/vnd.oci.image.layer.v1.tar".to_owned();
        let descriptor = Descriptor { media_type, digest: String::new(), size };
        let data = Data::File { file: self.file.clone(), offset };
        let mut blob = Blob { descriptor, data, references: Vec::new() };
        let mut hash = Sha256::new();
        std::io::copy(&mut blob.open(), &mut hash).map_err(ImageError::file("reading", &self.path))?;
        blob.descriptor.digest = hex_digest(hash.finalize().as_slice());
        Ok(blob)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ImageConfig, Rootfs};
    use super::*;

    fn image() -> Image {
        let rootfs = Rootfs::new().file("/hello", 0o755, "hi");
        Image::build("example.com/hello:1", &rootfs, &ImageConfig::default()).unwrap()
    }

    #[test]
    fn what_is_written_is_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image.tar");
        image().write_archive(&path).unwrap();
        let images = read(&path).unwrap();
        assert_eq!(images.len(), 1);
        assert_eq!(images[0].names, ["example.com/hello:1"]);
        assert_eq!(images[0].target, image().target);
        assert_eq!(images[0].blobs.len(), 3);
        for (read, built) in images[0].blobs.iter().zip(image().blobs) {
            assert_eq!(read.descriptor, built.descriptor);
            assert_eq!(read.references, built.references);
        }
    }

    #[test]
    fn compressed_archives_are_unpacked_first() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image.tar");
        image().write_archive(&path).unwrap();
        let packed = directory.path().join("image.tar.gz");
        let mut encoder = flate2::write::GzEncoder::new(File::create(&packed).unwrap(), flate2::Compression::fast());
        std::io::copy(&mut File::open(&path).unwrap(), &mut encoder).unwrap();
        encoder.finish().unwrap();
        assert_eq!(read(&packed).unwrap()[0].target, image().target);
    }

    #[test]
    fn docker_archives_get_a_manifest() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image.tar");
        let mut tar = tar::Builder::new(File::create(&path).unwrap());
        let manifest = r#"[{"Config":"c.json","RepoTags":["hello:1"],"Layers":["l/layer.tar"]}]"#;
        for (name, data) in [("manifest.json", manifest), ("c.json", "{}"), ("l/layer.tar", "not really a tar")] {
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o644);
            header.set_size(data.len() as u64);
            tar.append_data(&mut header, name, data.as_bytes()).unwrap();
        }
        tar.into_inner().unwrap();
        let images = read(&path).unwrap();
        assert_eq!(images[0].names, ["docker.io/library/hello:1"]);
        assert_eq!(images[0].blobs.len(), 3);
    }

    #[test]
    fn other_files_are_refused_with_a_reason() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x");
        std::fs::write(&path, "hello, this is no tar file at all").unwrap();
        let message = read(&path).unwrap_err().to_string();
        assert!(message.contains("is not an image archive"), "{message}");
    }
}
