//! Who somebody is, over real TLS: credentials that are good, wrong, ended, or somebody else's.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use apiserver::testing::Cluster;
use apiserver::{KeyPair, OidcOptions};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use kube::client::Body;
use rcgen::PublicKeyData;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// How somebody shows who he is.
#[derive(Default)]
struct Shown {
    token: Option<String>,
    pair: Option<KeyPair>,
}

fn token(token: impl Into<String>) -> Shown {
    Shown { token: Some(token.into()), ..Shown::default() }
}

/// A request over TLS; the code and the body.
async fn ask(cluster: &Cluster, shown: Shown, path: &str) -> (u16, Value) {
    let address = cluster.listen().await;
    let mut config = kube::Config::new(format!("https://{address}").parse().unwrap());
    config.root_cert = Some(vec![CertificateDer::from_pem_slice(cluster.ca_pem().as_bytes()).unwrap().to_vec()]);
    config.auth_info.token = shown.token.map(Into::into);
    if let Some(pair) = shown.pair {
        config.auth_info.client_certificate = Some(pair.certificate.display().to_string());
        config.auth_info.client_key = Some(pair.key.display().to_string());
    }
    let client = kube::Client::try_from(config).unwrap();
    let response = client.send(http::Request::get(path).body(Body::empty()).unwrap()).await.unwrap();
    let code = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (code, serde_json::from_slice(&body).unwrap_or_default())
}

async fn assert_unauthorized(cluster: &Cluster, shown: Shown, what: &str) {
    let (code, status) = ask(cluster, shown, "/api/v1/namespaces/default/pods").await;
    assert_eq!(code, 401, "{what}: {status}");
    assert_eq!((&status["kind"], &status["reason"]), (&json!("Status"), &json!("Unauthorized")), "{what}");
    assert_eq!(status["message"], "Unauthorized", "{what}");
}

/// As soon as the server's caches know what was deleted, which may be a moment after the deletion's answer.
async fn soon_unauthorized(cluster: &Cluster, text: &str, what: &str) {
    let revoked = async {
        while ask(cluster, token(text), "/api/v1/namespaces/default/pods").await.0 != 401 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(10), revoked).await.unwrap_or_else(|_| panic!("{what}"));
    assert_unauthorized(cluster, token(text), what).await;
}

async fn post(cluster: &Cluster, path: &str, body: Value) -> Value {
    let request = http::Request::post(path).header("content-type", "application/json");
    cluster.admin().request(request.body(body.to_string().into_bytes()).unwrap()).await.unwrap()
}

async fn delete(cluster: &Cluster, path: &str) {
    let _: Value = cluster.admin().request(http::Request::delete(path).body(Vec::new()).unwrap()).await.unwrap();
}

/// Who the server says a token's holder is.
async fn whoami(cluster: &Cluster, shown: String) -> Value {
    let review = json!({"kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1", "spec": {"token": shown}});
    post(cluster, "/apis/authentication.k8s.io/v1/tokenreviews", review).await["status"].take()
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_that_ended_or_are_foreign_are_unauthorized() {
    let cluster = Cluster::start().await;
    cluster.listen().await;
    let pair = |pair| Shown { pair: Some(pair), ..Shown::default() };
    assert_unauthorized(&cluster, pair(cluster.expired_key_pair("jane")), "an expired certificate").await;
    assert_unauthorized(&cluster, pair(cluster.foreign_key_pair("admin")), "one of another CA").await;
    let (code, _) = ask(&cluster, pair(cluster.key_pair("jane", &[])), "/api/v1/namespaces/default/pods").await;
    assert_eq!(code, 403, "a good one is known, and may nothing");
    let (code, _) = ask(&cluster, Shown::default(), "/version").await;
    assert_eq!(code, 200, "without any one is anonymous");
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_that_are_wrong_are_unauthorized() {
    let (cluster, other) = (Cluster::start().await, Cluster::start().await);
    let mint = async |cluster: &Cluster, spec: Value| -> String {
        let request = json!({"kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1", "spec": spec});
        let path = "/api/v1/namespaces/default/serviceaccounts/bot/token";
        post(cluster, path, request).await["status"]["token"].as_str().unwrap().to_owned()
    };
    let account = json!({"kind": "ServiceAccount", "apiVersion": "v1", "metadata": {"name": "bot"}});
    for cluster in [&cluster, &other] {
        post(cluster, "/api/v1/namespaces/default/serviceaccounts", account.clone()).await;
    }
    let good = mint(&cluster, json!({})).await;
    let (code, _) = ask(&cluster, token(good.clone()), "/api/v1/namespaces/default/pods").await;
    assert_eq!(code, 403, "a good one is known");
    assert_unauthorized(&cluster, token(mint(&other, json!({})).await), "a foreign token").await;
    assert_unauthorized(&cluster, token(mint(&cluster, json!({"audiences": ["else"]})).await), "for somebody else")
        .await;
    for malformed in ["x", "a.b.c", "abcdef.0123456789abcdef", &good[..good.len() - 4]] {
        assert_unauthorized(&cluster, token(malformed), malformed).await;
    }
    let secret = json!({"kind": "Secret", "apiVersion": "v1", "metadata": {"name": "s"}});
    post(&cluster, "/api/v1/namespaces/default/secrets", secret).await;
    let bound = |kind: &str, name: &str| json!({"boundObjectRef": {"apiVersion": "v1", "kind": kind, "name": name}});
    let of_secret = mint(&cluster, bound("Secret", "s")).await;
    let pod = json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "p"}, "spec": {
        "serviceAccountName": "bot", "automountServiceAccountToken": false, "containers": [{"name": "c", "image": "x"}]}});
    post(&cluster, "/api/v1/namespaces/default/pods", pod).await;
    let of_pod = mint(&cluster, bound("Pod", "p")).await;
    for good in [&of_secret, &of_pod] {
        assert_eq!(whoami(&cluster, good.clone()).await["user"]["username"], "system:serviceaccount:default:bot");
    }
    delete(&cluster, "/api/v1/namespaces/default/secrets/s").await;
    delete(&cluster, "/api/v1/namespaces/default/pods/p?gracePeriodSeconds=0").await;
    soon_unauthorized(&cluster, &of_secret, "its Secret is gone").await;
    soon_unauthorized(&cluster, &of_pod, "its pod is gone").await;
    delete(&cluster, "/api/v1/namespaces/default/serviceaccounts/bot").await;
    soon_unauthorized(&cluster, &good, "its account is gone").await;
}

/// Answers each request, by its path and body, over TLS with the cluster's certificate.
async fn serve<F>(cluster: &Cluster, answer: F) -> std::net::SocketAddr
where
    F: Fn(&str, Value) -> Value + Send + Sync + 'static,
{
    let pair = cluster.key_pair_for_server("localhost");
    let chain = vec![CertificateDer::from_pem_file(&pair.certificate).unwrap()];
    let key = PrivateKeyDer::from_pem_file(&pair.key).unwrap();
    let tls = rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key).unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let answer = Arc::new(answer);
    cluster.supervisor.spawn("other-server", async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, answer) = (acceptor.clone(), answer.clone());
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let service = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
                    let answer = answer.clone();
                    async move {
                        let path = request.uri().path().to_owned();
                        let body = request.into_body().collect().await?.to_bytes();
                        let answer = answer(&path, serde_json::from_slice(&body).unwrap_or_default());
                        Ok::<_, hyper::Error>(http::Response::new(Full::new(Bytes::from(answer.to_string()))))
                    }
                });
                let _ =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    address
}

/// An issuer's key: signs claims, and shows itself as a JWK.
struct IssuerKey {
    pair: aws_lc_rs::signature::EcdsaKeyPair,
    jwk: Value,
}

impl IssuerKey {
    fn new(id: &str) -> Self {
        let generated = rcgen::KeyPair::generate().unwrap();
        let kind = &aws_lc_rs::signature::ECDSA_P256_SHA256_FIXED_SIGNING;
        let pair = aws_lc_rs::signature::EcdsaKeyPair::from_pkcs8(kind, &generated.serialize_der()).unwrap();
        let point = generated.der_bytes();
        let jwk = json!({"kty": "EC", "crv": "P-256", "use": "sig", "kid": id, "alg": "ES256",
            "x": BASE64.encode(&point[1..33]), "y": BASE64.encode(&point[33..65])});
        Self { pair, jwk }
    }

    fn sign(&self, claims: &Value) -> String {
        let header = json!({"alg": "ES256", "kid": self.jwk["kid"]});
        let signed = format!("{}.{}", BASE64.encode(header.to_string()), BASE64.encode(claims.to_string()));
        let random = aws_lc_rs::rand::SystemRandom::new();
        format!("{signed}.{}", BASE64.encode(self.pair.sign(&random, signed.as_bytes()).unwrap()))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_of_an_openid_issuer_are_good() {
    let issuer_home = Cluster::start().await;
    let keys = Arc::new(parking_lot::Mutex::new(json!([])));
    let held = keys.clone();
    let url = Arc::new(parking_lot::Mutex::new(String::new()));
    let own = url.clone();
    let address = serve(&issuer_home, move |path, _| match path {
        "/.well-known/openid-configuration" => {
            let url = own.lock().clone();
            json!({"issuer": url, "jwks_uri": format!("{url}/keys")})
        }
        _ => json!({"keys": *held.lock()}),
    })
    .await;
    let issuer = format!("https://localhost:{}", address.port());
    url.lock().clone_from(&issuer);
    let ca = issuer_home.dir().join("ca.crt");
    let cluster = Cluster::start_with(|config| {
        config.options.authentication.oidc = OidcOptions {
            issuer_url: Some(issuer.clone()),
            client_id: "skiff".into(),
            username_prefix: "oidc:".into(),
            groups_claim: "groups".into(),
            ca_file: Some(ca),
            signing_algorithms: vec!["ES256".into()],
            ..OidcOptions::default()
        };
    })
    .await;
    let first = IssuerKey::new("first");
    *keys.lock() = json!([first.jwk]);
    let now = jiff::Timestamp::now().as_second();
    let claims = |exp: i64| json!({"iss": issuer, "aud": "skiff", "sub": "jane", "groups": ["dev"], "exp": now + exp});
    let user = whoami(&cluster, first.sign(&claims(600))).await;
    assert_eq!(user["user"]["username"], "oidc:jane", "{user}");
    assert_eq!(user["user"]["groups"], json!(["dev", "system:authenticated"]));
    let page = http::Request::get("/metrics").body(Vec::new()).unwrap();
    let page = cluster.admin().request_text(page).await.unwrap();
    let known = "apiserver_authentication_jwt_authenticator_jwks_fetch_last_key_set_info{jwt_issuer_hash=\"sha256:";
    assert!(page.contains(known) && page.contains("jwks_fetch_last_timestamp_seconds{result=\"success\","), "{page}");
    assert_unauthorized(&cluster, token(first.sign(&claims(-600))), "an expired token").await;
    let mut foreign = claims(600);
    foreign["aud"] = "other".into();
    assert_unauthorized(&cluster, token(first.sign(&foreign)), "for another audience").await;
    let second = IssuerKey::new("second");
    assert_unauthorized(&cluster, token(second.sign(&claims(600))), "a key that the issuer does not have").await;
    // The issuer changes its keys: they are fetched again, at most once a second.
    *keys.lock() = json!([second.jwk]);
    for _ in 0..200 {
        if whoami(&cluster, second.sign(&claims(600))).await["authenticated"] == true {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the new key was not fetched");
}

fn kubeconfig(cluster: &Cluster, address: std::net::SocketAddr, path: &str) -> std::path::PathBuf {
    let ca = cluster.dir().join("ca.crt");
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: a\nclusters: [{{name: a, cluster: {{server: 'https://localhost:{}{path}', certificate-authority: '{}'}}}}]\ncontexts: [{{name: a, context: {{cluster: a, user: a}}}}]\nusers: [{{name: a, user: {{}}}}]\n",
        address.port(),
        ca.display()
    );
    let file = cluster.dir().join(format!("{}.kubeconfig", path.trim_matches('/')));
    std::fs::write(&file, text).unwrap();
    file
}

#[tokio::test(flavor = "multi_thread")]
async fn webhooks_know_tokens_and_decide_about_rights() {
    let home = Cluster::start().await;
    let address = serve(&home, |path, review| match path {
        "/authenticate" => {
            let known = review["spec"]["token"] == "opaque";
            json!({"kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1",
                "status": {"authenticated": known, "user": {"username": "jane", "groups": ["dev"]}}})
        }
        _ => {
            let resource = &review["spec"]["resourceAttributes"]["resource"];
            json!({"kind": "SubjectAccessReview", "apiVersion": "authorization.k8s.io/v1", "status": {
                "allowed": resource == "pods", "denied": resource == "secrets", "reason": "the oracle spoke"}})
        }
    })
    .await;
    let (tokens, rights) = (kubeconfig(&home, address, "/authenticate"), kubeconfig(&home, address, "/authorize"));
    let cluster = Cluster::start_with(|config| {
        config.options.authentication.webhook = Some((tokens, Duration::from_secs(60)));
        config.options.authorization.modes = ["Node", "RBAC", "Webhook"].map(str::to_owned).to_vec();
        config.options.authorization.webhook = Some((rights, Duration::from_secs(60), Duration::ZERO));
    })
    .await;
    assert_unauthorized(&cluster, token("other"), "a token that nobody knows").await;
    let (code, list) = ask(&cluster, token("opaque"), "/api/v1/namespaces/default/pods").await;
    assert_eq!((code, &list["kind"]), (200, &json!("PodList")), "{list}");
    let (code, status) = ask(&cluster, token("opaque"), "/api/v1/namespaces/default/secrets").await;
    assert_eq!(code, 403);
    assert_eq!(
        status["message"],
        "secrets is forbidden: User \"jane\" cannot list resource \"secrets\" in API group \"\" in the namespace \"default\": the oracle spoke"
    );
    let review = json!({"kind": "SubjectAccessReview", "apiVersion": "authorization.k8s.io/v1", "spec": {
        "user": "jane", "resourceAttributes": {"verb": "get", "resource": "secrets", "namespace": "a"}}});
    let review = post(&cluster, "/apis/authorization.k8s.io/v1/subjectaccessreviews", review).await;
    assert_eq!(review["status"], json!({"allowed": false, "denied": true, "reason": "the oracle spoke"}));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_right_that_nobody_could_be_asked_about_is_not_a_no() {
    let cluster = Cluster::start_with(|config| {
        let rights = config.client_ca.with_file_name("rights");
        let text = "{apiVersion: v1, kind: Config, current-context: a, contexts: [{name: a, context: {cluster: a, user: a}}], users: [{name: a, user: {}}], clusters: [{name: a, cluster: {server: 'http://127.0.0.1:1/authorize'}}]}";
        std::fs::write(&rights, text).unwrap();
        config.options.authorization.modes = ["RBAC", "Webhook"].map(str::to_owned).to_vec();
        config.options.authorization.webhook = Some((rights, Duration::ZERO, Duration::ZERO));
    })
    .await;
    let request = http::Request::get("/api/v1/pods?limit=1").body(Body::empty()).unwrap();
    let response = cluster.client("jane").send(request).await.unwrap();
    assert_eq!(response.status(), 500);
    assert_eq!(response.headers()["content-type"], "text/plain; charset=utf-8");
    let page = response.into_body().collect().await.unwrap().to_bytes();
    let page = String::from_utf8_lossy(&page);
    assert!(page.starts_with("Internal Server Error: \"/api/v1/pods?limit=1\": "), "{page}");
}

#[tokio::test(flavor = "multi_thread")]
async fn anonymous_requests_may_be_good_for_some_paths_only() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("authentication.yaml");
    let text = "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\nanonymous: {enabled: true, conditions: [{path: /livez}]}\n";
    std::fs::write(&file, text).unwrap();
    let cluster = Cluster::start_with(|config| config.options.authentication.config_file = Some(file.clone())).await;
    assert_eq!(ask(&cluster, Shown::default(), "/livez").await.0, 200);
    assert_eq!(ask(&cluster, Shown::default(), "/version").await.0, 401);
    // The file is read again; what cannot be used changes nothing.
    for (path, code) in [("/version", 200), ("none of them", 200), ("/livez", 401)] {
        let changed = if path.starts_with('/') { text.replace("/livez", path) } else { "kind: Nonsense".to_owned() };
        replace(&file, &changed);
        let mut last = 0;
        for _ in 0..400 {
            last = ask(&cluster, Shown::default(), "/version").await.0;
            if last == code {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(25)).await;
        }
        assert_eq!(last, code, "{path}");
    }
}

/// As configuration management does it.
fn replace(file: &std::path::Path, text: &str) {
    let staged = file.with_extension("new");
    std::fs::write(&staged, text).unwrap();
    std::fs::rename(staged, file).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_authorization_configuration_is_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("authorization.yaml");
    let text = |mode: &str| {
        format!(
            "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthorizationConfiguration\nauthorizers: [{{type: {mode}, name: first}}]\n"
        )
    };
    std::fs::write(&file, text("RBAC")).unwrap();
    let cluster = Cluster::start_with(|config| config.options.authorization.config_file = Some(file.clone())).await;
    let jane = cluster.client("jane");
    let asks = async || {
        let request = http::Request::get("/api/v1/namespaces/default/configmaps").body(Body::from(Vec::new())).unwrap();
        jane.send(request).await.unwrap().status().as_u16()
    };
    assert_eq!(asks().await, 403);
    for (mode, code) in [("AlwaysAllow", 200), ("RBAC", 403)] {
        replace(&file, &text(mode));
        let mut last = 0;
        for _ in 0..400 {
            last = asks().await;
            if last == code {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(25)).await;
        }
        assert_eq!(last, code, "{mode}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn impersonation_is_a_right_on_each_part_of_an_identity() {
    let cluster = Cluster::start().await;
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    let role = json!({"kind": "ClusterRole", "apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": "acting"},
        "rules": [
            {"verbs": ["impersonate"], "apiGroups": [""], "resources": ["users"], "resourceNames": ["jane"]},
            {"verbs": ["impersonate:user-info"], "apiGroups": ["authentication.k8s.io"], "resources": ["users"], "resourceNames": ["joe"]},
            {"verbs": ["impersonate-on:user-info:create"], "apiGroups": ["authentication.k8s.io"], "resources": ["selfsubjectreviews"]}]});
    post(&cluster, &format!("{rbac}/clusterroles"), role).await;
    let binding = json!({"kind": "ClusterRoleBinding", "apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": "acting"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "acting"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "actor"}]});
    post(&cluster, &format!("{rbac}/clusterrolebindings"), binding).await;
    let act = async |headers: &[(&str, &str)]| {
        let mut request = http::Request::post("/apis/authentication.k8s.io/v1/selfsubjectreviews")
            .header("content-type", "application/json");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let body = json!({"kind": "SelfSubjectReview", "apiVersion": "authentication.k8s.io/v1"}).to_string();
        let response =
            cluster.client("actor").send(request.body(Body::from(body.into_bytes())).unwrap()).await.unwrap();
        let code = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (code, serde_json::from_slice::<Value>(&body).unwrap())
    };
    let (code, review) = act(&[("impersonate-user", "jane")]).await;
    assert_eq!(code, 201, "{review}");
    assert_eq!(review["status"]["userInfo"], json!({"username": "jane", "groups": ["system:authenticated"]}));
    assert_eq!(act(&[("impersonate-user", "joe")]).await.0, 201, "the constrained way");
    let (code, status) = act(&[("impersonate-user", "jane"), ("impersonate-group", "ops")]).await;
    assert_eq!(code, 403);
    assert_eq!(
        status["message"],
        "users.authentication.k8s.io \"jane\" is forbidden: User \"actor\" cannot impersonate:user-info resource \"users\" in API group \"authentication.k8s.io\" at the cluster scope"
    );
    assert_eq!(act(&[("impersonate-group", "ops")]).await.0, 400);
}

/// An account that took the name of a deleted one gets no tokens that were asked for the other.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_for_the_account_of_the_uid_that_the_request_names() {
    let cluster = Cluster::start().await;
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    let account = json!({"kind": "ServiceAccount", "apiVersion": "v1", "metadata": {"name": "bot"}});
    let uid = post(&cluster, accounts, account).await["metadata"]["uid"].clone();
    let asked = async |uid: &Value| {
        let request = json!({"kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1", "metadata": {"uid": uid}, "spec": {}});
        let call = http::Request::post(format!("{accounts}/bot/token")).header("content-type", "application/json");
        cluster.admin().request::<Value>(call.body(request.to_string().into_bytes()).unwrap()).await
    };
    assert!(asked(&uid).await.unwrap()["status"]["token"].is_string());
    let refused = asked(&json!("other")).await.unwrap_err().to_string();
    let why = format!(
        "Operation cannot be fulfilled on TokenRequest.authentication.k8s.io \"bot\": the UID in the token request (other) does not match the UID of the service account ({})",
        uid.as_str().unwrap()
    );
    assert!(refused.contains(&why), "{refused}");
}
