//! The certificates for `rediss://`, and the errors that they cause.

use redis::{ClientTlsConfig, RedisError, TlsCertificates};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use super::settings::invalid_setting;
use crate::backend::StorageError;

/// The certificates in PEM, as the builder received them.
#[derive(Clone)]
pub(super) struct Certificates(TlsCertificates);

impl Default for Certificates {
    fn default() -> Self {
        Self(TlsCertificates { client_tls: None, root_cert: None })
    }
}

impl std::fmt::Debug for Certificates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Certificates")
    }
}

impl Certificates {
    pub(super) fn set_root(&mut self, certificates: Vec<u8>) {
        self.0.root_cert = Some(certificates);
    }

    pub(super) fn set_client(&mut self, certificate: Vec<u8>, key: Vec<u8>) {
        self.0.client_tls = Some(ClientTlsConfig { client_cert: certificate, client_key: key });
    }

    /// Checks the certificates before anything is sent. The redis crate reads text without a certificate as an empty list.
    pub(super) fn check(&self) -> Result<(), StorageError> {
        let TlsCertificates { client_tls, root_cert } = &self.0;
        if let Some(pem) = root_cert {
            let mut roots = RootCertStore::empty();
            for certificate in certificates("root_certificates", pem)? {
                roots.add(certificate).map_err(|error| {
                    invalid_setting(format!(
                        "root_certificates holds a certificate that cannot be used as an authority; replace it: {error}"
                    ))
                })?;
            }
        }
        if let Some(ClientTlsConfig { client_cert, client_key }) = client_tls {
            let chain = certificates("client_certificate", client_cert)?;
            let key = PrivateKeyDer::from_pem_slice(client_key).map_err(|_| {
                invalid_setting(format!(
                    "the key of client_certificate is not a private key in PEM; {}",
                    describe(client_key)
                ))
            })?;
            CertifiedKey::from_der(chain, key, &rustls::crypto::ring::default_provider()).map_err(
                |error| {
                    invalid_setting(format!(
                        "the certificate and the key of client_certificate do not belong together; pass the key of this certificate: {error}"
                    ))
                },
            )?;
        }
        Ok(())
    }

    /// Returns the certificates; `None` for those of the operating system and no client certificate.
    pub(super) fn configured(&self) -> Option<TlsCertificates> {
        (self.0.root_cert.is_some() || self.0.client_tls.is_some()).then(|| self.0.clone())
    }
}

/// Reads the certificates in PEM, at least one.
fn certificates(setting: &str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, StorageError> {
    match CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>() {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        _ => Err(invalid_setting(format!(
            "{setting} holds no certificate in PEM that can be read; {}",
            describe(pem)
        ))),
    }
}

/// Describes what the text holds instead.
fn describe(pem: &[u8]) -> &'static str {
    let holds = |words: &[u8]| pem.windows(words.len()).any(|window| window == words);
    if pem.iter().all(u8::is_ascii_whitespace) {
        "it is empty"
    } else if holds(b"PRIVATE KEY-----") {
        "it holds a private key"
    } else if holds(b"-----BEGIN CERTIFICATE-----") {
        "it holds a certificate, or a part of one"
    } else {
        "a text in PEM has a line that begins with `-----BEGIN`"
    }
}

/// Returns whether one side refused the other's certificate, or its lack of one.
pub(super) fn is_refusal(error: &RedisError) -> bool {
    use rustls::{AlertDescription, Error};
    let Some(error) = tls_error(error) else { return false };
    match error {
        Error::InvalidCertificate(_) | Error::NoCertificatesPresented => true,
        Error::AlertReceived(alert) => matches!(
            alert,
            AlertDescription::AccessDenied
                | AlertDescription::BadCertificate
                | AlertDescription::CertificateExpired
                | AlertDescription::CertificateRequired
                | AlertDescription::CertificateRevoked
                | AlertDescription::CertificateUnknown
                // The signature is by another authority of the same name.
                | AlertDescription::DecryptError
                | AlertDescription::HandshakeFailure
                | AlertDescription::UnknownCA
                | AlertDescription::UnsupportedCertificate
        ),
        _ => false,
    }
}

/// Returns which side refused the other, and what to do.
pub(super) fn refusal(error: &RedisError) -> &'static str {
    match tls_error(error) {
        Some(rustls::Error::InvalidCertificate(_)) => {
            "the server's certificate is not trusted; trust its authority with root_certificates, or correct the host"
        }
        _ => {
            "the server does not accept this client's certificate, or requires one; set client_certificate to a certificate that the server trusts"
        }
    }
}

fn tls_error(error: &RedisError) -> Option<&rustls::Error> {
    let source = std::error::Error::source(error)?;
    // The redis crate wraps its errors in an `Arc`.
    let shared = source.downcast_ref::<std::sync::Arc<dyn std::error::Error + Send + Sync>>()?;
    shared.downcast_ref::<std::io::Error>()?.get_ref()?.downcast_ref()
}
