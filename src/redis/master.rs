//! Connections to one master, each re-created when it breaks or stops answering.

use std::io::{Error, ErrorKind as IoErrorKind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{Cmd, ConnectionAddr, ErrorKind, Pipeline, PushInfo, PushKind, RedisResult, Value};
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::clock::{Clock, server_time};
use super::connection::Connection;
use super::dialer::Dialer;
use super::generation::Generation;
use super::notifications::{Agreement, Trial, Trials};
use super::reply::{CommandError, InFlight, check_replies, check_reply, value_or_error};
#[cfg(feature = "redis-sentinel")]
use super::sentinel::{Named, Sentinels, keep_comparing};
use crate::backend::engine::on_drop;
use crate::scripts::Pubsub;

/// The delay before an attempt to connect, by how many have failed in a row; the last for all that follow.
const DELAYS_MS: [u64; 6] = [0, 10, 30, 70, 150, 250];

/// A connection that lived shorter, and served no call, counts as a failed attempt when it breaks.
const LIVED: Duration = Duration::from_secs(1);

/// How long a connection may take for a probe, after a call over it timed out.
const PROBE_LIMIT: Duration = Duration::from_millis(500);

/// How a master is found for each new connection.
pub(super) enum Place {
    At(ConnectionAddr),
    #[cfg(feature = "redis-sentinel")]
    KnownTo(Sentinels),
}

/// A master, for all connections to it.
pub(super) struct Master {
    place: Place,
    dialer: Dialer,
    /// Is set by the server's clock whenever a connection was made, as it may be another server.
    clock: Arc<Clock>,
    /// Grows when a connection was re-created and when the server turned out to be a replica: a connection of an earlier
    /// epoch may lead to another server than a new one would.
    epoch: AtomicU64,
    /// One more than the epoch of the last connection that broke.
    broken: AtomicU64,
    /// Of all connections to it.
    generation: Arc<Generation>,
    /// How the master passes on messages; `None` if notifications are off.
    agreement: Option<Agreement>,
    #[cfg(feature = "redis-sentinel")]
    election: Election,
}

/// The latest known election of the sentinels.
#[cfg(feature = "redis-sentinel")]
#[derive(Default)]
struct Election {
    /// Where the connections of this epoch lead.
    latest: std::sync::Mutex<Option<(u64, Named)>>,
    /// The master that connections lead to may be deposed.
    is_suspected: Arc<tokio::sync::Notify>,
    /// Whether the task runs that compares the master with the one that the sentinels name.
    is_compared: AtomicBool,
}

/// A connection to the master that has answered once.
pub(super) struct Opened {
    pub(super) connection: MultiplexedConnection,
    /// Host and port of the server.
    pub(super) address: String,
    /// The master's epoch before the connection was made.
    pub(super) epoch: u64,
}

impl Master {
    /// `trials`: where to try out how it passes on messages; `None` if notifications are off.
    pub(super) fn new(
        place: Place,
        dialer: Dialer,
        clock: Arc<Clock>,
        generation: Arc<Generation>,
        trials: Option<Trials>,
    ) -> Self {
        Self {
            place,
            dialer,
            clock,
            epoch: AtomicU64::new(0),
            broken: AtomicU64::new(0),
            generation,
            agreement: trials.map(Agreement::new),
            #[cfg(feature = "redis-sentinel")]
            election: Election::default(),
        }
    }

    /// Connects, and takes the time from the server. The connect timeout covers all of it.
    pub(super) async fn open(
        self: &Arc<Self>,
        response_timeout: Option<Duration>,
        on_push: impl Fn(PushInfo) + Send + Sync + 'static,
    ) -> RedisResult<Opened> {
        let no_reply = |_| Error::new(IoErrorKind::TimedOut, "no reply to the first command");
        let opened = self.open_in_time(response_timeout, on_push);
        tokio::time::timeout(self.dialer.limit, opened).await.map_err(no_reply)?
    }

    async fn open_in_time(
        self: &Arc<Self>,
        response_timeout: Option<Duration>,
        on_push: impl Fn(PushInfo) + Send + Sync + 'static,
    ) -> RedisResult<Opened> {
        let mut epoch = self.epoch();
        let (mut connection, address, is_another) = match &self.place {
            Place::At(address) => {
                let connection = self.dialer.dial(address, response_timeout, on_push).await?;
                (connection, address.to_string(), false)
            }
            #[cfg(feature = "redis-sentinel")]
            Place::KnownTo(sentinels) => {
                let dialed = sentinels.dial(&self.dialer, response_timeout, Arc::new(on_push));
                let (connection, named) = dialed.await?;
                let address = named.to_string();
                let is_another = self.leads_to(epoch, named);
                self.keep_comparing();
                (connection, address, is_another)
            }
        };
        self.observe_time(&mut connection).await?;
        self.generation.grow();
        if is_another || self.broken.load(Ordering::SeqCst) == epoch + 1 {
            // This connection replaces a broken one, and may lead to another server than the others of that epoch.
            self.void(epoch);
            epoch += 1;
        }
        Ok(Opened { connection, address, epoch })
    }

    /// Records the server of a connection that was made in this epoch. Returns whether others of the epoch lead to another
    /// server.
    #[cfg(feature = "redis-sentinel")]
    fn leads_to(&self, epoch: u64, named: Named) -> bool {
        let mut latest = self.election.latest.lock().unwrap_or_else(PoisonError::into_inner);
        let is_another = latest.as_ref().is_some_and(|(of, known)| *of == epoch && !known.is_at(&named));
        if latest.as_ref().is_none_or(|(of, _)| *of <= epoch) {
            // The epoch of the connection, if it is the first of the next one.
            let is_first = is_another || self.broken.load(Ordering::SeqCst) == epoch + 1;
            *latest = Some((epoch + u64::from(is_first), named));
        }
        is_another
    }

    /// Starts the task that compares the master with the one that the sentinels name, unless it runs.
    #[cfg(feature = "redis-sentinel")]
    fn keep_comparing(self: &Arc<Self>) {
        let Ok(runtime) = Handle::try_current() else { return };
        if self.election.is_compared.swap(true, Ordering::SeqCst) {
            return;
        }
        let (this, suspected) = (Arc::downgrade(self), Arc::clone(&self.election.is_suspected));
        // Runs however the task ends, also when its runtime is shut down.
        let of = Arc::downgrade(self);
        let ended = on_drop(move || {
            if let Some(master) = of.upgrade() {
                master.election.is_compared.store(false, Ordering::SeqCst);
            }
        });
        runtime.spawn(async move {
            let _ended = ended;
            keep_comparing(this, suspected).await;
        });
    }

    /// The sentinels, how to connect to what they name, and where the connections of this epoch lead.
    #[cfg(feature = "redis-sentinel")]
    pub(super) fn elected(&self) -> Option<(&Sentinels, &Dialer, u64, Named)> {
        let Place::KnownTo(sentinels) = &self.place else { return None };
        let latest = self.election.latest.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (epoch, named) = latest.filter(|(epoch, _)| self.is_current(*epoch))?;
        Some((sentinels, &self.dialer, epoch, named))
    }

    /// Asks the sentinels at once whether they have elected another master: this one lacks replicas.
    pub(super) fn suspect(&self) {
        #[cfg(feature = "redis-sentinel")]
        self.election.is_suspected.notify_one();
    }

    async fn observe_time(&self, connection: &mut MultiplexedConnection) -> RedisResult<()> {
        let sent = self.clock.moment();
        let time = connection.req_packed_command(&redis::cmd("TIME")).await?;
        let time = value_or_error(time)?;
        if let Some(server_us) = server_time(&time) {
            self.clock.observe(server_us, sent);
        }
        Ok(())
    }

    pub(super) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::SeqCst)
    }

    /// Whether a connection of this epoch leads where a new one would, as far as is known.
    pub(super) fn is_current(&self, epoch: u64) -> bool {
        epoch == self.epoch()
    }

    /// A connection of this epoch broke. The next one that is made voids the others of the epoch.
    pub(super) fn report_broken(&self, epoch: u64) {
        self.generation.grow();
        if self.is_current(epoch) {
            // Another thread may have reported a later one meanwhile.
            self.broken.fetch_max(epoch + 1, Ordering::SeqCst);
        }
    }

    /// Voids the connections of this epoch, as a new one would lead to another server. Connections that carry only reads would
    /// not detect that by themselves.
    pub(super) fn void(&self, epoch: u64) {
        self.generation.grow();
        // An error means that another connection has voided it.
        let _ = self.epoch.compare_exchange(epoch, epoch + 1, Ordering::SeqCst, Ordering::SeqCst);
    }

    /// How long making a connection may take.
    pub(super) fn limit(&self) -> Duration {
        self.dialer.limit
    }

    /// Returns the commands by which the master passes on messages; `None` if notifications are off or it passes on none.
    pub(super) async fn pubsub(self: &Arc<Self>) -> Option<Pubsub> {
        let agreement = self.agreement()?;
        match agreement.of(self.epoch()) {
            Some(known) => known,
            // Rare, and not to fill every call.
            None => Box::pin(agreement.reach(self)).await,
        }
    }

    /// Returns the commands that [`pubsub`](Self::pubsub) returns, if a trial found them out in this epoch.
    pub(super) fn known_pubsub(&self, epoch: u64) -> Option<Option<Pubsub>> {
        self.agreement()?.of(epoch)
    }

    pub(super) fn agreement(&self) -> Option<&Agreement> {
        self.agreement.as_ref()
    }

    /// Tries out how the master passes on messages, unless notifications are off.
    pub(super) async fn try_pubsub(self: &Arc<Self>) -> RedisResult<Option<Trial>> {
        match &self.agreement {
            Some(agreement) => agreement.try_out(self).await.map(Some),
            None => Ok(None),
        }
    }

    /// The name of the master: its address, or what sentinels call it.
    pub(super) fn name(&self) -> String {
        match &self.place {
            Place::At(address) => address.to_string(),
            #[cfg(feature = "redis-sentinel")]
            Place::KnownTo(sentinels) => sentinels.master_name().to_owned(),
        }
    }
}

/// The connection that all calls share. The first call makes it. When it breaks it is re-created at once; if that fails,
/// by the next call, after a delay. When it stops answering, a new connection that answers takes its place.
pub(super) struct MasterConnection(Arc<Shared>);

struct Shared {
    master: Arc<Master>,
    state: RwLock<State>,
    /// Whether the connection is being probed.
    is_probed: AtomicBool,
}

struct State {
    made: Option<Arc<Made>>,
    is_broken: bool,
    /// The number of the latest attempt to connect.
    number: u64,
    /// How many attempts failed in a row before it.
    failures: usize,
    outcome: watch::Receiver<Option<RedisResult<Arc<Made>>>>,
}

struct Made {
    /// The number of the attempt that made it.
    number: u64,
    at: Instant,
    /// The master's epoch that it belongs to.
    epoch: u64,
    connection: MultiplexedConnection,
    address: String,
    /// Whether a call had a reply over it.
    has_served: AtomicBool,
}

impl MasterConnection {
    /// Connects with the first call.
    pub(super) fn new(master: Arc<Master>) -> Self {
        // The sender is gone, so no attempt is under way.
        let outcome = watch::channel(None).1;
        let state = State { made: None, is_broken: false, number: 0, failures: 0, outcome };
        Self(Arc::new(Shared { master, state: RwLock::new(state), is_probed: AtomicBool::new(false) }))
    }

    /// The connection, waited for only if there is none that works.
    async fn connection(&self) -> Result<Arc<Made>, CommandError> {
        let working = self.0.state().working(&self.0.master);
        match working {
            Some(made) => Ok(made),
            None => Box::pin(self.connect()).await,
        }
    }

    /// Waits for a connection. Dropping the future does not end the attempt, which others may wait for.
    async fn connect(&self) -> Result<Arc<Made>, CommandError> {
        let mut outcome = {
            let mut state = self.0.state_mut();
            if let Some(made) = state.working(&self.0.master) {
                return Ok(made);
            }
            self.0.connect(&mut state);
            state.outcome.clone()
        };
        made_in(&mut outcome).await.map_err(CommandError::NotSent)
    }

    pub(super) fn master(&self) -> &Arc<Master> {
        &self.0.master
    }

    /// Probes the connection, unless that is under way. One that does not answer is re-created.
    pub(super) fn probe(&self) {
        // Without one, calls wait for a new connection already.
        if self.0.state().working(&self.0.master).is_some() {
            self.check(|_| ());
        }
    }

    /// Probes the connection, unless that is under way, and re-creates one that does not answer. `report` receives the result;
    /// it is dropped with the runtime.
    pub(super) fn check(&self, report: impl FnOnce(RedisResult<()>) + Send + 'static) {
        let Ok(runtime) = Handle::try_current() else { return };
        if self.0.is_probed.swap(true, Ordering::SeqCst) {
            return;
        }
        let shared = Arc::clone(&self.0);
        // Runs however the task ends, also when its runtime is shut down.
        let ended = on_drop({
            let shared = Arc::clone(&shared);
            move || shared.is_probed.store(false, Ordering::SeqCst)
        });
        runtime.spawn(async move {
            let answers = Self(shared).answers().await;
            drop(ended);
            report(answers);
        });
    }

    /// Whether a connection answers: the one that there is, or else a new one.
    async fn answers(&self) -> RedisResult<()> {
        let shared = &self.0;
        let working = shared.state().working(&shared.master);
        let mut outcome = match working {
            Some(made) => {
                let mut connection = made.connection.clone();
                let answered = tokio::time::timeout(PROBE_LIMIT, shared.master.observe_time(&mut connection));
                if answered.await.is_ok_and(|time| time.is_ok()) {
                    return Ok(());
                }
                tracing::debug!(address = made.address, "a connection does not answer; reconnecting");
                // The calls stay with the old connection until the new one answers: the server may be slow for a while.
                let mut state = shared.state_mut();
                if state.working(&shared.master).is_some_and(|working| working.number != made.number) {
                    return Ok(());
                }
                shared.master.report_broken(made.epoch);
                shared.connect(&mut state);
                state.outcome.clone()
            }
            None => {
                let mut state = shared.state_mut();
                shared.connect(&mut state);
                state.outcome.clone()
            }
        };
        made_in(&mut outcome).await.map(drop)
    }

    /// Sends a command behind `ASKING` in one pipeline. `ASKING` permits the next command of the connection, whichever call sent
    /// it.
    #[cfg(feature = "redis-cluster")]
    pub(super) async fn send_asking(
        &self,
        command: &Cmd,
        in_flight: &InFlight,
    ) -> Result<Value, CommandError> {
        let made = self.connection().await?;
        in_flight.set();
        let mut asking = Pipeline::with_capacity(2);
        asking.cmd("ASKING").add_command(command.clone());
        let replies = made.connection.clone().send_packed_commands(&asking, 0, asking.len()).await;
        self.0.look_at(&made, &replies);
        let replies = check_replies(replies)?;
        let Ok([asked, reply]) = <[_; 2]>::try_from(replies) else {
            return Err(CommandError::NoReply(
                (ErrorKind::UnexpectedReturnType, "a reply is missing").into(),
            ));
        };
        // If ASKING was refused too, its error is the cause.
        if reply.is_ok() { reply } else { asked.and(reply) }
    }
}

/// Waits for the connection that an attempt makes.
async fn made_in(outcome: &mut watch::Receiver<Option<RedisResult<Arc<Made>>>>) -> RedisResult<Arc<Made>> {
    let made = match outcome.wait_for(Option::is_some).await {
        Ok(made) => made.clone(),
        Err(_) => None,
    };
    made.unwrap_or_else(|| Err(runtime_is_gone()))
}

fn runtime_is_gone() -> redis::RedisError {
    (
        ErrorKind::Client,
        "the task that connects ended early: its runtime was shut down, or the credentials callback panicked",
    )
        .into()
}

impl State {
    /// The connection for calls, unless it is known to be broken or void.
    fn working(&self, master: &Master) -> Option<Arc<Made>> {
        self.made.clone().filter(|made| !self.is_broken && master.is_current(made.epoch))
    }

    fn is_at(&self, number: u64) -> bool {
        self.made.as_ref().is_some_and(|made| made.number == number)
    }

    fn is_connecting(&self) -> bool {
        // Without a sender, the runtime of the attempt was shut down.
        self.outcome.borrow().is_none() && self.outcome.has_changed().is_ok()
    }

    /// Whether the connection of the latest attempt has worked.
    fn has_succeeded(&self) -> bool {
        self.made.as_ref().is_some_and(|made| {
            made.number == self.number
                && (made.at.elapsed() >= LIVED || made.has_served.load(Ordering::Relaxed))
        })
    }
}

impl Shared {
    /// Nothing panics while it holds the state.
    fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn state_mut(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// A call found this connection broken. It is re-created at once, unless that has happened.
    fn broke(self: &Arc<Self>, made: &Made) {
        self.master.report_broken(made.epoch);
        let mut state = self.state_mut();
        if state.is_at(made.number) && !state.is_broken {
            state.is_broken = true;
            self.connect(&mut state);
        }
    }

    /// The connection was closed. If it has not lived long, the next call re-creates it.
    fn closed(self: &Arc<Self>, number: u64) {
        let mut state = self.state_mut();
        let Some(made) = state.made.clone().filter(|made| made.number == number) else { return };
        self.master.report_broken(made.epoch);
        state.is_broken = true;
        if made.at.elapsed() >= LIVED {
            self.connect(&mut state);
        }
    }

    /// Starts another attempt, unless one is under way. The attempt does not end when the calls that wait for it are dropped.
    fn connect(self: &Arc<Self>, state: &mut State) {
        self.master.generation.grow();
        if state.is_connecting() {
            return;
        }
        // A connection may be found closed while its runtime is shut down.
        let Ok(runtime) = Handle::try_current() else { return };
        if state.has_succeeded() {
            state.failures = 0;
        }
        let delay = DELAYS_MS[state.failures.min(DELAYS_MS.len() - 1)];
        let (report, outcome) = watch::channel(None);
        state.number += 1;
        state.failures += 1;
        state.outcome = outcome;
        let (shared, number) = (Arc::clone(self), state.number);
        runtime.spawn(async move {
            tokio::time::sleep(Duration::from_millis(delay)).await;
            // Nobody may be waiting any more.
            let _ = report.send(Some(shared.make(number).await));
        });
    }

    async fn make(self: &Arc<Self>, number: u64) -> RedisResult<Arc<Made>> {
        // With RESP3 a connection says by itself that it was closed, before a call finds out.
        let (this, closed) = (Arc::downgrade(self), Arc::new(AtomicBool::new(false)));
        let flag = Arc::clone(&closed);
        let opened = self.master.open(None, move |push| {
            if push.kind == PushKind::Disconnection {
                flag.store(true, Ordering::SeqCst);
                if let Some(shared) = this.upgrade() {
                    shared.closed(number);
                }
            }
        });
        let Opened { connection, address, epoch } = opened.await?;
        let mut state = self.state_mut();
        let (at, has_served) = (Instant::now(), AtomicBool::new(false));
        let made = Arc::new(Made { number, at, epoch, connection, address, has_served });
        state.made = Some(Arc::clone(&made));
        // It may have been closed before it was stored.
        state.is_broken = closed.load(Ordering::SeqCst);
        if state.is_broken {
            self.master.report_broken(epoch);
        }
        Ok(made)
    }

    /// Re-creates the connection if this reply shows that it is broken or void.
    fn look_at<T>(self: &Arc<Self>, made: &Made, reply: &RedisResult<T>) {
        match reply {
            // Calls on several cores share it, so it is written once.
            Ok(_) if made.has_served.load(Ordering::Relaxed) => {}
            Ok(_) => made.has_served.store(true, Ordering::Relaxed),
            Err(error) if error.is_io_error() || error.is_unrecoverable_error() => self.broke(made),
            Err(_) => {}
        }
    }
}

/// Whether a master has become a replica. Redis 6.2 wraps the code that a script met into a text.
pub(super) fn is_demoted(reply: &Value) -> bool {
    let Value::ServerError(error) = reply else { return false };
    error.code() == "READONLY" || error.details().is_some_and(|details| details.contains("READONLY "))
}

/// Whether a master refuses writes because it has too few replicas, as one does that was cut off and deposed.
pub(super) fn lacks_replicas(reply: &Value) -> bool {
    matches!(reply, Value::ServerError(error) if error.code() == "NOREPLICAS")
}

/// Whether the server has forgotten who the connection belongs to: a new one presents its credentials again.
pub(super) fn has_lost_its_user(reply: &Value) -> bool {
    matches!(reply, Value::ServerError(error) if error.code() == "NOAUTH")
}

#[async_trait]
impl Connection for MasterConnection {
    async fn send(&self, command: &Cmd, _key: &str, in_flight: &InFlight) -> Result<Value, CommandError> {
        let made = self.connection().await?;
        in_flight.set();
        let reply = made.connection.clone().send_packed_command(command).await;
        self.0.look_at(&made, &reply);
        if reply.as_ref().is_ok_and(is_demoted) {
            self.0.master.void(made.epoch);
            self.0.broke(&made);
        } else if reply.as_ref().is_ok_and(has_lost_its_user) {
            self.0.broke(&made);
        } else if reply.as_ref().is_ok_and(lacks_replicas) {
            self.0.master.suspect();
        }
        check_reply(reply)
    }

    async fn read_all(
        &self,
        reads: &Pipeline,
        _key: &str,
    ) -> Result<Vec<Result<Value, CommandError>>, CommandError> {
        let made = self.connection().await?;
        let replies = made.connection.clone().send_packed_commands(reads, 0, reads.len()).await;
        self.0.look_at(&made, &replies);
        check_replies(replies)
    }

    async fn master_of(&self, _key: &str) -> RedisResult<Arc<Master>> {
        Ok(Arc::clone(&self.0.master))
    }

    async fn pubsub(&self, _key: &str) -> Result<Option<Pubsub>, CommandError> {
        // Whatever is sent next goes over this connection, so it is the one that counts.
        self.connection().await?;
        Ok(self.0.master.pubsub().await)
    }

    fn generation(&self) -> u64 {
        self.0.master.generation.get()
    }

    fn timed_out(&self, _key: &str) {
        self.probe();
    }
}
