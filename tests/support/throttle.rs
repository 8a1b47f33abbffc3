//! A network of limited bandwidth in front of a server.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

/// The size of a packet: the payload of an Ethernet frame.
const PACKET: usize = 1448;
/// How early a packet may be sent, because timers are not more precise.
const BURST: Duration = Duration::from_millis(1);

/// A proxy whose connections share the bandwidth of one line: one token bucket for all of them and both directions, which serves
/// packets in the order of their arrival. It has a runtime of its own.
pub struct Throttle {
    pub port: u16,
    line: Arc<Line>,
    runtime: Option<Runtime>,
}

impl Drop for Throttle {
    fn drop(&mut self) {
        // The test runs in a runtime. Dropping another runtime there must not block.
        self.runtime.take().into_iter().for_each(Runtime::shutdown_background);
    }
}

struct Line {
    bytes_a_second: f64,
    /// How long a packet takes after it has left the line.
    latency: Duration,
    /// When the line is free for the next packet.
    free_at: Mutex<Instant>,
    to_server: AtomicU64,
    to_client: AtomicU64,
}

impl Throttle {
    pub fn start(server_port: u16, megabits_a_second: f64, latency: Duration) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let line = Arc::new(Line {
            bytes_a_second: megabits_a_second * 1e6 / 8.0,
            latency,
            free_at: Mutex::new(Instant::now()),
            to_server: AtomicU64::new(0),
            to_client: AtomicU64::new(0),
        });
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        runtime.spawn(accept(listener, server_port, Arc::clone(&line)));
        Self { port, line, runtime: Some(runtime) }
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Returns how many bytes were sent to the server.
    pub fn to_server(&self) -> u64 {
        self.line.to_server.load(Ordering::SeqCst)
    }

    /// Returns how many bytes the server sent.
    pub fn to_client(&self) -> u64 {
        self.line.to_client.load(Ordering::SeqCst)
    }
}

async fn accept(listener: std::net::TcpListener, server_port: u16, line: Arc<Line>) {
    let listener = TcpListener::from_std(listener).unwrap();
    while let Ok((client, _)) = listener.accept().await {
        let Ok(server) = TcpStream::connect(("127.0.0.1", server_port)).await else { continue };
        for stream in [&client, &server] {
            stream.set_nodelay(true).unwrap();
        }
        let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
        tokio::spawn(pass(from_client, to_server, Arc::clone(&line), true));
        tokio::spawn(pass(from_server, to_client, Arc::clone(&line), false));
    }
}

/// Passes packets on until one side closes the connection.
async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, line: Arc<Line>, is_to_server: bool) {
    let (send, mut sent) = mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
    tokio::spawn(async move {
        while let Some((at, packet)) = sent.recv().await {
            sleep_until(at).await;
            if to.write_all(&packet).await.is_err() {
                return;
            }
        }
    });
    let mut packet = vec![0; PACKET];
    while let Ok(size @ 1..) = from.read(&mut packet).await {
        let through = line.take(size);
        if through > Instant::now() + BURST {
            sleep_until(through).await;
        }
        let count = if is_to_server { &line.to_server } else { &line.to_client };
        count.fetch_add(size as u64, Ordering::SeqCst);
        if send.send((Instant::now() + line.latency, packet[..size].to_vec())).is_err() {
            return;
        }
    }
}

impl Line {
    /// Reserves the line for a packet of this size. Returns when the packet has passed it.
    fn take(&self, size: usize) -> Instant {
        let mut free_at = self.free_at.lock().unwrap();
        let through =
            (*free_at).max(Instant::now()) + Duration::from_secs_f64(size as f64 / self.bytes_a_second);
        *free_at = through;
        through
    }
}
