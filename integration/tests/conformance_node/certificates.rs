//! Certificates of pods. The signer is this test: pods read what it issues, get another when the agent
//! was restarted, and say what it refuses.

use std::time::{Duration, SystemTime};

use futures::StreamExt;
use integration::{BUSYBOX, Lab, command};
use k8s_openapi::api::certificates::v1::{PodCertificateRequest, PodCertificateRequestStatus};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Config, ResourceExt};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer, DnType, IsCa, Issuer,
    KeyPair,
};
use rustls_pki_types::CertificateSigningRequestDer;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::SOON;

const REFUSES: &str = "example.com/refuses";
const KEY: &str = "-----BEGIN PRIVATE KEY-----\n";
const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----\n";

type Authority = CertifiedIssuer<'static, KeyPair>;

/// Answers every request until it is dropped.
struct Signer(Option<Runtime>);

impl Signer {
    fn start(lab: &Lab) -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let config = Kubeconfig::read_from(&lab.kubeconfig).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.spawn(async move {
            let config = Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await.unwrap();
            answer_all(Client::try_from(config).unwrap()).await;
        });
        Self(Some(runtime))
    }
}

impl Drop for Signer {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

async fn answer_all(client: Client) {
    let authority = authority();
    let all: Api<PodCertificateRequest> = Api::all(client.clone());
    let mut requests = std::pin::pin!(watcher(all, watcher::Config::default()).default_backoff().applied_objects());
    while let Some(request) = requests.next().await {
        let Ok(mut request) = request else { continue };
        if request.status.as_ref().is_some_and(|status| status.conditions.is_some()) {
            continue;
        }
        request.status = Some(answer(&authority, &request));
        let api: Api<PodCertificateRequest> = Api::namespaced(client.clone(), &request.namespace().unwrap());
        if let Err(error) = api.replace_status(&request.name_any(), &PostParams::default(), &request).await {
            eprintln!("the signer's answer to {} was not taken: {error}", request.name_any());
        }
    }
}

fn authority() -> Authority {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "test-ca");
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn answer(authority: &Authority, request: &PodCertificateRequest) -> PodCertificateRequestStatus {
    let condition = |kind: &str, reason: &str, message: &str| {
        let now = Timestamp::now().to_string();
        json!([{"type": kind, "status": "True", "reason": reason, "message": message, "lastTransitionTime": now}])
    };
    let status = if request.spec.signer_name == REFUSES {
        json!({"conditions": condition("Denied", "NotToday", "come back tomorrow")})
    } else {
        let mut status = issue(authority, request);
        status["conditions"] = condition("Issued", "Signed", "");
        status
    };
    serde_json::from_value(status).unwrap()
}

/// For two hours, to be renewed after one; the authority's own certificate follows the pod's.
fn issue(authority: &Authority, request: &PodCertificateRequest) -> Value {
    let der = CertificateSigningRequestDer::from(request.spec.stub_pkc_s10_request.0.as_slice());
    let mut asked = CertificateSigningRequestParams::from_der(&der).unwrap();
    let begin = Timestamp::now().as_second() - 60;
    let system = |second: i64| SystemTime::UNIX_EPOCH + Duration::from_secs(second.unsigned_abs());
    asked.params.not_before = system(begin).into();
    asked.params.not_after = system(begin + 7200).into();
    asked.params.distinguished_name.push(DnType::CommonName, request.spec.pod_name.clone());
    let issuer: &Issuer<'static, KeyPair> = authority;
    let leaf = asked.signed_by(issuer).unwrap().pem();
    let chain = format!("for {}\n{leaf}{}", request.spec.pod_name, authority.pem());
    let at = |second: i64| Timestamp::from_second(second).unwrap().to_string();
    json!({"certificateChain": chain, "notBefore": at(begin), "beginRefreshAt": at(begin + 3600), "notAfter": at(begin + 7200)})
}

fn cat(lab: &Lab, file: &str) -> String {
    lab.try_kubectl(&["exec", "reads", "--", "cat", file]).stdout
}

/// The pod's requests, the oldest first.
fn requests(lab: &Lab, pod: &str) -> Vec<Value> {
    let all = lab.get(&["podcertificaterequests", "--sort-by=.metadata.creationTimestamp"]);
    let all = all["items"].as_array().cloned().unwrap_or_default();
    all.into_iter().filter(|request| request["spec"]["podName"] == pod).collect()
}

#[track_caller]
fn event(lab: &Lab, object: &str, reason: &str, words: &str) {
    lab.eventually(&format!("{object} has an event {reason}: {words}"), SOON, || {
        let fields = format!("--field-selector=involvedObject.name={object},reason={reason}");
        let events = lab.kubectl(&["get", "events", &fields, "-o", "jsonpath={.items[*].message}"]);
        if events.contains(words) { Ok(()) } else { Err(events) }
    });
}

fn restart_agent(lab: &Lab) {
    let agent = lab.member("node-1")["pid"].to_string();
    command("kill", &["-9", &agent], &[], "").expect_ok();
    lab.eventually("the agent is gone", SOON, || {
        if lab.member("node-1")["pid"].is_null() { Ok(()) } else { Err("it is there".to_owned()) }
    });
    lab.node("start", "node-1").expect_ok();
    lab.wait("node/node-1", "condition=Ready", 60);
}

#[test]
fn certificates() {
    let lab = Lab::up("ccert", &[]);
    let _signer = Signer::start(&lab);
    lab.apply(&include_str!("certificates.yaml").replace("BUSYBOX", BUSYBOX));

    lab.wait("pod/reads", "condition=Ready", 60);
    let asked = requests(&lab, "reads");
    assert_eq!(asked.len(), 2, "one for each source: {asked:#?}");
    let uid = lab.get(&["pod", "reads"])["metadata"]["uid"].clone();
    for request in &asked {
        assert!(request["metadata"]["name"].as_str().unwrap().starts_with("req-"));
        let owner = json!([{"apiVersion": "v1", "kind": "Pod", "name": "reads", "uid": uid}]);
        assert_eq!(request["metadata"]["ownerReferences"], owner);
        assert_eq!((&request["spec"]["nodeName"], &request["spec"]["podUID"]), (&json!("node-1"), &uid));
    }
    let with = |seconds: i64| asked.iter().find(|request| request["spec"]["maxExpirationSeconds"] == seconds).unwrap();
    assert_eq!(with(86400)["spec"]["unverifiedUserAnnotations"], json!({"example.com/purpose": "reading"}));

    // what is in the files: the key, and the chain without what the signer wrote between the blocks
    let chain = |request: &Value| {
        let issued = request["status"]["certificateChain"].as_str().unwrap().to_owned();
        issued.split_once('\n').unwrap().1.to_owned()
    };
    let bundle = cat(&lab, "/c/bundle.pem");
    assert!(bundle.starts_with(KEY) && bundle.ends_with(&chain(with(86400))), "{bundle}");
    assert_eq!((bundle.matches(KEY).count(), bundle.matches(CERTIFICATE).count()), (1, 2));
    assert!(cat(&lab, "/c/parts/key.pem").starts_with(KEY));
    assert_eq!(cat(&lab, "/c/parts/chain.pem"), chain(with(7200)));
    let mode = lab.kubectl(&["exec", "reads", "--", "stat", "-L", "-c", "%a", "/c/bundle.pem", "/c/parts/key.pem"]);
    assert_eq!(mode, "400\n400\n");

    // keys are in the agent's memory only: after a restart there are others, and the container runs on
    restart_agent(&lab);
    lab.eventually("the pod has another key", SOON, || {
        let now = cat(&lab, "/c/bundle.pem");
        let newest = requests(&lab, "reads").into_iter().rev().find(|request| {
            request["spec"]["maxExpirationSeconds"] == 86400 && request["status"]["certificateChain"].is_string()
        });
        let fits = newest.is_some_and(|newest| now.ends_with(&chain(&newest)));
        if now.starts_with(KEY) && now != bundle && fits { Ok(()) } else { Err(now) }
    });
    assert_eq!(lab.get(&["pod", "reads"])["status"]["containerStatuses"][0]["restartCount"], 0);

    let said = "was denied, reason=\"NotToday\", message=\"come back tomorrow\"";
    event(&lab, "refused", "Denied", said);
    let why = "MountVolume.SetUp failed for volume \"certificates\" : PodCertificateRequest was permanently denied: reason=\"NotToday\" message=\"come back tomorrow\"";
    event(&lab, "refused", "FailedMount", why);
    assert!(lab.kubectl(&["get", "pod", "refused"]).contains("ContainerCreating"));
    // they go with their pod
    lab.kubectl(&["delete", "pod", "refused", "--now"]);
    lab.eventually("the request is gone with its pod", SOON, || {
        let left = requests(&lab, "refused");
        if left.is_empty() { Ok(()) } else { Err(format!("{left:#?}")) }
    });
}
