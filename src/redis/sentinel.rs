//! The sentinels that know where the master is.
//!
//! All of them are asked at the same time, so a silent or outdated one causes no delay while the others agree
//! (<https://redis.io/docs/latest/develop/reference/sentinel-clients/>).

use std::collections::HashMap;
use std::fmt;
use std::io::{Error, ErrorKind as IoErrorKind};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::{Either, select};
use futures_util::stream::FuturesUnordered;
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{ConnectionAddr, ErrorKind, Pipeline, PushInfo, RedisError, RedisResult, Value};
use tokio::sync::{Mutex, Notify};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::dialer::Dialer;
use super::master::Master;
use super::reply::value_or_error;
use crate::printable::Chain;

/// How long the other sentinels may take once one has answered.
const PATIENCE: Duration = Duration::from_millis(250);
/// How long a sentinel may take for an answer over a connection that was kept, before a new one is made.
const KEPT_LIMIT: Duration = Duration::from_millis(250);
/// How long to wait before the sentinels are asked again while the server that they name is no master yet.
const PAUSE: Duration = Duration::from_millis(50);
/// How often the sentinels are asked while a server that they named takes its time.
const ASKED_EVERY: Duration = Duration::from_millis(250);
/// How often the master that connections lead to is compared with the one that the sentinels name, and how soon again at the
/// earliest.
const CHECKED_EVERY: Duration = Duration::from_secs(1);
const CHECKS_APART: Duration = Duration::from_millis(100);

/// Passes on what a server sends unasked.
pub(super) type OnPush = Arc<dyn Fn(PushInfo) + Send + Sync>;

/// The sentinels of one master.
pub(super) struct Sentinels {
    sentinels: Vec<Sentinel>,
    master_name: String,
}

/// One sentinel, with the connection over which it was asked last.
struct Sentinel {
    dialer: Dialer,
    kept: Mutex<Option<MultiplexedConnection>>,
}

/// A server that sentinels name as the master.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Named {
    host: String,
    port: u16,
    /// The highest of the failovers that led to it, by their numbers; 0 where no sentinel says.
    config_epoch: u64,
    /// How many sentinels name it.
    votes: usize,
}

impl Named {
    pub(super) fn is_at(&self, other: &Self) -> bool {
        (&self.host, self.port) == (&other.host, other.port)
    }
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl Sentinels {
    /// Each dialer connects to one of them.
    pub(super) fn new(dialers: Vec<Dialer>, master_name: String) -> Self {
        let sentinels = dialers.into_iter().map(|dialer| Sentinel { dialer, kept: Mutex::default() });
        Self { sentinels: sentinels.collect(), master_name }
    }

    /// What the sentinels call the master.
    pub(super) fn master_name(&self) -> &str {
        &self.master_name
    }

    /// Connects to the server that the sentinels name, once it replies that it is a master. Until then it asks the sentinels
    /// again, for most of the time that a connection may take.
    pub(super) async fn dial(
        &self,
        dialer: &Dialer,
        response_timeout: Option<Duration>,
        on_push: OnPush,
    ) -> RedisResult<(MultiplexedConnection, Named)> {
        let deadline = Instant::now() + dialer.limit * 9 / 10;
        let (mut failed, mut is_first): (Vec<Named>, _) = (Vec::new(), true);
        let mut failure = None;
        loop {
            let named = match timeout_at(deadline, self.candidates(is_first)).await {
                Ok(named) => named?,
                Err(_) => return Err(failure.unwrap_or_else(|| silent("no sentinel answers"))),
            };
            is_first = false;
            let has_failed = |named: &Named| failed.iter().any(|failed| failed.is_at(named));
            let untried: Vec<Named> = named.into_iter().filter(|named| !has_failed(named)).collect();
            let Some(candidate) = untried.first() else { break };
            // If this one does not answer, the next one may be the master.
            let until = match untried.len() {
                1 => deadline,
                _ => deadline.min(Instant::now() + dialer.limit / 4),
            };
            let dialed = pin!(dial_master(dialer, candidate, response_timeout, &on_push));
            let superseded = pin!(self.superseded(candidate));
            match timeout_at(until, select(dialed, superseded)).await {
                Ok(Either::Left((Ok(Some(connection)), _))) => {
                    return Ok((connection, candidate.clone()));
                }
                Ok(Either::Left((Ok(None), _))) => {
                    let is_none = "the server that the sentinels name is no master";
                    failure = Some((ErrorKind::Client, is_none, candidate.to_string()).into());
                    if Instant::now() + PAUSE >= deadline {
                        break;
                    }
                    sleep(PAUSE).await;
                }
                // The caller receives this error, as another server would not help.
                Ok(Either::Left((Err(error), _))) if !error.is_io_error() => return Err(error),
                Ok(Either::Left((Err(error), _))) => {
                    failure = Some(error);
                    failed.push(candidate.clone());
                }
                Ok(Either::Right(_)) => {}
                Err(_) => {
                    failure = Some(silent("the server that the sentinels name does not answer"));
                    failed.push(candidate.clone());
                }
            }
        }
        Err(failure.unwrap_or_else(|| silent("no server that the sentinels name answers")))
    }

    /// Returns once the sentinels name another server.
    async fn superseded(&self, named: &Named) {
        loop {
            sleep(ASKED_EVERY).await;
            if self.candidates(false).await.is_ok_and(|now| now.first().is_some_and(|now| !now.is_at(named)))
            {
                return;
            }
        }
    }

    /// Returns the server that has replaced this one: most sentinels name it, or a later failover made it the master. The
    /// server has replied that it is a master, so no working connection is given up for an unreachable server.
    async fn successor(&self, of: &Named, dialer: &Dialer) -> RedisResult<Option<Named>> {
        let Some(named) = self.candidates(false).await?.into_iter().next() else { return Ok(None) };
        let counts = self.is_majority(&named) || named.config_epoch > of.config_epoch;
        if named.is_at(of) || !counts {
            return Ok(None);
        }
        let nobody: OnPush = Arc::new(|_| ());
        let connection = dial_master(dialer, &named, None, &nobody).await?;
        Ok(connection.map(|_| named))
    }

    fn is_majority(&self, named: &Named) -> bool {
        named.votes * 2 > self.sentinels.len()
    }

    /// Returns the servers that the sentinels name: first that of the latest failover, then the one that most of them name. With
    /// `hurries`, it does not wait for the others once a majority agrees.
    async fn candidates(&self, hurries: bool) -> RedisResult<Vec<Named>> {
        let mut asked: FuturesUnordered<_> =
            self.sentinels.iter().map(|sentinel| sentinel.ask(&self.master_name)).collect();
        let (mut named, mut failure) = (Vec::new(), None);
        let mut until = None;
        loop {
            let answer = match until {
                Some(until) => timeout_at(until, asked.next()).await.unwrap_or_default(),
                None => asked.next().await,
            };
            match answer {
                Some(Ok(answer)) => {
                    until.get_or_insert(Instant::now() + PATIENCE);
                    count(&mut named, answer);
                    if hurries && named.first().is_some_and(|first| self.is_majority(first)) {
                        break;
                    }
                }
                // The error of a sentinel that answered says more than that of one that did not.
                Some(Err(error)) if failure.as_ref().is_none_or(RedisError::is_io_error) => {
                    failure = Some(error);
                }
                Some(Err(_)) => {}
                None => break,
            }
        }
        match failure {
            _ if !named.is_empty() => Ok(named),
            Some(error) => Err(error),
            None => Err((ErrorKind::InvalidClientConfig, "there is no sentinel to ask").into()),
        }
    }
}

/// Counts an answer, and keeps the order.
fn count(named: &mut Vec<Named>, answer: Named) {
    match named.iter_mut().find(|named| named.is_at(&answer)) {
        Some(known) => {
            known.votes += answer.votes;
            known.config_epoch = known.config_epoch.max(answer.config_epoch);
        }
        None => named.push(answer),
    }
    named.sort_by_key(|named| std::cmp::Reverse((named.config_epoch, named.votes)));
}

impl Sentinel {
    async fn ask(&self, master: &str) -> RedisResult<Named> {
        let mut questions = Pipeline::with_capacity(2);
        questions.cmd("SENTINEL").arg("GET-MASTER-ADDR-BY-NAME").arg(master);
        // Only for the number of the failover: a user may lack the right to this one.
        questions.cmd("SENTINEL").arg("MASTER").arg(master);
        let mut kept = self.kept.lock().await;
        // The connection is kept only if its replies arrive in time and the caller still waits for them.
        if let Some(mut connection) = kept.take() {
            let replies = connection.req_packed_commands(&questions, 0, questions.len());
            if let Ok(Ok(replies)) = timeout(KEPT_LIMIT, replies).await {
                let named = read(replies, master)?;
                *kept = Some(connection);
                return Ok(named);
            }
        }
        let address = self.dialer.settings.addr();
        let mut connection = self.dialer.dial(address, Some(self.dialer.limit), |_| ()).await?;
        let replies = connection.req_packed_commands(&questions, 0, questions.len()).await?;
        let named = read(replies, master)?;
        *kept = Some(connection);
        Ok(named)
    }
}

fn read(replies: Vec<Value>, master: &str) -> RedisResult<Named> {
    let [address, state] = <[Value; 2]>::try_from(replies)
        .map_err(|_| RedisError::from((ErrorKind::UnexpectedReturnType, "a sentinel's reply is missing")))?;
    let address: Option<(String, u16)> = redis::from_redis_value(address.extract_error()?)?;
    let Some((host, port)) = address else {
        let unknown = "no sentinel knows the master";
        return Err((ErrorKind::MasterNameNotFoundBySentinel, unknown, master.to_owned()).into());
    };
    let state = state.extract_error().and_then(|state| Ok(redis::from_redis_value(state)?));
    let state: HashMap<String, String> = state.unwrap_or_default();
    let config_epoch = state.get("config-epoch").and_then(|epoch| epoch.parse().ok()).unwrap_or(0);
    Ok(Named { host, port, config_epoch, votes: 1 })
}

fn silent(what: &'static str) -> RedisError {
    Error::new(IoErrorKind::TimedOut, what).into()
}

/// Connects to a server; `None` if its `ROLE` is not `master`.
async fn dial_master(
    dialer: &Dialer,
    named: &Named,
    response_timeout: Option<Duration>,
    on_push: &OnPush,
) -> RedisResult<Option<MultiplexedConnection>> {
    let address: ConnectionAddr = dialer.address(&named.host, named.port);
    // A connection that is not used must not report that it was closed.
    let is_used = Arc::new(AtomicBool::new(true));
    let mut unused = UnlessKept(Some(Arc::clone(&is_used)));
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
    unused.0 = None;
    Ok(Some(connection))
}

/// Says that a connection is not used, unless it is kept.
struct UnlessKept(Option<Arc<AtomicBool>>);

impl Drop for UnlessKept {
    fn drop(&mut self) {
        if let Some(is_used) = &self.0 {
            is_used.store(false, Ordering::SeqCst);
        }
    }
}

/// Compares the master of the connections with the one that the sentinels name: regularly, at once when `suspected` is
/// notified, and until the master is dropped. A deposed master that does not know it still answers.
pub(super) async fn keep_comparing(master: Weak<Master>, suspected: Arc<Notify>) {
    loop {
        // A timeout means that no call suspected the master.
        let _ = timeout(CHECKED_EVERY, suspected.notified()).await;
        let Some(master) = master.upgrade() else { return };
        compare(&master).await;
        drop(master);
        sleep(CHECKS_APART).await;
    }
}

async fn compare(master: &Master) {
    let Some((sentinels, dialer, epoch, leads_to)) = master.elected() else { return };
    match timeout(dialer.limit, sentinels.successor(&leads_to, dialer)).await {
        Ok(Ok(Some(successor))) => {
            tracing::warn!(
                master = sentinels.master_name(),
                from = %leads_to,
                to = %successor,
                "the sentinels have elected another master; its connections take the place of those to the old one"
            );
            master.void(epoch);
        }
        Ok(Ok(None)) => {}
        Ok(Err(error)) => {
            tracing::debug!(error = %Chain(&error), "the sentinels could not be asked for the master")
        }
        Err(_) => tracing::debug!("the sentinels did not answer in time"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(host: &str, config_epoch: u64, votes: usize) -> Named {
        Named { host: host.to_owned(), port: 6379, config_epoch, votes }
    }

    fn counted(answers: &[(&str, u64)]) -> Vec<Named> {
        let mut all = Vec::new();
        answers.iter().for_each(|(host, config_epoch)| count(&mut all, named(host, *config_epoch, 1)));
        all
    }

    #[test]
    fn the_latest_failover_counts_first_and_then_what_most_sentinels_say() {
        assert_eq!(counted(&[("old", 1), ("old", 1), ("new", 2)]), [named("new", 2, 1), named("old", 1, 2)]);
        assert_eq!(counted(&[("a", 3), ("b", 3), ("b", 3)]), [named("b", 3, 2), named("a", 3, 1)]);
        // Some lack the right to report the failover. Those that report it count.
        assert_eq!(counted(&[("old", 0), ("new", 2), ("new", 0)]), [named("new", 2, 2), named("old", 0, 1)]);
    }

    #[test]
    fn the_answer_of_a_sentinel_is_read_with_or_without_the_right_to_ask_for_more() {
        let text = |text: &str| Value::BulkString(text.into());
        let address = Value::Array(vec![text("10.0.0.1"), text("6379")]);
        let state = Value::Array(["name", "mymaster", "config-epoch", "7"].map(text).to_vec());
        let refused = redis::parse_redis_value(b"-NOPERM no\r\n").unwrap();
        assert_eq!(read(vec![address.clone(), state], "mymaster").unwrap(), named("10.0.0.1", 7, 1));
        assert_eq!(read(vec![address, refused.clone()], "mymaster").unwrap(), named("10.0.0.1", 0, 1));
        let unknown = read(vec![Value::Nil, refused.clone()], "mymaster").unwrap_err();
        assert_eq!(unknown.kind(), ErrorKind::MasterNameNotFoundBySentinel);
        let denied = read(vec![refused.clone(), refused], "mymaster").unwrap_err();
        assert_eq!(denied.code(), Some("NOPERM"));
    }
}
