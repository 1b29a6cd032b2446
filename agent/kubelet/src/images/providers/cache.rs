//! Answers of one provider for as long as they are good. Pure over the time it is given.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use sha2::{Digest, Sha256};

use super::account::Account;
use super::protocol::CacheKeyType;
use crate::images::docker_config::Logins;
use crate::images::keyring::Coordinates;

/// Whom an answer was given for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Beneficiary {
    coordinates: Coordinates,
    annotations: BTreeMap<String, String>,
    /// The token's digest, if the answer is good with no other.
    token: Option<[u8; 32]>,
}

impl Beneficiary {
    pub fn of(account: &Account, by_token: bool) -> Self {
        Self {
            coordinates: account.coordinates.clone(),
            annotations: account.annotations.clone(),
            token: by_token.then(|| Sha256::digest(&account.token).into()),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Scope {
    Image(String),
    Registry(String),
    Global,
}

impl Scope {
    fn new(kind: CacheKeyType, image: &str) -> Self {
        match kind {
            CacheKeyType::Image => Self::Image(image.to_owned()),
            CacheKeyType::Registry => Self::Registry(image.split('/').next().unwrap_or_default().to_owned()),
            CacheKeyType::Global => Self::Global,
        }
    }
}

struct Kept {
    logins: Logins,
    until: Instant,
}

#[derive(Default)]
pub struct Cache {
    kept: HashMap<(Scope, Option<Beneficiary>), Kept>,
}

impl Cache {
    /// What is good for the image, the narrowest first.
    pub fn get(&self, image: &str, whom: Option<&Beneficiary>, now: Instant) -> Option<Logins> {
        let kinds = [CacheKeyType::Image, CacheKeyType::Registry, CacheKeyType::Global];
        kinds.into_iter().find_map(|kind| {
            let kept = self.kept.get(&(Scope::new(kind, image), whom.cloned()))?;
            (now <= kept.until).then(|| kept.logins.clone())
        })
    }

    /// What has had its time goes with this.
    pub fn put(
        &mut self,
        kind: CacheKeyType,
        image: &str,
        whom: Option<Beneficiary>,
        logins: Logins,
        good: (Instant, Instant),
    ) {
        let (now, until) = good;
        self.kept.retain(|_, kept| now <= kept.until);
        self.kept.insert((Scope::new(kind, image), whom), Kept { logins, until });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::images::docker_config::Login;

    fn account(name: &str, token: &str) -> Account {
        let coordinates = Coordinates { name: name.to_owned(), ..Coordinates::default() };
        Account { coordinates, annotations: BTreeMap::new(), token: token.to_owned() }
    }

    #[test]
    fn answers_are_good_for_images_by_their_kind() {
        let now = Instant::now();
        let until = now + Duration::from_secs(60);
        let logins = Logins::from([("r.io".to_owned(), Login::default())]);
        for (kind, good, bad) in [
            (CacheKeyType::Image, &["r.io/a"][..], &["r.io/b", "r.io:5000/a"][..]),
            (CacheKeyType::Registry, &["r.io/a", "r.io/b/c"], &["r.io:5000/a"]),
            (CacheKeyType::Global, &["r.io/a", "q.io/a"], &[]),
        ] {
            let mut cache = Cache::default();
            cache.put(kind, "r.io/a", None, logins.clone(), (now, until));
            assert!(good.iter().all(|image| cache.get(image, None, now).is_some()), "{kind:?}");
            assert!(bad.iter().all(|image| cache.get(image, None, now).is_none()), "{kind:?}");
            assert!(cache.get("r.io/a", None, until + Duration::from_secs(1)).is_none());
        }
    }

    #[test]
    fn answers_are_good_for_who_they_were_given_for() {
        let now = Instant::now();
        let until = now + Duration::from_secs(60);
        for (by_token, other_token) in [(false, true), (true, false)] {
            let whom = |name: &str, token: &str| Beneficiary::of(&account(name, token), by_token);
            let mut cache = Cache::default();
            cache.put(CacheKeyType::Global, "r.io/a", Some(whom("a", "1")), Logins::default(), (now, until));
            assert!(cache.get("r.io/a", Some(&whom("a", "1")), now).is_some());
            assert_eq!(cache.get("r.io/a", Some(&whom("a", "2")), now).is_some(), other_token);
            assert!(cache.get("r.io/a", Some(&whom("b", "1")), now).is_none());
            assert!(cache.get("r.io/a", None, now).is_none());
        }
    }

    #[test]
    fn what_has_had_its_time_goes() {
        let now = Instant::now();
        let mut cache = Cache::default();
        for (image, at) in [("r.io/a", 0), ("r.io/b", 30), ("r.io/c", 90)] {
            let at = now + Duration::from_secs(at);
            cache.put(CacheKeyType::Image, image, None, Logins::default(), (at, at + Duration::from_secs(60)));
        }
        assert_eq!(cache.kept.len(), 2);
    }
}
