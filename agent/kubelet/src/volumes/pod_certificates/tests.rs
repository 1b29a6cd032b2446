//! Certificates of one pod with an API that takes every request; the test is the signer.

use http_body_util::BodyExt;
use kube::Client;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::*;

const NOT_YET: &str = "credential bundle is not issued yet";

/// Has every ServiceAccount, and takes whatever is made.
fn client(made: Arc<Mutex<Vec<Value>>>) -> Client {
    let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
        let made = made.clone();
        async move {
            let reads = request.method() == http::Method::GET;
            let body = request.into_body().collect().await?.to_bytes();
            let answer = if reads {
                json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "bot", "uid": "su"}})
            } else {
                take(&made, serde_json::from_slice(&body)?)
            };
            let body = kube::client::Body::from(answer.to_string().into_bytes());
            Ok::<_, tower::BoxError>(http::Response::new(body))
        }
    });
    Client::new(service, "default")
}

fn take(made: &Mutex<Vec<Value>>, mut object: Value) -> Value {
    let mut made = made.lock();
    if object["metadata"]["generateName"] == "req-" {
        object["metadata"]["name"] = format!("req-{}", made.len()).into();
        object["metadata"]["creationTimestamp"] = Timestamp::now().to_string().into();
    }
    made.push(object.clone());
    object
}

fn pod() -> Arc<Pod> {
    let source = json!({"podCertificate": {"signerName": "example.com/s", "keyType": "ECDSAP256",
        "maxExpirationSeconds": 7200, "userAnnotations": {"example.com/a": "b"}, "credentialBundlePath": "bundle.pem"}});
    let sources = json!([{"configMap": {"name": "m"}}, source]);
    let pod = json!({"metadata": {"name": "p", "namespace": "ns", "uid": "pu"},
        "spec": {"containers": [], "serviceAccountName": "bot",
            "volumes": [{"name": "e", "emptyDir": {}}, {"name": "v", "projected": {"sources": sources}}]}});
    Arc::new(serde_json::from_value(pod).unwrap())
}

struct Stage {
    certificates: Arc<PodCertificates>,
    requests: Informer<PodCertificateRequest>,
    made: Arc<Mutex<Vec<Value>>>,
    changes: Arc<Mutex<Vec<String>>>,
    supervisor: Supervisor,
    pod: Arc<Pod>,
}

impl Stage {
    /// The pod is there.
    fn new() -> Self {
        let (made, changes) = (Arc::<Mutex<Vec<Value>>>::default(), Arc::<Mutex<Vec<String>>>::default());
        let (client, supervisor) = (client(made.clone()), Supervisor::new("test"));
        let nodes = Informer::<Node>::detached();
        nodes.apply(serde_json::from_value(json!({"metadata": {"name": "n", "uid": "nu"}})).unwrap());
        let asker = Asker { client: client.clone(), node: "n".to_owned(), nodes };
        let recorder = EventRecorder::new(client, &supervisor, "kubelet", "n");
        let (noted, requests) = (changes.clone(), Informer::<PodCertificateRequest>::detached());
        let watched = requests.clone();
        let changed = Arc::new(move |uid: &str| noted.lock().push(uid.to_owned()));
        let certificates = PodCertificates::new(asker, recorder, changed, Box::new(move || watched.clone()));
        certificates.run(&supervisor);
        let pod = pod();
        certificates.track(&pod);
        Self { certificates, requests, made, changes, supervisor, pod }
    }

    async fn eventually<T>(&self, what: &str, look: impl Fn() -> Option<T>) -> T {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            if let Some(found) = look() {
                return found;
            }
            assert!(Instant::now() < deadline, "{what}; made so far: {:#?}", self.made.lock());
            sleep(Duration::from_millis(5)).await;
        }
    }

    fn of_kind(&self, kind: &str) -> Vec<Value> {
        self.made.lock().iter().filter(|object| object["kind"] == kind).cloned().collect()
    }

    /// The pod's `count`th request.
    async fn asked(&self, count: usize) -> Value {
        let look = || self.of_kind("PodCertificateRequest").get(count - 1).cloned();
        self.eventually("no request was made", look).await
    }

    fn answer(&self, request: &Value, end: &str, mut status: Value) {
        let mut request = request.clone();
        let condition = json!({"type": end, "status": "True", "reason": "Because", "message": "so", "lastTransitionTime": "2026-01-01T00:00:00Z"});
        status["conditions"] = json!([condition]);
        request["status"] = status;
        self.requests.apply(serde_json::from_value(request).unwrap());
    }

    /// Renewal is due this many seconds from now, but for the jitter.
    fn issue(&self, request: &Value, certificate: &[u8], renew_after: i64) {
        let at = |seconds: i64| (Timestamp::now() + jiff::SignedDuration::from_secs(seconds)).to_string();
        let chain = format!("for you:\n{}", bundle::encode(certificate));
        let status = json!({"certificateChain": chain, "beginRefreshAt": at(renew_after), "notAfter": at(7200)});
        self.answer(request, "Issued", status);
    }

    fn lent(&self) -> Result<Arc<Credential>, String> {
        self.certificates.get(&self.pod, "v", 1)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.supervisor.cancel();
    }
}

#[tokio::test]
async fn a_certificate_is_asked_for_lent_and_renewed() {
    let stage = Stage::new();
    let first = stage.asked(1).await;
    assert_eq!(stage.lent().err().as_deref(), Some(NOT_YET));
    let mut spec = first["spec"].clone();
    assert!(spec["stubPKCS10Request"].take().is_string());
    let expected = json!({"signerName": "example.com/s", "podName": "p", "podUID": "pu", "serviceAccountName": "bot",
        "serviceAccountUID": "su", "nodeName": "n", "nodeUID": "nu", "maxExpirationSeconds": 7200,
        "stubPKCS10Request": null, "unverifiedUserAnnotations": {"example.com/a": "b"}});
    assert_eq!(spec, expected);
    let owner = json!([{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "pu"}]);
    assert_eq!((&first["metadata"]["ownerReferences"], &first["metadata"]["namespace"]), (&owner, &json!("ns")));

    // renewal was due an hour ago: the next request follows at once, with another key
    stage.issue(&first, b"one", -3600);
    stage.certificates.settled("pu").await;
    let old = stage.lent().unwrap();
    assert_eq!(old.chain, bundle::encode(b"one"));
    let second = stage.asked(2).await;
    assert_ne!(first["spec"]["stubPKCS10Request"], second["spec"]["stubPKCS10Request"]);
    assert!(stage.lent().unwrap() == old, "the old one is lent on");

    stage.issue(&second, b"two", 3600);
    let is_new = || stage.lent().ok().filter(|lent| lent.chain == bundle::encode(b"two"));
    let new = stage.eventually("the certificate was not renewed", is_new).await;
    assert_ne!(new.key, old.key);
    let told = || (stage.changes.lock().len() == 2).then_some(());
    stage.eventually("each certificate is told once", told).await;
    let states = stage.certificates.states().into_iter().collect::<Vec<_>>();
    assert_eq!(states, [(("example.com/s".to_owned(), "fresh"), 1)]);

    stage.certificates.release("pu");
    assert_eq!(stage.lent().err().as_deref(), Some(NOT_YET));
    assert!(stage.certificates.states().is_empty());
    assert_eq!(stage.of_kind("PodCertificateRequest").len(), 2);
}

#[tokio::test]
async fn a_refusal_is_told_and_final() {
    let stage = Stage::new();
    let request = stage.asked(1).await;
    stage.answer(&request, "Denied", json!({}));
    stage.certificates.settled("pu").await;
    let why = "PodCertificateRequest was permanently denied: reason=\"Because\" message=\"so\"";
    assert_eq!(stage.lent().err().as_deref(), Some(why));
    let event = stage.eventually("no event", || stage.of_kind("Event").first().cloned()).await;
    let name = request["metadata"]["name"].as_str().unwrap();
    let message = format!("PodCertificateRequest ns/{name} was denied, reason=\"Because\", message=\"so\"");
    let told = ["type", "reason", "message"].map(|field| event[field].as_str().unwrap_or_default());
    assert_eq!(told, ["Warning", "Denied", message.as_str()]);
    assert_eq!(event["involvedObject"]["name"], "p");
    stage.certificates.track(&stage.pod);
    assert_eq!(stage.of_kind("PodCertificateRequest").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_ever() {
    let stage = Stage::new();
    let start = Instant::now();
    stage.certificates.settled("another").await;
    assert!(start.elapsed() < PATIENCE, "who has no certificates waits for none");
    stage.certificates.settled("pu").await;
    assert!(start.elapsed() >= PATIENCE);
}
