//! Bringing a node up.

use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use component::{Informers, Supervisor};

use crate::cni::{self, CniError};
use crate::collect;
use crate::config::Config;
use crate::containerd::{Containerd, ContainerdError, Options, Paths};
use crate::images::{ImageError, Importer, pause};
use crate::join::{self, JoinError, Joined};
use crate::parts;
use crate::registries::{self, RegistriesError};

/// Why a node could not start. What it was caused by stands in its sources.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error("starting the container runtime")]
    Runtime(#[from] ContainerdError),
    #[error("providing the sandbox image")]
    SandboxImage(#[from] ImageError),
    #[error("joining the cluster")]
    Join(#[from] JoinError),
    #[error("configuring image registries")]
    Registries(#[from] RegistriesError),
    #[error("installing the network plugins")]
    Plugins(#[from] CniError),
    #[error("making the directory {path}: {error}", path = path.display())]
    Directory { path: PathBuf, error: std::io::Error },
    #[error("starting the kubelet")]
    Kubelet(#[from] kubelet::StartError),
    #[error("the node address {0} is no IPv4 address; choose one with --node-ip")]
    NodeAddress(IpAddr),
}

/// A node that runs. It ends with its supervisor; its pods go on.
#[derive(Clone)]
pub struct Running {
    pub node_name: String,
    pub node_ip: IpAddr,
    pub client: kube::Client,
    /// The CRI socket.
    pub runtime: PathBuf,
}

/// Starts a node, and returns once its parts run. It waits for the server as long as it takes.
pub async fn start(mut config: Config, supervisor: &Supervisor) -> Result<Running, AgentError> {
    let supervisor = supervisor.child("agent");
    private_directory(&config.directories.kubelet())?;
    link_kubelet(&config.directories)?;
    private_directory(&config.directories.pki())?;
    let executable = cni::locate(config.cni_executable.as_deref())?;
    cni::install(&executable, &config.directories.cni_bin())?;
    if config.runtime_endpoint.is_none() {
        registries::install(&config.directories.registries, &config.directories.registry_hosts())?;
    }
    let runtime = start_runtime(&config, &supervisor);
    let node = async {
        let joined = join_cluster(&config, &supervisor).await?;
        let cluster = joined.cluster_network().await?;
        let node_ip = node_ip(&config)?;
        joined.keep_serving_certificate(vec![node_ip], config.node_name.clone(), &supervisor);
        let informers = Informers::new(joined.client.clone(), &supervisor);
        let network = parts::start_network(&config, &cluster, node_ip, &informers, &supervisor)?;
        Ok::<_, AgentError>((joined, cluster, node_ip, informers, network))
    };
    let (runtime, (joined, cluster, node_ip, informers, network)) = tokio::try_join!(runtime, node)?;
    if config.runtime_endpoint.is_some() {
        // Someone else's runtime makes groups in its own way, and pods' groups must be made so, too.
        config.cgroup_driver = runtime.cgroup_driver().await.unwrap_or(config.cgroup_driver);
    }
    let addresses = config.directories.cni_state();
    let stale = collect::first_look(&addresses, &runtime.channel).await;
    let collecting = collect::run(network.clone(), addresses, runtime.channel.clone(), stale, config.network_gc_period);
    supervisor.spawn("collect", collecting);
    let kubelet = parts::kubelet_config(&config, &cluster, node_ip, &runtime.socket, &joined.files);
    parts::start_kubelet(kubelet, network, &informers, &supervisor)?;
    Ok(Running { node_name: config.node_name, node_ip, client: joined.client, runtime: runtime.socket })
}

/// Keeps routes to the nodes' pods on a machine that is no node, through the link that holds
/// `address`.
pub fn follow_pod_routes(address: IpAddr, client: kube::Client, supervisor: &Supervisor) -> Result<(), AgentError> {
    let IpAddr::V4(address) = address else { return Err(AgentError::NodeAddress(address)) };
    network::routes::follow(address, &Informers::new(client, supervisor), supervisor);
    Ok(())
}

/// Makes a directory that other users of the machine cannot enter: pods' secrets are below it, with
/// the permissions that the pods wish.
fn private_directory(path: &Path) -> Result<(), AgentError> {
    let failed = |error| AgentError::Directory { path: path.to_owned(), error };
    std::fs::create_dir_all(path).map_err(failed)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o750)).map_err(failed)
}

/// The runtime, with the sandbox image in it.
async fn start_runtime(config: &Config, supervisor: &Supervisor) -> Result<Containerd, AgentError> {
    let directories = &config.directories;
    let runtime = match &config.runtime_endpoint {
        Some(socket) => return Ok(Containerd::connect(socket).await?),
        None => {
            let options = Options {
                paths: Paths::under(&directories.data, &directories.run),
                binary: config.containerd.clone(),
                cni_bin_dir: directories.cni_bin(),
                cni_conf_dir: directories.cni_conf(),
                registry_dir: directories.registry_hosts(),
                cgroup_driver: config.cgroup_driver,
            };
            Containerd::start(options, supervisor).await?
        }
    };
    let importer = Importer::new(runtime.channel.clone());
    importer.import_pinned(&pause::image()?).await?;
    for path in &config.images {
        for image in crate::images::archive::read(path)? {
            importer.import(&image).await?;
        }
    }
    Ok(runtime)
}

async fn join_cluster(config: &Config, supervisor: &Supervisor) -> Result<Joined, AgentError> {
    let options = join::Options {
        server: config.server.clone(),
        credentials: config.credentials.clone(),
        node_name: config.node_name.clone(),
        directory: config.directories.pki(),
    };
    Ok(join::join(options, supervisor).await?)
}

fn node_ip(config: &Config) -> Result<IpAddr, AgentError> {
    match config.node_ip {
        Some(address) => Ok(address),
        None => Ok(join::address_towards(&config.server)?),
    }
}

/// Notes where the kubelet's directory is, if it is not among our own; and not where it was.
fn link_kubelet(directories: &crate::config::Directories) -> Result<(), AgentError> {
    let path = directories.kubelet_link();
    let linked = match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        // Under the name that the kernel has for what is mounted in it.
        _ => {
            directories.kubelet.as_ref().map_or(Ok(()), |root| std::os::unix::fs::symlink(root.canonicalize()?, &path))
        }
    };
    linked.map_err(|error| AgentError::Directory { path, error })
}

/// The kubelet's directory of the agent with its data under `data_dir`, if it lies elsewhere.
pub fn kubelet_elsewhere(data_dir: &std::path::Path) -> Option<PathBuf> {
    let directories = crate::config::Directories { data: data_dir.join("agent"), ..Default::default() };
    std::fs::read_link(directories.kubelet_link()).ok()
}

/// What the kubelet has in its directory. The rest of one that lies elsewhere is not ours.
pub fn kubelet_entries(root: &std::path::Path) -> Vec<PathBuf> {
    kubelet::layout::Layout::new(root, "").entries()
}

/// Removes what the node's parts, with their data under `data_dir`, made in this network
/// namespace: links, addresses, routes, tables and chains. Returns what could not be removed.
pub fn remove_network_objects(data_dir: &std::path::Path) -> Vec<String> {
    let directories = crate::config::Directories { data: data_dir.join("agent"), ..Default::default() };
    let mut problems = proxy::cleanup();
    problems.extend(network::cleanup(&directories.cni_conf()));
    problems.extend(dns::cleanup());
    problems
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Directories;

    #[test]
    fn the_kubelets_directory_is_found_again_where_it_lies_elsewhere() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("agent")).unwrap();
        let directories = |kubelet: Option<&Path>| Directories {
            data: root.path().join("agent"),
            kubelet: kubelet.map(Path::to_owned),
            ..Default::default()
        };
        link_kubelet(&directories(None)).unwrap();
        assert_eq!(kubelet_elsewhere(root.path()), None);
        assert_eq!(directories(None).kubelet(), root.path().join("agent/kubelet"));
        let place = root.path().canonicalize().unwrap().join("place");
        let link = root.path().join("link");
        std::fs::create_dir(&place).unwrap();
        std::os::unix::fs::symlink(&place, &link).unwrap();
        for named in [&place, &link] {
            link_kubelet(&directories(Some(named))).unwrap();
            assert_eq!(kubelet_elsewhere(root.path()).as_ref(), Some(&place));
        }
    }

    #[test]
    fn where_the_kubelets_directory_was_once_is_forgotten() {
        let root = tempfile::tempdir().unwrap();
        let directories = Directories { data: root.path().join("agent"), ..Default::default() };
        std::fs::create_dir(&directories.data).unwrap();
        std::os::unix::fs::symlink("/somebody/elses", directories.kubelet_link()).unwrap();
        link_kubelet(&directories).unwrap();
        assert_eq!(kubelet_elsewhere(root.path()), None);
    }
}
