//! The user that a client certificate names: CN is the name, each O a group.

use x509_parser::prelude::{FromDer, X509Certificate};

use super::UserInfo;

/// `None` when the certificate has no common name or cannot be read. Its signature was verified by
/// the TLS handshake.
pub fn user_of(der: &[u8]) -> Option<UserInfo> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let subject = certificate.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
    let groups = subject.iter_organization().filter_map(|group| group.as_str().ok()).map(str::to_owned).collect();
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, der);
    let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    let extra = [("authentication.kubernetes.io/credential-id".to_owned(), vec![format!("X509SHA256={hex}")])].into();
    (!name.is_empty()).then(|| UserInfo { name, uid: String::new(), groups, extra })
}
