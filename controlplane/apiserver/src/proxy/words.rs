//! Failed connections and unexpected answers in the words of Go's client, which people search for.

use std::io::{Error, ErrorKind};

use http::StatusCode;
use rustls::CertificateError;

/// Why a connection to `address` (with its port), whose certificate must be of `name`, failed.
pub fn of_connection(error: &Error, address: &str, name: &str) -> String {
    if let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        return of_tls(tls, name);
    }
    match error.kind() {
        ErrorKind::ConnectionRefused => format!("dial tcp {address}: connect: connection refused"),
        ErrorKind::HostUnreachable => format!("dial tcp {address}: connect: no route to host"),
        ErrorKind::NetworkUnreachable => format!("dial tcp {address}: connect: network is unreachable"),
        ErrorKind::TimedOut => format!("dial tcp {address}: i/o timeout"),
        ErrorKind::UnexpectedEof => "EOF".to_owned(),
        ErrorKind::ConnectionReset => format!("read tcp {address}: read: connection reset by peer"),
        _ if error.to_string().starts_with("failed to lookup address") => {
            format!("dial tcp: lookup {}: no such host", address.rsplit_once(':').map_or(address, |(host, _)| host))
        }
        _ => format!("dial tcp {address}: {error}"),
    }
}

fn of_tls(error: &rustls::Error, name: &str) -> String {
    let why = match error {
        rustls::Error::InvalidMessage(_) => {
            return "http: server gave HTTP response to HTTPS client".to_owned();
        }
        rustls::Error::InvalidCertificate(why) => why,
        other => return format!("remote error: tls: {other}"),
    };
    let why = match why {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "certificate signed by unknown authority".to_owned()
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "certificate has expired or is not yet valid".to_owned()
        }
        CertificateError::NotValidForName => of_names(&[], name),
        CertificateError::NotValidForNameContext { presented, .. } => of_names(presented, name),
        other => other.to_string(),
    };
    format!("tls: failed to verify certificate: x509: {why}")
}

/// Names say nothing of an address, and addresses nothing of a name.
fn of_names(presented: &[String], name: &str) -> String {
    let address = name.parse::<std::net::IpAddr>().is_ok();
    let kind = if address { "IpAddress" } else { "DnsName" };
    let names: Vec<&str> = presented.iter().filter(|shown| shown.starts_with(kind)).map(|shown| bare(shown)).collect();
    match (names.is_empty(), address) {
        (true, true) => format!("cannot validate certificate for {name} because it doesn't contain any IP SANs"),
        (true, false) => format!("certificate is not valid for any names, but wanted to match {name}"),
        (false, _) => format!("certificate is valid for {}, not {name}", names.join(", ")),
    }
}

/// `localhost` of `DnsName("localhost")`.
fn bare(shown: &str) -> &str {
    shown.split('(').nth(1).map_or(shown, |inner| inner.trim_matches(['"', ')', '(']))
}

/// What an answer other than 200 means; `text` is its body, if it is text.
pub fn of_status(status: StatusCode, text: Option<&str>) -> String {
    match status.as_u16() {
        400 => "the server rejected our request for an unknown reason".to_owned(),
        401 => "the server has asked for the client to provide credentials".to_owned(),
        403 => text.unwrap_or("unknown").to_owned(),
        404 => "the server could not find the requested resource".to_owned(),
        405 => "the server does not allow this method on the requested resource".to_owned(),
        429 => "the server has received too many requests and has asked us to try again later".to_owned(),
        503 => "the server is currently unable to handle the request".to_owned(),
        504 => {
            "the server was unable to return a response in the time allotted, but may still be processing the request"
                .to_owned()
        }
        500.. => {
            format!(
                "an error on the server ({:?}) has prevented the request from succeeding",
                text.unwrap_or("unknown")
            )
        }
        code => format!("the server responded with the status code {code} but did not return more information"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_told_as_go_tells_them() {
        let said = |error: Error| of_connection(&error, "10.0.0.1:443", "a.b.svc");
        assert_eq!(said(ErrorKind::ConnectionRefused.into()), "dial tcp 10.0.0.1:443: connect: connection refused");
        let certificate = |why: CertificateError| said(Error::other(rustls::Error::InvalidCertificate(why)));
        assert_eq!(
            certificate(CertificateError::UnknownIssuer),
            "tls: failed to verify certificate: x509: certificate signed by unknown authority"
        );
        let names = CertificateError::NotValidForNameContext {
            expected: rustls_pki_types::ServerName::try_from("a.b.svc").unwrap(),
            presented: vec!["DnsName(\"localhost\")".to_owned()],
        };
        assert_eq!(
            certificate(names),
            "tls: failed to verify certificate: x509: certificate is valid for localhost, not a.b.svc"
        );
        let names = |presented: &[&str], name: &str| {
            of_names(&presented.iter().map(|&shown| shown.to_owned()).collect::<Vec<_>>(), name)
        };
        assert_eq!(
            names(&["DnsName(\"10.0.0.1\")"], "10.0.0.1"),
            "cannot validate certificate for 10.0.0.1 because it doesn't contain any IP SANs"
        );
        assert_eq!(
            names(&["DnsName(\"a\")", "IpAddress(10.0.0.2)"], "10.0.0.1"),
            "certificate is valid for 10.0.0.2, not 10.0.0.1"
        );
        assert_eq!(
            names(&["IpAddress(10.0.0.2)"], "a.b.svc"),
            "certificate is not valid for any names, but wanted to match a.b.svc"
        );
        assert_eq!(
            of_status(StatusCode::INTERNAL_SERVER_ERROR, Some("boom")),
            "an error on the server (\"boom\") has prevented the request from succeeding"
        );
    }
}
