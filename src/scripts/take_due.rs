//! `lua/take_due.lua`: takes timers that are due.

use once_cell::sync::Lazy;
use redis::Value;

use super::{Arguments, Encoder, Reply, Script, integer};

pub(crate) static TAKE_DUE: Lazy<Script<TakeDue, FoundTimers>> =
    Lazy::new(|| Script::new(include_str!("../../lua/take_due.lua")));

#[derive(Debug)]
pub(crate) struct TakeDue {
    /// The keys of the timers of each queue.
    pub(crate) due: Vec<String>,
    pub(crate) hide_ms: u64,
    /// With 0 the script takes none, and replies with the state of the queues.
    pub(crate) limit: usize,
}

/// The timers that the script took, and then the state of each queue, in the order of the queues.
#[derive(Debug)]
pub(crate) struct FoundTimers {
    pub(crate) queues: Vec<QueueState>,
    pub(crate) taken: Vec<TakenTimer>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct QueueState {
    /// The score of its earliest timer; `None` if it has no timer.
    pub(crate) first: Option<f64>,
    /// How many of its timers are due.
    pub(crate) due: u64,
}

#[derive(Debug)]
pub(crate) struct TakenTimer {
    /// The index of its queue, from 0.
    pub(crate) queue: usize,
    pub(crate) member: Vec<u8>,
    /// Its score before the script took it.
    pub(crate) due_at: f64,
    /// Its new score, which is the token.
    pub(crate) token: String,
}

impl Arguments for TakeDue {
    fn key_count(&self) -> usize {
        self.due.len()
    }

    fn encode(&self, to: &mut impl Encoder) {
        for due in &self.due {
            to.key("due", due);
        }
        to.arg("hide_for", self.hide_ms);
        to.arg("limit", self.limit);
    }
}

impl Reply for FoundTimers {
    fn decode(words: &[&str], lists: Vec<Value>) -> Option<Self> {
        let ([], Ok([queues, taken])) = (words, <[Value; 2]>::try_from(lists)) else { return None };
        let queues = groups(queues)?.map(queue_state).collect::<Option<_>>()?;
        let taken = groups(taken)?.map(taken_timer).collect::<Option<_>>()?;
        Some(Self { queues, taken })
    }
}

/// Returns the values of an array, `N` at a time; `None` if some are left over.
fn groups<const N: usize>(array: Value) -> Option<impl Iterator<Item = [Value; N]>> {
    let Value::Array(values) = array else { return None };
    let count = values.len();
    let mut values = values.into_iter();
    let next = move || {
        let group: Vec<Value> = values.by_ref().take(N).collect();
        <[Value; N]>::try_from(group).ok()
    };
    count.is_multiple_of(N).then(|| std::iter::from_fn(next))
}

fn queue_state([first, due]: [Value; 2]) -> Option<QueueState> {
    let first = match text(first)?.as_str() {
        "" => None,
        first => Some(score(first)?),
    };
    Some(QueueState { first, due: integer(&due)? })
}

fn taken_timer([queue, member, due_at, token]: [Value; 4]) -> Option<TakenTimer> {
    let Value::BulkString(member) = member else { return None };
    let queue = usize::try_from(integer(&queue)?).ok()?.checked_sub(1)?;
    let token = text(token)?;
    score(&token)?;
    Some(TakenTimer { queue, member, due_at: score(&text(due_at)?)?, token })
}

fn text(value: Value) -> Option<String> {
    let Value::BulkString(text) = value else { return None };
    String::from_utf8(text).ok()
}

/// Reads the score of a member. It may be infinite; it is never NaN.
pub(crate) fn score(text: &str) -> Option<f64> {
    text.parse().ok().filter(|score: &f64| !score.is_nan())
}
