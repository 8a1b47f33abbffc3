//! A proxy in front of a server that becomes silent, sends garbage, or leads to another server.

use std::sync::atomic::{AtomicU16, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What the relay does with the bytes of a connection.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mode {
    Passes,
    /// Keeps the connection open, and passes nothing.
    Silent,
    /// Replaces each reply by bytes that are not a reply.
    Garbage,
    /// Resets the connection in the middle of a reply.
    Resets,
    /// Delays each reply.
    Slow(Duration),
}

/// A port that leads each new connection to a server. Dropping it closes its connections.
pub struct Relay {
    pub port: u16,
    state: Arc<State>,
    accepting: JoinHandle<()>,
}

struct State {
    target: AtomicU16,
    /// The mode of new connections.
    mode: Mutex<Mode>,
    connections: Mutex<Vec<watch::Sender<Mode>>>,
}

impl Relay {
    pub async fn start(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(State {
            target: AtomicU16::new(target),
            mode: Mutex::new(Mode::Passes),
            connections: Mutex::default(),
        });
        let shared = Arc::clone(&state);
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let mode = watch::Sender::new(*shared.mode.lock().unwrap());
                let modes = mode.subscribe();
                shared.connections.lock().unwrap().push(mode);
                tokio::spawn(serve(client, shared.target.load(SeqCst), modes));
            }
        });
        Self { port, state, accepting }
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Leads new connections to another server. Open connections stay.
    pub fn lead_to(&self, target: u16) {
        self.state.target.store(target, SeqCst);
    }

    /// Passes nothing over open connections. New ones work.
    pub fn silence_connections(&self) {
        self.set_connections(Mode::Silent);
    }

    /// Passes nothing over any connection, new ones included.
    pub fn silence(&self) {
        *self.state.mode.lock().unwrap() = Mode::Silent;
        self.set_connections(Mode::Silent);
    }

    /// Sends garbage to clients over every connection.
    pub fn send_garbage(&self) {
        *self.state.mode.lock().unwrap() = Mode::Garbage;
        self.set_connections(Mode::Garbage);
    }

    /// Resets each connection in the middle of its next reply.
    pub fn reset(&self) {
        *self.state.mode.lock().unwrap() = Mode::Resets;
        self.set_connections(Mode::Resets);
    }

    /// Delays replies over new connections. Open connections stay as they are.
    pub fn slow_new_connections(&self, delay: Duration) {
        *self.state.mode.lock().unwrap() = Mode::Slow(delay);
    }

    /// Passes everything over new connections. Open connections stay as they are.
    pub fn pass_new_connections(&self) {
        *self.state.mode.lock().unwrap() = Mode::Passes;
    }

    fn set_connections(&self, mode: Mode) {
        self.state.connections.lock().unwrap().retain(|connection| connection.send(mode).is_ok());
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.accepting.abort();
        self.state.connections.lock().unwrap().clear();
    }
}

/// Passes bytes on until one side closes the connection or the relay is dropped.
async fn serve(mut client: TcpStream, target: u16, mut modes: watch::Receiver<Mode>) {
    let Ok(mut server) = TcpStream::connect(("127.0.0.1", target)).await else { return };
    let (mut request, mut reply) = (vec![0; 16 * 1024], vec![0; 16 * 1024]);
    loop {
        let mode = *modes.borrow_and_update();
        tokio::select! {
            changed = modes.changed() => if changed.is_err() {
                return;
            },
            read = client.read(&mut request) => match read {
                Ok(1..) if mode == Mode::Silent => {}
                Ok(read @ 1..) if server.write_all(&request[..read]).await.is_ok() => {}
                _ => return,
            },
            read = server.read(&mut reply) => match (read, mode) {
                (Ok(1..), Mode::Silent) => {}
                (Ok(1..), Mode::Garbage) => {
                    if client.write_all(b"HTTP/1.1 502 Bad Gateway\r\n\r\n").await.is_err() {
                        return;
                    }
                }
                (Ok(read @ 1..), Mode::Resets) => {
                    // The client may have closed the connection.
                    let _ = client.write_all(&reply[..read / 2]).await;
                    let _ = client.set_zero_linger();
                    return;
                }
                (Ok(read @ 1..), Mode::Passes | Mode::Slow(_)) => {
                    if let Mode::Slow(delay) = mode {
                        tokio::time::sleep(delay).await;
                    }
                    if client.write_all(&reply[..read]).await.is_err() {
                        return;
                    }
                }
                _ => return,
            },
        }
    }
}
