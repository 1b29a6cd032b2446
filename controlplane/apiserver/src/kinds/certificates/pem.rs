//! Certificates and requests for them, as validation and admission read them (PEM, PKCS #10, X.509).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use x509_parser::prelude::{FromDer, X509Certificate, X509CertificationRequest};

use super::proof::is_signed;

const NOT_A_REQUEST: &str = "PEM block type must be CERTIFICATE REQUEST";

/// A PEM block.
pub struct Block {
    pub label: String,
    pub has_headers: bool,
    pub der: Vec<u8>,
}

/// All blocks of a text; what stands between them is skipped, and so are broken ones.
pub fn blocks(text: &[u8]) -> Vec<Block> {
    let text = String::from_utf8_lossy(text);
    let (mut found, mut open) = (Vec::new(), None::<(String, String, bool)>);
    for line in text.lines().map(str::trim_end) {
        let marked = |mark: &str| line.strip_prefix(mark).and_then(|rest| rest.strip_suffix("-----"));
        if let Some(label) = marked("-----BEGIN ") {
            open = Some((label.to_owned(), String::new(), false));
        } else if let Some(end) = marked("-----END ") {
            let Some((label, body, has_headers)) = open.take().filter(|(label, ..)| label == end) else { continue };
            if let Ok(der) = STANDARD.decode(&body) {
                found.push(Block { label, has_headers, der });
            }
        } else if let Some((_, body, has_headers)) = &mut open {
            if line.contains(':') {
                *has_headers = true;
            } else {
                body.push_str(line);
            }
        }
    }
    found
}

/// The DER of a PEM request.
fn request_der(pem: &[u8]) -> Result<Vec<u8>, String> {
    let first = blocks(pem).into_iter().next().filter(|block| block.label == "CERTIFICATE REQUEST");
    first.map(|block| block.der).ok_or_else(|| NOT_A_REQUEST.to_owned())
}

fn parsed(der: &[u8]) -> Result<X509CertificationRequest<'_>, String> {
    let (rest, request) = X509CertificationRequest::from_der(der).map_err(|error| format!("asn1: {error}"))?;
    if rest.is_empty() { Ok(request) } else { Err("asn1: syntax error: trailing data".to_owned()) }
}

/// The organizations that a PEM request's subject names: the groups its certificate would have.
/// The error says what is wrong with the request.
pub fn organizations(pem: &[u8]) -> Result<Vec<String>, String> {
    let der = request_der(pem)?;
    let request = parsed(&der)?;
    let subject = &request.certification_request_info.subject;
    Ok(subject.iter_organization().filter_map(|part| part.as_str().ok()).map(str::to_owned).collect())
}

/// The common name of a PEM request's subject; empty if it has none.
pub fn common_name(pem: &[u8]) -> Result<String, String> {
    let der = request_der(pem)?;
    let request = parsed(&der)?;
    let name = request.certification_request_info.subject.iter_common_name().next();
    Ok(name.and_then(|name| name.as_str().ok()).unwrap_or_default().to_owned())
}

/// That a PEM request can be read, and its sender has the key.
pub fn check_request(pem: &[u8]) -> Result<(), String> {
    let der = request_der(pem)?;
    if is_signed(&parsed(&der)?) { Ok(()) } else { Err("x509: signature verification failure".to_owned()) }
}

/// The public key (`SubjectPublicKeyInfo`) that a DER request is for; the error says why it is no
/// request by the key's owner.
pub fn request_key(der: &[u8]) -> Result<Vec<u8>, &'static str> {
    let request = parsed(der).map_err(|_| "must be a valid PKCS#10 certificate signing request")?;
    if !is_signed(&request) {
        return Err("could not verify the certificate signing request's signature");
    }
    Ok(request.certification_request_info.subject_pki.raw.to_vec())
}

/// What is wrong with PEM certificates; none at all are fine.
pub fn certificate_problem(pem: &[u8]) -> Option<String> {
    if pem.is_empty() {
        return None;
    }
    let blocks = blocks(pem);
    if blocks.is_empty() {
        return Some("must contain at least one CERTIFICATE PEM block".to_owned());
    }
    blocks.iter().find_map(|block| {
        if block.label != "CERTIFICATE" {
            return Some(format!("only CERTIFICATE PEM blocks are allowed, found {:?}", block.label));
        }
        if block.has_headers {
            return Some("no PEM block headers are permitted".to_owned());
        }
        if block.der.is_empty() {
            return Some("found CERTIFICATE PEM block containing 0 certificates".to_owned());
        }
        X509Certificate::from_der(&block.der).is_err().then(|| "x509: malformed certificate".to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_read() {
        let block = |label: &str, body: &str| format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n");
        for (pem, expected) in [
            (String::new(), None),
            (super::super::made::authority(), None),
            ("x".to_owned(), Some("must contain at least one CERTIFICATE PEM block")),
            (block("KEY", "eA=="), Some("only CERTIFICATE PEM blocks are allowed, found \"KEY\"")),
            (block("CERTIFICATE", "a: b\n\neA=="), Some("no PEM block headers are permitted")),
            (block("CERTIFICATE", ""), Some("found CERTIFICATE PEM block containing 0 certificates")),
            (block("CERTIFICATE", "eA=="), Some("x509: malformed certificate")),
        ] {
            assert_eq!(certificate_problem(pem.as_bytes()).as_deref(), expected, "{pem}");
        }
    }

    #[test]
    fn requests_are_their_senders() {
        let request = super::super::made::request();
        assert_eq!(check_request(request.as_bytes()), Ok(()));
        assert_eq!(check_request(b"x"), Err(NOT_A_REQUEST.to_owned()));
        let mut der = request_der(request.as_bytes()).expect("a request");
        assert!(request_key(&der).is_ok());
        let last = der.len() - 1;
        der[last] ^= 1;
        assert_eq!(request_key(&der), Err("could not verify the certificate signing request's signature"));
        assert_eq!(request_key(b"x"), Err("must be a valid PKCS#10 certificate signing request"));
    }
}
