//! Providers that are shells: `/bin/sh` under the provider's name, told by its arguments what to do.

use std::path::Path;

use k8s_openapi::api::core::v1::ServiceAccount;
use serde_json::{Value, json};

use super::*;
use crate::images::keyring::Credential;

const IMAGE: &str = "r.io/team/app";

/// The answer of a provider that gives what `$USER_NAME` says, and a password.
const ANSWER: &str = r#"printf '{"kind":"CredentialProviderResponse","apiVersion":"credentialprovider.kubelet.k8s.io/v1","cacheKeyType":"%s","cacheDuration":"%s","auth":{"%s":{"username":"%s","password":"%s"}}}'"#;

fn script(kind: &str, duration: &str, place: &str, user: &str, password: &str) -> String {
    format!("{ANSWER} '{kind}' '{duration}' '{place}' \"{user}\" \"{password}\"")
}

struct Given {
    directory: tempfile::TempDir,
    providers: Vec<Value>,
}

impl Given {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap(), providers: Vec::new() }
    }

    /// A provider for all of r.io that notes each question in the file `asked`, then runs `script`.
    fn provider(&mut self, name: &str, script: &str, more: Value) -> &mut Self {
        std::os::unix::fs::symlink("/bin/sh", self.directory.path().join(name)).unwrap();
        let asked = self.directory.path().join("asked");
        let script = format!("request=$(cat); echo \"{name} $request\" >> {}; {script}", asked.display());
        let mut provider = json!({
            "name": name, "matchImages": ["r.io", "*.r.io"], "defaultCacheDuration": "0s",
            "apiVersion": protocol::VERSION, "args": ["-c", script], "env": [{"name": "USER_NAME", "value": "me"}],
        });
        provider.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.providers.push(provider);
        self
    }

    fn ready(&self) -> Providers {
        let config = self.directory.path().join("config.json");
        let text = json!({"apiVersion": "kubelet.config.k8s.io/v1", "kind": "CredentialProviderConfig", "providers": self.providers});
        std::fs::write(&config, text.to_string()).unwrap();
        let settings = Settings::read(&config, self.directory.path()).unwrap();
        Providers::new(&settings, api(), Arc::default())
    }

    fn asked(&self) -> Vec<String> {
        asked(self.directory.path())
    }
}

fn asked(directory: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(directory.join("asked")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// An API server with one ServiceAccount, `bot`, that gives its tokens.
fn api() -> Client {
    let service = tower::service_fn(|request: http::Request<kube::client::Body>| async move {
        let path = request.uri().path().to_owned();
        let (status, body) = if path.ends_with("/serviceaccounts/bot/token") {
            let token = json!({"token": "the-token", "expirationTimestamp": "2999-01-01T00:00:00Z"});
            (
                201,
                json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "metadata": {}, "spec": {"audiences": []}, "status": token}),
            )
        } else if path.ends_with("/serviceaccounts/bot") {
            let mut account = ServiceAccount::default();
            account.metadata.uid = Some("uid-bot".to_owned());
            account.metadata.annotations = Some([("team".to_owned(), "red".to_owned())].into());
            (200, serde_json::to_value(account)?)
        } else {
            (
                404,
                json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "message": "not found", "code": 404}),
            )
        };
        let body = http_body_util::Full::from(serde_json::to_vec(&body)?);
        Ok::<_, tower::BoxError>(http::Response::builder().status(status).body(body)?)
    });
    Client::new(service, "default")
}

fn pod(account: &str) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": "p", "namespace": "n", "uid": "u"},
        "spec": {"serviceAccountName": account, "containers": []},
    }))
    .unwrap()
}

async fn logins(providers: &Providers, image: &str, account: &str) -> Vec<(String, String)> {
    let found = providers.keyring(image, &pod(account)).await.lookup(image);
    found.into_iter().map(|Credential { login, .. }| (login.username, login.password)).collect()
}

fn pair(user: &str, password: &str) -> (String, String) {
    (user.to_owned(), password.to_owned())
}

#[tokio::test]
async fn providers_are_asked_for_their_images_and_give_logins() {
    let mut given = Given::new();
    given.provider("first", &script("Image", "0s", "r.io", "$USER_NAME", "1"), json!({}));
    given.provider("second", &script("Image", "0s", "r.io/team", "second", "2"), json!({}));
    given.provider("other", &script("Image", "0s", "r.io", "no", "no"), json!({"matchImages": ["q.io"]}));
    let providers = given.ready();
    assert_eq!(logins(&providers, IMAGE, "bot").await, [pair("second", "2"), pair("me", "1")]);
    assert!(logins(&providers, "elsewhere.io/app", "bot").await.is_empty());
    let question = r#"{"apiVersion":"credentialprovider.kubelet.k8s.io/v1","image":"r.io/team/app","kind":"CredentialProviderRequest"}"#;
    let asked: Vec<(String, Value)> = given
        .asked()
        .iter()
        .map(|line| line.split_once(' ').unwrap())
        .map(|(name, request)| (name.to_owned(), serde_json::from_str(request).unwrap()))
        .collect();
    let expected: Value = serde_json::from_str(question).unwrap();
    assert_eq!(asked, [("first".to_owned(), expected.clone()), ("second".to_owned(), expected)]);
}

#[tokio::test]
async fn a_provider_that_fails_gives_nothing_and_stops_nobody() {
    for (script, echo) in [
        ("echo broken >&2; exit 3", false),
        ("echo no JSON", false),
        ("kill -9 $$", false),
        (&*script("Pod", "1m", "r.io", "u", "p"), false),
        (&*script("Global", "1m", "r.io", "u", "the-token"), true),
    ] {
        let mut given = Given::new();
        let attributes =
            json!({"serviceAccountTokenAudience": "a", "cacheType": "ServiceAccount", "requireServiceAccount": true});
        given.provider("bad", script, if echo { json!({"tokenAttributes": attributes}) } else { json!({}) });
        given.provider("good", &self::script("Image", "0s", "r.io", "me", "1"), json!({}));
        assert_eq!(logins(&given.ready(), IMAGE, "bot").await, [pair("me", "1")], "{script}");
    }
}

#[tokio::test]
async fn answers_are_kept_for_as_long_as_they_say() {
    for (kind, duration, default, questions) in
        [("Image", "0s", "1h", 3), ("Image", "1h", "0s", 2), ("Registry", "1h", "0s", 1), ("Global", "1h", "0s", 1)]
    {
        let mut given = Given::new();
        let answer = script(kind, duration, "r.io", "me", "1");
        given.provider("one", &answer, json!({"defaultCacheDuration": default}));
        let providers = given.ready();
        for image in ["r.io/a", "r.io/a", "r.io/b"] {
            assert_eq!(logins(&providers, image, "").await, [pair("me", "1")]);
        }
        assert_eq!(given.asked().len(), questions, "{kind} {duration}");
    }
}

#[tokio::test]
async fn pods_that_ask_the_same_at_once_wait_for_one_answer() {
    let mut given = Given::new();
    given.provider("one", &script("Image", "1h", "r.io", "me", "1"), json!({}));
    let providers = given.ready();
    let all = futures::future::join_all((0..4).map(|_| logins(&providers, IMAGE, ""))).await;
    assert!(all.iter().all(|found| *found == [pair("me", "1")]));
    assert_eq!(given.asked().len(), 1);
}

#[tokio::test]
async fn accounts_are_told_of_and_answers_are_theirs() {
    let attributes = |required: bool, keys: &[&str]| {
        json!({"tokenAttributes": {
            "serviceAccountTokenAudience": "a", "cacheType": "Token", "requireServiceAccount": required,
            "requiredServiceAccountAnnotationKeys": if required { keys } else { &[] },
        }})
    };
    let echo = script(
        "Global",
        "1h",
        "r.io",
        "me",
        "$(echo $request | sed 's/.*serviceAccountToken\":\"\\([^\"]*\\).*/\\1/')",
    );
    for (attributes, account, expected) in [
        (attributes(true, &["team"]), "bot", vec![pair("me", "the-token")]),
        (attributes(true, &["missing"]), "bot", vec![]),
        (attributes(true, &[]), "nobody", vec![]),
        (attributes(true, &[]), "", vec![]),
    ] {
        let mut given = Given::new();
        given.provider("one", &echo, attributes.clone());
        let providers = given.ready();
        assert_eq!(logins(&providers, IMAGE, account).await, expected, "{attributes} {account}");
        assert_eq!(given.asked().len(), expected.len());
        let found = providers.keyring(IMAGE, &pod(account)).await.lookup(IMAGE);
        assert!(found.iter().all(
            |credential| matches!(&credential.source, Source::ServiceAccount(account) if account.uid == "uid-bot")
        ));
    }
    let mut given = Given::new();
    given.provider("one", &script("Global", "1h", "r.io", "me", "1"), attributes(false, &[]));
    let found = given.ready().keyring(IMAGE, &pod("")).await.lookup(IMAGE);
    assert_eq!(found[0].source, Source::Node, "a pod without an account gets what the node gets");
}
