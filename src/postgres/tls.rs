//! TLS by rustls.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio_postgres::config::SslMode;
use tokio_postgres_rustls::MakeRustlsConnect;

use super::settings::invalid_setting;
use crate::backend::StorageError;

/// Returns what makes the connections encrypted, if the mode and the server want it.
///
/// As in libpq, `prefer` encrypts without a check of the certificate, because the client would also go on without TLS. `require` checks the
/// certificate and the name of the host.
pub(super) fn connector(mode: SslMode, roots: Option<&[u8]>) -> Result<MakeRustlsConnect, StorageError> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| invalid_setting(format!("TLS cannot be set up: {error}")))?;
    let config = match (mode, roots) {
        (SslMode::Disable, _) => builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth(),
        (SslMode::Prefer, None) => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
            .with_no_client_auth(),
        (_, Some(pem)) => builder.with_root_certificates(given(pem)?).with_no_client_auth(),
        (_, None) => builder.with_root_certificates(of_the_system()?).with_no_client_auth(),
    };
    Ok(MakeRustlsConnect::new(config))
}

fn given(pem: &[u8]) -> Result<RootCertStore, StorageError> {
    let mut roots = RootCertStore::empty();
    let unusable = |error: &dyn std::fmt::Display| {
        invalid_setting(format!(
            "root_certificates holds a certificate that cannot be used; replace it: {error}"
        ))
    };
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|error| unusable(&error))?;
        roots.add(certificate).map_err(|error| unusable(&error))?;
    }
    match roots.is_empty() {
        true => Err(invalid_setting("root_certificates holds no certificate in PEM".to_owned())),
        false => Ok(roots),
    }
}

/// Returns the certificates that the operating system trusts.
fn of_the_system() -> Result<RootCertStore, StorageError> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(found.certs);
    match roots.is_empty() {
        true => Err(invalid_setting(
            "the operating system trusts no certificate; install its certificates, or pass root_certificates"
                .to_owned(),
        )),
        false => Ok(roots),
    }
}

/// Accepts every certificate. The connection is encrypted, but the server may be anybody.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
