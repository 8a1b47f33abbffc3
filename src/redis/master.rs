//! One connection to the master, shared by all calls and made anew when it breaks.

use std::convert::Infallible;
use std::io::Error;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{
    AsyncConnectionConfig, Client, Cmd, ErrorKind, Pipeline, PushInfo, PushKind, RedisResult, Value,
};
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::clock::{Clock, server_time};
use super::link::{Failure, Generation, Link};
#[cfg(feature = "redis-sentinel")]
use super::sentinel::Sentinels;

/// The delay before an attempt to connect, by how many have failed in a row; the last for all that follow.
const DELAYS_MS: [u64; 6] = [0, 10, 30, 70, 150, 250];

/// A connection that lived shorter, and served no call, counts as a failed attempt when it breaks.
const LIVED: Duration = Duration::from_secs(1);

/// Where the master is found, each time anew.
pub(super) enum Place {
    At(Client),
    #[cfg(feature = "redis-sentinel")]
    KnownTo(Sentinels),
}

/// The master, for all connections to it.
pub(super) struct Master {
    place: Place,
    /// How often a write has found that the server is a replica by now.
    demotions: AtomicU64,
    /// Of all connections to it.
    pub(super) generation: Generation,
}

impl Master {
    pub(super) fn new(place: Place) -> Self {
        Self { place, demotions: AtomicU64::new(0), generation: Generation::new(true) }
    }

    async fn client(&self) -> RedisResult<Client> {
        match &self.place {
            Place::At(client) => Ok(client.clone()),
            #[cfg(feature = "redis-sentinel")]
            Place::KnownTo(sentinels) => sentinels.master().await,
        }
    }

    fn demotions(&self) -> u64 {
        self.demotions.load(Ordering::SeqCst)
    }

    /// Voids this connection and all others that are no younger. Those over which only reads go would not find out by
    /// themselves, and would show what the replica has.
    pub(super) fn report_demotion(&self, made: &Made) {
        self.generation.grow();
        // An error means that another write has reported it.
        let _ = self.demotions.compare_exchange(
            made.demotions,
            made.demotions + 1,
            Ordering::SeqCst,
            Ordering::SeqCst,
        );
    }

    /// Whether no write has found since this connection was made that the server is a replica by now.
    pub(super) fn is_current(&self, made: &Made) -> bool {
        made.demotions == self.demotions()
    }
}

/// The connection that all calls share. It is made by the first call. When it breaks it is made anew at once;
/// if that fails, by the next call, after a delay.
pub(super) struct MasterLink(Arc<Shared>);

struct Shared {
    master: Arc<Master>,
    connect_timeout: Duration,
    /// Is set by the server's clock whenever a connection was made, as it may be another server.
    clock: Arc<Clock>,
    attempt: RwLock<Attempt>,
}

/// The latest attempt to connect.
struct Attempt {
    number: u64,
    /// How many failed in a row before it.
    failures: usize,
    /// Its connection once it is made, and whether that broke since.
    made: Option<Arc<Made>>,
    is_broken: bool,
    outcome: watch::Receiver<Option<RedisResult<Arc<Made>>>>,
}

pub(super) struct Made {
    /// The number of the attempt that made it.
    number: u64,
    at: Instant,
    /// The master's demotions before it was made.
    demotions: u64,
    pub(super) connection: MultiplexedConnection,
    /// Host and port of the server.
    pub(super) address: String,
    /// Whether a call had a reply over it.
    has_served: AtomicBool,
}

impl MasterLink {
    /// Connects with the first call.
    pub(super) fn new(master: Arc<Master>, connect_timeout: Duration, clock: Arc<Clock>) -> Self {
        // An attempt that nobody has in hand counts as broken, so the first call makes the first one.
        let outcome = watch::channel(None).1;
        let attempt = Attempt { number: 0, failures: 0, made: None, is_broken: false, outcome };
        Self(Arc::new(Shared { master, connect_timeout, clock, attempt: RwLock::new(attempt) }))
    }

    /// The connection, waited for only if there is none that works.
    async fn connection(&self) -> Result<Arc<Made>, Failure> {
        let working = self.0.attempt().working();
        match working.filter(|made| self.0.master.is_current(made)) {
            Some(made) => Ok(made),
            None => Box::pin(self.connect()).await,
        }
    }

    /// Waits for a connection. Dropping the future does not end the attempt, which others may wait for.
    async fn connect(&self) -> Result<Arc<Made>, Failure> {
        let mut outcome = {
            let mut attempt = self.0.attempt_mut();
            attempt.is_broken |= attempt.made.as_ref().is_some_and(|made| !self.0.master.is_current(made));
            if attempt.is_over() {
                self.0.connect(&mut attempt);
            }
            attempt.outcome.clone()
        };
        let made = match outcome.wait_for(Option::is_some).await {
            Ok(made) => made.clone(),
            Err(_) => None,
        };
        match made {
            Some(made) => made.map_err(Failure::Unsent),
            None => Err(Failure::Unsent((ErrorKind::Client, "the runtime was shut down").into())),
        }
    }

    /// A connection that calls do not share, with the flag that tells when it was closed.
    pub(super) async fn exclusive(&self) -> RedisResult<(Made, Arc<AtomicBool>)> {
        let closed = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&closed);
        let master = Arc::clone(&self.0.master);
        let made = self.0.open(0, move |push| {
            if push.kind == PushKind::Disconnection {
                master.generation.grow();
                flag.store(true, Ordering::Relaxed);
            }
        });
        Ok((made.await?, closed))
    }

    pub(super) fn master(&self) -> &Master {
        &self.0.master
    }

    /// Host and port of the server that the shared connection leads to.
    pub(super) fn address(&self) -> Option<String> {
        self.0.attempt().made.as_ref().map(|made| made.address.clone())
    }
}

impl Attempt {
    /// Its connection, unless that is known to be of no more use.
    fn working(&self) -> Option<Arc<Made>> {
        if self.is_broken { None } else { self.made.clone() }
    }

    /// Whether it leads to no connection any more.
    fn is_over(&self) -> bool {
        match &*self.outcome.borrow() {
            Some(made) => made.is_err() || self.is_broken,
            // The runtime that it ran on is gone.
            None => self.outcome.has_changed().is_err(),
        }
    }

    fn has_lived(&self) -> bool {
        self.made.as_ref().is_some_and(|made| made.at.elapsed() >= LIVED)
    }

    fn has_served(&self) -> bool {
        self.made.as_ref().is_some_and(|made| made.has_served.load(Ordering::Relaxed))
    }
}

impl Shared {
    /// Nothing panics while it holds the attempt.
    fn attempt(&self) -> RwLockReadGuard<'_, Attempt> {
        self.attempt.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn attempt_mut(&self) -> RwLockWriteGuard<'_, Attempt> {
        self.attempt.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes this connection anew, unless that has happened already.
    fn replace(self: &Arc<Self>, number: u64) {
        let mut attempt = self.attempt_mut();
        if attempt.number == number {
            self.connect(&mut attempt);
        }
    }

    /// The same for one that was closed while nobody needed it. If it has not lived long, the next call will do.
    fn closed(self: &Arc<Self>, number: u64) {
        self.master.generation.grow();
        let mut attempt = self.attempt_mut();
        if attempt.number == number && attempt.made.is_some() {
            attempt.is_broken = true;
            if attempt.has_lived() {
                self.connect(&mut attempt);
            }
        }
    }

    /// Starts another attempt. It runs to its end whatever becomes of the calls that wait for it.
    fn connect(self: &Arc<Self>, attempt: &mut Attempt) {
        self.master.generation.grow();
        // A connection may be found closed while its runtime is shut down.
        let Ok(runtime) = Handle::try_current() else { return };
        if attempt.has_lived() || attempt.has_served() {
            attempt.failures = 0;
        }
        let delay = DELAYS_MS[attempt.failures.min(DELAYS_MS.len() - 1)];
        let (report, outcome) = watch::channel(None);
        let (number, failures) = (attempt.number + 1, attempt.failures + 1);
        *attempt = Attempt { number, failures, made: None, is_broken: false, outcome };
        let shared = Arc::clone(self);
        runtime.spawn(async move {
            tokio::time::sleep(Duration::from_millis(delay)).await;
            // With RESP3 a connection says by itself that it was closed, before a call finds out.
            let (this, closed) = (Arc::downgrade(&shared), Arc::new(AtomicBool::new(false)));
            let flag = Arc::clone(&closed);
            let made = shared.open(number, move |push| {
                if push.kind == PushKind::Disconnection {
                    flag.store(true, Ordering::SeqCst);
                    if let Some(shared) = this.upgrade() {
                        shared.closed(number);
                    }
                }
            });
            let made = made.await.map(Arc::new);
            if let Ok(made) = &made {
                let mut attempt = shared.attempt_mut();
                if attempt.number == number {
                    attempt.made = Some(Arc::clone(made));
                    // It may have been closed before anybody could be told.
                    attempt.is_broken = closed.load(Ordering::SeqCst);
                }
            }
            // Nobody may be waiting any more.
            let _ = report.send(Some(made));
        });
    }

    /// Connects, and takes the time from the server.
    async fn open(&self, number: u64, told: impl Fn(PushInfo) + Send + Sync + 'static) -> RedisResult<Made> {
        let demotions = self.master.demotions();
        let client = self.master.client().await?;
        let info = client.get_connection_info();
        let address = info.addr().to_string();
        let mut config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.connect_timeout))
            // Each call has one time limit, set around the whole of it.
            .set_response_timeout(None);
        if info.redis_settings().protocol().supports_resp3() {
            config = config.set_push_sender(move |push: PushInfo| {
                told(push);
                Ok::<(), Infallible>(())
            });
        }
        let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
        let sent = self.clock.moment();
        let (ask, limit) = (redis::cmd("TIME"), self.connect_timeout);
        let time = tokio::time::timeout(limit, connection.req_packed_command(&ask)).await;
        let no_reply = |_| Error::new(std::io::ErrorKind::TimedOut, "no reply to the first command");
        let time = time.map_err(no_reply)??.extract_error()?;
        if let Some(server_us) = server_time(&time) {
            self.clock.observe(server_us, sent);
        }
        self.master.generation.grow();
        let (at, has_served) = (Instant::now(), AtomicBool::new(false));
        Ok(Made { number, at, demotions, connection, address, has_served })
    }

    /// Connects anew if this reply shows that the connection is of no more use.
    fn look_at<T>(self: &Arc<Self>, made: &Made, reply: &RedisResult<T>) {
        match reply {
            // Calls on several cores share it, so it is written once.
            Ok(_) if made.has_served.load(Ordering::Relaxed) => {}
            Ok(_) => made.has_served.store(true, Ordering::Relaxed),
            Err(error) if error.is_io_error() || error.is_unrecoverable_error() => self.replace(made.number),
            Err(_) => {}
        }
    }
}

/// Whether a master has become a replica. Redis 6.2 wraps the code that a script met into a text.
pub(super) fn is_demoted(reply: &Value) -> bool {
    let Value::ServerError(error) = reply else { return false };
    error.code() == "READONLY" || error.details().is_some_and(|details| details.contains("READONLY "))
}

#[async_trait]
impl Link for MasterLink {
    async fn send(&self, command: &Cmd, _key: &str) -> Result<Value, Failure> {
        let made = self.connection().await?;
        let reply = made.connection.clone().send_packed_command(command).await;
        self.0.look_at(&made, &reply);
        if reply.as_ref().is_ok_and(is_demoted) {
            self.0.master.report_demotion(&made);
            self.0.replace(made.number);
        }
        Failure::judge(reply)
    }

    async fn read_all(&self, reads: &Pipeline, _key: &str) -> Result<Vec<Result<Value, Failure>>, Failure> {
        let made = self.connection().await?;
        let replies = made.connection.clone().send_packed_commands(reads, 0, reads.len()).await;
        self.0.look_at(&made, &replies);
        Failure::judge_all(replies)
    }

    async fn server_of(&self, _key: &str) -> RedisResult<Client> {
        self.0.master.client().await
    }

    fn generation(&self) -> u64 {
        self.0.master.generation.get()
    }

    fn demotions(&self) -> u64 {
        self.0.master.demotions()
    }

    fn has_left(&self, address: &str, demotions: u64) -> bool {
        demotions != self.demotions() || self.address().is_some_and(|current| current != address)
    }

    /// A server that hangs may have been replaced by another: the sentinels know.
    fn timed_out(&self, _key: &str) {
        #[cfg(feature = "redis-sentinel")]
        let made = self.0.attempt().made.clone();
        #[cfg(feature = "redis-sentinel")]
        if let (Some(made), Ok(runtime)) = (made, Handle::try_current()) {
            let shared = Arc::clone(&self.0);
            runtime.spawn(async move {
                if let Place::KnownTo(sentinels) = &shared.master.place
                    && let Some(Ok(master)) = sentinels.master_unless_asked().await
                    && master.get_connection_info().addr().to_string() != made.address
                {
                    shared.replace(made.number);
                }
            });
        }
    }
}
