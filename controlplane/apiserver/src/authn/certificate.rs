//! The user that a client certificate names: CN is the name, each O a group, and the UID what
//! Kubernetes' own attribute says.

use x509_parser::der_parser::oid;
use x509_parser::der_parser::oid::Oid;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::x509::X509Name;

use super::UserInfo;

/// `1.3.6.1.4.1.57683.2`: the UID of a user.
const UID: Oid<'static> = oid!(1.3.6.1.4.1.57683.2);

/// `None` when the certificate has no common name, not one sound UID, or cannot be read. Its
/// signature was verified by the TLS handshake.
pub fn user_of(der: &[u8]) -> Option<UserInfo> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let subject = certificate.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
    let groups = subject.iter_organization().filter_map(|group| group.as_str().ok()).map(str::to_owned).collect();
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, der);
    let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    let extra = [("authentication.kubernetes.io/credential-id".to_owned(), vec![format!("X509SHA256={hex}")])].into();
    (!name.is_empty()).then_some(UserInfo { name, uid: uid_of(subject)?, groups, extra })
}

/// When a certificate ends, in seconds since 1970.
pub fn end_of(der: &[u8]) -> Option<i64> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    Some(certificate.validity().not_after.timestamp())
}

/// Empty when none is given; none when it is given twice, or empty.
fn uid_of(subject: &X509Name<'_>) -> Option<String> {
    let mut given = subject.iter_by_oid(&UID);
    match (given.next(), given.next()) {
        (None, _) => Some(String::new()),
        (Some(uid), None) => uid.as_str().ok().filter(|uid| !uid.is_empty()).map(str::to_owned),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};

    /// A certificate with these attributes of its subject.
    fn made(attributes: &[(DnType, &str)]) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        for (kind, value) in attributes {
            params.distinguished_name.push(kind.clone(), *value);
        }
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    #[test]
    fn subjects_name_users() {
        let uid = || DnType::CustomDnType(vec![1, 3, 6, 1, 4, 1, 57683, 2]);
        let user = user_of(&made(&[(DnType::CommonName, "jane"), (DnType::OrganizationName, "dev"), (uid(), "u-1")]));
        let user = user.unwrap();
        assert_eq!((user.name.as_str(), user.uid.as_str(), user.groups), ("jane", "u-1", vec!["dev".to_owned()]));
        assert!(user.extra["authentication.kubernetes.io/credential-id"][0].starts_with("X509SHA256="));
        assert_eq!(user_of(&made(&[(DnType::CommonName, "joe")])).unwrap().uid, "");
        assert_eq!(user_of(&made(&[(DnType::CommonName, "joe"), (uid(), "")])), None);
        assert_eq!(user_of(&made(&[(DnType::OrganizationName, "dev")])), None);
    }

    #[test]
    fn certificates_end() {
        let mut params = CertificateParams::default();
        params.not_after = rcgen::date_time_ymd(2030, 1, 1);
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        assert_eq!(end_of(certificate.der()), Some(1_893_456_000));
        assert_eq!(end_of(b"no certificate"), None);
    }
}
