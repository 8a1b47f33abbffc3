//! The network between one worker process and the server. It cuts connections after random numbers of bytes, delays and
//! stalls them, and can cut the process off.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::support::Random;

/// A proxy in a runtime of its own, which ends when it is dropped.
pub struct Network {
    pub port: u16,
    state: Arc<State>,
    runtime: Option<Runtime>,
}

impl Drop for Network {
    fn drop(&mut self) {
        self.runtime.take().into_iter().for_each(Runtime::shutdown_background);
    }
}

struct State {
    server_port: u16,
    random: Mutex<Random>,
    /// How many bytes a connection passes at most.
    most_bytes: u64,
    /// How many connections there were. They are reset and closed in turn.
    connections: AtomicU64,
    is_faultless: AtomicBool,
    is_cut_off: watch::Sender<bool>,
    resets: AtomicU64,
    closes: AtomicU64,
    stalls: AtomicU64,
}

/// How a connection is cut.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cut {
    Reset,
    /// Closed, as by a server or a load balancer that shuts down.
    Close,
}

impl Network {
    pub fn start(server_port: u16, seed: u64, most_bytes: u64) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let state = Arc::new(State {
            server_port,
            random: Mutex::new(Random(seed)),
            most_bytes,
            connections: AtomicU64::new(seed),
            is_faultless: AtomicBool::new(false),
            is_cut_off: watch::Sender::new(false),
            resets: AtomicU64::new(0),
            closes: AtomicU64::new(0),
            stalls: AtomicU64::new(0),
        });
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::clone(&state);
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(Arc::clone(&shared).serve(client));
            }
        });
        Self { port, state, runtime: Some(runtime) }
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Ends the faults: connections are no longer cut, delayed or stalled.
    pub fn stop_faults(&self) {
        self.state.is_faultless.store(true, SeqCst);
    }

    /// Cuts the process off, or reconnects it. While it is cut off, no bytes pass.
    pub fn set_cut_off(&self, is_cut_off: bool) {
        self.state.is_cut_off.send_replace(is_cut_off);
    }

    /// Returns how many connections it reset and closed, and how many times it stalled.
    pub fn counts(&self) -> (u64, u64, u64) {
        let State { resets, closes, stalls, .. } = &*self.state;
        (resets.load(SeqCst), closes.load(SeqCst), stalls.load(SeqCst))
    }
}

impl State {
    fn below(&self, limit: u64) -> u64 {
        self.random.lock().unwrap().below(limit)
    }

    fn is_faultless(&self) -> bool {
        self.is_faultless.load(SeqCst)
    }

    async fn serve(self: Arc<Self>, mut client: TcpStream) {
        self.wait_until_joined().await;
        let Ok(mut server) = TcpStream::connect(("127.0.0.1", self.server_port)).await else { return };
        for stream in [&client, &server] {
            stream.set_nodelay(true).unwrap();
        }
        // One connection in four is cut soon.
        let bytes =
            if self.below(4) == 0 { self.below(20_000) } else { 20_000 + self.below(self.most_bytes) };
        let (to_server, to_client) = if self.below(2) == 0 { (bytes, u64::MAX) } else { (u64::MAX, bytes) };
        let cut =
            if self.connections.fetch_add(1, SeqCst).is_multiple_of(2) { Cut::Reset } else { Cut::Close };
        let is_cut = {
            let (mut from_client, mut into_client) = client.split();
            let (mut from_server, mut into_server) = server.split();
            tokio::select! {
                is_cut = self.pump(&mut from_client, &mut into_server, to_server) => is_cut,
                is_cut = self.pump(&mut from_server, &mut into_client, to_client) => is_cut,
            }
        };
        if !is_cut {
            return;
        }
        match cut {
            Cut::Reset => {
                self.resets.fetch_add(1, SeqCst);
                // The client may have closed the connection.
                let _ = client.set_zero_linger();
            }
            Cut::Close => {
                self.closes.fetch_add(1, SeqCst);
                let _ = client.shutdown().await;
                // A socket that is closed with unread bytes is reset.
                let mut rest = vec![0; 16 * 1024];
                while let Ok(Ok(1..)) = timeout(Duration::from_secs(1), client.read(&mut rest)).await {}
            }
        }
    }

    /// Passes up to `left` bytes on. Returns whether it passed that many.
    async fn pump(
        &self,
        from: &mut (impl AsyncRead + Unpin),
        to: &mut (impl AsyncWrite + Unpin),
        mut left: u64,
    ) -> bool {
        let mut bytes = vec![0; 16 * 1024];
        while let Ok(read @ 1..) = from.read(&mut bytes).await {
            self.delay().await;
            let passes =
                if self.is_faultless() { read } else { read.min(usize::try_from(left).unwrap_or(read)) };
            if to.write_all(&bytes[..passes]).await.is_err() {
                return false;
            }
            if passes < read {
                return true;
            }
            left = left.saturating_sub(passes as u64);
        }
        false
    }

    async fn delay(&self) {
        self.wait_until_joined().await;
        if self.is_faultless() {
            return;
        }
        match self.below(1000) {
            0 => {
                self.stalls.fetch_add(1, SeqCst);
                sleep(Duration::from_millis(100 + self.below(400))).await;
            }
            1..50 => sleep(Duration::from_millis(self.below(20))).await,
            _ => {}
        }
    }

    async fn wait_until_joined(&self) {
        // The sender lives as long as this state.
        let _ = self.is_cut_off.subscribe().wait_for(|is_cut_off| !is_cut_off).await;
    }
}
