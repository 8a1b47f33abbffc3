//! An engine in front of the memory engine. It behaves like a server that hangs, rejects calls, or is replaced by
//! another server.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use mcp_task_store::{Agenda, MemoryBackend, OwnerId, StorageError};
use tokio::sync::watch;

use crate::support::intercept::{Call, Hooks, Intercept, Reply, unavailable};

/// What the server does with calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    Answers,
    /// The server receives no call until the test changes this. Then it handles the calls that have waited.
    Hangs,
    /// The server answers writes, and does not answer reads.
    HangsOnReads,
    /// The server applies every call, and answers none.
    AppliesOnly,
    Refuses,
}

pub struct Double {
    memory: Mutex<Arc<MemoryBackend>>,
    server: watch::Sender<Server>,
    generation: AtomicU64,
    /// How many milliseconds each reply takes.
    pub takes_ms: AtomicU64,
    /// How many milliseconds more a page takes.
    pub page_takes_ms: AtomicU64,
    pub reads: AtomicUsize,
    pub writes: AtomicUsize,
    /// The server rejects reads of this owner's pages.
    refused_owner: Mutex<Option<OwnerId>>,
    /// How many of the next writes are lost before they are applied.
    pub loses_writes: AtomicUsize,
}

impl Double {
    pub fn new() -> Arc<Intercept<Self>> {
        Self::of(MemoryBackend::new())
    }

    pub fn of(memory: MemoryBackend) -> Arc<Intercept<Self>> {
        Intercept::new(Self {
            memory: Mutex::new(Arc::new(memory)),
            server: watch::Sender::new(Server::Answers),
            generation: AtomicU64::new(0),
            takes_ms: AtomicU64::new(0),
            page_takes_ms: AtomicU64::new(0),
            reads: AtomicUsize::new(0),
            writes: AtomicUsize::new(0),
            refused_owner: Mutex::default(),
            loses_writes: AtomicUsize::new(0),
        })
    }

    pub fn memory(&self) -> Arc<MemoryBackend> {
        Arc::clone(&self.memory.lock().unwrap())
    }

    /// Replaces the server by a server with other records.
    pub fn replace(&self, memory: Arc<MemoryBackend>) {
        *self.memory.lock().unwrap() = memory;
    }

    pub fn reconnect(&self) {
        self.generation.fetch_add(1, SeqCst);
    }

    pub fn set(&self, server: Server) {
        self.server.send_replace(server);
    }

    pub fn refuses_owner(&self, owner: &str) {
        *self.refused_owner.lock().unwrap() = Some(owner.try_into().unwrap());
    }

    /// Returns how many calls read and how many wrote.
    pub fn counts(&self) -> (usize, usize) {
        (self.reads.load(SeqCst), self.writes.load(SeqCst))
    }

    fn count(&self, call: &Call) {
        if call.is_write() {
            self.writes.fetch_add(1, SeqCst);
        } else if matches!(call, Call::Get { .. } | Call::List { .. }) {
            self.reads.fetch_add(1, SeqCst);
        }
    }

    /// Applies the delay and the failure of this kind of call, before the server receives the call.
    async fn before(&self, call: &Call) -> Result<(), StorageError> {
        let one_less = |left: usize| left.checked_sub(1);
        match call {
            Call::Get { .. } => self.wait_while(Server::HangsOnReads).await,
            Call::PutIfVersion { .. } if self.loses_writes.fetch_update(SeqCst, SeqCst, one_less).is_ok() => {
                return Err(unavailable("connection reset", true));
            }
            Call::List { owner, .. } => {
                if self.refused_owner.lock().unwrap().as_ref() == Some(owner) {
                    return Err(unavailable("connection refused", false));
                }
                sleep(&self.page_takes_ms).await;
            }
            _ => {}
        }
        Ok(())
    }

    async fn wait_while(&self, server: Server) {
        self.server.subscribe().wait_for(|now| *now != server).await.unwrap();
    }
}

/// Sleeps for this many milliseconds.
async fn sleep(millis: &AtomicU64) {
    let millis = millis.load(SeqCst);
    if millis > 0 {
        tokio::time::sleep(Duration::from_millis(millis)).await;
    }
}

#[async_trait]
impl Hooks for Double {
    fn engine(&self) -> Arc<dyn Agenda> {
        self.memory()
    }

    async fn call(&self, call: Call) -> Result<Reply, StorageError> {
        if matches!(call, Call::Owners { .. } | Call::Timers { .. }) {
            return call.send(&*self.memory()).await;
        }
        self.count(&call);
        self.before(&call).await?;
        sleep(&self.takes_ms).await;
        let server = *self.server.subscribe().wait_for(|server| *server != Server::Hangs).await.unwrap();
        if server == Server::Refuses {
            return Err(unavailable("connection refused", false));
        }
        let reply = call.send(&*self.memory()).await;
        self.wait_while(Server::AppliesOnly).await;
        reply
    }

    fn generation(&self) -> u64 {
        self.generation.load(SeqCst)
    }
}
