//! The records' files, laid out as Kubernetes' kubelet has them, so that either reads the other's:
//!
//! ```text
//! <kubelet's root>/image_manager/pulling/sha256-<hash of the image as the pod writes it>
//! <kubelet's root>/image_manager/pulled/sha256-<hash of the runtime's id of the image>
//! ```
//!
//! Nothing is kept in memory; who calls sees to it that one file is not read and written at once.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::form::{Form, PullIntent, PulledRecord};
use crate::files;
use crate::images::docker_config::hex;
use crate::layout;

const PREFIX: &str = "sha256-";
/// How Kubernetes names what it has not written to its end.
const DRAFT: &str = ".tmp";

#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error("{doing} {path}: {error}", path = path.display())]
    File { doing: &'static str, path: PathBuf, error: io::Error },
    #[error("{path} is no {kind} ({why}); its image has to be pulled again", path = path.display())]
    Form { path: PathBuf, kind: &'static str, why: String },
}

pub struct Files {
    pulling: PathBuf,
    pulled: PathBuf,
}

impl Files {
    /// `directory` is made if it is not there; nobody else may look into it.
    pub fn open(directory: &Path) -> io::Result<Self> {
        let files = Self { pulling: directory.join("pulling"), pulled: directory.join("pulled") };
        for part in [&files.pulling, &files.pulled] {
            DirBuilder::new().recursive(true).mode(0o700).create(part)?;
        }
        renew::<PullIntent>(&files.pulling);
        renew::<PulledRecord>(&files.pulled);
        Ok(files)
    }

    pub fn has_intent(&self, image: &str) -> Result<bool, RecordError> {
        let intent: Option<PullIntent> = read(&file(&self.pulling, image))?;
        Ok(intent.is_some_and(|intent| intent.image == image))
    }

    pub fn write_intent(&self, image: &str) -> Result<(), RecordError> {
        write(&file(&self.pulling, image), &PullIntent::new(image))
    }

    pub fn remove_intent(&self, image: &str) -> Result<(), RecordError> {
        remove(&file(&self.pulling, image))
    }

    /// Those that can be read; of others the log tells.
    pub fn intents(&self) -> Vec<PullIntent> {
        readable(&self.pulling)
    }

    pub fn record(&self, image_ref: &str) -> Result<Option<PulledRecord>, RecordError> {
        let record: Option<PulledRecord> = read(&file(&self.pulled, image_ref))?;
        Ok(record.filter(|record| record.image_ref == image_ref))
    }

    pub fn write_record(&self, record: &PulledRecord) -> Result<(), RecordError> {
        write(&file(&self.pulled, &record.image_ref), record)
    }

    pub fn remove_record(&self, image_ref: &str) -> Result<(), RecordError> {
        remove(&file(&self.pulled, image_ref))
    }

    pub fn records(&self) -> Vec<PulledRecord> {
        readable(&self.pulled)
    }

    /// How many intents and records there are.
    pub fn counts(&self) -> (usize, usize) {
        (paths(&self.pulling).len(), paths(&self.pulled).len())
    }
}

fn file(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{PREFIX}{}", hex(&Sha256::digest(name))))
}

fn read<T: Form>(path: &Path) -> Result<Option<T>, RecordError> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(RecordError::File { doing: "reading", path: path.to_owned(), error }),
    };
    let form = T::parse(&bytes);
    form.map(Some).map_err(|why| RecordError::Form { path: path.to_owned(), kind: T::KIND, why })
}

fn write<T: Form>(path: &Path, form: &T) -> Result<(), RecordError> {
    let failed = |error| RecordError::File { doing: "writing", path: path.to_owned(), error };
    files::replace_json(path, form).map_err(failed)
}

fn remove(path: &Path) -> Result<(), RecordError> {
    let failed = |error| RecordError::File { doing: "removing", path: path.to_owned(), error };
    files::gone(std::fs::remove_file(path)).map_err(failed)
}

fn list<T: Form>(directory: &Path) -> Vec<(PathBuf, Result<T, RecordError>)> {
    let read_one = |path: PathBuf| Some((path.clone(), read(&path).transpose()?));
    paths(directory).into_iter().filter_map(read_one).collect()
}

fn readable<T: Form>(directory: &Path) -> Vec<T> {
    let found = list(directory).into_iter().map(|(_, read)| read);
    let told = |error: &RecordError| tracing::error!(%error, "a record of a pulled image is passed over");
    found.filter_map(|read| read.inspect_err(told).ok()).collect()
}

/// Writes anew what another version of Kubernetes wrote.
fn renew<T: Form>(directory: &Path) {
    for (path, read) in list::<T>(directory) {
        let renewed = match read {
            Ok(form) if form.is_older() => write(&path, &form.renewed()),
            Ok(_) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = renewed {
            tracing::error!(%error, "a record of a pulled image could not be brought to today's form");
        }
    }
}

fn paths(directory: &Path) -> Vec<PathBuf> {
    let names = layout::names(directory).unwrap_or_else(|error| {
        tracing::error!(%error, directory = %directory.display(), "which images were pulled cannot be read");
        Vec::new()
    });
    let ours = names.into_iter().filter(|name| name.starts_with(PREFIX) && !name.ends_with(DRAFT));
    ours.map(|name| directory.join(name)).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use jiff::Timestamp;

    use super::*;

    #[test]
    fn what_is_written_is_read_again_and_removed() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("image_manager");
        let files = Files::open(&directory).unwrap();
        files.write_intent("a:1").unwrap();
        let record = PulledRecord::new("sha256:1", Timestamp::from_second(7).unwrap());
        files.write_record(&record).unwrap();
        assert_eq!((files.counts(), files.has_intent("a:1").unwrap()), ((1, 1), true));
        assert!(!files.has_intent("b:1").unwrap());
        assert_eq!(files.record("sha256:1").unwrap(), Some(record));
        files.remove_intent("a:1").unwrap();
        files.remove_record("sha256:1").unwrap();
        files.remove_record("sha256:1").unwrap();
        assert_eq!(files.counts(), (0, 0));
        assert_eq!(std::fs::metadata(directory.join("pulled")).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn names_are_kubernetes_names() {
        let path = file(Path::new("/d"), "docker.io/testing/test:latest");
        let expected = "/d/sha256-aef2af226629a35d5f3ef0fdbb29fdbebf038d0acd8850590e8c48e1e283aa56";
        assert_eq!(path, Path::new(expected));
    }

    #[test]
    fn what_an_earlier_kubelet_left_is_written_anew_and_what_is_broken_stays() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("image_manager");
        let files = Files::open(&directory).unwrap();
        let older = r#"{"kind":"ImagePulledRecord","apiVersion":"kubelet.config.k8s.io/v1alpha1","lastUpdatedTime":"2024-10-21T12:26:40Z","imageRef":"sha256:1"}"#;
        let path = file(&files.pulled, "sha256:1");
        std::fs::write(&path, older).unwrap();
        std::fs::write(file(&files.pulled, "sha256:2"), "broken").unwrap();
        std::fs::write(files.pulled.join("sha256-0.tmp"), "a draft").unwrap();
        let files = Files::open(&directory).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), older.replace("v1alpha1", "v1beta1"));
        assert!(matches!(files.record("sha256:2"), Err(RecordError::Form { .. })));
        assert_eq!((files.records().len(), files.counts()), (1, (0, 2)));
    }
}
