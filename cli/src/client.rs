//! A Kubernetes client from a kubeconfig file.

use std::path::Path;

use anyhow::Context;
use kube::config::{KubeConfigOptions, Kubeconfig};

pub async fn from_file(path: &Path) -> anyhow::Result<kube::Client> {
    let kubeconfig = Kubeconfig::read_from(path).with_context(|| format!("reading {}", path.display()))?;
    let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    // A cluster that is starting is asked again at once: the proxy of the environment is not for it.
    config.proxy_url = None;
    Ok(kube::Client::try_from(config)?)
}
