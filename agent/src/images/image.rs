//! An image in memory: what it is called and the blobs it is made of.

use std::fs::File;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{ImageError, Rootfs, normalize};

pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// A reference to a blob, as image manifests write it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    pub media_type: String,
    /// `sha256:<hex>`
    pub digest: String,
    /// bytes
    pub size: u64,
}

/// One blob and the blobs it refers to.
#[derive(Debug, Clone)]
pub struct Blob {
    pub descriptor: Descriptor,
    pub data: Data,
    /// Label suffix (`config`, `l.0`, `m.0`) and digest of each blob this one keeps alive.
    pub references: Vec<(String, String)>,
}

/// Where a blob's bytes are.
#[derive(Debug, Clone)]
pub enum Data {
    Memory(Vec<u8>),
    /// A part of an archive, which may be too large for memory.
    File {
        file: Arc<File>,
        /// bytes
        offset: u64,
    },
}

/// Names, target and blobs; a blob comes after those it refers to.
#[derive(Debug, Clone)]
pub struct Image {
    pub names: Vec<String>,
    pub target: Descriptor,
    pub blobs: Vec<Blob>,
}

/// How a container of the image runs; the fields of an image configuration's `config`.
#[derive(Debug, Default, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct ImageConfig {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub user: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cmd: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub working_dir: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub stop_signal: String,
    /// e.g. `80/tcp`
    #[serde(skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub exposed_ports: std::collections::BTreeMap<String, serde_json::Value>,
}

impl Image {
    /// A single-layer image for this machine's architecture.
    pub fn build(name: &str, rootfs: &Rootfs, config: &ImageConfig) -> Result<Self, ImageError> {
        let name = normalize(name)?;
        let tar = rootfs.to_tar().map_err(ImageError::file("writing the layer of", name.as_ref()))?;
        let layer = Blob::memory(LAYER, tar, Vec::new());
        let config = serde_json::json!({
            "architecture": architecture(),
            "os": "linux",
            "config": config,
            "rootfs": { "type": "layers", "diff_ids": [layer.descriptor.digest] },
            "history": [{ "created_by": "skiff" }],
        });
        let config = Blob::memory(CONFIG, config.to_string().into_bytes(), Vec::new());
        Ok(Self::from_parts(vec![name], config, vec![layer]))
    }

    /// Writes the manifest over a configuration and its layers.
    pub(super) fn from_parts(names: Vec<String>, config: Blob, layers: Vec<Blob>) -> Self {
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config.descriptor,
            "layers": layers.iter().map(|layer| &layer.descriptor).collect::<Vec<_>>(),
        });
        let mut references = vec![("config".to_owned(), config.descriptor.digest.clone())];
        for (index, layer) in layers.iter().enumerate() {
            references.push((format!("l.{index}"), layer.descriptor.digest.clone()));
        }
        let manifest = Blob::memory(MANIFEST, manifest.to_string().into_bytes(), references);
        let target = manifest.descriptor.clone();
        let mut blobs = layers;
        blobs.extend([config, manifest]);
        Self { names, target, blobs }
    }
}

impl Blob {
    pub(super) fn memory(media_type: &str, data: Vec<u8>, references: Vec<(String, String)>) -> Self {
        let descriptor =
            Descriptor { media_type: media_type.to_owned(), digest: digest_of(&data), size: data.len() as u64 };
        Self { descriptor, data: Data::Memory(data), references }
    }
}

pub fn digest_of(data: &[u8]) -> String {
    hex_digest(Sha256::digest(data).as_slice())
}

pub fn hex_digest(digest: &[u8]) -> String {
    digest.iter().fold(String::from("sha256:"), |text, byte| text + &format!("{byte:02x}"))
}

/// This machine's architecture in image terms.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
