//! Registry credentials from image pull secrets (`kubernetes.io/dockerconfigjson` and
//! `kubernetes.io/dockercfg`). Pure.

use std::collections::BTreeMap;

use base64::Engine;
use k8s_openapi::api::core::v1::Secret;
use proto::runtime::v1::AuthConfig;
use serde::Deserialize;

use super::names;

#[derive(Deserialize)]
struct DockerConfigJson {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
}

#[derive(Deserialize, Default)]
struct Entry {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    auth: String,
    #[serde(default, rename = "identitytoken")]
    identity_token: String,
    #[serde(default, rename = "registrytoken")]
    registry_token: String,
}

/// The secret's credentials for an image, the most specific first.
pub fn matching(secret: &Secret, image: &str) -> Vec<AuthConfig> {
    let repository = names::repository(image);
    let mut found: Vec<(usize, AuthConfig)> = entries(secret)
        .into_iter()
        .filter_map(|(server, entry)| Some((match_length(&server, &repository)?, config(entry))))
        .collect();
    found.sort_by_key(|(length, _)| std::cmp::Reverse(*length));
    found.into_iter().map(|(_, auth)| auth).collect()
}

fn entries(secret: &Secret) -> BTreeMap<String, Entry> {
    let data = |key: &str| secret.data.as_ref().and_then(|data| data.get(key)).map(|bytes| bytes.0.as_slice());
    if let Some(bytes) = data(".dockerconfigjson") {
        return serde_json::from_slice::<DockerConfigJson>(bytes).map(|config| config.auths).unwrap_or_default();
    }
    data(".dockercfg").and_then(|bytes| serde_json::from_slice(bytes).ok()).unwrap_or_default()
}

/// How much of `host/path` a server key covers; none if it is for somewhere else. `*` stands for
/// one label of the host.
fn match_length(server: &str, repository: &str) -> Option<usize> {
    let key = server.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/');
    // Docker Hub's historical key.
    let key = match key {
        "index.docker.io/v1" | "index.docker.io" | "index.docker.io/v2" | "registry-1.docker.io" => "docker.io",
        other => other,
    };
    let (key_host, key_path) = key.split_once('/').unwrap_or((key, ""));
    let (host, path) = repository.split_once('/').unwrap_or((repository, ""));
    let hosts_match = key_host.split('.').count() == host.split('.').count()
        && key_host.split('.').zip(host.split('.')).all(|(pattern, label)| glob(pattern, label));
    let inside = key_path.is_empty()
        || path == key_path
        || path.strip_prefix(key_path).is_some_and(|rest| rest.starts_with('/'));
    (hosts_match && inside).then_some(key.len())
}

fn glob(pattern: &str, label: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == label,
        Some((before, after)) => {
            label.len() >= before.len() + after.len() && label.starts_with(before) && label.ends_with(after)
        }
    }
}

fn config(entry: Entry) -> AuthConfig {
    let (mut username, mut password) = (entry.username, entry.password);
    if username.is_empty()
        && let Ok(decoded) = base64::engine::general_purpose::STANDARD.decode(&entry.auth)
        && let Some((name, secret)) = String::from_utf8_lossy(&decoded).split_once(':')
    {
        username = name.to_owned();
        password = secret.to_owned();
    }
    AuthConfig {
        username,
        password,
        auth: String::new(),
        // Named, it would have to be a URL of the very host that answers: not so for mirrors, nor for
        // keys without a scheme.
        server_address: String::new(),
        identity_token: entry.identity_token,
        registry_token: entry.registry_token,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::ByteString;

    fn secret(json: &str) -> Secret {
        let data = BTreeMap::from([(".dockerconfigjson".to_owned(), ByteString(json.as_bytes().to_vec()))]);
        Secret { data: Some(data), ..Default::default() }
    }

    #[test]
    fn the_most_specific_matching_server_comes_first() {
        let secret = secret(
            r#"{"auths": {"r.example.com": {"username": "all", "password": "1"},
                "https://r.example.com/team/": {"auth": "dGVhbTpzZWNyZXQ="},
                "*.example.com": {"username": "star"}, "other.org": {"username": "no"}}}"#,
        );
        let users: Vec<(String, String)> = matching(&secret, "r.example.com/team/app:1")
            .into_iter()
            .map(|auth| (auth.username, auth.password))
            .collect();
        let expected = [("team", "secret"), ("all", "1"), ("star", "")].map(|(a, b)| (a.to_owned(), b.to_owned()));
        let mut sorted = users.clone();
        sorted.sort();
        let mut wanted = expected.to_vec();
        wanted.sort();
        assert_eq!(sorted, wanted);
        assert_eq!(users[0], expected[0]);
        let for_any_host = |auth: &AuthConfig| auth.server_address.is_empty();
        assert!(matching(&secret, "r.example.com/team/app:1").iter().all(for_any_host));
    }

    #[test]
    fn docker_hub_by_its_old_key() {
        let secret = secret(r#"{"auths": {"https://index.docker.io/v1/": {"username": "me", "password": "x"}}}"#);
        assert_eq!(matching(&secret, "nginx").len(), 1);
        assert!(matching(&secret, "quay.io/nginx").is_empty());
    }
}
