//! Connections to kubelets, pods and Services, one per request.

use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::RequestBody;
use super::target::Target;
use crate::error::{ApiError, Result};
use crate::http::serve::read_certificates;
use crate::server::{Api, KeyPair};

const DIAL: Duration = Duration::from_secs(10);

/// Sends a request to the target; the connection lives as long as its answer, or its upgrade.
pub async fn send(api: &Api, target: &Target, request: Request<RequestBody>) -> Result<Response<Incoming>> {
    let dialing = async {
        let stream = TcpStream::connect((target.address.as_str(), target.port)).await?;
        stream.set_nodelay(true)?;
        if !target.tls {
            return Ok::<_, std::io::Error>(Err(stream));
        }
        let pair = if target.kubelet { api.config.kubelet_client.as_ref() } else { None };
        let connector = connector(pair).map_err(std::io::Error::other)?;
        let name = ServerName::try_from(target.address.clone()).map_err(std::io::Error::other)?;
        connector.connect(name, stream).await.map(Ok)
    };
    let stream = tokio::time::timeout(DIAL, dialing).await;
    let failed = |why: &dyn std::fmt::Display| {
        ApiError::internal(format!("error dialing backend: dial tcp {}: {why}", target.host))
    };
    match stream {
        Err(_) => Err(failed(&"i/o timeout")),
        Ok(Err(error)) => Err(failed(&error)),
        Ok(Ok(Ok(tls))) => exchange(api, tls, request).await.map_err(|error| failed(&error)),
        Ok(Ok(Err(plain))) => exchange(api, plain, request).await.map_err(|error| failed(&error)),
    }
}

async fn exchange<S>(api: &Api, stream: S, request: Request<RequestBody>) -> hyper::Result<Response<Incoming>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    api.supervisor.spawn("backend connection", async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "a connection to a node ended");
        }
    });
    sender.send_request(request).await
}

fn connector(pair: Option<&KeyPair>) -> Result<TlsConnector> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(ApiError::internal)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Unverified(provider)));
    let config = match pair {
        Some(pair) => {
            let chain = read_certificates(&pair.certificate)?;
            let key = PrivateKeyDer::from_pem_file(&pair.key)
                .map_err(|error| ApiError::internal(format!("reading {}: {error}", pair.key.display())))?;
            builder.with_client_auth_cert(chain, key).map_err(ApiError::internal)?
        }
        None => builder.with_no_client_auth(),
    };
    Ok(TlsConnector::from(Arc::new(config)))
}

/// Takes any serving certificate, as upstream does without `--kubelet-certificate-authority` and
/// for proxied pods: a kubelet shows a self-signed one until its request was signed. Possession of
/// the key is proved all the same.
#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _certificate: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
