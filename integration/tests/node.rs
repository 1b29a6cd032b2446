//! What goes wrong on a node, and what a node learns from its cluster and its host.

// A test that cannot go on fails, in its helpers too.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use integration::{BUSYBOX, Lab, Running, command, skiff};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(60);

fn sleeper(name: &str, node: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  nodeName: {node}\n  terminationGracePeriodSeconds: 0\n  containers: [{{name: c, image: {BUSYBOX}, imagePullPolicy: IfNotPresent, command: [sleep, \"3600\"]}}]\n"
    )
}

fn data(lab: &Lab, node: &str) -> PathBuf {
    PathBuf::from(lab.member(node)["dataDir"].as_str().unwrap())
}

#[track_caller]
fn event(lab: &Lab, object: &str, reason: &str, words: &str) {
    lab.eventually(&format!("{object} has an event {reason}: {words}"), SOON, || {
        let fields = format!("--field-selector=involvedObject.name={object},reason={reason}");
        let events = lab.kubectl(&["get", "events", &fields]);
        if events.contains(words) { Ok(()) } else { Err(events) }
    });
}

#[test]
fn a_cni_plugin_that_fails_is_told_and_mends_itself() {
    let lab = Lab::up("cni", &["--nodes", "2"]);
    lab.apply(&sleeper("before", "node-1"));
    lab.wait("pod/before", "condition=Ready", 60);
    let plugin = data(&lab, "node-1").join("agent/cni/bin/bridge");
    let executable = std::fs::read_link(&plugin).unwrap();
    std::fs::remove_file(&plugin).unwrap();
    std::fs::write(
        &plugin,
        "#!/bin/sh\necho '{\"cniVersion\": \"1.0.0\", \"code\": 999, \"msg\": \"the wire is cut\"}'\nexit 1\n",
    )
    .unwrap();
    std::fs::set_permissions(&plugin, std::fs::Permissions::from_mode(0o755)).unwrap();

    lab.apply(&sleeper("stuck", "node-1"));
    lab.apply(&sleeper("elsewhere", "node-2"));
    event(&lab, "stuck", "FailedCreatePodSandBox", "the wire is cut");
    assert!(lab.kubectl(&["get", "pod", "stuck"]).contains("ContainerCreating"));
    lab.wait("pod/elsewhere", "condition=Ready", 60);
    assert_eq!(lab.get(&["pod", "before"])["status"]["containerStatuses"][0]["restartCount"], 0);

    std::fs::remove_file(&plugin).unwrap();
    std::os::unix::fs::symlink(executable, &plugin).unwrap();
    lab.wait("pod/stuck", "condition=Ready", 120);
}

/// The addresses that the address plugin of a node holds.
fn reserved(data: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(data.join("agent/cni/state/skiff")).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.parse::<std::net::IpAddr>().is_ok()).collect()
}

fn pod_addresses(lab: &Lab) -> BTreeSet<String> {
    let pods = lab.get(&["pods"]);
    let pods = pods["items"].as_array().unwrap().iter();
    pods.filter_map(|pod| pod["status"]["podIP"].as_str().map(str::to_owned)).collect()
}

fn pod_links(lab: &Lab) -> usize {
    let links = lab.exec("node-1", &["ip", "-o", "link", "show", "master", "skiff0"]).stdout;
    links.lines().count()
}

#[test]
fn addresses_and_links_that_leaked_are_given_back() {
    let lab = Lab::up("leak", &["--node-arg=--network-gc-period=1"]);
    let data = data(&lab, "node-1");
    for name in ["one", "two", "three"] {
        lab.apply(&sleeper(name, "node-1"));
    }
    lab.wait("pod/three", "condition=Ready", 60);
    lab.wait("pod/two", "condition=Ready", 60);

    // by timer: a reservation of a sandbox that nobody knows
    let lost = data.join("agent/cni/state/skiff/10.42.0.200");
    std::fs::write(&lost, format!("{}\r\neth0", "d".repeat(64))).unwrap();
    lab.eventually("the timer gives the lost address back", SOON, || {
        if lost.exists() { Err(format!("{:?}", reserved(&data))) } else { Ok(()) }
    });

    // at start: everything is killed, and the runtime forgets its sandboxes
    lab.node("kill", "node-1").expect_ok();
    let before = reserved(&data);
    assert!(before.len() >= 3, "{before:?}");
    std::fs::remove_dir_all(data.join("agent/containerd/io.containerd.metadata.v1.bolt")).unwrap();
    lab.kubectl(&["delete", "pod", "one", "two", "--force", "--grace-period=0"]);
    lab.node("start", "node-1").expect_ok();
    lab.wait("node/node-1", "condition=Ready", 60);
    lab.eventually("only living pods have addresses and links", SOON, || {
        let (held, pods, links) = (reserved(&data), pod_addresses(&lab), pod_links(&lab));
        let ready = lab.kubectl(&["get", "pods", "--no-headers"]);
        let settled = ready.lines().all(|line| line.contains("1/1"));
        if settled && held == pods && links == pods.len() {
            Ok(())
        } else {
            Err(format!("held {held:?}, pods {pods:?}, {links} links, {ready}"))
        }
    });
}

/// `puller` with the password `s3cret`, as htpasswd writes it.
const USERS: &str = "puller:$2b$05$abcdefghijklmnopqrstuuLK7U1u6pVRmL7L1BBM2aS35PSZnDXlK\n";

/// Debian's registry, serving `storage` in the server's network until the lab goes down.
fn registry(lab: &Lab, directory: &Path, port: u16) -> Running {
    let text = format!(
        "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {0}/storage}}}}\nhttp: {{addr: \":{port}\"}}\nauth: {{htpasswd: {{realm: test, path: {0}/users}}}}\n",
        directory.display()
    );
    let file = directory.join(format!("registry-{port}.yml"));
    std::fs::write(&file, text).unwrap();
    std::fs::write(directory.join("users"), USERS).unwrap();
    let server = format!("{}/server", lab.name);
    let arguments = ["lab", "exec", &server, "--", "docker-registry", "serve", file.to_str().unwrap()];
    let running = Running::start(&skiff(), &arguments, &[]);
    let url = format!("http://{}:{port}/v2/", lab.address("server"));
    lab.eventually("the registry answers", SOON, || {
        let answer = lab.exec("node-1", &["curl", "-s", "-u", "puller:s3cret", &url]);
        if answer.ok { Ok(()) } else { Err(format!("{answer:?}")) }
    });
    running
}

/// Has the node read a file of registries, which it does when its process starts.
fn learn(lab: &Lab, registries: &Path, text: &str) {
    std::fs::write(registries, text).unwrap();
    let agent = lab.member("node-1")["pid"].to_string();
    command("kill", &["-9", &agent], &[], "").expect_ok();
    lab.eventually("the agent is gone", SOON, || {
        if lab.member("node-1")["pid"].is_null() { Ok(()) } else { Err("it is there".to_owned()) }
    });
    lab.node("start", "node-1").expect_ok();
}

/// A pod with more YAML for the container and for the pod.
fn pulled(name: &str, image: &str, container: &str, pod: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 0\n{pod}  containers: [{{name: c, image: \"{image}\", command: [sleep, \"3600\"], {container}}}]\n"
    )
}

#[track_caller]
fn waits_with(lab: &Lab, name: &str, reasons: &[&str]) -> Value {
    lab.eventually(&format!("{name} waits with {reasons:?}"), SOON, || {
        let pod = lab.get(&["pod", name]);
        let waiting = pod["status"]["containerStatuses"][0]["state"]["waiting"].clone();
        let reason = waiting["reason"].as_str().unwrap_or_default();
        if reasons.contains(&reason) { Ok(waiting) } else { Err(pod["status"].to_string()) }
    })
}

#[test]
fn images_are_pulled_from_private_registries_and_through_mirrors() {
    let directory = tempfile::tempdir().unwrap();
    let registries = directory.path().join("registries.yaml");
    let lab = Lab::up("pull", &[&format!("--node-arg=--registries={}", registries.display())]);
    let server = lab.address("server");
    let (private, mirror) = (format!("{server}:5000"), format!("{server}:5001"));
    let _running = [registry(&lab, directory.path(), 5000), registry(&lab, directory.path(), 5001)];
    let image = format!("{private}/team/app:1");
    let push = ["ctr", "-n", "k8s.io", "images", "push", "--plain-http", "--user", "puller:s3cret", &image, BUSYBOX];
    lab.exec("node-1", &push).expect_ok();

    // Mirrors and their credentials are the node's affair, and learnt at its start.
    learn(
        &lab,
        &registries,
        &format!(
            "mirrors:\n  \"{private}\": {{endpoint: [\"http://{private}\"]}}\n  \"registry.test\": {{endpoint: [\"http://{mirror}\"]}}\nconfigs:\n  \"{mirror}\": {{auth: {{username: puller, password: s3cret}}}}\n"
        ),
    );
    lab.apply(&pulled("mirrored", "registry.test/team/app:1", "imagePullPolicy: IfNotPresent", ""));
    lab.wait("pod/mirrored", "condition=Ready", 90);
    event(&lab, "mirrored", "Pulled", "Successfully pulled image \"registry.test/team/app:1\"");

    // The wrong password, and none: refused with the runtime's words.
    let secret = |name: &str, password: &str| {
        let address = format!("--docker-server={private}");
        let password = format!("--docker-password={password}");
        lab.kubectl(&["create", "secret", "docker-registry", name, &address, "--docker-username=puller", &password]);
    };
    secret("right", "s3cret");
    secret("wrong", "nope");
    let with = |secret: &str| format!("  imagePullSecrets: [{{name: {secret}}}]\n");
    lab.apply(&pulled("wrong", &image, "imagePullPolicy: Always", &with("wrong")));
    lab.apply(&pulled("none", &image, "imagePullPolicy: Always", ""));
    lab.apply(&pulled("never", &image, "imagePullPolicy: Never", &with("right")));
    for name in ["wrong", "none"] {
        event(&lab, name, "Failed", "Unauthorized");
        let waiting = waits_with(&lab, name, &["ErrImagePull", "ImagePullBackOff"]);
        assert!(waiting["message"].as_str().unwrap_or_default().contains(&image), "{waiting}");
        waits_with(&lab, name, &["ImagePullBackOff"]);
    }
    waits_with(&lab, "never", &["ErrImageNeverPull"]);

    // The right one: by the pod, by the old form, by its ServiceAccount, and by digest.
    lab.apply(&pulled("right", &image, "imagePullPolicy: Always", &with("right")));
    lab.wait("pod/right", "condition=Ready", 90);
    event(&lab, "right", "Pulled", "Successfully pulled image");
    lab.apply(&pulled("present", &image, "imagePullPolicy: IfNotPresent", &with("right")));
    lab.wait("pod/present", "condition=Ready", 60);
    event(&lab, "present", "Pulled", "already present on machine and can be accessed by the pod");
    let old = directory.path().join("dockercfg");
    std::fs::write(&old, format!("{{\"{private}\": {{\"username\": \"puller\", \"password\": \"s3cret\"}}}}")).unwrap();
    let from = format!("--from-file=.dockercfg={}", old.display());
    lab.kubectl(&["create", "secret", "generic", "old", "--type=kubernetes.io/dockercfg", &from]);
    lab.apply(&pulled("old", &image, "imagePullPolicy: Always", &with("old")));
    lab.wait("pod/old", "condition=Ready", 60);
    lab.kubectl(&["patch", "serviceaccount", "default", "-p", "{\"imagePullSecrets\": [{\"name\": \"right\"}]}"]);
    lab.apply(&pulled("account", &image, "imagePullPolicy: Always", ""));
    lab.wait("pod/account", "condition=Ready", 60);
    let digest = lab.get(&["pod", "account"])["status"]["containerStatuses"][0]["imageID"].clone();
    let digest = digest.as_str().unwrap().rsplit_once('@').expect("an imageID with a digest").1.to_owned();
    lab.apply(&pulled("digest", &format!("{private}/team/app@{digest}"), "imagePullPolicy: Always", ""));
    lab.wait("pod/digest", "condition=Ready", 60);
}

/// A credential provider for the repositories below `given` of any registry on port 5000: its
/// configuration and its directory, as arguments of a node. It notes what it is asked in `asked`.
fn provider(directory: &Path) -> [String; 2] {
    let (config, bin) = (directory.join("providers.yaml"), directory.join("bin"));
    let text = "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n- name: giver\n  apiVersion: credentialprovider.kubelet.k8s.io/v1\n  matchImages: [\"*.*.*.*:5000/given\"]\n  defaultCacheDuration: 1m\n";
    std::fs::write(&config, text).unwrap();
    std::fs::create_dir(&bin).unwrap();
    let answer = r#"{"kind": "CredentialProviderResponse", "apiVersion": "credentialprovider.kubelet.k8s.io/v1", "cacheKeyType": "Registry", "auth": {"*.*.*.*:5000/given": {"username": "puller", "password": "s3cret"}}}"#;
    let script = format!("#!/bin/sh\ncat >> {}/asked\necho '{answer}'\n", directory.display());
    std::fs::write(bin.join("giver"), script).unwrap();
    std::fs::set_permissions(bin.join("giver"), std::fs::Permissions::from_mode(0o755)).unwrap();
    [
        format!("--node-arg=--image-credential-provider-config={}", config.display()),
        format!("--node-arg=--image-credential-provider-bin-dir={}", bin.display()),
    ]
}

#[test]
fn an_image_that_one_pod_could_pull_is_not_for_those_who_could_not() {
    let directory = tempfile::tempdir().unwrap();
    let registries = directory.path().join("registries.yaml");
    let [config, bin] = provider(directory.path());
    let lab = Lab::up("owned", &[&format!("--node-arg=--registries={}", registries.display()), &config, &bin]);
    let private = format!("{}:5000", lab.address("server"));
    let mut registry = registry(&lab, directory.path(), 5000);
    let (image, given) = (format!("{private}/team/app:1"), format!("{private}/given/app:1"));
    for image in [&image, &given] {
        let user = ["--plain-http", "--user", "puller:s3cret"];
        let push = [&["ctr", "-n", "k8s.io", "images", "push"][..], &user, &[image.as_str(), BUSYBOX]].concat();
        lab.exec("node-1", &push).expect_ok();
    }
    learn(&lab, &registries, &format!("mirrors:\n  \"{private}\": {{endpoint: [\"http://{private}\"]}}\n"));

    // Pulled for a pod with the secret, and noted on the node.
    let address = format!("--docker-server={private}");
    let login = ["--docker-username=puller", "--docker-password=s3cret"];
    lab.kubectl(&[&["create", "secret", "docker-registry", "right", &address][..], &login].concat());
    let (present, with) = ("imagePullPolicy: IfNotPresent", "  imagePullSecrets: [{name: right}]\n");
    lab.apply(&pulled("first", &image, present, with));
    lab.wait("pod/first", "condition=Ready", 90);
    event(&lab, "first", "Pulled", "Successfully pulled image");
    let records = data(&lab, "node-1").join("agent/kubelet/image_manager/pulled");
    let record = std::fs::read_dir(records).unwrap().flatten().next().expect("a record of the pull");
    let record = std::fs::read_to_string(record.path()).unwrap();
    assert!(record.contains("\"name\":\"right\"") && !record.contains("s3cret"), "{record}");

    // A pod without it is refused, and learns nothing of what the node has.
    lab.apply(&pulled("without", &image, present, ""));
    lab.apply(&pulled("never", &image, "imagePullPolicy: Never", ""));
    event(&lab, "without", "Failed", "Unauthorized");
    waits_with(&lab, "without", &["ErrImagePull", "ImagePullBackOff"]);
    let waiting = waits_with(&lab, "never", &["ErrImageNeverPull"]);
    assert_eq!(waiting["message"], format!("Container image \"{image}\" is not present with pull policy of Never"));
    lab.kubectl(&["delete", "pod", "without", "never"]);

    // One with the same secret starts without a question to the registry.
    registry.lines_so_far();
    lab.apply(&pulled("third", &image, present, with));
    lab.wait("pod/third", "condition=Ready", 60);
    event(&lab, "third", "Pulled", "already present on machine and can be accessed by the pod");
    let asked = registry.lines_so_far();
    assert!(!asked.iter().any(|line| line.contains("/v2/team/app/")), "{asked:?}");

    // A provider's logins are the node's: what they pull is for every pod.
    for (name, words) in [("given", "Successfully pulled image"), ("shared", "can be accessed by the pod")] {
        lab.apply(&pulled(name, &given, present, ""));
        lab.wait(&format!("pod/{name}"), "condition=Ready", 60);
        event(&lab, name, "Pulled", words);
    }
    let asked = std::fs::read_to_string(directory.path().join("asked")).unwrap();
    assert!(asked.contains(&format!("\"image\":\"{private}/given/app\"")) && asked.lines().count() == 1, "{asked}");
    let metrics = lab.kubectl(&["get", "--raw", "/api/v1/nodes/node-1/proxy/metrics"]);
    for name in
        ["kubelet_imagemanager_image_mustpull_checks_total{result=\"mustAuthenticate\"}", "plugin_name=\"giver\""]
    {
        assert!(metrics.contains(name), "{name} is missing in:\n{metrics}");
    }
}

#[test]
fn a_node_with_unfit_credential_providers_does_not_start() {
    let directory = tempfile::tempdir().unwrap();
    let bin = directory.path().join("bin");
    let start = |config: &str| {
        let file = directory.path().join("providers.yaml");
        std::fs::write(&file, config).unwrap();
        let (file, bin) = (file.display().to_string(), bin.display().to_string());
        let providers = ["--image-credential-provider-config", &file, "--image-credential-provider-bin-dir", &bin];
        let node = ["agent", "--server", "https://127.0.0.1:1", "--node-name", "node"];
        command(skiff(), &[&node[..], &providers].concat(), &[], "")
    };
    start("").expect_failure("Failed to register CRI auth plugins: plugin binary directory");
    std::fs::create_dir(&bin).unwrap();
    let head = "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:";
    start(&format!("{head} []\n")).expect_failure("providers: Required value: at least 1 item in plugins is required");
    let absent =
        "{name: absent, apiVersion: credentialprovider.kubelet.k8s.io/v1, matchImages: [a], defaultCacheDuration: 1m}";
    start(&format!("{head}\n- {absent}\n")).expect_failure("did not exist");
    command(skiff(), &["agent", "--server", "x", "--image-credential-provider-config", "x"], &[], "")
        .expect_failure("--image-credential-provider-bin-dir");
}

#[test]
fn networks_and_domain_reach_every_node() {
    let lab = Lab::up(
        "nets",
        &[
            "--server-arg=--cluster-cidr=10.244.0.0/16",
            "--server-arg=--service-cidr=10.96.0.0/16",
            "--server-arg=--cluster-dns=10.96.0.53",
            "--server-arg=--cluster-domain=lab.test",
        ],
    );
    lab.kubectl(&["create", "service", "clusterip", "web", "--tcp=80"]);
    lab.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: asks}}\nspec:\n  restartPolicy: Never\n  containers: [{{name: c, image: {BUSYBOX}, imagePullPolicy: IfNotPresent, command: [sh, -exc, 'cat /etc/resolv.conf; echo $KUBERNETES_SERVICE_HOST; nslookup -type=a web.default.svc.lab.test; nslookup 10.96.0.1']}}]\n"
    ));
    lab.wait("pod/asks", "jsonpath={.status.phase}=Succeeded", 60);
    let said = lab.kubectl(&["logs", "asks"]);
    for words in [
        "search default.svc.lab.test svc.lab.test lab.test",
        "nameserver 10.96.0.53",
        "10.96.0.1\n",
        "Name:\tweb.default.svc.lab.test\nAddress: 10.96.",
        "name = kubernetes.default.svc.lab.test",
    ] {
        assert!(said.contains(words), "{words:?} is missing in:\n{said}");
    }
    let pod = lab.get(&["pod", "asks"]);
    assert!(pod["status"]["podIP"].as_str().unwrap().starts_with("10.244."), "{}", pod["status"]);
    assert_eq!(lab.get(&["service", "-n", "kube-system", "kube-dns"])["spec"]["clusterIP"], "10.96.0.53");
    let of_dns = ["endpointslices", "-n", "kube-system", "-l", "kubernetes.io/service-name=kube-dns"];
    let slices = lab.get(&of_dns);
    assert_eq!(slices["items"][0]["endpoints"][0]["conditions"]["ready"], true, "{slices}");
}

#[test]
fn a_lab_that_would_not_start_is_told_before_anything_is_made() {
    let name = format!("bad-{}", std::process::id() % 100_000);
    for (arguments, words) in [
        (["--store", "foo"], "use embedded, or etcd="),
        (["--nodes", "0"], "give --nodes or --hollow-nodes"),
        (["--server-arg=--service-cidr=10.42.0.0/16", "--nodes=1"], "overlap"),
        (["--node-arg=--no-such-flag", "--nodes=1"], "--no-such-flag"),
    ] {
        let all = [&["lab", "up", &name][..], &arguments].concat();
        command(skiff(), &all, &[], "").expect_failure(words);
    }
    assert!(!Path::new(&format!("/var/lib/skiff/lab/{name}")).exists());
}

#[test]
fn a_node_that_loses_packets_goes_on() {
    let lab = Lab::up("lossy", &[]);
    let member = format!("{}/node-1", lab.name);
    let drop = |share: &str| command(skiff(), &["lab", "node", "drop", &member, "--percent", share], &[], "");
    let url = format!("https://{}:6443/livez", lab.address("server"));
    let probe = ["curl", "-sk", "--max-time", "3", &url];
    drop("100").expect_ok();
    assert!(!lab.exec("node-1", &probe).ok, "everything is lost");
    drop("30").expect_ok();
    lab.apply(&sleeper("through", "node-1"));
    lab.wait("pod/through", "condition=Ready", 120);
    lab.node("heal", "node-1").expect_ok();
    assert!(lab.exec("node-1", &probe).ok, "nothing is lost any more");
    // Delay needs a part of the kernel that many test hosts lack: it works, or says what is missing.
    let delay = command(skiff(), &["lab", "node", "delay", &member, "--ms", "20"], &[], "");
    if !delay.ok {
        delay.expect_failure("CONFIG_NET_SCH_NETEM");
    }
    drop("101").expect_failure("0 to 100");
}
