//! A proxy in front of a server that replies to every command with an error for a while, as a hosted Redis may do.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// The proxy. It ends when it is dropped.
pub struct Refusing {
    pub port: u16,
    state: Arc<State>,
    accepting: JoinHandle<()>,
}

#[derive(Default)]
struct State {
    /// The error line that replies to every command.
    error: Mutex<Option<String>>,
    refused: AtomicUsize,
}

impl Refusing {
    pub async fn start(server_port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(("127.0.0.1", server_port)).await.unwrap();
                let state = Arc::clone(&shared);
                tokio::spawn(async move { serve(client, server, &state).await });
            }
        });
        Self { port, state, accepting }
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Replies to every command with this line from now on, or passes commands on again.
    pub fn answer(&self, error: Option<&str>) {
        *self.state.error.lock().unwrap() = error.map(str::to_owned);
    }

    /// Returns how many commands it has refused.
    pub fn refused(&self) -> usize {
        self.state.refused.load(Ordering::SeqCst)
    }
}

impl Drop for Refusing {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Serves one connection, one command after the other.
async fn serve(mut client: TcpStream, mut server: TcpStream, state: &State) -> Option<()> {
    let (mut commands, mut replies) = (Vec::new(), Vec::new());
    loop {
        let command = whole(&mut client, &mut commands).await?;
        let error = state.error.lock().unwrap().clone();
        if let Some(error) = error {
            state.refused.fetch_add(1, Ordering::SeqCst);
            client.write_all(format!("{error}\r\n").as_bytes()).await.ok()?;
            continue;
        }
        server.write_all(&command).await.ok()?;
        if String::from_utf8_lossy(&command).to_ascii_uppercase().contains("SUBSCRIBE\r\n") {
            // From now on the server sends messages at any time.
            client.write_all(&replies).await.ok()?;
            tokio::io::copy_bidirectional(&mut client, &mut server).await.ok()?;
            return None;
        }
        let reply = whole(&mut server, &mut replies).await?;
        client.write_all(&reply).await.ok()?;
    }
}

/// Reads the next command or reply. Returns `None` when the other side has closed the connection.
async fn whole(stream: &mut TcpStream, pending: &mut Vec<u8>) -> Option<Vec<u8>> {
    loop {
        if let Some(end) = super::proxy::end(pending, 0) {
            return Some(pending.drain(..end).collect());
        }
        if stream.read_buf(pending).await.ok()? == 0 {
            return None;
        }
    }
}
