//! The admission flags of `skiff server`.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use integration::{Server, command, skiff};
use serde_json::Value;

/// What a server says that does not start.
fn refused(dir: &Path, more: &[&str]) -> String {
    let (data, kubeconfig) = (dir.join("data").display().to_string(), dir.join("kc").display().to_string());
    let mut arguments = vec!["server", "--disable-agent", "--bind-address", "127.0.0.1", "--port", "0"];
    arguments.extend(["--data-dir", &data, "--kubeconfig", &kubeconfig]);
    arguments.extend(more);
    let output = command(skiff(), &arguments, &[], "");
    assert!(!output.ok, "{more:?}");
    output.stderr
}

#[test]
fn plugins_are_switched_by_flags_and_configured_by_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("admission.yaml");
    let text = "
apiVersion: apiserver.config.k8s.io/v1
kind: AdmissionConfiguration
plugins:
- name: PodSecurity
  configuration:
    apiVersion: pod-security.admission.config.k8s.io/v1
    kind: PodSecurityConfiguration
    defaults: {enforce: baseline}
    exemptions: {namespaces: [kube-system]}
";
    std::fs::write(&file, text).unwrap();
    let config = file.display().to_string();
    let flags = [
        "--enable-admission-plugins",
        "AlwaysPullImages,NamespaceAutoProvision",
        "--disable-admission-plugins=ServiceAccount",
        "--admission-control-config-file",
        &config,
    ];
    let server = Server::start(&dir.path().join("server"), &flags);
    server.ready();
    let run = |namespace: &str, name: &str, more: &[&str]| {
        let mut arguments = vec!["run", name, "-n", namespace, "--image=i:1", "--restart=Never", "-o", "json"];
        arguments.extend(more);
        server.try_kubectl(&arguments)
    };
    let pod: Value = serde_json::from_str(&run("new", "p", &[]).expect_ok()).unwrap();
    assert_eq!(pod["spec"]["containers"][0]["imagePullPolicy"], "Always");
    let host = "--overrides={\"apiVersion\": \"v1\", \"spec\": {\"hostNetwork\": true}}";
    let stderr = run("default", "h", &[host]).stderr;
    assert!(
        stderr.contains("violates PodSecurity \"baseline:latest\": host namespaces (hostNetwork=true)"),
        "{stderr}"
    );
    assert!(run("kube-system", "h", &[host]).ok);
    assert!(server.kubectl(&["get", "ns", "new", "-o", "name"]).contains("namespace/new"));

    std::fs::write(&file, text.replace("enforce: baseline", "enforce: strict")).unwrap();
    for (flags, expected) in [
        (
            &["--enable-admission-plugins=Nope"][..],
            "enable-admission-plugins plugin \"Nope\" is unknown; known plugins are AlwaysAdmit, ",
        ),
        (
            &["--enable-admission-plugins=PodSecurity", "--disable-admission-plugins=PodSecurity"],
            "[PodSecurity] in enable-admission-plugins and disable-admission-plugins overlapped",
        ),
        (
            &["--admission-control-config-file=/nowhere"],
            "unable to read admission control configuration from \"/nowhere\"",
        ),
        (
            &["--admission-control-config-file", &config],
            "defaults.enforce: Invalid value: \"strict\": must be one of privileged, baseline, restricted",
        ),
    ] {
        let stderr = refused(dir.path(), flags);
        assert!(stderr.contains(expected), "{stderr}");
    }
}
