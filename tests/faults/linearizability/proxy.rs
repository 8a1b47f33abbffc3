//! A proxy between a backend and its server that falsifies a script.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// A text that the proxy replaces in everything that a backend sends. Both texts have the same length, because the protocol states
/// lengths.
#[derive(Clone, Copy)]
pub struct Falsification {
    pub find: &'static str,
    pub replace: &'static str,
}

/// The proxy. It ends when it is dropped.
pub struct Proxy {
    port: u16,
    /// How many times each text was replaced.
    falsified: Arc<Vec<AtomicU64>>,
    task: JoinHandle<()>,
}

impl Proxy {
    pub async fn start(server_port: u16, falsifications: &'static [Falsification]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let falsified = Arc::new(falsifications.iter().map(|_| AtomicU64::new(0)).collect::<Vec<_>>());
        let count = Arc::clone(&falsified);
        let task = tokio::spawn(async move {
            let mut pumps = JoinSet::new();
            while let Ok((backend, _)) = listener.accept().await {
                let server = TcpStream::connect(("127.0.0.1", server_port)).await.unwrap();
                backend.set_nodelay(true).unwrap();
                server.set_nodelay(true).unwrap();
                let (from_backend, to_backend) = backend.into_split();
                let (from_server, to_server) = server.into_split();
                pumps.spawn(pump(from_backend, to_server, falsifications, Arc::clone(&count)));
                pumps.spawn(pump(from_server, to_backend, &[], Arc::clone(&count)));
            }
        });
        Self { port, falsified, task }
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Returns how many times each text was replaced.
    pub fn falsified(&self) -> Vec<u64> {
        self.falsified.iter().map(|count| count.load(SeqCst)).collect()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Passes bytes on until one side closes the connection.
async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    falsifications: &[Falsification],
    falsified: Arc<Vec<AtomicU64>>,
) {
    let mut bytes = Vec::new();
    while from.read_buf(&mut bytes).await.is_ok_and(|read| read > 0) {
        let mut held_back = 0;
        for (falsification, count) in falsifications.iter().zip(&*falsified) {
            count.fetch_add(falsification.apply(&mut bytes), SeqCst);
            held_back = held_back.max(falsification.held_back(&bytes));
        }
        let passed_on = bytes.len() - held_back;
        if to.write_all(&bytes[..passed_on]).await.is_err() {
            return;
        }
        bytes.drain(..passed_on);
    }
}

impl Falsification {
    /// Replaces the text where it is complete, and counts.
    fn apply(self, bytes: &mut [u8]) -> u64 {
        let (find, replace) = (self.find.as_bytes(), self.replace.as_bytes());
        assert_eq!(find.len(), replace.len());
        let (mut at, mut replaced) = (0, 0);
        while let Some(window) = bytes.get_mut(at..at + find.len()) {
            if window == find {
                window.copy_from_slice(replace);
                replaced += 1;
            }
            at += 1;
        }
        replaced
    }

    /// Returns how many bytes at the end may be the beginning of the text and must wait for more. No command ends with
    /// such bytes, so no bytes wait forever.
    fn held_back(self, bytes: &[u8]) -> usize {
        let is_beginning = |length: &usize| bytes.ends_with(&self.find.as_bytes()[..*length]);
        (1..self.find.len()).rev().find(is_beginning).unwrap_or(0)
    }
}
