//! Whether a pod may use an image that is on the node (`image_pull_manager.go: MustAttemptImagePull`).
//! Pure.
//!
//! [`decide`] answers from the policy and the record alone, where that suffices: a pod's credentials
//! cost questions to the API and to providers. Where it does not, [`compare`] looks at them.

use super::form::{PullCredentials, PullSecret, PulledRecord};
use super::policy::Policy;
use crate::images::keyring::{Coordinates, Credential, Source};

/// So many Secrets are noted in a record because they hold what another one held: namespaces that
/// come and go must not make it grow for ever.
const MOST_NOTED: usize = 100;

/// What is known of who brought an image to the node.
#[derive(Debug, Clone)]
pub enum Known {
    /// No pod's pull.
    Nothing,
    /// A pull that has not ended, or of which it was not noted how.
    BeingPulled,
    Pulled(PulledRecord),
}

/// The answer without a look at the pod's credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Access {
    /// The policy asks for nothing.
    Exempt,
    /// Every pod may.
    Open,
    /// Who has one of these.
    By(PullCredentials),
    /// Nobody, before a pull has succeeded again.
    Closed,
    /// The records cannot be read; nobody.
    Unknown,
}

pub fn decide(policy: &Policy, repository: &str, known: Known) -> Access {
    if !policy.verifies(repository, !matches!(known, Known::Nothing)) {
        return Access::Exempt;
    }
    let Known::Pulled(mut record) = known else { return Access::Closed };
    match record.credential_mapping.remove(repository) {
        Some(credentials) if credentials.node_pods_accessible => Access::Open,
        Some(credentials) if !credentials.is_empty() => Access::By(credentials),
        _ => Access::Closed,
    }
}

/// The pod's credentials, measured by those of a record.
#[derive(Debug, PartialEq, Eq)]
pub enum Comparison {
    Fits,
    /// It fits, and this Secret is new in the record, or what it holds is.
    FitsAnew(PullSecret),
    Strange,
}

/// A login that pulled the image once fits, in whatever Secret it is; so does a Secret that did, whatever
/// it holds by now.
pub fn compare(recorded: &PullCredentials, credentials: &[Credential]) -> Comparison {
    let secrets = credentials.iter().filter_map(PullSecret::of);
    let mut compared = secrets.map(|secret| compare_secret(&recorded.kubernetes_secrets, secret));
    let fitting = compared.find(|comparison| *comparison != Comparison::Strange);
    fitting.unwrap_or_else(|| match account(credentials) {
        Some(account) if recorded.kubernetes_service_accounts.contains(account) => Comparison::Fits,
        _ => Comparison::Strange,
    })
}

/// The recorded Secrets decide in their order.
fn compare_secret(recorded: &[PullSecret], secret: PullSecret) -> Comparison {
    let room = recorded.len() < MOST_NOTED;
    for known in recorded {
        let same_login = !known.credential_hash.is_empty() && known.credential_hash == secret.credential_hash;
        match (same_login, known.is_same_object(&secret)) {
            (true, false) if room => return Comparison::FitsAnew(secret),
            (true, _) => return Comparison::Fits,
            (false, true) if room => return Comparison::FitsAnew(secret),
            _ => {}
        }
    }
    Comparison::Strange
}

/// A pod has one account, whatever it is asked for.
fn account(credentials: &[Credential]) -> Option<&Coordinates> {
    credentials.iter().find_map(|credential| match &credential.source {
        Source::ServiceAccount(account) => Some(account),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::images::docker_config::Login;

    fn coordinates(name: &str) -> Coordinates {
        Coordinates { uid: format!("uid-{name}"), namespace: "n".to_owned(), name: name.to_owned() }
    }

    fn credential(source: Source, password: &str) -> Credential {
        Credential { login: Login { password: password.to_owned(), ..Login::default() }, source }
    }

    fn secret(name: &str, password: &str) -> Credential {
        credential(Source::Secret(coordinates(name)), password)
    }

    fn by(credentials: &[Credential]) -> PullCredentials {
        PullCredentials {
            kubernetes_secrets: credentials.iter().filter_map(PullSecret::of).collect(),
            kubernetes_service_accounts: vec![coordinates("bot")],
            node_pods_accessible: false,
        }
    }

    #[test]
    fn records_and_policies_decide() {
        let with = |credentials: Option<PullCredentials>| {
            let mut record = PulledRecord::new("sha256:1", Timestamp::UNIX_EPOCH);
            record.credential_mapping.extend(credentials.map(|credentials| ("r/a".to_owned(), credentials)));
            Known::Pulled(record)
        };
        let open = PullCredentials::of(None);
        let closed = by(&[secret("s", "x")]);
        let default = Policy::default();
        for (policy, known, expected) in [
            (&default, Known::Nothing, Access::Exempt),
            (&default, Known::BeingPulled, Access::Closed),
            (&default, with(None), Access::Closed),
            (&default, with(Some(PullCredentials::default())), Access::Closed),
            (&default, with(Some(open.clone())), Access::Open),
            (&default, with(Some(closed.clone())), Access::By(closed.clone())),
            (&Policy::NeverVerify, with(Some(closed.clone())), Access::Exempt),
            (&Policy::AlwaysVerify, Known::Nothing, Access::Closed),
        ] {
            assert_eq!(decide(policy, "r/a", known.clone()), expected, "{policy:?} {known:?}");
        }
        assert_eq!(decide(&default, "r/other", with(Some(open))), Access::Closed, "by another name");
    }

    #[test]
    fn credentials_fit_by_login_by_secret_and_by_account() {
        let recorded = by(&[secret("a", "1"), secret("b", "2")]);
        let bot = credential(Source::ServiceAccount(coordinates("bot")), "t");
        let other = credential(Source::ServiceAccount(coordinates("other")), "t");
        let note = |credential: &Credential| Comparison::FitsAnew(PullSecret::of(credential).unwrap());
        for (credentials, expected) in [
            (vec![], Comparison::Strange),
            (vec![secret("a", "1")], Comparison::Fits),
            (vec![secret("c", "3"), secret("b", "2")], Comparison::Fits),
            (vec![secret("copy", "1")], note(&secret("copy", "1"))),
            (vec![secret("a", "rotated")], note(&secret("a", "rotated"))),
            (vec![secret("c", "3")], Comparison::Strange),
            (vec![secret("c", "3"), bot.clone()], Comparison::Fits),
            (vec![other, bot], Comparison::Strange),
            (vec![credential(Source::Node, "1")], Comparison::Strange),
        ] {
            assert_eq!(compare(&recorded, &credentials), expected, "{credentials:?}");
        }
    }

    #[test]
    fn a_full_record_grows_no_more() {
        let many: Vec<Credential> =
            (0..MOST_NOTED).map(|index| secret(&format!("s{index}"), &index.to_string())).collect();
        let recorded = by(&many);
        assert_eq!(compare(&recorded, &[secret("copy", "7")]), Comparison::Fits);
        assert_eq!(compare(&recorded, &[secret("s7", "rotated")]), Comparison::Strange);
        assert_eq!(compare(&recorded, &[secret("s7", "7")]), Comparison::Fits);
    }
}
