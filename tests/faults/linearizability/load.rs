//! Concurrent clients of one store, which write down every call and its reply.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use mcp_task_store::{
    Expiry, PageRequest, PartName, PutOptions, StorageBackend, StorageError, TaskKey, Version,
};
use tokio::task::{JoinSet, block_in_place};

use super::record::{Call, Live, Operation, Recorded, Reply, Segment};
use crate::support::redis::Server;
use crate::support::{Random, key, owner};

pub const OWNERS: [&str; 2] = ["alice", "bob"];
pub const TASKS: [&str; 3] = ["t1", "t2", "t3"];
const KEYS: usize = OWNERS.len() * TASKS.len();

/// Returns the keys of all owners, in a fixed order.
pub fn keys() -> Vec<TaskKey> {
    OWNERS.iter().flat_map(|owner| TASKS.iter().map(|task| key(owner, task))).collect()
}

/// What the clients share.
struct Shared {
    /// The backends of the store. Each client uses one of them.
    backends: Vec<Arc<dyn StorageBackend>>,
    keys: Vec<TaskKey>,
    expiries: Vec<Expiry>,
    /// The server of the store, if it has one.
    server: Option<Mutex<Server>>,
    /// A counter that orders the calls and replies of all clients. A call that ends before another one begins has the
    /// smaller number.
    moment: AtomicU64,
    /// The number that the next write stores.
    data: AtomicU64,
}

/// One segment of the history, in which all clients make calls.
struct Turn {
    /// How many answered calls end the turn.
    calls: u64,
    ends: End,
    answered: AtomicU64,
    killed: AtomicBool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// The clients pause.
    Pause,
    /// The server is killed, and each client calls until it has been refused this number of times.
    Kill { refusals: u32 },
}

impl Shared {
    /// Runs a function on the server.
    fn with_server<T>(&self, run: impl FnOnce(&mut Server) -> T) -> T {
        block_in_place(|| run(&mut self.server.as_ref().expect("a store on a server").lock().unwrap()))
    }

    /// Returns the backend of all calls between two segments.
    fn backend(&self) -> &dyn StorageBackend {
        &*self.backends[0]
    }
}

struct Client {
    shared: Arc<Shared>,
    backend: Arc<dyn StorageBackend>,
    random: Random,
    /// The version of each key that this client read or wrote last.
    seen: [u64; KEYS],
    recorded: Vec<(usize, Recorded)>,
    /// Calls that certainly had no effect.
    refused: u64,
}

impl Client {
    async fn take_turn(mut self, turn: Arc<Turn>) -> Self {
        let mut refused = 0;
        loop {
            let answered = self.call().await;
            if answered && turn.answered.fetch_add(1, SeqCst) + 1 == turn.calls && turn.ends != End::Pause {
                self.shared.with_server(Server::kill);
                turn.killed.store(true, SeqCst);
            }
            refused += u32::from(!answered && turn.killed.load(SeqCst));
            let is_over = match turn.ends {
                End::Pause => turn.answered.load(SeqCst) >= turn.calls,
                End::Kill { refusals } => refused >= refusals,
            };
            if is_over {
                return self;
            }
        }
    }

    fn choose(&mut self, on: usize) -> Call {
        let choice = self.random.below(100);
        let data = || self.shared.data.fetch_add(1, SeqCst);
        match choice {
            0..25 => Call::Get,
            25..45 => Call::Put { data: data() },
            45..85 => Call::PutIfVersion { data: data(), expected: self.seen[on] },
            85..93 => Call::PutIfVersion { data: data(), expected: 0 },
            _ => Call::Delete,
        }
    }

    /// Makes one call and records it. Returns whether it was answered.
    async fn call(&mut self) -> bool {
        let on = self.random.below(KEYS as u64) as usize;
        let call = self.choose(on);
        let expiry = self.shared.expiries[self.random.below(self.shared.expiries.len() as u64) as usize];
        let called = self.shared.moment.fetch_add(1, SeqCst);
        let result =
            perform(&*self.backend, &self.shared.keys[on], call, expiry, called.is_multiple_of(2)).await;
        let ended = self.shared.moment.fetch_add(1, SeqCst);
        let operation = match result {
            Ok(reply) => {
                self.seen[on] = match reply {
                    Reply::Read(Live { version, .. }) | Reply::Written { version } => version,
                    Reply::VersionConflict { actual } => actual,
                    Reply::Deleted(_) | Reply::NotFound => 0,
                };
                Operation::Answered(call, reply)
            }
            Err(Refused { outcome_unknown: true }) => Operation::Unknown(call),
            // The error says that the call had no effect. If it had one, nothing in the history explains it.
            Err(Refused { outcome_unknown: false }) => {
                self.refused += 1;
                return false;
            }
        };
        self.recorded.push((on, Recorded { called, ended, operation }));
        matches!(operation, Operation::Answered(..))
    }
}

/// A call that failed because the server did not answer.
struct Refused {
    outcome_unknown: bool,
}

/// The task whose writes also set a part to the data. A read of the part counts as a read of the record.
const WITH_PART: &str = "t1";
const PART: PartName = PartName::from_static("output");

/// Makes a call. An error that neither the contract nor a dead server explains fails the test.
async fn perform(
    backend: &dyn StorageBackend,
    key: &TaskKey,
    call: Call,
    expiry: Expiry,
    reads_part: bool,
) -> Result<Reply, Refused> {
    let has_part = key.task.as_str() == WITH_PART;
    let bytes = |data: u64| Bytes::from(data.to_string());
    let options = match call {
        Call::Put { data } | Call::PutIfVersion { data, .. } if has_part => {
            PutOptions::new(expiry).set_part(PART, bytes(data))
        }
        _ => PutOptions::new(expiry),
    };
    let read = |version: Version, data: &[u8]| {
        let data = std::str::from_utf8(data).unwrap().parse().unwrap();
        Reply::Read(Live { version: version.get(), data })
    };
    let written = |written: mcp_task_store::Written| Reply::Written { version: written.version.get() };
    let result = match call {
        Call::Get if has_part && reads_part => backend.part(key, &PART).await.map(|part| {
            let part = part.expect("each write of this record sets the part");
            read(part.version, &part.data)
        }),
        Call::Get => backend.get(key).await.map(|record| read(record.version, &record.data)),
        Call::Put { data } => backend.put(key, bytes(data), options).await.map(written),
        Call::PutIfVersion { data, expected } => {
            backend.put_if_version(key, bytes(data), options, Version::from(expected)).await.map(written)
        }
        Call::Delete => backend.delete(key).await.map(Reply::Deleted),
    };
    match result {
        Ok(reply) => Ok(reply),
        Err(StorageError::NotFound { .. }) => Ok(Reply::NotFound),
        Err(StorageError::VersionConflict { actual, .. }) => {
            Ok(Reply::VersionConflict { actual: actual.get() })
        }
        Err(error @ StorageError::Unavailable { .. }) => {
            Err(Refused { outcome_unknown: error.outcome_unknown() })
        }
        Err(other) => panic!("{call:?} of {key:?}: {other:?}"),
    }
}

/// The clients between two segments, and the history so far.
pub struct Load {
    shared: Arc<Shared>,
    clients: Vec<Client>,
    /// The record of each key as it was last read, while no call was running.
    records: Vec<Option<Live>>,
    /// The operations on each key since then.
    open: Vec<Vec<Recorded>>,
    pub history: Vec<Segment>,
    pub refused: u64,
}

/// How long after the restart of a server the backend worked again.
pub struct Recovery {
    pub first_success: Duration,
    pub all_clients: Duration,
}

impl Load {
    /// Creates the clients of a backend on an empty server. Each write chooses one of `expiries`.
    pub fn new(clients: u64, backend: impl StorageBackend, server: Server, expiries: &[Expiry]) -> Self {
        Self::of(clients, vec![Arc::new(backend)], Some(server), expiries)
    }

    /// Creates the clients of several backends of one empty store without a server.
    pub fn without_server(clients: u64, backends: Vec<Arc<dyn StorageBackend>>, expiries: &[Expiry]) -> Self {
        Self::of(clients, backends, None, expiries)
    }

    fn of(
        clients: u64,
        backends: Vec<Arc<dyn StorageBackend>>,
        server: Option<Server>,
        expiries: &[Expiry],
    ) -> Self {
        let shared = Arc::new(Shared {
            backends,
            keys: keys(),
            expiries: expiries.to_vec(),
            server: server.map(Mutex::new),
            moment: AtomicU64::new(0),
            data: AtomicU64::new(0),
        });
        let client = |number: u64| Client {
            shared: Arc::clone(&shared),
            backend: Arc::clone(&shared.backends[number as usize % shared.backends.len()]),
            random: Random(number << 32),
            seen: [0; KEYS],
            recorded: Vec::new(),
            refused: 0,
        };
        Self {
            clients: (0..clients).map(client).collect(),
            records: vec![None; KEYS],
            open: vec![Vec::new(); KEYS],
            history: Vec::new(),
            refused: 0,
            shared,
        }
    }

    /// Runs the clients for `calls` calls, and ends the segment if every outcome is known.
    pub async fn run(&mut self, calls: u64) {
        self.take_turns(calls, End::Pause).await;
        // A running server may still apply a write that its client has given up.
        let is_unknown = |recorded: &Recorded| matches!(recorded.operation, Operation::Unknown(_));
        if !self.open.iter().flatten().any(is_unknown) {
            self.end_segment().await;
        }
    }

    /// Kills the server after `calls` calls, and restarts it when each client has been refused `refusals` times. The
    /// death of the server ends the segment, because no write of the segment can be applied later.
    pub async fn run_through_a_kill(&mut self, calls: u64, refusals: u32) -> Recovery {
        self.take_turns(calls, End::Kill { refusals }).await;
        // Reads change nothing, so the test may read during the restart.
        let mut readers = JoinSet::new();
        for number in 0..self.clients.len() {
            let shared = Arc::clone(&self.shared);
            readers.spawn(async move {
                let key = &shared.keys[number % KEYS];
                let mut refused = 0;
                while perform(shared.backend(), key, Call::Get, Expiry::Keep, false).await.is_err() {
                    refused += 1;
                }
                (Instant::now(), refused)
            });
        }
        self.shared.with_server(Server::start_again);
        let back = Instant::now();
        let succeeded = readers.join_all().await;
        self.refused += succeeded.iter().map(|(_, refused)| refused).sum::<u64>();
        let times = succeeded.iter().map(|(at, _)| at.saturating_duration_since(back));
        self.end_segment().await;
        Recovery { first_success: times.clone().min().unwrap(), all_clients: times.max().unwrap() }
    }

    async fn take_turns(&mut self, calls: u64, ends: End) {
        let turn = Turn { calls, ends, answered: AtomicU64::new(0), killed: AtomicBool::new(false) };
        let turn = Arc::new(turn);
        let clients = self.clients.drain(..).map(|client| client.take_turn(Arc::clone(&turn)));
        self.clients = clients.collect::<JoinSet<_>>().join_all().await;
        for client in &mut self.clients {
            self.refused += std::mem::take(&mut client.refused);
            client.recorded.drain(..).for_each(|(on, recorded)| self.open[on].push(recorded));
        }
    }

    /// Reads every key while no call is running.
    async fn end_segment(&mut self) {
        let mut records = Vec::new();
        for key in &self.shared.keys {
            records.push(match perform(self.shared.backend(), key, Call::Get, Expiry::Keep, true).await {
                Ok(Reply::Read(live)) => Some(live),
                Ok(_) => None,
                Err(_) => panic!("a server that is back does not answer"),
            });
        }
        self.check_index(&records).await;
        for (on, operations) in self.open.iter_mut().enumerate() {
            self.history.push(Segment {
                begins: self.records[on],
                operations: std::mem::take(operations),
                ends: records[on],
            });
        }
        self.records = records;
    }

    /// Asserts that the pages hold exactly what the reads returned, because a write is atomic over the record and the index.
    async fn check_index(&self, records: &[Option<Live>]) {
        for (owner_id, records) in OWNERS.iter().zip(records.chunks(TASKS.len())) {
            let page = self.shared.backend().list(&owner(owner_id), PageRequest::new(256)).await.unwrap();
            assert!(page.corrupt.is_empty() && page.next.is_none());
            let mut listed: Vec<_> = page
                .records
                .iter()
                .map(|record| {
                    (record.task.to_string(), record.version.get(), record.data.escape_ascii().to_string())
                })
                .collect();
            listed.sort();
            let live = TASKS.iter().zip(records).filter_map(|(task, record)| Some((task, (*record)?)));
            let read: Vec<_> =
                live.map(|(task, live)| (task.to_string(), live.version, live.data.to_string())).collect();
            assert_eq!(listed, read, "the index of {owner_id} and its records");
        }
    }

    /// Deletes every record.
    pub async fn delete_all(&self) {
        for key in &self.shared.keys {
            self.shared.backend().delete(key).await.unwrap();
        }
    }

    /// Deletes every record. Asserts that no key of any owner is left on the server.
    pub async fn clear(&self) {
        self.delete_all().await;
        let mut connection = self.shared.with_server(|server| server.connection());
        let left: Vec<String> = redis::cmd("KEYS").arg("*").query(&mut connection).unwrap();
        assert!(left.is_empty(), "left behind: {left:?}");
    }
}
