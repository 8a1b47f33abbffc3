//! Detects that a server uses TLS and the URL does not, or the reverse. Neither side reports the mismatch: it closes the
//! connection, or waits for more bytes.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use futures_util::future::{Either, select};
use redis::ConnectionAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout_at};

use crate::backend::StorageError;

/// How long the diagnosis may delay an error.
const PATIENCE: Duration = Duration::from_millis(250);

/// The first message of a TLS connection, with one cipher suite of TLS 1.2 and no extension. A server answers with a message
/// of its own, even if it refuses the connection.
const CLIENT_HELLO: [u8; 52] = {
    let mut hello = [0; 52];
    let head: [u8; 11] = [0x16, 3, 1, 0, 47, 1, 0, 0, 43, 3, 3];
    let mut at = 0;
    while at < head.len() {
        hello[at] = head[at];
        at += 1;
    }
    // 32 random bytes (zeros suffice) and no session; then ECDHE-RSA-AES128-GCM-SHA256, and no renegotiation; then no compression.
    [hello[45], hello[46], hello[47], hello[48], hello[49], hello[50], hello[51]] =
        [4, 0xC0, 0x2F, 0, 0xFF, 1, 0];
    hello
};

/// Runs `connecting`, which connects to this address within `limit`. If it fails because the server uses TLS and the URL does
/// not, or the reverse, the error says so.
pub(super) async fn diagnosed<T>(
    address: &ConnectionAddr,
    limit: Duration,
    connecting: impl Future<Output = Result<T, StorageError>>,
) -> Result<T, StorageError> {
    let deadline = Instant::now() + limit;
    let diagnosis = pin!(async {
        // By then, a server that understands the client has answered. Only a server that waits for more bytes is
        // silent.
        sleep(limit / 2).await;
        timeout_at(deadline, is_mismatch(address)).await.unwrap_or_default()
    });
    let (outcome, is_mismatch) = match select(pin!(connecting), diagnosis).await {
        Either::Left((Err(error), _)) if matches!(error, StorageError::Unavailable { .. }) => {
            let until = deadline.min(Instant::now() + PATIENCE);
            (Err(error), timeout_at(until, is_mismatch(address)).await.unwrap_or_default())
        }
        Either::Left((outcome, _)) => (outcome, false),
        Either::Right((found, connecting)) => (connecting.await, found),
    };
    match outcome {
        Err(StorageError::Unavailable { address: server, outcome_unknown, .. }) if is_mismatch => {
            let reason = match address {
                ConnectionAddr::TcpTls { .. } => {
                    "the server does not speak TLS at this port; use redis:// in place of rediss://, \
                                                  or the port for TLS"
                }
                _ => {
                    "the server speaks TLS at this port; use rediss:// in place of redis://, or the port without TLS"
                }
            };
            Err(StorageError::Unavailable {
                address: server,
                reason: reason.to_owned(),
                outcome_unknown,
                source: None,
            })
        }
        outcome => outcome,
    }
}

/// Returns whether the server uses TLS and the address does not, or the reverse.
async fn is_mismatch(address: &ConnectionAddr) -> bool {
    match address {
        ConnectionAddr::Tcp(host, port) => {
            let encrypted = pin!(first_byte(host, *port, &CLIENT_HELLO));
            // A server without TLS waits for the rest of the `CLIENT_HELLO`. It replies to `PING` at once.
            let plain = pin!(first_byte(host, *port, b"PING\r\n"));
            let first = match select(encrypted, plain).await {
                Either::Left((first, _)) => first,
                Either::Right((Some(b'+' | b'-'), _)) => None,
                Either::Right((_, encrypted)) => encrypted.await,
            };
            // The type of a TLS record: an alert or a handshake.
            first.is_some_and(|byte| matches!(byte, 0x15 | 0x16))
        }
        ConnectionAddr::TcpTls { host, port, .. } => {
            let first = first_byte(host, *port, b"PING\r\n").await;
            first.is_some_and(|byte| matches!(byte, b'+' | b'-'))
        }
        _ => false,
    }
}

/// Sends these bytes over a new connection, and returns the first byte of the reply.
async fn first_byte(host: &str, port: u16, message: &[u8]) -> Option<u8> {
    let mut connection = TcpStream::connect((host, port)).await.ok()?;
    connection.write_all(message).await.ok()?;
    connection.read_u8().await.ok()
}
