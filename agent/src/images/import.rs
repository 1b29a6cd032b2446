//! Putting images into containerd without pulling them.
//!
//! Blobs go to the content service and an image record to the image service, in CRI's namespace,
//! under a lease that keeps containerd's garbage collector away until the record refers to them.
//! This way works with every containerd since 1.2; its transfer service exists only since 1.7.
//! CRI makes a record of its own of each that it learns of, by the digest of the image's configuration:
//! containers and image volumes know images by that name.

use std::collections::HashMap;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use futures::StreamExt;
use proto::containerd::services::content::v1 as content;
use proto::containerd::services::images::v1 as images;
use proto::containerd::services::leases::v1 as leases;
use proto::containerd::types;
use proto::runtime::v1 as cri;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;
use tonic::{Code, Request};

use super::{Blob, Image, ImageError};

/// The namespace CRI's images live in.
const NAMESPACE: &str = "k8s.io";
/// Bytes per write request; containerd takes at most 16 MiB in one message.
const CHUNK: usize = 1 << 20;
/// How long CRI may take to notice a new image record.
const NOTICED: Duration = Duration::from_secs(5);

/// A connection to containerd's image stores.
#[derive(Clone)]
pub struct Importer {
    channel: Channel,
}

/// An image that containerd has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    pub name: String,
    pub digest: String,
}

impl Importer {
    pub async fn connect(socket: &Path) -> Result<Self, ImageError> {
        let channel = proto::unix_channel(socket)
            .await
            .map_err(|error| ImageError::Connect { socket: socket.to_owned(), error })?;
        Ok(Self::new(channel))
    }

    pub fn new(channel: Channel) -> Self {
        Self { channel }
    }

    /// Every named image of CRI's namespace.
    pub async fn list(&self) -> Result<Vec<Listed>, ImageError> {
        Ok(self.records().await?.into_iter().filter(|image| !is_id(&image.name)).collect())
    }

    async fn records(&self) -> Result<Vec<Listed>, ImageError> {
        let request = in_namespace(images::ListImagesRequest::default(), None);
        let response = self.images().list(request).await.map_err(ImageError::call("listing images"))?;
        let listed = response.into_inner().images.into_iter();
        Ok(listed
            .map(|image| Listed { name: image.name, digest: image.target.map(|t| t.digest).unwrap_or_default() })
            .collect())
    }

    /// Takes a name away, and CRI's own with the last; containerd removes the content that nothing refers to
    /// any more.
    pub async fn remove(&self, name: &str) -> Result<(), ImageError> {
        let digest = self.digest_of(name).await?;
        self.remove_record(name).await?;
        let records = self.records().await?;
        for id in unnamed(&records, digest.as_deref()) {
            self.remove_record(id).await?;
        }
        Ok(())
    }

    async fn remove_record(&self, name: &str) -> Result<(), ImageError> {
        let request = in_namespace(images::DeleteImageRequest { name: name.to_owned(), sync: true }, None);
        match self.images().delete(request).await {
            Ok(_) => Ok(()),
            Err(status) if status.code() == Code::NotFound => Ok(()),
            Err(status) => Err(ImageError::call(format!("removing image {name}"))(status)),
        }
    }

    /// Imports `image` under all its names and waits until CRI knows them.
    pub async fn import(&self, image: &Image) -> Result<(), ImageError> {
        self.import_as(image, false).await
    }

    /// Like [`Importer::import`]; a pinned image is never removed by CRI's garbage collection.
    pub async fn import_pinned(&self, image: &Image) -> Result<(), ImageError> {
        self.import_as(image, true).await
    }

    async fn import_as(&self, image: &Image, pinned: bool) -> Result<(), ImageError> {
        if image.names.is_empty() {
            return Err(ImageError::Unnamed);
        }
        let mut missing = Vec::new();
        for name in &image.names {
            if self.digest_of(name).await?.as_deref() != Some(&image.target.digest) {
                missing.push(name);
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        let lease = self.create_lease().await?;
        let outcome = self.write_all(image, &missing, pinned, &lease).await;
        // The lease also ends by its own expiry label, so a failure here loses nothing.
        let ended = leases::DeleteRequest { id: lease, sync: false };
        let _ = leases::leases_client::LeasesClient::new(self.channel.clone()).delete(in_namespace(ended, None)).await;
        outcome?;
        self.wait_for_cri(&missing).await
    }

    async fn write_all(&self, image: &Image, names: &[&String], pinned: bool, lease: &str) -> Result<(), ImageError> {
        for blob in &image.blobs {
            self.write(blob, lease).await?;
        }
        for name in names {
            self.record(name, image, pinned, lease).await?;
        }
        Ok(())
    }

    async fn digest_of(&self, name: &str) -> Result<Option<String>, ImageError> {
        let request = in_namespace(images::GetImageRequest { name: name.to_owned() }, None);
        match self.images().get(request).await {
            Ok(response) => Ok(response.into_inner().image.and_then(|image| image.target).map(|target| target.digest)),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(ImageError::call(format!("looking for image {name}"))(status)),
        }
    }

    async fn create_lease(&self) -> Result<String, ImageError> {
        let expires = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(1);
        let request = leases::CreateRequest {
            id: format!("skiff-import-{}-{}", std::process::id(), expires.as_nanosecond()),
            labels: HashMap::from([(
                "containerd.io/gc.expire".to_owned(),
                expires.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            )]),
        };
        let mut client = leases::leases_client::LeasesClient::new(self.channel.clone());
        let response =
            client.create(in_namespace(request, None)).await.map_err(ImageError::call("creating a lease"))?;
        Ok(response.into_inner().lease.unwrap_or_default().id)
    }

    /// Writes one blob unless containerd has it.
    async fn write(&self, blob: &Blob, lease: &str) -> Result<(), ImageError> {
        let mut client =
            content::content_client::ContentClient::new(self.channel.clone()).max_decoding_message_size(16 << 20);
        let digest = &blob.descriptor.digest;
        let known = content::InfoRequest { digest: digest.clone() };
        if client.info(in_namespace(known, Some(lease))).await.is_ok() {
            return Ok(());
        }
        let requests = write_requests(blob.clone(), lease);
        let answers = client.write(in_namespace(requests, Some(lease))).await;
        let outcome = match answers {
            Ok(mut answers) => loop {
                match answers.get_mut().message().await {
                    Ok(Some(answer)) if answer.action() == content::WriteAction::Commit => break Ok(()),
                    Ok(Some(_)) => {}
                    Ok(None) => break Err(tonic::Status::aborted("the stream ended before the commit")),
                    Err(status) => break Err(status),
                }
            },
            Err(status) => Err(status),
        };
        match outcome {
            Err(status) if status.code() != Code::AlreadyExists => {
                Err(ImageError::call(format!("writing blob {digest}"))(status))
            }
            _ => Ok(()),
        }
    }

    /// Creates the image record, or points the existing one at the new content.
    async fn record(&self, name: &str, image: &Image, pinned: bool, lease: &str) -> Result<(), ImageError> {
        // Without the label `io.cri-containerd.image`, which is CRI's own: it says that CRI has made its record.
        let pin = ("io.cri-containerd.pinned".to_owned(), "pinned".to_owned());
        let labels = pinned.then_some(pin).into_iter().collect();
        let record = images::Image {
            name: name.to_owned(),
            labels,
            target: Some(types::Descriptor {
                media_type: image.target.media_type.clone(),
                digest: image.target.digest.clone(),
                size: image.target.size as i64,
                annotations: HashMap::new(),
            }),
            ..Default::default()
        };
        let create = images::CreateImageRequest { image: Some(record.clone()) };
        match self.images().create(in_namespace(create, Some(lease))).await {
            Ok(_) => Ok(()),
            Err(status) if status.code() == Code::AlreadyExists => {
                let update = images::UpdateImageRequest { image: Some(record), update_mask: None };
                let updated = self.images().update(in_namespace(update, Some(lease))).await;
                updated.map(|_| ()).map_err(ImageError::call(format!("updating image {name}")))
            }
            Err(status) => Err(ImageError::call(format!("creating image {name}"))(status)),
        }
    }

    /// CRI learns of image records from containerd's events, a moment after they are made.
    async fn wait_for_cri(&self, names: &[&String]) -> Result<(), ImageError> {
        let mut client = cri::image_service_client::ImageServiceClient::new(self.channel.clone());
        let deadline = tokio::time::Instant::now() + NOTICED;
        for name in names {
            loop {
                let image = cri::ImageSpec { image: name.to_string(), ..Default::default() };
                let request = cri::ImageStatusRequest { image: Some(image), verbose: false };
                match client.image_status(request).await {
                    Ok(response) if response.get_ref().image.is_some() => break,
                    Err(status) if status.code() == Code::Unimplemented => break,
                    Ok(_) if tokio::time::Instant::now() < deadline => {
                        tokio::time::sleep(Duration::from_millis(3)).await
                    }
                    Ok(_) => {
                        let status = tonic::Status::deadline_exceeded("CRI does not list the imported image");
                        return Err(ImageError::call(format!("importing image {name}"))(status));
                    }
                    Err(status) => return Err(ImageError::call(format!("asking CRI for image {name}"))(status)),
                }
            }
        }
        Ok(())
    }

    fn images(&self) -> images::images_client::ImagesClient<Channel> {
        images::images_client::ImagesClient::new(self.channel.clone()).max_decoding_message_size(64 << 20)
    }
}

/// Whether CRI made the record, for the image as such.
fn is_id(name: &str) -> bool {
    name.starts_with("sha256:")
}

/// The records of an image by its ID, if it has no name any more.
fn unnamed<'a>(records: &'a [Listed], digest: Option<&str>) -> Vec<&'a str> {
    let of_image: Vec<&Listed> = records.iter().filter(|image| Some(image.digest.as_str()) == digest).collect();
    let named = of_image.iter().any(|image| !is_id(&image.name));
    of_image.into_iter().filter(|_| !named).map(|image| image.name.as_str()).collect()
}

/// The blob in chunks; the last request commits it with its labels. Small blobs are one request.
fn write_requests(
    blob: Blob,
    lease: &str,
) -> impl futures::Stream<Item = content::WriteContentRequest> + Send + 'static {
    let reference = format!("{lease}-{}", blob.descriptor.digest);
    let labels: HashMap<String, String> = blob
        .references
        .iter()
        .map(|(suffix, digest)| (format!("containerd.io/gc.ref.content.{suffix}"), digest.clone()))
        .collect();
    let (sender, receiver) = tokio::sync::mpsc::channel(2);
    tokio::task::spawn_blocking(move || {
        let total = blob.descriptor.size;
        let mut offset = 0;
        let mut data = blob.open();
        loop {
            let mut chunk = Vec::new();
            if data.by_ref().take(CHUNK as u64).read_to_end(&mut chunk).is_err() {
                // The stream ends without a commit, which containerd reports.
                return;
            }
            let end = offset + chunk.len() as u64;
            let last = end >= total || chunk.is_empty();
            let action = if last { content::WriteAction::Commit } else { content::WriteAction::Write };
            let request = content::WriteContentRequest {
                action: action.into(),
                r#ref: reference.clone(),
                total: total as i64,
                expected: blob.descriptor.digest.clone(),
                offset: offset as i64,
                data: chunk,
                labels: if last { labels.clone() } else { HashMap::new() },
            };
            offset = end;
            if sender.blocking_send(request).is_err() || last {
                return;
            }
        }
    });
    futures::stream::unfold(receiver, |mut receiver| async { receiver.recv().await.map(|request| (request, receiver)) })
        .boxed()
}

fn in_namespace<T>(message: T, lease: Option<&str>) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("containerd-namespace", MetadataValue::from_static(NAMESPACE));
    // A lease's name is made above of ASCII letters, digits and dashes.
    if let Some(Ok(lease)) = lease.map(MetadataValue::<Ascii>::try_from) {
        request.metadata_mut().insert("containerd-lease", lease);
    }
    request
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_goes_with_its_last_name() {
        let record = |name: &str, digest: &str| Listed { name: name.to_owned(), digest: digest.to_owned() };
        let named = [record("docker.io/library/a:1", "m1"), record("sha256:c1", "m1"), record("sha256:c2", "m2")];
        assert_eq!(unnamed(&named, Some("m1")), Vec::<&str>::new());
        assert_eq!(unnamed(&named, Some("m2")), ["sha256:c2"]);
        assert_eq!(unnamed(&named, None), Vec::<&str>::new());
    }
}
