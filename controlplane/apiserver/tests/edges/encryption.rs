//! Encryption at rest: bytes in the store, rotation, wrong keys.

use std::path::{Path, PathBuf};
use std::time::Duration;

use apiserver::UserInfo;
use apiserver::testing::Cluster;
use futures::{AsyncBufReadExt, StreamExt};
use serde_json::{Value, json};

use super::ask;

const SECRETS: &str = "/api/v1/namespaces/default/secrets";
const KEY: &str = "/registry/secrets/default/a";
/// 32 bytes in base64.
const ONE: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
const TWO: &str = "ZmVkY2JhOTg3NjU0MzIxMGZlZGNiYTk4NzY1NDMyMTA=";

fn write(path: &Path, resources: &str, providers: &str) {
    let text = format!(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n- resources: {resources}\n  providers: {providers}\n"
    );
    let staged = path.with_extension("new");
    std::fs::write(&staged, text).unwrap();
    std::fs::rename(staged, path).unwrap();
}

fn aesgcm(keys: &[(&str, &str)]) -> String {
    let keys: Vec<String> = keys.iter().map(|(name, secret)| format!("{{name: {name}, secret: {secret}}}")).collect();
    format!("{{aesgcm: {{keys: [{}]}}}}", keys.join(", "))
}

fn secret(name: &str) -> String {
    json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": {"word": "open-sesame"}})
        .to_string()
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|part| part == text.as_bytes())
}

/// `open-sesame` in base64.
fn is_told(answer: &Value) -> bool {
    answer["data"]["word"] == "b3Blbi1zZXNhbWU="
}

struct Encrypted {
    cluster: Cluster,
    file: PathBuf,
    _dir: tempfile::TempDir,
}

async fn encrypted(resources: &str, providers: &str) -> Encrypted {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("encryption.yaml");
    write(&file, resources, providers);
    let cluster = Cluster::start_with(|config| config.encryption = Some(file.clone())).await;
    Encrypted { cluster, file, _dir: dir }
}

#[tokio::test]
async fn secrets_lie_encrypted_in_the_store_and_are_read_everywhere() {
    let encrypted = encrypted("[secrets]", &format!("[{}, {{identity: {{}}}}]", aesgcm(&[("one", ONE)]))).await;
    let cluster = &encrypted.cluster;
    let client = cluster.admin();
    assert_eq!(ask(&client, "POST", SECRETS, &secret("a")).await.0, 201);
    let stored = cluster.stored(KEY).await.unwrap();
    assert!(stored.starts_with(b"k8s:enc:aesgcm:v1:one:"));
    assert!(!contains(&stored, "b3Blbi1zZXNhbWU") && !contains(&stored, "metadata"));

    assert!(is_told(&ask(&client, "GET", &format!("{SECRETS}/a"), "").await.1));
    for list in ["", "?limit=1", "?resourceVersion=0"] {
        assert!(is_told(&ask(&client, "GET", &format!("{SECRETS}{list}"), "").await.1["items"][0]), "{list}");
    }
    let (code, patched) = ask(&client, "DELETE", &format!("{SECRETS}/a"), "").await;
    assert_eq!(code, 200, "{patched}");
    assert_eq!(ask(&client, "GET", &format!("{SECRETS}/a"), "").await.0, 404);

    // What the configuration does not name lies there as it is.
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}, "data": {"word": "plain"}});
    assert_eq!(ask(&client, "POST", "/api/v1/namespaces/default/configmaps", &map.to_string()).await.0, 201);
    assert!(contains(&cluster.stored("/registry/configmaps/default/m").await.unwrap(), "plain"));
}

#[tokio::test]
async fn a_new_first_key_takes_over_and_the_old_one_can_go() {
    let encrypted = encrypted("['*.*']", &format!("[{}]", aesgcm(&[("one", ONE)]))).await;
    let (cluster, file) = (&encrypted.cluster, &encrypted.file);
    let client = cluster.admin();
    assert_eq!(ask(&client, "POST", SECRETS, &secret("a")).await.0, 201);
    assert!(cluster.stored(KEY).await.unwrap().starts_with(b"k8s:enc:aesgcm:v1:one:"));

    write(file, "['*.*']", &format!("[{}]", aesgcm(&[("two", TWO), ("one", ONE)])));
    // What `kubectl get secrets -o json | kubectl replace -f -` does: an update that changes nothing.
    for _ in 0..600 {
        let (_, held) = ask(&client, "GET", &format!("{SECRETS}/a"), "").await;
        let (code, answer) = ask(&client, "PUT", &format!("{SECRETS}/a"), &held.to_string()).await;
        assert_eq!(code, 200, "{answer}");
        if cluster.stored(KEY).await.unwrap().starts_with(b"k8s:enc:aesgcm:v1:two:") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(
        cluster.stored(KEY).await.unwrap().starts_with(b"k8s:enc:aesgcm:v1:two:"),
        "the configuration was not read again"
    );
    let (_, held) = ask(&client, "GET", &format!("{SECRETS}/a"), "").await;
    let (_, again) = ask(&client, "PUT", &format!("{SECRETS}/a"), &held.to_string()).await;
    assert_eq!(
        held["metadata"]["resourceVersion"], again["metadata"]["resourceVersion"],
        "and then nothing is written"
    );
    assert!(is_told(&again));
}

#[tokio::test]
async fn a_wrong_key_names_the_object_that_cannot_be_read() {
    let encrypted = encrypted("[secrets]", &format!("[{}]", aesgcm(&[("one", ONE)]))).await;
    let (cluster, file) = (&encrypted.cluster, &encrypted.file);
    assert_eq!(ask(&cluster.admin(), "POST", SECRETS, &secret("a")).await.0, 201);
    let dir = file.parent().unwrap().to_owned();
    let wrong = dir.join("wrong.yaml");
    write(&wrong, "[secrets]", &format!("[{}]", aesgcm(&[("one", TWO)])));
    let unnamed = dir.join("unnamed.yaml");
    write(&unnamed, "[secrets]", &format!("[{}]", aesgcm(&[("two", TWO)])));
    for configuration in [Some(wrong), Some(unnamed), None] {
        let server = cluster.another(|config| config.encryption = configuration.clone()).await;
        let client = server.client(&UserInfo::admin());
        let (code, status) = ask(&client, "GET", SECRETS, "").await;
        assert_eq!(code, 500, "{configuration:?} {status}");
        let begins = format!(
            "failed to read one or more secrets from the storage: StorageError: corrupt object, Code: 7, Key: {KEY}, ResourceVersion: 0, AdditionalErrorMsg: data from the storage is not transformable revision=0: "
        );
        assert!(status["message"].as_str().unwrap().starts_with(&begins), "{status}");
        assert_eq!(
            (&status["reason"], &status["details"]["causes"][0]["field"]),
            (&json!("StoreReadError"), &json!(KEY))
        );
        let (code, _) = ask(&client, "GET", "/api/v1/namespaces/default/configmaps", "").await;
        assert_eq!(code, 200, "others are served");
    }
}

#[tokio::test]
async fn what_cannot_be_read_is_removed_by_who_may_and_hides_nothing_else() {
    let encrypted = encrypted("[secrets]", &format!("[{}]", aesgcm(&[("one", ONE)]))).await;
    let (cluster, file) = (&encrypted.cluster, &encrypted.file);
    assert_eq!(ask(&cluster.admin(), "POST", SECRETS, &secret("a")).await.0, 201);
    let lost = file.parent().unwrap().join("lost.yaml");
    write(&lost, "[secrets]", &format!("[{}]", aesgcm(&[("two", TWO)])));
    let server = cluster.another(|config| config.encryption = Some(lost.clone())).await;
    let client = server.client(&UserInfo::admin());
    let (path, with) = (format!("{SECRETS}/a"), |more: &str| {
        format!("{SECRETS}/a?ignoreStoreReadErrorWithClusterBreakingPotential=true{more}")
    });

    // What is written with the new key is read, changed and listed where the other is not.
    let elsewhere = "/api/v1/namespaces/kube-public/secrets";
    assert_eq!(ask(&client, "POST", elsewhere, &secret("b")).await.0, 201);
    assert!(is_told(&ask(&client, "GET", &format!("{elsewhere}/b"), "").await.1));
    assert!(is_told(&ask(&client, "GET", elsewhere, "").await.1["items"][0]));
    let patch = ask(&client, "PUT", &format!("{elsewhere}/b"), &secret("b")).await;
    assert_eq!(patch.0, 200, "{}", patch.1);

    let (code, status) = ask(&client, "GET", &path, "").await;
    assert_eq!((code, &status["reason"]), (500, &json!("InternalError")), "{status}");
    assert_eq!(ask(&client, "DELETE", &path, "").await.0, 500);
    assert_eq!(ask(&client, "DELETE", &with("&gracePeriodSeconds=0"), "").await.0, 422);
    assert_eq!(
        ask(&client, "DELETE", &format!("{SECRETS}?ignoreStoreReadErrorWithClusterBreakingPotential=true"), "").await.0,
        422
    );

    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "deletes"},
        "rules": [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["delete"]}]});
    let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "deletes"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "deletes"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "jane"}]});
    for (plural, object) in [("clusterroles", role), ("clusterrolebindings", binding)] {
        let path = format!("/apis/rbac.authorization.k8s.io/v1/{plural}");
        assert_eq!(ask(&client, "POST", &path, &object.to_string()).await.0, 201);
    }
    let jane = server.client(&UserInfo::new("jane", &["system:authenticated"]));
    let (code, status) = ask(&jane, "DELETE", &with(""), "").await;
    assert_eq!(code, 403, "{status}");
    assert_eq!(
        status["message"],
        "secrets \"a\" is forbidden: not permitted to do \"unsafe-delete-ignore-read-errors\", reason: "
    );

    assert_eq!(ask(&client, "DELETE", &with("&dryRun=All"), "").await.0, 200);
    assert_eq!(ask(&client, "GET", &path, "").await.0, 500, "it was only tried");
    let (code, status) = ask(&client, "DELETE", &with(""), "").await;
    assert_eq!((code, &status["details"]), (200, &json!({"name": "a", "kind": "Secret"})), "{status}");
    assert_eq!(ask(&client, "GET", SECRETS, "").await.0, 200, "at once");
    assert_eq!(ask(&client, "DELETE", &with(""), "").await.0, 404);
    let (code, status) =
        ask(&client, "DELETE", &format!("{elsewhere}/b?ignoreStoreReadErrorWithClusterBreakingPotential=true"), "")
            .await;
    assert_eq!(code, 409);
    assert!(
        status["message"]
            .as_str()
            .unwrap()
            .ends_with("unsafe deletion is not allowed because the object is decodable from storage")
    );
}

#[tokio::test]
async fn what_cannot_be_read_blocks_no_admission_and_ends_watches() {
    let encrypted = encrypted("[serviceaccounts]", &format!("[{}]", aesgcm(&[("one", ONE)]))).await;
    let (cluster, file) = (&encrypted.cluster, &encrypted.file);
    let other = file.parent().unwrap().join("other.yaml");
    write(&other, "[serviceaccounts]", &format!("[{}]", aesgcm(&[("two", TWO)])));
    let server = cluster.another(|config| config.encryption = Some(other.clone())).await;
    let (first, second) = (cluster.admin(), server.client(&UserInfo::admin()));
    let account = json!({"metadata": {"name": "a"}}).to_string();
    let watch = http::Request::get("/api/v1/serviceaccounts?watch=1").body(Vec::new()).unwrap();
    let mut events = first.request_stream(watch).await.unwrap().lines();

    // What the second server writes the first cannot open.
    let accounts = "/api/v1/namespaces/kube-public/serviceaccounts";
    assert_eq!(ask(&second, "POST", accounts, &account).await.0, 201);
    let ended = async { while events.next().await.is_some_and(|line| line.is_ok()) {} };
    tokio::time::timeout(Duration::from_secs(10), ended).await.expect("the watch ends");
    assert_eq!(ask(&first, "GET", "/api/v1/serviceaccounts", "").await.0, 500);

    // Accounts that it can open are found for pods all the same.
    let home = "/api/v1/namespaces/default";
    assert_eq!(ask(&first, "POST", &format!("{home}/serviceaccounts"), &account).await.0, 201);
    let pod = json!({"metadata": {"name": "p"}, "spec": {"serviceAccountName": "a", "containers": [{"name": "c", "image": "i"}]}});
    let (code, answer) = ask(&first, "POST", &format!("{home}/pods"), &pod.to_string()).await;
    assert_eq!(code, 201, "{answer}");
}

/// Status and body of a page.
async fn page(cluster: &Cluster, path: &str) -> (u16, String) {
    let (status, body) = ask(&cluster.admin(), "GET", path, "").await;
    (status, body.as_str().map_or_else(|| body.to_string(), str::to_owned))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_health_of_plugins_is_a_check_of_its_own() {
    const PATHS: [&str; 3] = ["/healthz", "/readyz", "/livez"];
    let plain = Cluster::start().await;
    for path in PATHS {
        assert_eq!(page(&plain, &format!("{path}/kms-providers")).await.0, 404, "{path}");
    }
    let none = encrypted("[secrets]", "[{identity: {}}]").await.cluster;
    assert_eq!(page(&none, "/readyz/kms-providers").await, (200, "ok".to_owned()), "a plugin may come any time");
    assert!(page(&none, "/readyz?verbose").await.1.contains("[+]etcd-readiness ok\n[+]kms-providers ok\n"));
    assert!(page(&none, "/healthz?verbose").await.1.contains("[+]etcd ok\n[+]kms-providers ok\n"));
    assert!(page(&none, "/livez?verbose").await.1.contains("start-encryption-provider-config-automatic-reload ok"));

    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("gone.sock");
    let gone =
        format!("[{{kms: {{apiVersion: v2, name: k, timeout: 100ms, endpoint: 'unix://{}'}}}}]", socket.display());
    let ill = encrypted("[widgets.example.com]", &gone).await.cluster;
    for path in ["/healthz", "/readyz"] {
        let (status, why) = page(&ill, &format!("{path}/kms-providers")).await;
        assert_eq!(status, 500);
        let begins = "internal server error: kms-provider-0: failed to perform status section of the healthz check for KMS Provider k, error: ";
        assert!(why.starts_with(begins), "{why}");
        let (status, report) = page(&ill, path).await;
        assert_eq!(status, 500);
        assert!(report.contains("[-]kms-providers failed: reason withheld\n"), "{report}");
        let (status, report) = page(&ill, &format!("{path}?exclude=kms-providers&verbose")).await;
        assert_eq!(status, 200);
        assert!(report.contains("[+]kms-providers excluded: ok\n"), "{report}");
    }
    assert_eq!(page(&ill, "/livez").await, (200, "ok".to_owned()), "a restart would mend nothing");
    assert_eq!(page(&ill, "/livez/kms-providers").await.0, 404);
}

#[tokio::test]
async fn a_file_that_is_not_read_again_has_no_plugins_to_come() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("encryption.yaml");
    write(&file, "[secrets]", "[{identity: {}}]");
    let cluster = Cluster::start_with(|config| {
        config.encryption = Some(file.clone());
        config.encryption_reload = false;
    })
    .await;
    assert_eq!(page(&cluster, "/healthz/kms-providers").await.0, 404);
    let listed = page(&cluster, "/healthz?verbose").await.1;
    assert!(!listed.contains("automatic-reload") && listed.contains("[+]etcd ok\n"), "{listed}");
}
