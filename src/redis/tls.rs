//! Certificates for `rediss://`.

use redis::{ClientTlsConfig, RedisError, TlsCertificates};

/// In PEM, as they are given to the builder.
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

    /// `None`: those of the operating system, and no client certificate.
    pub(super) fn given(&self) -> Option<TlsCertificates> {
        (self.0.root_cert.is_some() || self.0.client_tls.is_some()).then(|| self.0.clone())
    }
}

/// Whether one side refused the other's certificate, or its lack of one.
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
                // A signature by somebody else of the authority's name.
                | AlertDescription::DecryptError
                | AlertDescription::HandshakeFailure
                | AlertDescription::UnknownCA
                | AlertDescription::UnsupportedCertificate
        ),
        _ => false,
    }
}

fn tls_error(error: &RedisError) -> Option<&rustls::Error> {
    let source = std::error::Error::source(error)?;
    // The redis crate shares its errors.
    let shared = source.downcast_ref::<std::sync::Arc<dyn std::error::Error + Send + Sync>>()?;
    shared.downcast_ref::<std::io::Error>()?.get_ref()?.downcast_ref()
}
