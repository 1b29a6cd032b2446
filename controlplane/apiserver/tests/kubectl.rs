//! The server, driven by an unmodified kubectl over TLS.
#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use apiserver::testing::Cluster;

/// Output of `kubectl <line>`; panics with everything it said if it fails.
async fn kubectl(binary: &str, config: &Path, line: &str, input: &str) -> String {
    let (success, out, err) = try_kubectl(binary, config, line, input).await;
    assert!(success, "kubectl {line}\n{out}\n{err}");
    out
}

async fn try_kubectl(binary: &str, config: &Path, line: &str, input: &str) -> (bool, String, String) {
    let mut command = Command::new(binary);
    command.arg("--kubeconfig").arg(config).arg("--cache-dir").arg(config.with_extension("cache"));
    command.args(line.split_whitespace()).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let input = input.to_owned();
    tokio::task::spawn_blocking(move || {
        let mut child = command.spawn().expect("kubectl is missing: install it (apt-get install kubernetes-client)");
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        (output.status.success(), text(output.stdout), text(output.stderr))
    })
    .await
    .unwrap()
}

fn binaries() -> Vec<&'static str> {
    let known = [
        "/usr/bin/kubectl",
        "/usr/lib/google-cloud-sdk/bin/kubectl.1.27",
        "/usr/lib/google-cloud-sdk/bin/kubectl.1.33",
    ];
    known.into_iter().filter(|path| Path::new(path).exists()).collect()
}

const CONFIG_MAP: &str =
    "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: settings, labels: {app: web}}\ndata: {a: '1'}\n";

#[tokio::test(flavor = "multi_thread")]
async fn objects_live_and_die_by_kubectl() {
    let cluster = Cluster::start().await;
    cluster.listen().await;
    let config = cluster.kubeconfig("admin", &["system:masters"]);
    assert!(!binaries().is_empty(), "no kubectl found: apt-get install kubernetes-client");
    for binary in binaries() {
        let run = async |line: &str, input: &str| kubectl(binary, &config, line, input).await;
        assert!(run("version", "").await.contains("v1.37.0+skiff"));
        assert!(run("api-resources", "").await.contains("deployments"));
        run("create -f -", CONFIG_MAP).await;
        assert!(run("get configmaps -l app=web", "").await.contains("settings"));
        assert!(run("get cm settings -o jsonpath={.data.a}", "").await == "1");
        run("apply -f -", &CONFIG_MAP.replace("'1'", "'2'")).await;
        assert!(run("get cm settings -o yaml", "").await.contains("a: \"2\""));
        run("patch cm settings --type=merge -p {\"data\":{\"b\":\"3\"}}", "").await;
        run("label cm settings tier=front", "").await;
        run("delete cm settings", "").await;
        let (success, _, err) = try_kubectl(binary, &config, "get cm settings", "").await;
        assert!(!success && err.contains("Error from server (NotFound): configmaps \"settings\" not found"), "{err}");
    }
}
