//! What the conformance tests of Kubernetes ask of the control plane, with real pods: each story
//! stands for the tests that `docs/conformance.md` names beside it.
//!
//! One lab of two nodes; the stories run side by side in namespaces of their own.

use std::time::Duration;

use integration::{BUSYBOX, Lab};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(120);

/// A namespace of the lab.
struct Story<'a> {
    lab: &'a Lab,
    namespace: String,
}

fn template(app: &str, script: &str, more: Value) -> Value {
    let mut spec = json!({
        "terminationGracePeriodSeconds": 1,
        "containers": [{"name": "c", "image": BUSYBOX, "imagePullPolicy": "IfNotPresent", "command": ["sh", "-c", script]}],
    });
    merge(&mut spec, more);
    json!({"metadata": {"labels": {"app": app}}, "spec": spec})
}

fn merge(base: &mut Value, more: Value) {
    if let (Some(base), Value::Object(more)) = (base.as_object_mut(), more) {
        base.extend(more);
    }
}

/// Runs until it is told to end.
const REST: &str = "trap 'exit 0' TERM; sleep 3600 & wait";

impl<'a> Story<'a> {
    fn begin(lab: &'a Lab, name: &str) -> Self {
        let namespace = format!("conform-{name}");
        lab.kubectl(&["create", "namespace", &namespace]);
        let story = Self { lab, namespace };
        // Pods may be made only when the namespace has its account.
        let account = ["-n", &story.namespace, "get", "serviceaccount", "default"];
        story.until("the default account", || Ok(lab.try_kubectl(&account).ok));
        story
    }

    fn kubectl(&self, arguments: &[&str]) -> String {
        let mut all = vec!["-n", &self.namespace];
        all.extend(arguments);
        self.lab.kubectl(&all)
    }

    #[track_caller]
    fn make(&self, api: &str, kind: &str, name: &str, spec: Value) {
        let object = json!({"apiVersion": api, "kind": kind, "metadata": {"name": name, "namespace": self.namespace}, "spec": spec});
        self.lab.apply(&object.to_string());
    }

    fn get(&self, what: &[&str]) -> Value {
        let mut all = vec!["-n", &self.namespace];
        all.extend(what);
        self.lab.get(&all)
    }

    fn patch(&self, object: &str, patch: Value) {
        self.kubectl(&["patch", object, "--type=merge", "-p", &patch.to_string()]);
    }

    #[track_caller]
    fn until(&self, what: &str, mut holds: impl FnMut() -> Result<bool, String>) {
        self.lab.eventually(&format!("{}: {what}", self.namespace), SOON, || match holds() {
            Ok(true) => Ok(()),
            Ok(false) => Err("not yet".to_owned()),
            Err(last) => Err(last),
        });
    }

    /// Waits for a condition of an object and returns the object.
    #[track_caller]
    fn condition(&self, object: &str, name: &str, status: &str) -> Value {
        self.lab.eventually(&format!("{object} is {name}={status}"), SOON, || {
            let found = self.get(&[object]);
            if condition(&found, name)["status"] == status { Ok(found) } else { Err(found["status"].to_string()) }
        })
    }

    fn pods(&self) -> Vec<Value> {
        self.get(&["pods"])["items"].as_array().cloned().unwrap_or_default()
    }

    /// Pods that nobody deletes yet and that are ready.
    fn ready(&self) -> Vec<Value> {
        let ready =
            |pod: &Value| condition(pod, "Ready")["status"] == "True" && pod["metadata"]["deletionTimestamp"].is_null();
        self.pods().into_iter().filter(ready).collect()
    }
}

fn condition<'a>(object: &'a Value, name: &str) -> &'a Value {
    let found = object["status"]["conditions"].as_array().and_then(|all| all.iter().find(|c| c["type"] == name));
    found.unwrap_or(&Value::Null)
}

fn names(pods: &[Value]) -> Vec<String> {
    pods.iter().filter_map(|pod| pod["metadata"]["name"].as_str().map(str::to_owned)).collect()
}

type Chapter = fn(&Story<'_>);

#[test]
fn conformance_of_the_control_plane() {
    let lab = Lab::up("conform", &["--nodes", "2"]);
    let stories: [(&str, Chapter); 8] = [
        ("sets", stateful_sets_roll_one_by_one),
        ("ports", host_ports_are_given_once),
        ("jobs", jobs_end_as_their_policies_say),
        ("evict", evicted_pods_of_a_job_are_not_its_failures),
        ("circle", owners_in_a_circle_go),
        ("daemons", daemons_roll_back_without_restarts),
        ("pages", proxied_pages_lead_through_the_proxy),
        ("again", a_container_made_anew_at_once_stays_ready),
    ];
    std::thread::scope(|scope| {
        for (name, story) in stories {
            let lab = &lab;
            scope.spawn(move || story(&Story::begin(lab, name)));
        }
    });
    leases_go_with_their_nodes(&lab);
    // It tells whoever is on a node to go: last, and alone.
    taints_evict_pods_in_their_time(&Story::begin(&lab, "taints"));
}

fn proxied_pages_lead_through_the_proxy(story: &Story<'_>) {
    let script = "mkdir /www; echo '<a href=/next>' >/www/index.html; exec httpd -f -p 8080 -h /www";
    story.make("v1", "Pod", "page", template("page", script, json!({}))["spec"].clone());
    story.condition("pod/page", "Ready", "True");
    story.kubectl(&["expose", "pod", "page", "--port=80", "--target-port=8080", "--selector=app=page"]);
    story.kubectl(&["label", "pod", "page", "app=page"]);
    for (what, name) in [("pods", "page:8080"), ("services", "page:80")] {
        let path = format!("/api/v1/namespaces/{}/{what}/{name}/proxy", story.namespace);
        // Without the slash at its end the path is redirected, as kubectl follows.
        for asked in [format!("{path}/"), path.clone()] {
            story.until("the page's link leads through the proxy", || {
                let page = story.lab.try_kubectl(&["get", "--raw", &asked]);
                let link = format!("<a href={path}/next>");
                if page.stdout.trim() == link { Ok(true) } else { Err(format!("{asked}: {page:?}")) }
            });
        }
    }
}

/// As Kubernetes' kubelet tells nothing before a sync is over, nobody sees the moment without a run.
fn a_container_made_anew_at_once_stays_ready(story: &Story<'_>) {
    let mut pod = template("again", REST, json!({}));
    // Good from the container's first moment: one that its own script made good would race with the first probe.
    let probe = json!({"exec": {"command": ["test", "!", "-e", "/dead"]}, "periodSeconds": 1, "failureThreshold": 1});
    pod["spec"]["containers"][0]["livenessProbe"] = probe;
    story.make("v1", "Pod", "again", pod["spec"].clone());
    story.condition("pod/again", "Ready", "True");
    let columns = "jsonpath={.status.containerStatuses[0].restartCount} {.status.conditions[?(@.type==\"Ready\")].status}{\"\\n\"}";
    let mut watched = story.lab.spawn_kubectl(&["-n", &story.namespace, "get", "pod", "again", "-w", "-o", columns]);
    assert_eq!(watched.line_with("0 "), "0 True");
    story.kubectl(&["exec", "again", "--", "touch", "/dead"]);
    loop {
        let seen = watched.line_with("");
        assert!(seen.ends_with(" True"), "{seen}");
        if seen.starts_with("1 ") {
            break;
        }
    }
}

/// A lease may be older than its Node object: it is given its owner when it is renewed.
fn leases_go_with_their_nodes(lab: &Lab) {
    for node in lab.nodes() {
        let uid = lab.get(&["node", &node])["metadata"]["uid"].clone();
        lab.eventually("the lease has its owner", SOON, || {
            let lease = lab.get(&["-n", "kube-node-lease", "lease", &node]);
            let owner = &lease["metadata"]["ownerReferences"][0];
            if owner["uid"] == uid && owner["kind"] == "Node" { Ok(()) } else { Err(lease.to_string()) }
        });
    }
}

fn stateful_sets_roll_one_by_one(story: &Story<'_>) {
    let spec = json!({"serviceName": "s", "replicas": 3, "selector": {"matchLabels": {"app": "s"}}, "template": template("s", REST, json!({}))});
    story.make("apps/v1", "StatefulSet", "s", spec);
    let rolled = |replicas: i64, revision: &Value| {
        story.lab.eventually("the set is rolled", SOON, || {
            let status = story.get(&["statefulset", "s"])["status"].clone();
            let done = status["readyReplicas"] == replicas
                && status["updatedReplicas"] == replicas
                && status["currentRevision"] == status["updateRevision"]
                && status["currentRevision"] != *revision;
            if done { Ok(status) } else { Err(status.to_string()) }
        })
    };
    let first = rolled(3, &Value::Null)["currentRevision"].clone();
    assert_eq!(names(&story.pods()), ["s-0", "s-1", "s-2"]);
    let pod = story.get(&["pod", "s-1"]);
    assert_eq!(pod["metadata"]["labels"]["apps.kubernetes.io/pod-index"], "1");
    assert_eq!((&pod["spec"]["hostname"], &pod["spec"]["subdomain"]), (&json!("s-1"), &json!("s")));

    // a canary above the partition, then all, then back: no third revision
    story.patch("statefulset/s", json!({"spec": {"updateStrategy": {"rollingUpdate": {"partition": 2}}, "template": {"metadata": {"annotations": {"v": "2"}}}}}));
    let hash = |pod: &str| story.get(&["pod", pod])["metadata"]["labels"]["controller-revision-hash"].clone();
    story.until("the canary", || Ok(story.ready().len() == 3 && hash("s-2") != first));
    assert_eq!((hash("s-0"), hash("s-1")), (first.clone(), first.clone()));
    story.patch("statefulset/s", json!({"spec": {"updateStrategy": {"rollingUpdate": {"partition": 0}}}}));
    let second = rolled(3, &first)["currentRevision"].clone();
    story.patch("statefulset/s", json!({"spec": {"template": {"metadata": {"annotations": {"v": null}}}}}));
    assert_eq!(rolled(3, &second)["currentRevision"], first, "a rollback is the old revision");
    assert_eq!(story.get(&["controllerrevisions"])["items"].as_array().map(Vec::len), Some(2));
    story.kubectl(&["scale", "statefulset/s", "--replicas=0"]);
    story.until("no pods", || Ok(story.pods().is_empty()));
}

fn host_ports_are_given_once(story: &Story<'_>) {
    let nodes = story.lab.nodes();
    let pod = |name: &str, ip: &str| {
        let port = json!([{"containerPort": 80, "hostPort": 54_323, "hostIP": ip}]);
        let mut template = template(name, REST, json!({"nodeSelector": {"kubernetes.io/hostname": nodes[0]}}));
        template["spec"]["containers"][0]["ports"] = port;
        story.make("v1", "Pod", name, template["spec"].clone());
    };
    pod("one", "127.0.0.1");
    pod("other-address", "127.0.0.2");
    story.until("both run", || Ok(story.ready().len() == 2));
    pod("all-addresses", "0.0.0.0");
    let waiting = story.condition("pod/all-addresses", "PodScheduled", "False");
    let message = condition(&waiting, "PodScheduled")["message"].as_str().unwrap_or_default();
    assert!(message.contains("didn't have free ports for the requested pod ports"), "{message}");
    story.kubectl(&["delete", "pod", "one", "other-address"]);
    story.until("the port is free again", || Ok(names(&story.ready()) == ["all-addresses"]));
}

fn jobs_end_as_their_policies_say(story: &Story<'_>) {
    let job = |name: &str, script: &str, more: Value| {
        let mut spec = json!({"template": template(name, script, json!({"restartPolicy": "Never"}))});
        merge(&mut spec, more);
        story.make("batch/v1", "Job", name, spec);
    };
    job(
        "indexed",
        "echo $JOB_COMPLETION_INDEX",
        json!({"completionMode": "Indexed", "completions": 3, "parallelism": 2}),
    );
    job(
        "early",
        "exit 42",
        json!({"backoffLimit": 5, "podFailurePolicy": {"rules": [{"action": "FailJob", "onExitCodes": {"operator": "In", "values": [42]}}]}}),
    );
    job(
        "by-index",
        "test $JOB_COMPLETION_INDEX = 0",
        json!({"completionMode": "Indexed", "completions": 2, "parallelism": 2, "backoffLimitPerIndex": 0}),
    );
    let some = "test $JOB_COMPLETION_INDEX = 0 && exit 0; trap 'exit 0' TERM; sleep 3600 & wait";
    job(
        "enough",
        some,
        json!({"completionMode": "Indexed", "completions": 2, "parallelism": 2, "successPolicy": {"rules": [{"succeededIndexes": "0"}]}}),
    );
    job("held", "true", json!({"suspend": true}));
    for (name, end, reason, status) in [
        ("indexed", "Complete", "CompletionsReached", json!({"succeeded": 3, "completedIndexes": "0-2"})),
        ("early", "Failed", "PodFailurePolicy", json!({"failed": 1})),
        ("by-index", "Failed", "FailedIndexes", json!({"failedIndexes": "1", "completedIndexes": "0"})),
        ("enough", "Complete", "SuccessPolicy", json!({"succeeded": 1})),
    ] {
        let ended = story.condition(&format!("job/{name}"), end, "True");
        assert_eq!(condition(&ended, end)["reason"], reason, "{ended}");
        for (field, value) in status.as_object().into_iter().flatten() {
            assert_eq!(ended["status"][field], *value, "{name}: {field}");
        }
    }
    story.condition("job/held", "Suspended", "True");
    story.patch("job/held", json!({"spec": {"suspend": false}}));
    story.condition("job/held", "Complete", "True");
}

fn evicted_pods_of_a_job_are_not_its_failures(story: &Story<'_>) {
    let ignore = json!({"rules": [{"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]}]});
    let pods = template(
        "j",
        "trap 'exit 1' TERM; sleep 3600 & wait",
        json!({"restartPolicy": "Never", "terminationGracePeriodSeconds": 30}),
    );
    story.make("batch/v1", "Job", "j", json!({"backoffLimit": 0, "podFailurePolicy": ignore, "template": pods}));
    story.until("the pod runs", || Ok(story.ready().len() == 1));
    let name = names(&story.ready()).remove(0);
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": story.namespace}});
    let path = format!("/api/v1/namespaces/{}/pods/{name}/eviction", story.namespace);
    story
        .lab
        .kubectl_with(&integration::kubectl(), &["create", "--raw", &path, "-f", "-"], &eviction.to_string())
        .expect_ok();
    story.until("another pod takes its place", || {
        let ready = names(&story.ready());
        Ok(ready.len() == 1 && ready[0] != name)
    });
    let status = story.get(&["job", "j"])["status"].clone();
    assert!(status["failed"].is_null() && status["conditions"].is_null(), "{status}");
}

fn owners_in_a_circle_go(story: &Story<'_>) {
    let uid = |name: &str| story.get(&["configmap", name])["metadata"]["uid"].clone();
    for name in ["a", "b", "c"] {
        story.kubectl(&["create", "configmap", name]);
    }
    for (name, owner) in [("a", "c"), ("b", "a"), ("c", "b")] {
        let reference = json!({"apiVersion": "v1", "kind": "ConfigMap", "name": owner, "uid": uid(owner), "blockOwnerDeletion": true});
        story.patch(&format!("configmap/{name}"), json!({"metadata": {"ownerReferences": [reference]}}));
    }
    story.kubectl(&["delete", "configmap", "a", "--cascade=foreground", "--timeout=60s"]);
    story.until("all are gone", || {
        Ok(names(story.get(&["configmaps"])["items"].as_array().unwrap_or(&vec![])) == ["kube-root-ca.crt"])
    });
}

fn daemons_roll_back_without_restarts(story: &Story<'_>) {
    let spec = json!({"selector": {"matchLabels": {"app": "d"}}, "template": template("d", REST, json!({}))});
    story.make("apps/v1", "DaemonSet", "d", spec);
    let nodes = story.lab.nodes().len();
    story.until("one on each node", || Ok(story.ready().len() == nodes));
    let broken =
        |pods: &[Value]| pods.iter().filter(|pod| pod["spec"]["containers"][0]["image"] == "none.test/no:1").count();
    story.kubectl(&["set", "image", "daemonset/d", "c=none.test/no:1"]);
    story.until("one is replaced by one that cannot start", || Ok(broken(&story.pods()) == 1));
    let well = names(&story.ready());
    assert_eq!(well.len(), nodes - 1);
    story.kubectl(&["rollout", "undo", "daemonset/d"]);
    story.until("rolled back", || Ok(story.ready().len() == nodes && broken(&story.pods()) == 0));
    assert!(well.iter().all(|name| names(&story.ready()).contains(name)), "pods of the old revision were left alone");
    story.kubectl(&["delete", "daemonset", "d"]);
}

fn taints_evict_pods_in_their_time(story: &Story<'_>) {
    let node = &story.lab.nodes()[1];
    let pod = |name: &str, tolerations: Value| {
        let key = json!({"key": "conform", "operator": "Exists", "effect": "NoExecute"});
        let all = tolerations.as_array().into_iter().flatten().map(|extra| {
            let mut toleration = key.clone();
            merge(&mut toleration, extra.clone());
            toleration
        });
        let more = json!({"nodeSelector": {"kubernetes.io/hostname": node}, "tolerations": all.collect::<Vec<_>>()});
        story.make("v1", "Pod", name, template(name, REST, more)["spec"].clone());
    };
    pod("none", json!([]));
    pod("for-ever", json!([{}]));
    pod("a-while", json!([{"tolerationSeconds": 2}]));
    story.until("all run", || Ok(story.ready().len() == 3));
    story.patch("pod/none", json!({"metadata": {"finalizers": ["example.com/look"]}}));
    story.lab.kubectl(&["taint", "node", node, "conform=x:NoExecute"]);
    let evicted = story.condition("pod/none", "DisruptionTarget", "True");
    assert_eq!(condition(&evicted, "DisruptionTarget")["reason"], "DeletionByTaintManager");
    story.patch("pod/none", json!({"metadata": {"finalizers": null}}));
    story.until("only one stays", || Ok(names(&story.pods()) == ["for-ever"]));
    story.lab.kubectl(&["taint", "node", node, "conform:NoExecute-"]);
}
