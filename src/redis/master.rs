//! One connection to the master, shared by all calls and made anew when it breaks.

use std::convert::Infallible;
use std::io::Error;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{
    AsyncConnectionConfig, Client, Cmd, ErrorKind, Pipeline, PushInfo, PushKind, RedisResult, Value,
};
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::clock::{Clock, server_time};
use super::link::{Failure, Link};
#[cfg(feature = "redis-sentinel")]
use super::sentinel::Sentinels;

/// The delay before an attempt to connect, by how many have failed in a row; the last for all that follow.
const DELAYS_MS: [u64; 6] = [0, 10, 30, 70, 150, 250];

/// A connection that lived shorter, and served no call, counts as a failed attempt when it breaks.
const LIVED: Duration = Duration::from_secs(1);

/// Where the master is found, each time anew.
pub(super) enum Master {
    At(Client),
    #[cfg(feature = "redis-sentinel")]
    KnownTo(Sentinels),
}

impl Master {
    async fn client(&self) -> RedisResult<Client> {
        match self {
            Self::At(client) => Ok(client.clone()),
            #[cfg(feature = "redis-sentinel")]
            Self::KnownTo(sentinels) => sentinels.master().await,
        }
    }
}

/// The connection that all calls share. It is made by the first call. When it breaks it is made anew at once;
/// if that fails, by the next call, after a delay.
pub(super) struct MasterLink(Arc<Shared>);

struct Shared {
    master: Master,
    connect_timeout: Duration,
    /// Is set by the server's clock whenever a connection was made, as it may be another server.
    clock: Arc<Clock>,
    attempt: Mutex<Attempt>,
}

/// The latest attempt to connect.
struct Attempt {
    number: u64,
    /// How many failed in a row before it.
    failures: usize,
    /// When its connection was made, and whether that broke since.
    made: Option<Instant>,
    is_broken: bool,
    outcome: watch::Receiver<Option<RedisResult<Made>>>,
}

#[derive(Clone)]
pub(super) struct Made {
    pub(super) connection: MultiplexedConnection,
    /// Host and port of the server.
    pub(super) address: String,
    /// Whether a call had a reply over it.
    has_served: Arc<AtomicBool>,
}

impl MasterLink {
    /// Connects with the first call.
    pub(super) fn new(master: Master, connect_timeout: Duration, clock: Arc<Clock>) -> Self {
        // An attempt that nobody has in hand counts as broken, so the first call makes the first one.
        let outcome = watch::channel(None).1;
        let attempt = Attempt { number: 0, failures: 0, made: None, is_broken: false, outcome };
        Self(Arc::new(Shared { master, connect_timeout, clock, attempt: Mutex::new(attempt) }))
    }

    /// Waits for a connection. Dropping the future does not end the attempt, which others may wait for.
    async fn connection(&self) -> Result<(u64, Made), Failure> {
        let (number, mut outcome) = {
            let mut attempt = self.0.attempt();
            if attempt.is_over() {
                self.0.connect(&mut attempt);
            }
            (attempt.number, attempt.outcome.clone())
        };
        let made = match outcome.wait_for(Option::is_some).await {
            Ok(made) => made.clone(),
            Err(_) => None,
        };
        match made {
            Some(Ok(made)) => Ok((number, made)),
            Some(Err(error)) => Err(Failure::Unsent(error)),
            None => Err(Failure::Unsent((ErrorKind::Client, "the runtime was shut down").into())),
        }
    }

    /// A connection that calls do not share, with the flag that tells when it was closed.
    pub(super) async fn exclusive(&self) -> RedisResult<(Made, Arc<AtomicBool>)> {
        let closed = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&closed);
        let made = self.0.open(move |push| {
            if push.kind == PushKind::Disconnection {
                flag.store(true, Ordering::Relaxed);
            }
        });
        Ok((made.await?, closed))
    }

    /// Host and port of the server that the shared connection leads to.
    pub(super) fn address(&self) -> Option<String> {
        self.0.made().map(|(_, made)| made.address)
    }
}

impl Attempt {
    /// Whether it leads to no connection any more.
    fn is_over(&self) -> bool {
        match &*self.outcome.borrow() {
            Some(made) => made.is_err() || self.is_broken,
            // The runtime that it ran on is gone.
            None => self.outcome.has_changed().is_err(),
        }
    }

    fn has_lived(&self) -> bool {
        self.made.is_some_and(|made| made.elapsed() >= LIVED)
    }

    fn has_served(&self) -> bool {
        matches!(&*self.outcome.borrow(), Some(Ok(made)) if made.has_served.load(Ordering::Relaxed))
    }
}

impl Shared {
    /// Nothing panics while it holds the attempt.
    fn attempt(&self) -> MutexGuard<'_, Attempt> {
        self.attempt.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes this connection anew, unless that has happened already.
    fn replace(self: &Arc<Self>, number: u64) {
        let mut attempt = self.attempt();
        if attempt.number == number {
            self.connect(&mut attempt);
        }
    }

    /// The same for one that was closed while nobody needed it. If it has not lived long, the next call will do.
    fn closed(self: &Arc<Self>, number: u64) {
        let mut attempt = self.attempt();
        if attempt.number == number && attempt.made.is_some() {
            attempt.is_broken = true;
            if attempt.has_lived() {
                self.connect(&mut attempt);
            }
        }
    }

    /// The connection that is in use, with its number.
    fn made(&self) -> Option<(u64, Made)> {
        let attempt = self.attempt();
        let outcome = attempt.outcome.borrow();
        let made = outcome.as_ref()?.as_ref().ok()?;
        Some((attempt.number, made.clone()))
    }

    /// Starts another attempt. It runs to its end whatever becomes of the calls that wait for it.
    fn connect(self: &Arc<Self>, attempt: &mut Attempt) {
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
            let made = shared.open(move |push| {
                if push.kind == PushKind::Disconnection {
                    flag.store(true, Ordering::SeqCst);
                    if let Some(shared) = this.upgrade() {
                        shared.closed(number);
                    }
                }
            });
            let made = made.await;
            if made.is_ok() {
                let mut attempt = shared.attempt();
                if attempt.number == number {
                    attempt.made = Some(Instant::now());
                    // It may have been closed before anybody could be told.
                    attempt.is_broken = closed.load(Ordering::SeqCst);
                }
            }
            // Nobody may be waiting any more.
            let _ = report.send(Some(made));
        });
    }

    /// Connects, and takes the time from the server.
    async fn open(&self, told: impl Fn(PushInfo) + Send + Sync + 'static) -> RedisResult<Made> {
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
        Ok(Made { connection, address, has_served: Arc::default() })
    }

    /// Connects anew if this reply shows that the connection is of no more use.
    fn look_at<T>(self: &Arc<Self>, number: u64, made: &Made, reply: &RedisResult<T>) {
        match reply {
            Ok(_) => made.has_served.store(true, Ordering::Relaxed),
            Err(error) if error.is_io_error() || error.is_unrecoverable_error() => self.replace(number),
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
        let (number, mut made) = self.connection().await?;
        let reply = made.connection.req_packed_command(command).await;
        self.0.look_at(number, &made, &reply);
        if reply.as_ref().is_ok_and(is_demoted) {
            self.0.replace(number);
        }
        Failure::judge(reply)
    }

    async fn read_all(&self, reads: &Pipeline, _key: &str) -> Result<Vec<Result<Value, Failure>>, Failure> {
        let (number, mut made) = self.connection().await?;
        let replies = made.connection.req_packed_commands(reads, 0, reads.len()).await;
        self.0.look_at(number, &made, &replies);
        Failure::judge_all(replies)
    }

    /// A server that hangs may have been replaced by another: the sentinels know.
    fn timed_out(&self, _key: &str) {
        #[cfg(feature = "redis-sentinel")]
        if let (Some((number, made)), Ok(runtime)) = (self.0.made(), Handle::try_current()) {
            let shared = Arc::clone(&self.0);
            runtime.spawn(async move {
                if let Master::KnownTo(sentinels) = &shared.master
                    && let Some(Ok(master)) = sentinels.master_unless_asked().await
                    && master.get_connection_info().addr().to_string() != made.address
                {
                    shared.replace(number);
                }
            });
        }
    }
}
