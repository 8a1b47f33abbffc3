//! Certificates of the test's own.

use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tempfile::TempDir;

use super::redis::{Server, free_port};

/// An authority, a certificate for a server on loopback and one for a client, as files in PEM.
pub struct Authority {
    folder: TempDir,
}

impl Authority {
    pub fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "a private authority");
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let write = |name: &str, pem: String| std::fs::write(folder.path().join(name), pem).unwrap();
        write("ca.pem", authority.pem());
        for name in ["server", "client"] {
            let key = KeyPair::generate().unwrap();
            let params =
                CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
            write(&format!("{name}.pem"), params.signed_by(&key, &authority).unwrap().pem());
            write(&format!("{name}-key.pem"), key.serialize_pem());
        }
        Self { folder }
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn pem(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.folder.path().join(name)).unwrap()
    }

    /// Starts a server with a plain port and a port for TLS. Returns the server and the port for TLS.
    pub fn start_server(&self, clients_need_certificates: bool) -> (Server, u16) {
        let port = free_port();
        let settings = self.settings(port, clients_need_certificates);
        let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
        (Server::start(&settings), port)
    }

    /// Returns the settings with which a server speaks TLS on this port.
    pub fn settings(&self, port: u16, clients_need_certificates: bool) -> Vec<String> {
        let path = |name: &str| self.folder.path().join(name).to_str().unwrap().to_owned();
        let wanted = if clients_need_certificates { "yes" } else { "no" };
        [
            ("port", port.to_string()),
            ("ca-cert-file", path("ca.pem")),
            ("cert-file", path("server.pem")),
            ("key-file", path("server-key.pem")),
            ("auth-clients", wanted.to_owned()),
        ]
        .into_iter()
        .flat_map(|(name, value)| [format!("--tls-{name}"), value])
        .collect()
    }
}
