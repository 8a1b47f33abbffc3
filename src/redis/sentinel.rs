//! Finds the master through its sentinels.
//!
//! The backend asks all sentinels at the same time, so a silent or outdated one causes no delay while the others agree
//! (<https://redis.io/docs/latest/develop/reference/sentinel-clients/>).

mod candidate;
mod query;

use std::io::{Error, ErrorKind as IoErrorKind};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::{Either, select};
use futures_util::stream::FuturesUnordered;
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{ConnectionAddr, ErrorKind, PushInfo, RedisError, RedisResult, Value};
use tokio::time::{Instant, sleep, timeout_at};

use super::dialer::Dialer;
use super::reply::value_or_error;
pub(super) use candidate::Candidate;
use candidate::count;
use query::Sentinel;

/// How long the backend waits for the other sentinels once one has answered.
const OTHERS_LIMIT: Duration = Duration::from_millis(250);
/// How long the backend waits before it asks again, while the reported server is not yet a master.
const PAUSE: Duration = Duration::from_millis(50);
/// How often the backend asks the sentinels while it waits for the server that they report.
const ASKED_EVERY: Duration = Duration::from_millis(250);

/// Receives the push messages of a connection.
pub(super) type OnPush = Arc<dyn Fn(PushInfo) + Send + Sync>;

/// The sentinels of one master.
pub(super) struct Sentinels {
    sentinels: Vec<Sentinel>,
    master_name: String,
}

/// The outcome of an attempt to connect to a candidate.
enum Dialed {
    Master(MultiplexedConnection),
    /// The server answers, and its role is not `master`.
    NotMaster,
    Failed(RedisError),
    /// The sentinels report another server by now.
    Superseded,
}

impl Sentinels {
    /// Creates the sentinels of a master. Each dialer connects to one sentinel.
    pub(super) fn new(dialers: Vec<Dialer>, master_name: String) -> Self {
        Self { sentinels: dialers.into_iter().map(Sentinel::new).collect(), master_name }
    }

    /// Returns the name that the sentinels use for the master.
    pub(super) fn master_name(&self) -> &str {
        &self.master_name
    }

    /// Connects to the server that the sentinels report, once it replies that it is a master. Until then it asks the
    /// sentinels again, for nine tenths of the connect timeout.
    pub(super) async fn dial(
        &self,
        dialer: &Dialer,
        response_timeout: Option<Duration>,
        on_push: OnPush,
    ) -> RedisResult<(MultiplexedConnection, Candidate)> {
        let deadline = Instant::now() + dialer.limit * 9 / 10;
        let (mut failed, mut is_first): (Vec<Candidate>, _) = (Vec::new(), true);
        let mut failure = None;
        loop {
            let reported = match timeout_at(deadline, self.candidates(is_first)).await {
                Ok(reported) => reported?,
                Err(_) => return Err(failure.unwrap_or_else(|| silent("no sentinel answers"))),
            };
            is_first = false;
            let has_failed = |candidate: &Candidate| failed.iter().any(|failed| failed.is_at(candidate));
            let untried: Vec<Candidate> =
                reported.into_iter().filter(|candidate| !has_failed(candidate)).collect();
            let Some(candidate) = untried.first() else { break };
            let until = match untried.len() {
                1 => deadline,
                // If this candidate does not answer, the next one may be the master.
                _ => deadline.min(Instant::now() + dialer.limit / 4),
            };
            match self.dial_candidate(candidate, until, dialer, response_timeout, &on_push).await? {
                Dialed::Master(connection) => return Ok((connection, candidate.clone())),
                Dialed::NotMaster => {
                    let reason = "the server that the sentinels report is not a master";
                    failure = Some((ErrorKind::Client, reason, candidate.to_string()).into());
                    if Instant::now() + PAUSE >= deadline {
                        break;
                    }
                    sleep(PAUSE).await;
                }
                Dialed::Failed(error) => {
                    failure = Some(error);
                    failed.push(candidate.clone());
                }
                Dialed::Superseded => {}
            }
        }
        Err(failure.unwrap_or_else(|| silent("no server that the sentinels report answers")))
    }

    /// Connects to a candidate, unless the sentinels report another server before that.
    ///
    /// # Errors
    /// An error that another server would return as well, such as a wrong password.
    async fn dial_candidate(
        &self,
        candidate: &Candidate,
        until: Instant,
        dialer: &Dialer,
        response_timeout: Option<Duration>,
        on_push: &OnPush,
    ) -> RedisResult<Dialed> {
        let dialed = pin!(dial_if_master(dialer, candidate, response_timeout, on_push));
        let superseded = pin!(self.superseded(candidate));
        match timeout_at(until, select(dialed, superseded)).await {
            Ok(Either::Left((Ok(Some(connection)), _))) => Ok(Dialed::Master(connection)),
            Ok(Either::Left((Ok(None), _))) => Ok(Dialed::NotMaster),
            Ok(Either::Left((Err(error), _))) if error.is_io_error() => Ok(Dialed::Failed(error)),
            Ok(Either::Left((Err(error), _))) => Err(error),
            Ok(Either::Right(_)) => Ok(Dialed::Superseded),
            Err(_) => Ok(Dialed::Failed(silent("the server that the sentinels report does not answer"))),
        }
    }

    /// Returns once the sentinels report a server other than this one.
    async fn superseded(&self, candidate: &Candidate) {
        loop {
            sleep(ASKED_EVERY).await;
            let reported = self.candidates(false).await.unwrap_or_default();
            if reported.first().is_some_and(|first| !first.is_at(candidate)) {
                return;
            }
        }
    }

    /// Returns the server that has replaced this master: most sentinels report it, or a later failover elected it. The
    /// server has replied that it is a master, so the backend gives up no working connection for an unreachable server.
    pub(super) async fn successor(&self, of: &Candidate, dialer: &Dialer) -> RedisResult<Option<Candidate>> {
        let Some(reported) = self.candidates(false).await?.into_iter().next() else { return Ok(None) };
        let counts = self.is_majority(&reported) || reported.config_epoch > of.config_epoch;
        if reported.is_at(of) || !counts {
            return Ok(None);
        }
        let on_push: OnPush = Arc::new(|_| ());
        let connection = dial_if_master(dialer, &reported, None, &on_push).await?;
        Ok(connection.map(|_| reported))
    }

    fn is_majority(&self, candidate: &Candidate) -> bool {
        candidate.votes * 2 > self.sentinels.len()
    }

    /// Returns the servers that the sentinels report. The server of the latest failover comes first. Among servers of
    /// the same failover, the server with the most votes comes first. With `stops_at_majority`, it does not wait for
    /// the other sentinels once a majority agrees.
    async fn candidates(&self, stops_at_majority: bool) -> RedisResult<Vec<Candidate>> {
        let mut asked: FuturesUnordered<_> =
            self.sentinels.iter().map(|sentinel| sentinel.ask(&self.master_name)).collect();
        let (mut candidates, mut failure) = (Vec::new(), None);
        let mut until = None;
        loop {
            let answer = match until {
                Some(until) => timeout_at(until, asked.next()).await.unwrap_or_default(),
                None => asked.next().await,
            };
            match answer {
                Some(Ok(answer)) => {
                    until.get_or_insert(Instant::now() + OTHERS_LIMIT);
                    count(&mut candidates, answer);
                    if stops_at_majority && candidates.first().is_some_and(|first| self.is_majority(first)) {
                        break;
                    }
                }
                // The error reply of a sentinel explains more than the failure of a connection.
                Some(Err(error)) if failure.as_ref().is_none_or(RedisError::is_io_error) => {
                    failure = Some(error);
                }
                Some(Err(_)) => {}
                None => break,
            }
        }
        match failure {
            _ if !candidates.is_empty() => Ok(candidates),
            Some(error) => Err(error),
            None => Err((ErrorKind::InvalidClientConfig, "no sentinel is configured").into()),
        }
    }
}

fn silent(reason: &'static str) -> RedisError {
    Error::new(IoErrorKind::TimedOut, reason).into()
}

/// Connects to a server. Returns `None` if its `ROLE` is not `master`.
async fn dial_if_master(
    dialer: &Dialer,
    candidate: &Candidate,
    response_timeout: Option<Duration>,
    on_push: &OnPush,
) -> RedisResult<Option<MultiplexedConnection>> {
    let address: ConnectionAddr = dialer.address(&candidate.host, candidate.port);
    // A connection that is not used must not report that it was closed.
    let is_used = Arc::new(AtomicBool::new(true));
    let mut silence = SilenceOnDrop(Some(Arc::clone(&is_used)));
    let on_push = Arc::clone(on_push);
    let pass_on = move |push: PushInfo| {
        if is_used.load(Ordering::SeqCst) {
            on_push(push);
        }
    };
    let mut connection = dialer.dial(&address, response_timeout, pass_on).await?;
    let role = connection.req_packed_command(&redis::cmd("ROLE")).await?;
    let role = match value_or_error(role)? {
        Value::Array(parts) => parts.into_iter().next(),
        _ => None,
    };
    let is_master = matches!(role, Some(Value::BulkString(role)) if role == b"master");
    if !is_master {
        return Ok(None);
    }
    silence.0 = None;
    Ok(Some(connection))
}

/// Marks a connection as not used when it is dropped, unless the flag was taken out.
struct SilenceOnDrop(Option<Arc<AtomicBool>>);

impl Drop for SilenceOnDrop {
    fn drop(&mut self) {
        if let Some(is_used) = &self.0 {
            is_used.store(false, Ordering::SeqCst);
        }
    }
}
