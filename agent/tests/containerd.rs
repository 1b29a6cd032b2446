//! The real containerd under the agent: start, images, death and return, adoption, removal.
//!
//! Needs root, containerd, runc and busybox-static. Everything happens in a temporary directory
//! and in a network namespace of the test's own thread.

use std::path::Path;
use std::time::{Duration, Instant};

use agent::containerd::{CgroupDriver, Containerd, Options, Paths, remove};
use agent::images::{Importer, pause, presets};
use component::Supervisor;
use proto::runtime::v1 as cri;
use proto::runtime::v1::image_service_client::ImageServiceClient;
use proto::runtime::v1::runtime_service_client::RuntimeServiceClient;
use tonic::transport::Channel;

fn options(directory: &Path) -> Options {
    let data = directory.join("data");
    Options {
        paths: Paths::under(&data, &directory.join("run")),
        binary: None,
        cni_bin_dir: data.join("cni/bin"),
        cni_conf_dir: data.join("cni/net.d"),
        registry_dir: data.join("registries"),
        cgroup_driver: CgroupDriver::Cgroupfs,
    }
}

/// Runs `test` on a thread with its own network namespace and a runtime that stays on it.
fn in_namespace<F: Future<Output = ()> + 'static>(test: impl FnOnce() -> F + Send + 'static) {
    let thread = std::thread::spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("these tests need root");
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test());
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn sandbox_config(directory: &Path, cgroup: &str) -> cri::PodSandboxConfig {
    let host = cri::NamespaceMode::Node as i32;
    let options =
        cri::NamespaceOption { network: host, pid: cri::NamespaceMode::Pod as i32, ipc: host, ..Default::default() };
    cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: "p".into(),
            uid: "u".into(),
            namespace: "default".into(),
            attempt: 0,
        }),
        log_directory: directory.join("logs").to_string_lossy().into_owned(),
        linux: Some(cri::LinuxPodSandboxConfig {
            cgroup_parent: cgroup.to_owned(),
            security_context: Some(cri::LinuxSandboxSecurityContext {
                namespace_options: Some(options),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

async fn run_container(channel: &Channel, directory: &Path, cgroup: &str) -> (String, String) {
    let mut runtime = RuntimeServiceClient::new(channel.clone());
    let config = sandbox_config(directory, cgroup);
    let request = cri::RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() };
    let sandbox = runtime.run_pod_sandbox(request).await.unwrap().into_inner().pod_sandbox_id;
    let container = cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata { name: "c".into(), attempt: 0 }),
        image: Some(cri::ImageSpec { image: "busybox".into(), ..Default::default() }),
        command: vec!["sleep".into(), "600".into()],
        log_path: "c.log".into(),
        linux: Some(cri::LinuxContainerConfig {
            security_context: Some(cri::LinuxContainerSecurityContext {
                namespace_options: Some(cri::NamespaceOption {
                    network: cri::NamespaceMode::Node as i32,
                    ipc: cri::NamespaceMode::Node as i32,
                    pid: cri::NamespaceMode::Container as i32,
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    };
    let request = cri::CreateContainerRequest {
        pod_sandbox_id: sandbox.clone(),
        config: Some(container),
        sandbox_config: Some(config),
    };
    let container = runtime.create_container(request).await.unwrap().into_inner().container_id;
    runtime.start_container(cri::StartContainerRequest { container_id: container.clone() }).await.unwrap();
    (sandbox, container)
}

async fn state_of(channel: &Channel, container: &str) -> Option<i32> {
    let request = cri::ContainerStatusRequest { container_id: container.to_owned(), verbose: false };
    let answer = RuntimeServiceClient::new(channel.clone()).container_status(request).await.ok()?;
    Some(answer.into_inner().status?.state)
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
        let (_, container) = run_container(&containerd.channel, directory.path(), &cgroup).await;
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

/// Empty cgroups of killed containers: the kubelet's to remove, which is not here.
fn remove_cgroups(parent: &str) {
    let roots = std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(|entry| entry.path());
    for root in roots.chain(["/sys/fs/cgroup".into()]) {
        let directory = root.join(parent.trim_start_matches('/'));
        for child in std::fs::read_dir(&directory).into_iter().flatten().flatten() {
            let _ = std::fs::remove_dir(child.path());
        }
        let _ = std::fs::remove_dir(directory);
    }
}

#[test]
fn an_image_that_was_removed_is_gone_for_cri_too() {
    in_namespace(|| async {
        let directory = tempfile::tempdir().unwrap();
        let options = options(directory.path());
        let agent = Supervisor::new("agent");
        let containerd = Containerd::start(options.clone(), &agent).await.unwrap();
        let importer = Importer::new(containerd.channel.clone());
        let image = presets::busybox().unwrap();
        importer.import(&image).await.unwrap();
        importer.remove("docker.io/library/busybox:latest").await.unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let spec = cri::ImageSpec { image: "busybox".into(), ..Default::default() };
            let request = cri::ImageStatusRequest { image: Some(spec), verbose: false };
            let answer = ImageServiceClient::new(containerd.channel.clone()).image_status(request).await.unwrap();
            if answer.into_inner().image.is_none() {
                break;
            }
            assert!(Instant::now() < deadline, "CRI still lists the image");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        importer.import(&image).await.unwrap();
        assert!(agent.shut_down(Duration::from_secs(5)).await);
        assert_eq!(remove(&options.paths).await, Vec::<String>::new());
    });
}
