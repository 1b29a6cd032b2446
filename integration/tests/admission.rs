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

/// Owners, tolerations and resizes: plugins that ask about other objects, or about who asks.
#[test]
fn plugins_ask_the_cluster() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let file = dir.path().join(name);
        std::fs::write(&file, text).unwrap();
        file.display().to_string()
    };
    // The tolerations that every pod gets have to be in the whitelist too.
    let config = write(
        "admission.yaml",
        "
apiVersion: apiserver.config.k8s.io/v1
kind: AdmissionConfiguration
plugins:
- name: PodTolerationRestriction
  configuration:
    apiVersion: podtolerationrestriction.admission.k8s.io/v1alpha1
    kind: Configuration
    default: [{key: edge, operator: Exists, effect: NoSchedule}]
    whitelist:
    - {key: edge, operator: Exists}
    - {key: node.kubernetes.io/not-ready, operator: Exists}
    - {key: node.kubernetes.io/unreachable, operator: Exists}
    - {key: node.kubernetes.io/memory-pressure, operator: Exists}
",
    );
    let flags = [
        "--enable-admission-plugins=OwnerReferencesPermissionEnforcement,PodTolerationRestriction",
        "--disable-admission-plugins=ServiceAccount",
        "--admission-control-config-file",
        &config,
    ];
    let server = Server::start(&dir.path().join("server"), &flags);
    server.ready();
    let objects = write(
        "objects.yaml",
        r#"
apiVersion: v1
kind: Node
metadata: {name: edge-1, labels: {kubernetes.io/os: linux}}
---
apiVersion: v1
kind: Namespace
metadata: {name: broken, annotations: {scheduler.alpha.kubernetes.io/tolerationsWhitelist: "[x]"}}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: owned, namespace: default}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: writer, namespace: default}
rules: [{apiGroups: [""], resources: [configmaps], verbs: [get, create, update, patch]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: writer, namespace: default}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: writer}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: alice}]
"#,
    );
    server.kubectl(&["apply", "-f", &objects]);
    let size =
        r#"{"status": {"capacity": {"cpu": "4", "memory": "8Gi"}, "allocatable": {"cpu": "4", "memory": "8Gi"}}}"#;
    server.kubectl(&["patch", "node", "edge-1", "--subresource=status", "-p", size]);

    let pod = |name: &str, namespace: &str, key: &str| {
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{nodeName: edge-1,
               tolerations: [{{key: {key}, operator: Exists, effect: NoExecute}}],
               containers: [{{name: c, image: 'i:1', resources: {{requests: {{cpu: '1'}}}}}}]}}"
        );
        server.try_kubectl(&["create", "-o", "json", "-f", &write("pod.yaml", &text)])
    };
    let made: Value = serde_json::from_str(&pod("p", "default", "edge").expect_ok()).unwrap();
    let tolerations = made["spec"]["tolerations"].as_array().unwrap();
    let default = serde_json::json!({"key": "edge", "operator": "Exists", "effect": "NoSchedule"});
    assert!(tolerations.contains(&default), "{tolerations:?}");
    pod("q", "default", "other").expect_failure(
        "pod tolerations (possibly merged with namespace default tolerations) conflict with its cluster whitelist",
    );
    pod("q", "broken", "edge").expect_failure("invalid character 'x' looking for beginning of value");

    let resize = |cpu: &str| {
        let patch = format!(
            r#"{{"spec": {{"containers": [{{"name": "c", "resources": {{"requests": {{"cpu": "{cpu}"}}}}}}]}}}}"#
        );
        server.try_kubectl(&["patch", "pod", "p", "--subresource=resize", "-p", &patch])
    };
    resize("9")
        .expect_failure("node didn't have enough allocatable resources: cpu, requested: 9000, allocatable: 4000");
    resize("2").expect_ok();

    let owner = |block: bool| {
        let uid = made["metadata"]["uid"].as_str().unwrap();
        format!(r#"{{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "{uid}", "blockOwnerDeletion": {block}}}"#)
    };
    let patch = format!(r#"{{"metadata": {{"ownerReferences": [{}]}}}}"#, owner(false));
    let arguments = ["patch", "configmap", "owned", "--type=merge", "-p", &patch];
    let alice = [&arguments[..], &["--as", "alice"]].concat();
    server.try_kubectl(&alice).expect_failure("cannot set an ownerRef on a resource you can't delete");
    let create = |block: bool| {
        let (name, owner) = (if block { "blocks" } else { "lets-go" }, owner(block));
        let text = format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}, ownerReferences: [{owner}]}}");
        server.try_kubectl(&["create", "--as", "alice", "-f", &write("owned.yaml", &text)])
    };
    create(true).expect_failure(
        "cannot set blockOwnerDeletion if an ownerReference refers to a resource you can't set finalizers on",
    );
    create(false).expect_ok();
    server.try_kubectl(&arguments).expect_ok();
}
