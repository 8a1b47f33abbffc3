//! A proxy in front of a server that records the scripts of its clients. It passes everything on, and loses replies when a
//! test says so.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// A script that a client sent for records or timers.
#[derive(Clone, Debug)]
pub struct Sent {
    /// The keys that the script names.
    pub keys: Vec<String>,
    /// The size of the command.
    pub bytes: usize,
}

impl Sent {
    /// Returns the keys of the records.
    pub fn records(&self) -> impl Iterator<Item = &String> {
        self.keys.iter().filter(|key| key.contains(":tasks:"))
    }
}

/// A port in front of a server. Dropping it closes no connection, and accepts no new ones.
pub struct Tap {
    pub port: u16,
    state: Arc<State>,
    accepting: JoinHandle<()>,
}

#[derive(Default)]
struct State {
    sent: Mutex<Vec<Sent>>,
    loses_replies: AtomicBool,
}

impl Tap {
    pub async fn start(server_port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect(("127.0.0.1", server_port)).await else { continue };
                for stream in [&client, &server] {
                    stream.set_nodelay(true).unwrap();
                }
                let (from_client, to_client) = client.into_split();
                let (from_server, to_server) = server.into_split();
                tokio::spawn(pass_commands(from_client, to_server, Arc::clone(&shared)));
                tokio::spawn(pass_replies(from_server, to_client, Arc::clone(&shared)));
            }
        });
        Self { port, state, accepting }
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Takes the scripts that were sent since the last call, in their order on each connection.
    pub fn take(&self) -> Vec<Sent> {
        std::mem::take(&mut *self.state.sent.lock().unwrap())
    }

    /// Loses all replies from now on, or passes those over new connections on again. Connections stay open.
    pub fn lose_replies(&self, loses: bool) {
        self.state.loses_replies.store(loses, SeqCst);
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Passes commands on until one side closes the connection, and records the scripts.
async fn pass_commands(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, state: Arc<State>) {
    let mut pending = Vec::new();
    while let Ok(1..) = from.read_buf(&mut pending).await {
        while let Some(end) = super::proxy::end(&pending, 0) {
            let command: Vec<u8> = pending.drain(..end).collect();
            state.sent.lock().unwrap().extend(script(&command));
            if to.write_all(&command).await.is_err() {
                return;
            }
        }
    }
}

async fn pass_replies(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, state: Arc<State>) {
    let (mut replies, mut has_lost) = (vec![0; 64 * 1024], false);
    while let Ok(size @ 1..) = from.read(&mut replies).await {
        // After a lost reply, the client would take the next reply for it.
        has_lost |= state.loses_replies.load(SeqCst);
        if !has_lost && to.write_all(&replies[..size]).await.is_err() {
            return;
        }
    }
}

/// Returns the script if the command is one, and no probe.
fn script(command: &[u8]) -> Option<Sent> {
    let words: Vec<Vec<u8>> = redis::from_redis_value(redis::parse_redis_value(command).unwrap()).unwrap();
    if !words[0].eq_ignore_ascii_case(b"EVAL") {
        return None;
    }
    let text = |word: &Vec<u8>| String::from_utf8_lossy(word).into_owned();
    let count: usize = text(&words[2]).parse().unwrap();
    let keys: Vec<String> = words[3..3 + count].iter().map(text).collect();
    let is_probe = keys.is_empty() || keys.iter().any(|key| key.contains(":probe"));
    (!is_probe).then_some(Sent { keys, bytes: command.len() })
}
