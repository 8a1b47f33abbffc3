//! Compares instances that are connected with freshly started ones, second by second.
//!
//! After fresh instances have succeeded three times in a row, and while they do, a connected instance must succeed within
//! [`LIMIT`] of its last success. There are two connected instances. The busy one makes calls all the time. The idle one only
//! watches until the end.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::future::join_all;
use mcp_task_store::{PageRequest, RedisBackend, StorageBackend, StorageError};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::support::deployment::Connect;
use crate::support::{in_an_hour, key, owner};

/// How much longer a connected instance may take than a fresh one.
pub const LIMIT: Duration = Duration::from_secs(3);
/// The time between the starts of two fresh instances.
const EVERY: Duration = Duration::from_secs(1);
/// How long a fresh instance may take for all of its calls.
const FRESH_LIMIT: Duration = Duration::from_millis(2500);
/// How long the busy instance may take for one round of calls.
const BUSY_LIMIT: Duration = Duration::from_millis(2500);
/// How long the watch of the busy instance may take to deliver a write of a fresh instance.
const WATCH_LIMIT: Duration = Duration::from_secs(1);
/// The time between two rounds of its calls.
const BUSY_PAUSE: Duration = Duration::from_millis(50);
/// How many fresh instances must succeed in a row before they count.
const STREAK: u32 = 3;
/// How long fresh instances may fail after a fault.
const PATIENCE: Duration = Duration::from_secs(60);

/// The comparison for one owner.
struct Lane {
    owner: String,
    numbers: AtomicU64,
    standing: Mutex<Standing>,
    /// How many fresh instances and how many rounds of the busy instance failed.
    failures: AtomicU64,
}

struct Standing {
    fresh: Fresh,
    busy: Connected,
    idle: Connected,
}

#[derive(Default)]
struct Fresh {
    streak: u32,
    /// Since when fresh instances have worked without a failure.
    works_since: Option<Instant>,
    /// When the first instance of the current streak had succeeded.
    first: Option<Instant>,
    /// The last number that a fresh instance wrote, and when it started the write.
    written: Option<(u64, Instant)>,
    error: String,
}

struct Connected {
    last_success: Instant,
    /// The first success since the comparison was restarted.
    first: Option<Instant>,
    /// The longest time without a success while fresh instances work. It counts once the next fresh instance works too.
    pending: Duration,
    longest: Duration,
    /// The last number that this instance wrote.
    written: u64,
    /// The latest fresh instance did not read what this instance had written.
    is_on_another_server: bool,
    error: String,
}

impl Connected {
    fn new() -> Self {
        let (pending, longest) = (Duration::ZERO, Duration::ZERO);
        let (first, error) = (None, String::new());
        Self {
            last_success: Instant::now(),
            first,
            pending,
            longest,
            written: 0,
            is_on_another_server: false,
            error,
        }
    }

    fn succeeded(&mut self, fresh: &Fresh) {
        if self.is_on_another_server {
            "a fresh instance does not read what it writes".clone_into(&mut self.error);
            return;
        }
        self.waits(fresh);
        self.last_success = Instant::now();
        self.first.get_or_insert(self.last_success);
    }

    /// Records how long this instance has not succeeded while fresh instances do.
    fn waits(&mut self, fresh: &Fresh) {
        if let Some(since) = fresh.works_since {
            self.pending = self.pending.max(self.last_success.max(since).elapsed());
        }
    }

    /// Records that a fresh instance has succeeded.
    fn fresh_succeeded(&mut self, fresh: &Fresh) {
        self.waits(fresh);
        self.longest = self.longest.max(self.pending);
    }
}

impl Lane {
    fn new(owner: String) -> Arc<Self> {
        let standing = Standing { fresh: Fresh::default(), busy: Connected::new(), idle: Connected::new() };
        Arc::new(Self {
            owner,
            numbers: AtomicU64::new(0),
            standing: Mutex::new(standing),
            failures: AtomicU64::new(0),
        })
    }

    fn standing(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock().unwrap()
    }

    fn number(&self) -> u64 {
        self.numbers.fetch_add(1, SeqCst) + 1
    }

    async fn write(&self, backend: &RedisBackend, task: &str) -> Result<u64, String> {
        let number = self.number();
        let data = number.to_string().into();
        let written = backend.put(&key(&self.owner, task), data, in_an_hour()).await;
        written.map(|_| number).map_err(|error| format!("a write: {error:?}"))
    }

    /// Returns the number in a record, or 0 if there is none.
    async fn read(&self, backend: &RedisBackend, task: &str) -> Result<u64, String> {
        match backend.get(&key(&self.owner, task)).await {
            Ok(record) => Ok(std::str::from_utf8(&record.data).unwrap().parse().unwrap()),
            Err(StorageError::NotFound { .. }) => Ok(0),
            Err(error) => Err(format!("a read: {error:?}")),
        }
    }

    /// Makes the calls of a fresh instance for this owner.
    async fn call_fresh(&self, backend: &RedisBackend) -> Result<(), String> {
        let before = self.standing().busy.written;
        let number = self.write(backend, "fresh").await?;
        let read = self.read(backend, "fresh").await?;
        if read < number {
            return Err(format!("wrote {number} and read {read}"));
        }
        let mut watch = backend.watch(&key(&self.owner, "fresh"));
        item(watch.next().await)?;
        let begun = Instant::now();
        let number = self.write(backend, "fresh").await?;
        item(watch.next().await)?;
        let of_busy = self.read(backend, "busy").await?;
        let mut standing = self.standing();
        standing.busy.is_on_another_server = of_busy < before;
        standing.fresh.written = Some((number, begun));
        Ok(())
    }

    fn fresh_succeeded(&self) {
        let Standing { fresh, busy, idle } = &mut *self.standing();
        fresh.streak += 1;
        fresh.first.get_or_insert_with(Instant::now);
        for connected in [busy, idle] {
            if fresh.streak == STREAK {
                fresh.works_since.get_or_insert_with(Instant::now);
                connected.pending = Duration::ZERO;
            }
            connected.fresh_succeeded(fresh);
        }
    }

    fn fresh_failed(&self, error: String) {
        self.failures.fetch_add(1, SeqCst);
        let Standing { fresh, busy, idle } = &mut *self.standing();
        (fresh.streak, fresh.works_since, fresh.first, fresh.error) = (0, None, None, error);
        (busy.pending, idle.pending) = (Duration::ZERO, Duration::ZERO);
    }

    /// Makes one round of the calls of the busy instance.
    async fn call_busy(
        &self,
        backend: &RedisBackend,
        last_item: &mut watch::Receiver<Instant>,
    ) -> Result<(), String> {
        let expected = self.standing().fresh.written;
        let listed = async {
            let page = backend.list(&owner(&self.owner), PageRequest::new(10)).await;
            page.map_err(|error| format!("a page: {error:?}")).map(|page| page.records.len())
        };
        let written = async {
            let number = self.write(backend, "busy").await?;
            self.standing().busy.written = number;
            Ok::<(), String>(())
        };
        // The calls run at the same time, like those of different callers.
        let (written, read, listed) = tokio::join!(written, self.read(backend, "fresh"), listed);
        let (_, read, listed) = (written?, read?, listed?);
        if listed == 0 {
            return Err("a page is empty".to_owned());
        }
        let Some((number, begun)) = expected else { return Ok(()) };
        if read < number {
            return Err(format!("a fresh instance wrote {number}, and it reads {read}"));
        }
        // The sender outlives this receiver.
        match timeout(WATCH_LIMIT, last_item.wait_for(|last_item| *last_item >= begun)).await {
            Ok(last_item) => last_item.map(drop).map_err(|error| error.to_string()),
            Err(_) => Err("a watch delivers nothing".to_owned()),
        }
    }

    async fn busy(self: Arc<Self>, backend: RedisBackend, mut last_item: watch::Receiver<Instant>) {
        loop {
            let served = timeout(BUSY_LIMIT, self.call_busy(&backend, &mut last_item)).await;
            let served = served.unwrap_or_else(|_| Err("calls are slow".to_owned()));
            {
                let Standing { fresh, busy, .. } = &mut *self.standing();
                match served {
                    Ok(()) => busy.succeeded(fresh),
                    Err(error) => {
                        self.failures.fetch_add(1, SeqCst);
                        busy.error = error;
                    }
                }
            }
            sleep(BUSY_PAUSE).await;
        }
    }

    /// Reads a record that does not exist, again and again.
    async fn read_absent_record(self: Arc<Self>, backend: RedisBackend) {
        loop {
            let _ = backend.get(&key(&self.owner, "absent")).await;
            sleep(BUSY_PAUSE).await;
        }
    }

    /// Makes the first calls of the idle instance.
    async fn call_idle(&self, backend: &RedisBackend) -> Result<(), String> {
        let number = self.write(backend, "idle").await?;
        let read = self.read(backend, "idle").await?;
        let page = backend.list(&owner(&self.owner), PageRequest::new(10)).await;
        page.map_err(|error| format!("a page: {error:?}"))?;
        if read == number { Ok(()) } else { Err(format!("wrote {number} and read {read}")) }
    }

    /// Records successes of the idle instance while its watch has delivered every write of fresh instances.
    async fn idle(self: Arc<Self>, last_item: watch::Receiver<Instant>) {
        loop {
            {
                let Standing { fresh, idle, .. } = &mut *self.standing();
                if fresh.written.is_none_or(|(_, begun)| *last_item.borrow() >= begun) {
                    idle.succeeded(fresh);
                }
            }
            sleep(Duration::from_millis(10)).await;
        }
    }
}

fn item(item: Option<Result<(), StorageError>>) -> Result<(), String> {
    match item {
        Some(Ok(())) => Ok(()),
        Some(Err(error)) => Err(format!("a watch: {error:?}")),
        None => Err("a watch ended".to_owned()),
    }
}

/// Watches the record of fresh instances, and reports when the last item arrived. Subscribes again after the watch has ended, as it
/// does after an error that is not retryable.
async fn listen(backend: RedisBackend, owner: String, last_item: watch::Sender<Instant>) {
    loop {
        let mut watch = backend.watch(&key(&owner, "fresh"));
        while let Some(item) = watch.next().await {
            if item.is_ok() {
                last_item.send_replace(Instant::now());
            }
        }
        sleep(BUSY_PAUSE).await;
    }
}

/// A running comparison. It ends when it is dropped.
pub struct Comparison {
    lanes: Vec<Arc<Lane>>,
    idle: RedisBackend,
    _tasks: JoinSet<()>,
}

/// How long after a fault the first success of each kind of instance was.
#[derive(Clone, Copy, Debug)]
pub struct Took {
    pub fresh: Duration,
    pub busy: Duration,
    pub idle: Duration,
}

impl Comparison {
    /// Connects the instances, and waits until they work.
    pub async fn start(connect: Connect, owners: &[String]) -> Result<Self, String> {
        // On a busy machine the first connections may take long.
        let begun = Instant::now();
        let connected = || async {
            loop {
                match connect().await {
                    Err(error) if begun.elapsed() > PATIENCE => return Err(format!("{error:?}")),
                    Err(_) => sleep(BUSY_PAUSE).await,
                    Ok(backend) => return Ok(backend),
                }
            }
        };
        let (busy, idle) = (connected().await?, connected().await?);
        let lanes: Vec<Arc<Lane>> = owners.iter().cloned().map(Lane::new).collect();
        let mut tasks = JoinSet::new();
        for lane in &lanes {
            for task in ["fresh", "busy", "idle"] {
                lane.write(&busy, task).await?;
            }
            for (backend, is_busy) in [(&busy, true), (&idle, false)] {
                let (item_sender, last_item) = watch::channel(Instant::now());
                tasks.spawn(listen(backend.clone(), lane.owner.clone(), item_sender));
                if is_busy {
                    tasks.spawn(Arc::clone(lane).busy(backend.clone(), last_item));
                    tasks.spawn(Arc::clone(lane).read_absent_record(backend.clone()));
                } else {
                    tasks.spawn(Arc::clone(lane).idle(last_item));
                }
            }
        }
        tasks.spawn(start_fresh_ones(connect, lanes.clone()));
        let comparison = Self { lanes, idle, _tasks: tasks };
        comparison.recovers().await?;
        Ok(comparison)
    }

    /// Returns how many fresh instances and rounds of the busy one failed, for all owners.
    pub fn failures(&self) -> u64 {
        self.lanes.iter().map(|lane| lane.failures.load(SeqCst)).sum()
    }

    /// Restarts the measurement of recoveries. Recoveries that have already taken too long stay recorded.
    pub fn restart(&self) -> Instant {
        for lane in &self.lanes {
            let Standing { fresh, busy, idle } = &mut *lane.standing();
            (fresh.streak, fresh.works_since, fresh.first) = (0, None, None);
            for connected in [busy, idle] {
                (connected.first, connected.pending) = (None, Duration::ZERO);
            }
        }
        Instant::now()
    }

    /// Waits until fresh instances work, and until the connected ones work or have run out of time. Returns how long each took.
    pub async fn recovers(&self) -> Result<Took, String> {
        let since = self.restart();
        let mut outdone: Option<Instant> = None;
        loop {
            let (mut works, mut succeeded) = (true, true);
            for lane in &self.lanes {
                let Standing { fresh, busy, idle } = &*lane.standing();
                let succeeds = |connected: &Connected| {
                    fresh.works_since.is_some_and(|since| connected.last_success >= since)
                };
                // One more success shows how long the connected instances took.
                works &= fresh.streak > STREAK;
                succeeded &= succeeds(busy) && succeeds(idle);
            }
            if works && succeeded {
                break;
            }
            if works {
                // If the next fresh instance fails too, the wait starts again.
                let outdone = *outdone.get_or_insert_with(Instant::now);
                if outdone.elapsed() > LIMIT + FRESH_LIMIT + EVERY {
                    return Err(self.state("a connected instance does not recover"));
                }
            } else {
                outdone = None;
            }
            if since.elapsed() > PATIENCE {
                return Err(self.state("a fresh instance does not work either"));
            }
            sleep(Duration::from_millis(10)).await;
        }
        let took = |of: &dyn Fn(&Standing) -> Option<Instant>| {
            let firsts = self.lanes.iter().filter_map(|lane| of(&lane.standing()));
            firsts.max().unwrap_or(since).saturating_duration_since(since)
        };
        Ok(Took {
            fresh: took(&|standing| standing.fresh.first),
            busy: took(&|standing| standing.busy.first),
            idle: took(&|standing| standing.idle.first),
        })
    }

    /// Makes the first calls of the idle instance. Fails if a connected instance ever took longer than it may.
    pub async fn holds(self) -> Result<(), String> {
        for lane in &self.lanes {
            let begun = Instant::now();
            while let Err(error) = lane.call_idle(&self.idle).await {
                if begun.elapsed() > LIMIT {
                    return Err(self.state(&format!("the calls of the idle instance: {error}")));
                }
            }
        }
        for lane in &self.lanes {
            let Standing { busy, idle, .. } = &*lane.standing();
            for (name, connected) in [("busy", busy), ("idle", idle)] {
                if connected.longest > LIMIT {
                    let longest = connected.longest;
                    return Err(format!(
                        "for owner {:?} fresh instances worked, and the {name} one did not for {longest:.1?}: {}",
                        lane.owner, connected.error
                    ));
                }
            }
        }
        Ok(())
    }

    fn state(&self, what: &str) -> String {
        let mut state = what.to_owned();
        for lane in &self.lanes {
            let Standing { fresh, busy, idle } = &*lane.standing();
            let _ = write!(
                state,
                "; owner {:?}: {} successes of fresh ones ({}), busy {:.1?} ago ({}), idle {:.1?} ago ({})",
                lane.owner,
                fresh.streak,
                fresh.error,
                busy.last_success.elapsed(),
                busy.error,
                idle.last_success.elapsed(),
                idle.error
            );
        }
        state
    }
}

/// Starts a fresh instance every second.
async fn start_fresh_ones(connect: Connect, lanes: Vec<Arc<Lane>>) {
    loop {
        let begun = Instant::now();
        match timeout(FRESH_LIMIT, connect()).await {
            Ok(Ok(backend)) => {
                let serve = lanes.iter().map(|lane| async {
                    let left = FRESH_LIMIT.saturating_sub(begun.elapsed());
                    match timeout(left, lane.call_fresh(&backend)).await {
                        Ok(Ok(())) => lane.fresh_succeeded(),
                        Ok(Err(error)) => lane.fresh_failed(error),
                        Err(_) => lane.fresh_failed("it takes too long".to_owned()),
                    }
                });
                join_all(serve).await;
            }
            Ok(Err(error)) => lanes.iter().for_each(|lane| lane.fresh_failed(format!("{error:?}"))),
            Err(_) => lanes.iter().for_each(|lane| lane.fresh_failed("no connection in time".to_owned())),
        }
        sleep(EVERY.saturating_sub(begun.elapsed())).await;
    }
}
