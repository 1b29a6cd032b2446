//! A Kubernetes client from a kubeconfig file.

use std::path::{Path, PathBuf};

use anyhow::Context;
use kube::config::{KubeConfigOptions, Kubeconfig};

/// `path` may be several joined by colons, as the variable `KUBECONFIG` has them.
pub async fn from_file(path: &Path) -> anyhow::Result<kube::Client> {
    let mut config = kube::Config::from_custom_kubeconfig(read(path)?, &KubeConfigOptions::default()).await?;
    // A cluster that is starting is asked again at once: the proxy of the environment is not for it.
    config.proxy_url = None;
    Ok(kube::Client::try_from(config)?)
}

/// Of several files those that are not there do not count, as kubectl has it.
fn read(path: &Path) -> anyhow::Result<Kubeconfig> {
    let files: Vec<PathBuf> = std::env::split_paths(path).filter(|file| file.exists()).collect();
    if path.exists() || files.is_empty() {
        return Kubeconfig::read_from(path).with_context(|| format!("reading {}", path.display()));
    }
    files.iter().try_fold(Kubeconfig::default(), |merged, file| {
        let next = Kubeconfig::read_from(file).and_then(|next| merged.merge(next));
        next.with_context(|| format!("reading {}", file.display()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_files_are_read_as_kubectl_reads_them() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = |name: &str| dir.path().join(name).display().to_string();
        for name in ["a", "b"] {
            let text = format!("clusters: [{{name: {name}}}]\ncurrent-context: {name}");
            std::fs::write(file(name), text).expect("a file");
        }
        let clusters = |path: &str| {
            let read = read(Path::new(path)).expect("a kubeconfig");
            let names: Vec<String> = read.clusters.into_iter().map(|cluster| cluster.name).collect();
            (names.join(" "), read.current_context)
        };
        let a = Some("a".to_owned());
        assert_eq!(clusters(&file("a")), ("a".to_owned(), a.clone()));
        assert_eq!(clusters(&[file("a"), file("missing"), file("b")].join(":")), ("a b".to_owned(), a));
        let missing = read(Path::new(&file("missing"))).expect_err("there is none").to_string();
        assert!(missing.contains(&file("missing")), "{missing}");
    }
}
