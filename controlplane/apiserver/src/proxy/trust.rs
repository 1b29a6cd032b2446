//! Whose serving certificates are taken, where the configuration names authorities.
//!
//! Go's rules, which upstream's clients follow: beside what an authority signed, a certificate that is
//! itself among the trusted ones is taken, also when it may sign others. Operators that make one
//! self-signed certificate for their webhook and give it as `caBundle` rely on that; webpki refuses an
//! authority's certificate in a server's hand.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use x509_parser::prelude::{ASN1Time, FromDer, X509Certificate};

#[derive(Debug)]
pub struct Rooted {
    roots: Arc<RootCertStore>,
    signed: Arc<WebPkiServerVerifier>,
}

impl Rooted {
    pub fn new(roots: RootCertStore, provider: Arc<CryptoProvider>) -> Result<Self, String> {
        let roots = Arc::new(roots);
        let signed = WebPkiServerVerifier::builder_with_provider(roots.clone(), provider).build();
        Ok(Self { signed: signed.map_err(|error| error.to_string())?, roots })
    }

    /// Whether a certificate is one of the trusted ones: an anchor is what one says of itself.
    fn is_trusted_itself(&self, certificate: &CertificateDer<'_>) -> bool {
        let mut own = RootCertStore::empty();
        own.add(certificate.clone()).is_ok() && own.roots.iter().all(|own| self.roots.roots.contains(own))
    }
}

/// What is asked of a trusted certificate besides: that it is for a server, now, of this name.
fn check(certificate: &CertificateDer<'_>, name: &ServerName<'_>, now: UnixTime) -> Result<(), CertificateError> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| CertificateError::BadEncoding)?;
    let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let now = ASN1Time::from_timestamp(seconds).map_err(|_| CertificateError::Expired)?;
    if !parsed.validity().is_valid_at(now) {
        return Err(CertificateError::Expired);
    }
    let usage = parsed.extended_key_usage().map_err(|_| CertificateError::BadEncoding)?;
    if usage.is_some_and(|usage| !usage.value.any && !usage.value.server_auth) {
        return Err(CertificateError::InvalidPurpose);
    }
    let named = ParsedCertificate::try_from(certificate).and_then(|parsed| verify_server_name(&parsed, name));
    named.map_err(|error| match error {
        Error::InvalidCertificate(why) => why,
        _ => CertificateError::NotValidForName,
    })
}

impl ServerCertVerifier for Rooted {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if self.is_trusted_itself(certificate) {
            check(certificate, name, now).map_err(Error::InvalidCertificate)?;
            return Ok(ServerCertVerified::assertion());
        }
        self.signed.verify_server_cert(certificate, intermediates, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signed.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signed.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.signed.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyPair, date_time_ymd};

    use super::*;

    /// The certificate of a server `hook.example` that signed itself.
    fn made(adjust: impl FnOnce(&mut CertificateParams)) -> CertificateDer<'static> {
        let mut params = CertificateParams::new(vec!["hook.example".to_owned()]).unwrap();
        (params.not_before, params.not_after) = (date_time_ymd(1970, 1, 1), date_time_ymd(1971, 1, 1));
        adjust(&mut params);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
    }

    fn judged(shown: &CertificateDer<'static>, trusted: &CertificateDer<'static>, name: &str, day: u64) -> String {
        let mut roots = RootCertStore::empty();
        roots.add(trusted.clone()).unwrap();
        let rooted = Rooted::new(roots, Arc::new(rustls::crypto::aws_lc_rs::default_provider())).unwrap();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let now = UnixTime::since_unix_epoch(Duration::from_secs(day * 86_400));
        match rooted.verify_server_cert(shown, &[], &name, &[], now) {
            Ok(_) => "taken".to_owned(),
            Err(Error::InvalidCertificate(CertificateError::NotValidForNameContext { .. })) => "other name".to_owned(),
            Err(Error::InvalidCertificate(why)) => format!("{why:?}").split(' ').next().unwrap_or_default().to_owned(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn a_webhook_may_show_the_self_signed_authority_that_its_bundle_is() {
        let authority = |params: &mut CertificateParams| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let (plain, own, other) = (made(|_| {}), made(authority), made(authority));
        let client = made(|params| {
            authority(params);
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        });
        assert_eq!(judged(&plain, &plain, "hook.example", 1), "taken");
        assert_eq!(judged(&own, &own, "hook.example", 1), "taken");
        assert_eq!(judged(&own, &own, "other.example", 1), "other name");
        assert_eq!(judged(&own, &own, "hook.example", 400), "Expired");
        assert_eq!(judged(&client, &client, "hook.example", 1), "InvalidPurpose");
        assert_ne!(judged(&own, &other, "hook.example", 1), "taken");
    }
}
