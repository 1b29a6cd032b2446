//! Which logins fit an image, in the order they are tried (`pkg/credentialprovider/keyring.go`). Pure.
//!
//! One [`Keyring`] holds the logins of one kind of source; who is asked first of several is
//! [`super::credentials`]' affair. A login remembers its [`Source`]: it decides whom a pull speaks for.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::docker_config::{Login, Logins};
use super::place::covers;

/// Docker Hub's host in logins, from the time before `docker.io`.
const DOCKER_HUB: &str = "index.docker.io";

/// One object of the API, and no other that takes its name later.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Coordinates {
    pub uid: String,
    pub namespace: String,
    pub name: String,
}

/// Where a login comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// It is the node's, for all of its pods.
    Node,
    Secret(Coordinates),
    /// A provider gave it to this account.
    ServiceAccount(Coordinates),
}

/// A login to try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credential {
    pub login: Login,
    pub source: Source,
}

#[derive(Debug, Default)]
pub struct Keyring {
    /// By `host[:port][/path]`.
    credentials: BTreeMap<String, Vec<Credential>>,
}

impl Keyring {
    pub fn add(&mut self, source: &Source, logins: Logins) {
        for (location, login) in logins {
            let credential = Credential { login, source: source.clone() };
            self.credentials.entry(key(&location)).or_default().push(credential);
        }
    }

    /// The logins for an image, named in full and without its tag: what is for a longer path, or for no
    /// pattern, first.
    pub fn lookup(&self, image: &str) -> Vec<Credential> {
        let fitting = self.credentials.iter().rev().filter(|(place, _)| covers(place, image));
        let found: Vec<Credential> = fitting.flat_map(|(_, credentials)| credentials.iter().cloned()).collect();
        if found.is_empty() && image.starts_with("docker.io/") {
            return self.credentials.get(DOCKER_HUB).cloned().unwrap_or_default();
        }
        found
    }
}

/// Without scheme; the API's version is no path of the registry.
fn key(location: &str) -> String {
    let bare = location.strip_prefix("https://").or_else(|| location.strip_prefix("http://")).unwrap_or(location);
    let (host, path) = bare.find('/').map_or((bare, ""), |slash| bare.split_at(slash));
    let path = if path.starts_with("/v1/") || path.starts_with("/v2/") { &path[3..] } else { path };
    if path == "/" { host.to_owned() } else { format!("{host}{path}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logins(entries: &[(&str, &str)]) -> Logins {
        let login = |user: &str| Login { username: user.to_owned(), ..Default::default() };
        entries.iter().map(|(location, user)| ((*location).to_owned(), login(user))).collect()
    }

    fn users(keyring: &Keyring, image: &str) -> Vec<String> {
        keyring.lookup(image).into_iter().map(|credential| credential.login.username).collect()
    }

    #[test]
    fn the_most_specific_place_comes_first() {
        let mut keyring = Keyring::default();
        let places = [
            ("r.example.com", "all"),
            ("https://r.example.com/v2/team/", "team"),
            ("*.example.com", "star"),
            ("other.org", "no"),
            ("http://plain.org/", "plain"),
        ];
        keyring.add(&Source::Node, logins(&places));
        let secret = Source::Secret(Coordinates { name: "s".to_owned(), ..Default::default() });
        keyring.add(&secret, logins(&[("r.example.com", "second")]));
        for (image, expected) in [
            ("r.example.com/team/app", &["team", "all", "second", "star"][..]),
            ("r.example.com/app", &["all", "second", "star"]),
            ("x.example.com/app", &["star"]),
            ("plain.org/app", &["plain"]),
            ("nowhere.org/app", &[]),
        ] {
            assert_eq!(users(&keyring, image), expected, "{image}");
        }
        assert_eq!(keyring.lookup("r.example.com/app")[1].source, secret);
    }

    #[test]
    fn docker_hub_by_its_old_name_and_its_new_one() {
        for location in ["https://index.docker.io/v1/", "index.docker.io", "docker.io"] {
            let mut keyring = Keyring::default();
            keyring.add(&Source::Node, logins(&[(location, "me")]));
            assert_eq!(users(&keyring, "docker.io/library/nginx"), ["me"], "{location}");
            assert!(users(&keyring, "quay.io/nginx").is_empty());
        }
    }
}
