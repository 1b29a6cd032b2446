//! What the tests with a real containerd share.

#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::Path;

use agent::containerd::{CgroupDriver, Options, Paths};
use proto::runtime::v1 as cri;
use proto::runtime::v1::runtime_service_client::RuntimeServiceClient;
use tonic::transport::Channel;

pub fn options(directory: &Path) -> Options {
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
pub fn in_namespace<F: Future<Output = ()> + 'static>(test: impl FnOnce() -> F + Send + 'static) {
    let thread = std::thread::spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("these tests need root");
        // A new namespace's loopback is down; containerd's stream server listens on it.
        let up = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
        assert!(up.success(), "`ip link set lo up` failed; install iproute2");
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

pub async fn run_container(
    channel: &Channel,
    directory: &Path,
    cgroup: &str,
    script: &str,
    stdin: bool,
) -> (String, String) {
    let mut runtime = RuntimeServiceClient::new(channel.clone());
    let config = sandbox_config(directory, cgroup);
    let request = cri::RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() };
    let sandbox = runtime.run_pod_sandbox(request).await.unwrap().into_inner().pod_sandbox_id;
    let container = cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata { name: "c".into(), attempt: 0 }),
        image: Some(cri::ImageSpec { image: "busybox".into(), ..Default::default() }),
        command: vec!["sh".into(), "-c".into(), script.into()],
        stdin,
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

/// Empty cgroups of killed containers: the kubelet's to remove, which is not here.
pub fn remove_cgroups(parent: &str) {
    let roots = std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(|entry| entry.path());
    for root in roots.chain(["/sys/fs/cgroup".into()]) {
        let directory = root.join(parent.trim_start_matches('/'));
        for child in std::fs::read_dir(&directory).into_iter().flatten().flatten() {
            let _ = std::fs::remove_dir(child.path());
        }
        let _ = std::fs::remove_dir(directory);
    }
}

/// Takes containerd and its containers down when a test fails before it does so itself.
pub struct CleanUp(pub Paths);

impl Drop for CleanUp {
    fn drop(&mut self) {
        let paths = self.0.clone();
        // A thread of its own: the test's runtime may be unwinding.
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(agent::containerd::remove(&paths))
        });
        let _ = thread.join();
    }
}
