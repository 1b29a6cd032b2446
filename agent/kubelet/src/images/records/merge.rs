//! What another successful pull adds to a record
//! (`image_pull_manager.go: pulledRecordMergeNewCreds`). Pure.

use jiff::Timestamp;

use super::form::{PullCredentials, PullSecret, PulledRecord};
use crate::images::keyring::Coordinates;

/// The record with what a pull of the image `name` proved; none if it says so already.
pub fn merge(record: &PulledRecord, name: &str, new: &PullCredentials, now: Timestamp) -> Option<PulledRecord> {
    let merged = match record.credential_mapping.get(name) {
        None if new.is_empty() => return None,
        None => new.clone(),
        Some(known) => joined(known, new)?,
    };
    let mut changed = record.touched(now);
    changed.credential_mapping.insert(name.to_owned(), merged);
    Some(changed)
}

/// What every pod of the node may use needs no list of those who may.
fn joined(known: &PullCredentials, new: &PullCredentials) -> Option<PullCredentials> {
    if known.node_pods_accessible {
        return None;
    }
    if new.node_pods_accessible {
        return Some(PullCredentials { node_pods_accessible: true, ..PullCredentials::default() });
    }
    let mut joined = known.clone();
    new.kubernetes_secrets.iter().for_each(|secret| add_secret(&mut joined.kubernetes_secrets, secret));
    new.kubernetes_service_accounts
        .iter()
        .for_each(|account| add_account(&mut joined.kubernetes_service_accounts, account));
    (joined != *known).then_some(joined)
}

/// A Secret that is there already has its newest login.
fn add_secret(secrets: &mut Vec<PullSecret>, new: &PullSecret) {
    match secrets.iter_mut().find(|secret| secret.is_same_object(new)) {
        Some(known) if known.credential_hash == new.credential_hash => return,
        Some(known) => known.credential_hash.clone_from(&new.credential_hash),
        None => secrets.push(new.clone()),
    }
    secrets.sort_by(|a, b| a.key().cmp(&b.key()));
}

fn add_account(accounts: &mut Vec<Coordinates>, new: &Coordinates) {
    if accounts.contains(new) {
        return;
    }
    accounts.push(new.clone());
    accounts.sort_by(|a, b| (&a.namespace, &a.name, &a.uid).cmp(&(&b.namespace, &b.name, &b.uid)));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(name: &str, hash: &str) -> PullSecret {
        PullSecret { name: name.to_owned(), credential_hash: hash.to_owned(), ..PullSecret::default() }
    }

    fn account(name: &str) -> Coordinates {
        Coordinates { name: name.to_owned(), ..Coordinates::default() }
    }

    fn credentials(secrets: &[(&str, &str)], accounts: &[&str], open: bool) -> PullCredentials {
        PullCredentials {
            kubernetes_secrets: secrets.iter().map(|(name, hash)| secret(name, hash)).collect(),
            kubernetes_service_accounts: accounts.iter().map(|name| account(name)).collect(),
            node_pods_accessible: open,
        }
    }

    #[test]
    fn pulls_add_up() {
        let (then, now) = (Timestamp::from_second(1).unwrap(), Timestamp::from_second(9).unwrap());
        let open = credentials(&[], &[], true);
        let one = credentials(&[("s", "1")], &[], false);
        for (known, new, expected) in [
            (None, credentials(&[], &[], false), None),
            (None, one.clone(), Some(one.clone())),
            (Some(one.clone()), one.clone(), None),
            (Some(one.clone()), credentials(&[], &[], false), None),
            (
                Some(one.clone()),
                credentials(&[("a", "2")], &[], false),
                Some(credentials(&[("a", "2"), ("s", "1")], &[], false)),
            ),
            (Some(one.clone()), credentials(&[("s", "2")], &[], false), Some(credentials(&[("s", "2")], &[], false))),
            (Some(one.clone()), credentials(&[], &["b"], false), Some(credentials(&[("s", "1")], &["b"], false))),
            (
                Some(credentials(&[], &["b"], false)),
                credentials(&[], &["a"], false),
                Some(credentials(&[], &["a", "b"], false)),
            ),
            (Some(one.clone()), open.clone(), Some(open.clone())),
            (Some(open.clone()), one.clone(), None),
        ] {
            let mut record = PulledRecord::new("sha256:1", then);
            record.credential_mapping.extend(known.clone().map(|known| ("r/a".to_owned(), known)));
            record.credential_mapping.insert("r/other".to_owned(), open.clone());
            let merged = merge(&record, "r/a", &new, now);
            let found = merged.as_ref().map(|record| record.credential_mapping["r/a"].clone());
            assert_eq!(found, expected, "{known:?} and {new:?}");
            assert!(merged.is_none_or(|record| record.updated() == 9 && record.credential_mapping.len() == 2));
        }
    }
}
