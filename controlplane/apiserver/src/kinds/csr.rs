//! Certificate signing requests as validation and admission read them (PKCS #10).

use x509_parser::prelude::{FromDer, X509CertificationRequest, parse_x509_pem};

/// The organizations that a PEM request's subject names: the groups its certificate would have.
/// The error says what is wrong with the request.
pub fn organizations(pem: &[u8]) -> Result<Vec<String>, String> {
    let (_, block) = parse_x509_pem(pem).map_err(|_| "PEM block type must be CERTIFICATE REQUEST".to_owned())?;
    if block.label != "CERTIFICATE REQUEST" {
        return Err("PEM block type must be CERTIFICATE REQUEST".to_owned());
    }
    let (_, request) = X509CertificationRequest::from_der(&block.contents).map_err(|error| format!("asn1: {error}"))?;
    let subject = &request.certification_request_info.subject;
    Ok(subject.iter_organization().filter_map(|part| part.as_str().ok()).map(str::to_owned).collect())
}
