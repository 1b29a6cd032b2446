//! Saves etcd's own snapshot, as `etcdctl snapshot save` does; `etcdctl snapshot restore` reads it.

use std::path::Path;

use futures::StreamExt;
use proto::etcdserverpb::SnapshotRequest;
use proto::etcdserverpb::maintenance_client::MaintenanceClient;
use tokio::io::AsyncWriteExt;
use tonic::Status;

use super::Etcd;
use crate::StoreError;

impl Etcd {
    /// Writes the backend of one member to `file`, which appears only when it is whole. Returns its
    /// size in bytes.
    pub async fn snapshot(&self, file: &Path) -> Result<u64, StoreError> {
        let endpoints = &self.shared.endpoints;
        let mut client = MaintenanceClient::new(endpoints.channel()).max_decoding_message_size(usize::MAX);
        let failed = |status: Status| endpoints.error("taking a snapshot", &status);
        let mut stream = client.snapshot(SnapshotRequest {}).await.map_err(failed)?.into_inner();
        let partial = file.with_extension("partial");
        let io = |doing: &'static str| {
            move |error: std::io::Error| StoreError::Io { doing, path: file.to_owned(), detail: error.to_string() }
        };
        let mut out = tokio::fs::File::create(&partial).await.map_err(io("creating the snapshot"))?;
        let mut size = 0;
        while let Some(part) = stream.next().await {
            let blob = part.map_err(failed)?.blob;
            size += blob.len() as u64;
            out.write_all(&blob).await.map_err(io("writing the snapshot"))?;
        }
        out.sync_all().await.map_err(io("syncing the snapshot"))?;
        tokio::fs::rename(&partial, file).await.map_err(io("renaming the snapshot"))?;
        Ok(size)
    }
}
