//! The history of a task: its last events, as its record keeps them.
//!
//! [`Task::history`] documents the JSON. An event is an array with relative times, because every write of a task repeats its history.

use std::borrow::Cow;
use std::fmt;

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use serde::de::{Error as _, SeqAccess, Visitor};
use serde::ser::SerializeSeq;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use super::{Lease, Task};

/// How many events a record has at most.
const MAX_EVENTS: usize = 32;
/// How many bytes of a record the history may use, with the name of its field.
pub(crate) const MAX_HISTORY_BYTES: usize = 1024;
/// The name of the field, with the punctuation around it.
const FIELD: &str = r#","history":"#;
/// How many bytes of a detail the history keeps.
const MAX_DETAIL_BYTES: usize = 40;
/// How many bytes of the holder of a lease the history keeps: the first group of the digits of its UUID.
const HOLDER_BYTES: usize = 8;

/// The detail of a task that failed because its TTL elapsed.
pub(crate) const TTL_ELAPSED: &str = "TTL elapsed";

/// What happened to a task.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EventKind {
    /// The task was created. Always the first event.
    Created,
    /// The new task waits for a worker.
    Enqueued,
    /// The new task, which does the work of an ended one again, waits for a worker.
    Requeued,
    /// The first attempt began.
    Started,
    /// A further attempt began.
    Resumed,
    /// The task asked the client for input. The detail is the key of the request, or the number of requests.
    InputRequested,
    /// The client answered. The detail is the key of the request, or the number of answers.
    InputAnswered,
    /// The client requested a cancel, and the operation decides how the task ends.
    CancelRequested,
    /// The worker released the task, for example at a shutdown.
    Released,
    /// The worker did not renew its lease, or dropped its attempt.
    LeaseLost,
    /// The attempt failed, and the task waits for the next one. The detail has the code of the error.
    AttemptFailed,
    /// The task has a result.
    Completed,
    /// The task failed. The detail has the code of the error, or says why the store has failed the task.
    Failed,
    /// The task was cancelled.
    Cancelled,
    /// A kind that only a later version of this crate knows, by its name in the JSON.
    Unknown(String),
}

/// The kinds that this version knows, with their names in the JSON.
const NAMES: [(EventKind, &str); 14] = [
    (EventKind::Created, "created"),
    (EventKind::Enqueued, "enqueued"),
    (EventKind::Requeued, "requeued"),
    (EventKind::Started, "started"),
    (EventKind::Resumed, "resumed"),
    (EventKind::InputRequested, "input_requested"),
    (EventKind::InputAnswered, "input_answered"),
    (EventKind::CancelRequested, "cancel_requested"),
    (EventKind::Released, "released"),
    (EventKind::LeaseLost, "lease_lost"),
    (EventKind::AttemptFailed, "attempt_failed"),
    (EventKind::Completed, "completed"),
    (EventKind::Failed, "failed"),
    (EventKind::Cancelled, "cancelled"),
];

impl EventKind {
    /// Returns the name that the kind has in JSON, for example `input_requested`.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Unknown(name) => name,
            known => NAMES.iter().find(|(kind, _)| kind == known).map_or("", |(_, name)| name),
        }
    }

    fn from_name(name: &str) -> Self {
        let known = NAMES.iter().find(|(_, known)| *known == name);
        known.map_or_else(|| Self::Unknown(name.to_owned()), |(kind, _)| kind.clone())
    }
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One event in the [history](Task::history) of a task.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), mcp_task_store::TaskError> {
/// use mcp_task_store::{EventKind, MemoryBackend, NewTask, OwnerId, TaskStore};
/// use serde_json::json;
///
/// let store = TaskStore::new(MemoryBackend::new());
/// let alice = OwnerId::try_from("alice").expect("not empty");
/// let (_, attempt) = store.start(&alice, NewTask::new("tools/call")).await?;
/// let task = attempt.complete(json!({ "content": [] })).await?.task;
/// let kinds: Vec<_> = task.history.iter().map(|event| &event.kind).collect();
/// assert_eq!(kinds, [&EventKind::Created, &EventKind::Started, &EventKind::Completed]);
/// assert_eq!((task.history[0].at, task.history[2].attempt), (task.created_at, Some(1)));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct TaskEvent {
    /// When it happened, by the engine's clock.
    pub at: DateTime<Utc>,
    /// What happened.
    pub kind: EventKind,
    /// The attempt that held the lease; `None` if none did.
    pub attempt: Option<u32>,
    /// The first 8 characters of the id of the [holder](Lease::holder) of that lease.
    pub holder: Option<String>,
    /// A few words, at most 40 bytes. Never arguments, results, answers, or the text of an error.
    pub detail: Option<String>,
    /// Elements of later versions of this crate. Every write keeps them.
    pub extra: Vec<Value>,
}

/// An event that the next write of a task records.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct NewEvent {
    kind: EventKind,
    attempt: Option<u32>,
    holder: Option<String>,
    detail: Option<String>,
}

impl Task {
    /// Adds an event to the next write of the task, with the lease as it is now.
    pub(crate) fn note(&mut self, kind: EventKind) {
        let has_holder = |lease: &&Lease| lease.holder.is_some() && kind != EventKind::Created;
        let lease = self.lease.as_ref().filter(has_holder);
        let holder = lease.and_then(|lease| lease.holder.as_deref());
        self.new_events.push(NewEvent {
            kind,
            attempt: lease.map(|lease| lease.attempt),
            holder: holder.map(|holder| cut(holder, HOLDER_BYTES).to_owned()),
            detail: None,
        });
    }

    /// Gives the last noted event a detail. Do not pass content of the caller: every reader of the history sees it.
    pub(crate) fn note_detail(&mut self, detail: impl Into<Cow<'static, str>>) {
        if let Some(event) = self.new_events.last_mut() {
            event.detail = Some(cut(&detail.into(), MAX_DETAIL_BYTES).to_owned());
        }
    }

    /// Moves the noted events into the history. Removes the oldest events except for the first one, until the history has at most 32
    /// events and 1 KiB. Returns how many events were noted.
    pub(crate) fn record_events(&mut self, at: DateTime<Utc>) -> usize {
        let noted = self.new_events.len();
        if noted == 0 {
            return 0;
        }
        for NewEvent { kind, attempt, holder, detail } in std::mem::take(&mut self.new_events) {
            self.history.push(TaskEvent { at, kind, attempt, holder, detail, extra: Vec::new() });
        }
        self.shrink_history(MAX_HISTORY_BYTES);
        noted
    }

    /// Removes the oldest events except for the first one, and at last all, until the history uses at most `max` bytes of the record.
    pub(crate) fn shrink_history(&mut self, max: usize) {
        // A record that another program has written may have many more.
        if self.history.len() > MAX_EVENTS {
            self.history.drain(1..=self.history.len() - MAX_EVENTS);
        }
        while self.history_bytes() > max {
            let oldest = usize::from(self.history.len() > 2);
            self.history.remove(oldest);
        }
    }

    /// Returns how many bytes of the record the history uses.
    pub(crate) fn history_bytes(&self) -> usize {
        if self.history.is_empty() {
            return 0;
        }
        // This never fails: all keys of the JSON are strings.
        serde_json::to_vec(&Elements(&self.history)).map_or(0, |json| FIELD.len() + json.len())
    }
}

/// Returns the longest start of a text that has at most `max` bytes.
fn cut(text: &str, max: usize) -> &str {
    &text[..text.floor_char_boundary(max)]
}

/// Writes the field of the record.
pub(super) fn serialize<S: Serializer>(history: &[TaskEvent], serializer: S) -> Result<S::Ok, S::Error> {
    Elements(history).serialize(serializer)
}

/// Reads the field of the record.
pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<TaskEvent>, D::Error> {
    deserializer.deserialize_seq(HistoryVisitor)
}

struct Elements<'a>(&'a [TaskEvent]);

impl Serialize for Elements<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut history = serializer.serialize_seq(Some(self.0.len()))?;
        let (mut first, mut before) = (None, None);
        for event in self.0 {
            history.serialize_element(&Element { event, first, before })?;
            first = first.or(Some(event.at));
            before = Some(event);
        }
        history.end()
    }
}

/// One event, with the time of the first event, and the event before.
struct Element<'a> {
    event: &'a TaskEvent,
    first: Option<DateTime<Utc>>,
    before: Option<&'a TaskEvent>,
}

impl Serialize for Element<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let TaskEvent { at, kind, attempt, holder, detail, extra } = self.event;
        let of_before =
            self.before.filter(|before| attempt.is_some() && before.attempt == *attempt).map(|it| &it.holder);
        let holder = holder.as_ref().filter(|_| of_before != Some(holder));
        let length = match () {
            () if !extra.is_empty() => 5 + extra.len(),
            () if detail.is_some() => 5,
            () if holder.is_some() => 4,
            () if attempt.is_some() => 3,
            () => 2,
        };
        let mut element = serializer.serialize_seq(Some(length))?;
        match self.first {
            None => element.serialize_element(&at.to_rfc3339_opts(SecondsFormat::Millis, true))?,
            Some(first) => element.serialize_element(&(*at - first).num_milliseconds())?,
        }
        element.serialize_element(kind.as_str())?;
        if length > 2 {
            element.serialize_element(attempt)?;
        }
        if length > 3 {
            element.serialize_element(&holder)?;
        }
        if length > 4 {
            element.serialize_element(detail)?;
        }
        for later in extra {
            element.serialize_element(later)?;
        }
        element.end()
    }
}

struct HistoryVisitor;

impl<'de> Visitor<'de> for HistoryVisitor {
    type Value = Vec<TaskEvent>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the events of a task")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Self::Value, A::Error> {
        let mut history: Vec<TaskEvent> = Vec::new();
        while let Some(StoredEvent { time, mut event }) = elements.next_element()? {
            let before =
                history.last().filter(|before| event.attempt.is_some() && before.attempt == event.attempt);
            if event.holder.is_none() {
                event.holder = before.and_then(|before| before.holder.clone());
            }
            if let Time::After(ms) = time {
                let first =
                    history.first().ok_or_else(|| A::Error::custom("the first event has no time"))?.at;
                let at = TimeDelta::try_milliseconds(ms).and_then(|after| first.checked_add_signed(after));
                event.at = at.ok_or_else(|| A::Error::custom("the time of an event is out of range"))?;
            }
            history.push(event);
        }
        Ok(history)
    }
}

/// An event as the record states it.
struct StoredEvent {
    time: Time,
    event: TaskEvent,
}

enum Time {
    At(DateTime<Utc>),
    /// Milliseconds since the first event.
    After(i64),
}

impl<'de> Deserialize<'de> for StoredEvent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(EventVisitor)
    }
}

struct EventVisitor;

impl<'de> Visitor<'de> for EventVisitor {
    type Value = StoredEvent;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an event: [time, kind, attempt, holder, detail]")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Self::Value, A::Error> {
        let time = elements.next_element()?.ok_or_else(|| A::Error::invalid_length(0, &self))?;
        let kind = elements.next_element()?.ok_or_else(|| A::Error::invalid_length(1, &self))?;
        let attempt = elements.next_element::<Option<u32>>()?.flatten();
        let holder = elements.next_element::<Option<String>>()?.flatten();
        let detail = elements.next_element::<Option<String>>()?.flatten();
        let mut extra = Vec::new();
        while let Some(later) = elements.next_element()? {
            extra.push(later);
        }
        let at = match time {
            Time::At(at) => at,
            Time::After(_) => DateTime::UNIX_EPOCH,
        };
        Ok(StoredEvent { time, event: TaskEvent { at, kind, attempt, holder, detail, extra } })
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TimeVisitor)
    }
}

struct TimeVisitor;

impl Visitor<'_> for TimeVisitor {
    type Value = Time;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a time in RFC 3339, or milliseconds since the first event")
    }

    fn visit_str<E: serde::de::Error>(self, time: &str) -> Result<Time, E> {
        DateTime::parse_from_rfc3339(time).map(|at| Time::At(at.to_utc())).map_err(E::custom)
    }

    fn visit_i64<E: serde::de::Error>(self, ms: i64) -> Result<Time, E> {
        Ok(Time::After(ms))
    }

    fn visit_u64<E: serde::de::Error>(self, ms: u64) -> Result<Time, E> {
        i64::try_from(ms).map(Time::After).map_err(E::custom)
    }
}

impl<'de> Deserialize<'de> for EventKind {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Name;

        impl Visitor<'_> for Name {
            type Value = EventKind;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the kind of an event")
            }

            fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<EventKind, E> {
                Ok(EventKind::from_name(name))
            }
        }

        deserializer.deserialize_str(Name)
    }
}

#[cfg(test)]
mod tests;
