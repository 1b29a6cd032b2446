//! The real containerd under the agent: start, images, death and return, adoption, removal.
//!
//! Needs root, containerd, runc and busybox-static. Everything happens in a temporary directory
//! and in a network namespace of the test's own thread.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::time::{Duration, Instant};

use agent::containerd::{Containerd, Options, remove};
use agent::images::{Importer, pause, presets};
use component::Supervisor;
use proto::containerd::services::images::v1::GetImageRequest;
use proto::containerd::services::images::v1::images_client::ImagesClient;
use proto::runtime::v1 as cri;
use proto::runtime::v1::image_service_client::ImageServiceClient;
use proto::runtime::v1::runtime_service_client::RuntimeServiceClient;
use support::{CleanUp, in_namespace, options, remove_cgroups, run_container};
use tonic::transport::Channel;

async fn state_of(channel: &Channel, container: &str) -> Option<i32> {
    let request = cri::ContainerStatusRequest { container_id: container.to_owned(), verbose: false };
    let answer = RuntimeServiceClient::new(channel.clone()).container_status(request).await.ok()?;
    Some(answer.into_inner().status?.state)
}

async fn status_of(channel: &Channel, image: &str) -> Option<cri::Image> {
    let spec = cri::ImageSpec { image: image.to_owned(), ..Default::default() };
    let request = cri::ImageStatusRequest { image: Some(spec), verbose: false };
    ImageServiceClient::new(channel.clone()).image_status(request).await.unwrap().into_inner().image
}

/// Whether containerd itself has an image by this name.
async fn has_record(channel: &Channel, name: &str) -> bool {
    let mut request = tonic::Request::new(GetImageRequest { name: name.to_owned() });
    request.metadata_mut().insert("containerd-namespace", "k8s.io".parse().unwrap());
    ImagesClient::new(channel.clone()).get(request).await.is_ok()
}

fn pid_of(options: &Options) -> i32 {
    let text = std::fs::read_to_string(&options.paths.pid).unwrap();
    text.split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn containers_outlive_containerd_and_the_agent_and_removal_leaves_nothing() {
    in_namespace(|| async {
        let directory = tempfile::tempdir().unwrap();
        let options = options(directory.path());
        let _cleanup = CleanUp(options.paths.clone());
        let cgroup = format!("/skiff-test-{}", std::process::id());
        let agent = Supervisor::new("agent");
        let began = Instant::now();
        let containerd = Containerd::start(options.clone(), &agent).await.unwrap();
        assert!(!containerd.adopted);
        println!("containerd ready after {:?}", began.elapsed());

        let began = Instant::now();
        let importer = Importer::new(containerd.channel.clone());
        importer.import_pinned(&pause::image().unwrap()).await.unwrap();
        println!("pause imported after {:?}", began.elapsed());
        importer.import(&presets::busybox().unwrap()).await.unwrap();
        importer.import(&presets::busybox().unwrap()).await.unwrap();
        let names: Vec<String> = importer.list().await.unwrap().into_iter().map(|image| image.name).collect();
        assert!(names.contains(&"docker.io/library/busybox:latest".to_owned()), "{names:?}");

        let began = Instant::now();
        let (_, container) =
            run_container(&containerd.channel, directory.path(), &cgroup, "exec sleep 600", false).await;
        println!("first container after {:?}", began.elapsed());
        let running = cri::ContainerState::ContainerRunning as i32;
        assert_eq!(state_of(&containerd.channel, &container).await, Some(running));

        // containerd dies: it is started again and the container went on
        let first = pid_of(&options);
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(first), nix::sys::signal::Signal::SIGKILL).unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while pid_of(&options) == first || state_of(&containerd.channel, &container).await != Some(running) {
            assert!(Instant::now() < deadline, "containerd did not come back");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }

        // the agent ends and another one adopts
        assert!(agent.shut_down(Duration::from_secs(5)).await);
        let second = Supervisor::new("second agent");
        let adopted = Containerd::start(options.clone(), &second).await.unwrap();
        assert!(adopted.adopted);
        assert_eq!(state_of(&adopted.channel, &container).await, Some(running));
        assert!(second.shut_down(Duration::from_secs(5)).await);

        let problems = remove(&options.paths).await;
        assert!(problems.is_empty(), "{problems:?}");
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(&*directory.path().to_string_lossy()), "mounts are left");
        remove_cgroups(&cgroup);
    });
}

#[test]
fn an_imported_image_has_its_id_and_is_gone_when_it_was_removed() {
    in_namespace(|| async {
        let directory = tempfile::tempdir().unwrap();
        let options = options(directory.path());
        let _cleanup = CleanUp(options.paths.clone());
        let agent = Supervisor::new("agent");
        let containerd = Containerd::start(options.clone(), &agent).await.unwrap();
        let importer = Importer::new(containerd.channel.clone());
        let image = presets::busybox().unwrap();
        importer.import(&image).await.unwrap();
        // Image volumes name an image by its ID, and containerd looks for a record of that name.
        let id = status_of(&containerd.channel, "busybox").await.unwrap().id;
        assert!(has_record(&containerd.channel, &id).await, "{id}");
        importer.remove("docker.io/library/busybox:latest").await.unwrap();
        assert!(!has_record(&containerd.channel, &id).await, "{id}");
        let deadline = Instant::now() + Duration::from_secs(10);
        while status_of(&containerd.channel, "busybox").await.is_some() {
            assert!(Instant::now() < deadline, "CRI still lists the image");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        importer.import(&image).await.unwrap();
        assert!(agent.shut_down(Duration::from_secs(5)).await);
        assert_eq!(remove(&options.paths).await, Vec::<String>::new());
    });
}
