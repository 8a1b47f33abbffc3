//! Turns URLs and settings into dialers.

use std::time::Duration;

use redis::io::tcp::{TcpSettings, socket2::TcpKeepalive};
use redis::{ConnectionInfo, RedisError};

use super::RedisBuilder;
use crate::backend::StorageError;
use crate::redis::dialer::Dialer;
use crate::redis::error::Context;
use crate::redis::reply::CommandError;
#[cfg(feature = "redis-tls")]
use crate::redis::settings::invalid_setting;
use crate::redis::url;

/// The idle time after which the kernel probes a connection. The probes detect that a router in between has dropped the
/// connection.
const KEEPALIVE: Duration = Duration::from_secs(15);

impl RedisBuilder {
    pub(super) fn read_url(&self, url: &str) -> Result<ConnectionInfo, StorageError> {
        Ok(url::read(url, "the URL")?.set_tcp_settings(self.tcp_settings()))
    }

    #[cfg(any(feature = "redis-cluster", feature = "redis-sentinel"))]
    pub(super) fn read_urls<S: AsRef<str>>(
        &self,
        urls: impl IntoIterator<Item = S>,
        what: &str,
    ) -> Result<Vec<ConnectionInfo>, StorageError> {
        let servers = url::read_all(urls, what)?;
        Ok(servers.into_iter().map(|server| server.set_tcp_settings(self.tcp_settings())).collect())
    }

    /// Returns settings that detect a peer that disappeared silently. Without them, one call after the other would
    /// exceed its time limit.
    fn tcp_settings(&self) -> TcpSettings {
        let settings =
            TcpSettings::default().set_nodelay(true).set_keepalive(TcpKeepalive::new().with_time(KEEPALIVE));
        #[cfg(any(target_os = "android", target_os = "fuchsia", target_os = "linux"))]
        let settings = settings.set_user_timeout(self.response_timeout);
        settings
    }

    /// Returns a dialer with the settings of this URL. Each connection has the time limit `limit`.
    pub(super) fn dialer(
        &self,
        settings: ConnectionInfo,
        limit: Duration,
        address: &str,
    ) -> Result<Dialer, StorageError> {
        #[cfg(feature = "redis-tls")]
        if self.certificates.configured().is_some()
            && !matches!(settings.addr(), redis::ConnectionAddr::TcpTls { .. })
        {
            let reason =
                "certificates are set, and the URL begins with redis://; use rediss:// to connect over TLS";
            return Err(invalid_setting(reason.to_owned()));
        }
        let dialer = Dialer {
            settings,
            #[cfg(feature = "redis-tls")]
            certificates: self.certificates.clone(),
            callback: self.callback.clone(),
            limit,
        };
        dialer.check().map_err(|error| not_sent(address, error))?;
        Ok(dialer)
    }

    /// Returns a dialer for a sentinel. Sentinels have their own users and passwords.
    #[cfg(feature = "redis-sentinel")]
    pub(super) fn sentinel_dialer(
        &self,
        sentinel: ConnectionInfo,
        address: &str,
    ) -> Result<Dialer, StorageError> {
        // RESP2, because the backend does not subscribe over this connection.
        let settings = sentinel.redis_settings().clone().set_protocol(redis::ProtocolVersion::RESP2);
        let settings = sentinel.set_redis_settings(settings);
        let mut own = self.clone();
        own.callback = None;
        #[cfg(feature = "redis-tls")]
        if !matches!(settings.addr(), redis::ConnectionAddr::TcpTls { .. }) {
            own.certificates = crate::redis::tls::Certificates::default();
        }
        own.dialer(settings, own.connect_timeout, address)
    }
}

/// Returns an error that occurred before anything was sent.
pub(super) fn not_sent(address: &str, error: RedisError) -> StorageError {
    Context::reads(address, "").storage_error(CommandError::NotSent(error))
}

pub(super) fn configuration_error(address: String, reason: String) -> StorageError {
    StorageError::Backend { address, reason, outcome_unknown: false, source: None }
}

#[cfg(any(feature = "redis-cluster", feature = "redis-sentinel"))]
pub(super) fn join(servers: &[ConnectionInfo]) -> String {
    let addresses: Vec<String> = servers.iter().map(|server| server.addr().to_string()).collect();
    addresses.join(", ")
}

#[cfg(feature = "redis-sentinel")]
pub(super) fn host(info: &ConnectionInfo) -> &str {
    match info.addr() {
        redis::ConnectionAddr::Tcp(host, _) | redis::ConnectionAddr::TcpTls { host, .. } => host,
        _ => "",
    }
}
