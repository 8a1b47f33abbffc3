//! A task as the engine stores it: canonical JSON, with the field names of the MCP Tasks extension.

pub(crate) mod adapter;
pub(crate) mod exact;
pub(crate) mod history;
pub(crate) mod later;
pub(crate) mod payload;
pub(crate) mod progress;
pub(crate) mod retry;
pub(crate) mod secret;
pub(crate) mod snapshot;
pub(crate) mod traceparent;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::backend::{Expiry, Priority, TaskId};
use adapter::AdapterState;
use exact::ExactIntegers;
use history::NewEvent;
pub use history::{EventKind, TaskEvent};
use payload::HeldParts;
pub use payload::{Payload, PayloadKind};
pub use progress::Progress;
pub use retry::RetryDelay;
pub use snapshot::{Snapshot, StoredTask};

/// The status of a task (MCP Tasks extension, SEP-2663, "Task Status").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskStatus {
    /// The server works on the task.
    Working,
    /// The task waits for the client to answer at least one request.
    InputRequired,
    /// The task has a result. Terminal.
    Completed,
    /// The task ended with an error. Terminal.
    Failed,
    /// The task was cancelled. Terminal.
    Cancelled,
}

impl TaskStatus {
    /// Returns whether a task with this status has ended. Such a task never changes.
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }

    /// Returns the name that the status has in JSON, for example `input_required`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Working => "working",
            Self::InputRequired => "input_required",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

impl fmt::Display for TaskStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The lease of a task: which worker holds it, and when it lapses unless the worker renews it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Lease {
    /// The random id of the store that holds the lease; `None` while the task waits for a worker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holder: Option<String>,
    /// The number of the attempt: 1, 2, 3, …; 0 before the first attempt.
    pub attempt: u32,
    /// How many attempts ended because the worker was lost, or with an error that is [retried](crate::Attempt::retry). A
    /// [release](crate::Attempt::release) does not count.
    #[serde(default, skip_serializing_if = "is_none_lost")]
    pub losses: u32,
    /// How many times the holder has renewed the lease. A number that grows shows that the holder is alive.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub renewals: u64,
    /// How many milliseconds the lease lasts from each renewal. Other instances use this duration, not their own setting.
    pub duration_ms: u64,
    /// When the lease lapses unless the holder renews it, by the engine's clock. Without a holder: the earliest start of the
    /// next attempt.
    #[serde(with = "rfc3339_millis")]
    pub deadline: DateTime<Utc>,
    /// Without a holder: how many milliseconds lay between the last worker's exit, or the creation of the task, and the
    /// earliest start. The wait for the next attempt never lasts longer, even if the engine's clock is set back. `None` with a
    /// holder, and in records of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay_ms: Option<u64>,
    /// With the feature `otel`: the `traceparent` of the span of the attempt, or, without a holder, of the last attempt. The span of
    /// the next attempt links to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    /// Fields of later versions of this crate. Writes keep them while the same attempt holds the lease. The next
    /// lease of the task starts without them.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Lease {
    /// Returns whether a worker holds the lease at this time of the engine's clock. A deadline that is more than the
    /// duration of the lease ahead counts as lapsed, because the clock was set back after the renewal.
    pub fn is_live(&self, now: DateTime<Utc>) -> bool {
        self.holder.is_some() && now < self.deadline && self.deadline <= now + self.duration()
    }

    /// Returns how long the lease lasts from each renewal.
    pub fn duration(&self) -> Duration {
        // Limit the duration, so that the sum of a time and the duration stays in range.
        const LONGEST_MS: u64 = Expiry::MAX.as_millis() as u64;
        Duration::from_millis(self.duration_ms.min(LONGEST_MS))
    }
}

/// What happens to a task when its worker is lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum OnWorkerLost {
    /// The task fails, so that no client polls forever.
    #[default]
    Fail,
    /// An instance that has registered the operation runs it again, unless the task has used all its
    /// [attempts](Task::max_attempts).
    Resume,
}

/// The JSON-RPC error object (<https://www.jsonrpc.org/specification#error_object>) of a failed task.
///
/// ```
/// use mcp_task_store::RpcError;
/// use serde_json::json;
///
/// let error = RpcError::new(-32000, "out of paper").with_data(json!({ "tray": 2 }));
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RpcError {
    /// The code of the error.
    pub code: i64,
    /// A sentence that describes the error.
    pub message: String,
    /// More information, for programs.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub data: Option<Value>,
    /// Fields of later versions of this crate. Every write keeps them.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl RpcError {
    /// Returns an error without data.
    pub fn new(code: i64, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), data: None, extra: Map::new() }
    }

    /// Adds data: more information, for programs.
    pub fn with_data(mut self, data: Value) -> Self {
        self.data = Some(data);
        self
    }
}

/// A task, as any instance of the server reads it.
///
/// A record holds the task as JSON, with camelCase names, times in RFC 3339 (UTC, milliseconds), and the fields in the order of
/// this struct. The documentation of [`history`](Self::history) describes the JSON of an event. Four rules keep records readable across versions and languages:
///
/// * This version keeps unknown fields in [`extra`](Self::extra), and in the `extra` of the [`Lease`], the [`Progress`],
///   the [`RpcError`] and each [`TaskEvent`], and writes them back.
/// * An integer that a [`Value`] cannot hold is a floating point number in the task. A store writes the original
///   digits back, unless a caller replaces the value.
/// * The JSON leaves out a payload that is [stored](Payload::Stored) as the part `input`, `output` or `checkpoint` of the record.
///   The part itself shows that the task has the payload.
/// * A record whose field `format` is over 1, or whose status this version does not know, is read and never written. A store reads
///   an unknown status as [`Working`](TaskStatus::Working). An unknown `priority` or `onWorkerLost` survives every write, and
///   this version does not run the task. See [`TaskError::LaterVersion`](crate::TaskError::LaterVersion).
///
/// ```
/// use mcp_task_store::{Task, TaskStatus};
///
/// let json = r#"{
///     "taskId": "t1", "status": "working", "ttlMs": null, "method": "tools/call",
///     "createdAt": "2026-01-31T12:00:00.000Z", "lastUpdatedAt": "2026-01-31T12:00:01.250Z"
/// }"#;
/// let task: Task = serde_json::from_str(json)?;
/// assert_eq!((task.status, task.deadline()), (TaskStatus::Working, None));
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Task {
    /// The id of the task.
    pub task_id: TaskId,
    /// The status.
    pub status: TaskStatus,
    /// A sentence for people about the state of the task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status_message: Option<String>,
    /// How much of the work is done, as its operation last reported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// When the task was created, by the engine's clock.
    #[serde(with = "rfc3339_millis")]
    pub created_at: DateTime<Utc>,
    /// When the task was last changed, by the engine's clock.
    #[serde(with = "rfc3339_millis")]
    pub last_updated_at: DateTime<Utc>,
    /// How many milliseconds the task may run, counted from its creation; `None` (`null` in the JSON) is unlimited. It may
    /// [change](crate::TaskStore::set_ttl).
    pub ttl_ms: Option<u64>,
    /// How many milliseconds the record lives after the end of the task; `None` if the record lives for the TTL and the
    /// [retention](crate::StoreConfig::retention) of the store, whenever the task ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention_ms: Option<u64>,
    /// How many milliseconds a client should wait between two polls. It may [change](crate::TaskStore::set_poll_interval).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub poll_interval_ms: Option<u64>,
    /// The method of the call, for example `tools/call`.
    pub method: String,
    /// The arguments of the call; an inline `null` if the call has no arguments.
    #[serde(with = "payload::required")]
    #[serde(default = "payload::required::absent", skip_serializing_if = "payload::required::is_left_out")]
    pub arguments: Payload,
    /// The open requests to the client, by key.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub input_requests: BTreeMap<String, Value>,
    /// The client's answers so far, by the key of their request.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub input_responses: BTreeMap<String, Value>,
    /// The requests that [`input_responses`](Self::input_responses) answers, if a later attempt may make them again.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub answered_requests: BTreeMap<String, Value>,
    /// Whether the client requested a cancel. The operation decides how the task ends.
    #[serde(default, skip_serializing_if = "is_false")]
    pub cancel_requested: bool,
    /// What the worker stores for the next attempt. A task that has ended has no checkpoint.
    #[serde(default, skip_serializing_if = "payload::optional::is_left_out", with = "payload::optional")]
    pub checkpoint: Option<Payload>,
    /// The result of a completed task.
    #[serde(default, skip_serializing_if = "payload::optional::is_left_out", with = "payload::optional")]
    pub result: Option<Payload>,
    /// The error of a failed task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<RpcError>,
    /// The lease; `None` if the task was created without a worker, or has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<Lease>,
    /// The name under which the instances have registered the operation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<String>,
    /// Which of the tasks that wait for a worker of the operation are claimed first.
    #[serde(default, skip_serializing_if = "is_default")]
    pub priority: Priority,
    /// What happens to the task when its worker is lost.
    #[serde(default, skip_serializing_if = "is_default")]
    pub on_worker_lost: OnWorkerLost,
    /// The number of attempts at which a task that can resume fails; `None` means 3. Attempts that were released do not count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_attempts: Option<u32>,
    /// How long the task waits before its next attempt; `None` if its second attempt begins at once, and the third after 10 s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<RetryDelay>,
    /// The number of attempts after which the task failed because none was left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gave_up_after: Option<u32>,
    /// The ended task that was requeued as this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requeued_from: Option<TaskId>,
    /// Values that the server stores with the task for its own use.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub variables: BTreeMap<String, Value>,
    /// What the task keeps of the request that created it, for example the tenant or the locale. It never changes.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub extensions: Map<String, Value>,
    /// The `traceparent` of the request that created the task (W3C Trace Context). With the feature `otel`: of the span in which the
    /// task was created, if it is exported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    /// The id of the pointer of a unique task: the hash of its key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) unique: Option<String>,
    /// What happened to the task, oldest first: the first event and the last ones, at most 32 and 1 KiB.
    ///
    /// An event is recorded by the write that makes the change, never by a write of its own. Renewals, status messages, progress,
    /// variables and checkpoints record none. Only people read the history: no decision depends on it. What an earlier version of this
    /// crate has done is not in it. If the record is full, a lease, a cancel or the end of the task replaces events.
    ///
    /// In the JSON, each event is an array: `[time, kind, attempt, holder, detail]`. The time of the first event is in RFC 3339, and that
    /// of each other event is the number of milliseconds since the first one. Elements without a value are `null`, or left out at the
    /// end. An event with an attempt and without a holder has the holder of the event before. Every write keeps unknown kinds, and the
    /// further elements of later versions.
    ///
    /// ```text
    /// "history":[["2026-01-31T12:00:00.000Z","created"],[0,"started",1,"0f1b2c3d"],[1250,"failed",1,null,"error -32000"]]
    /// ```
    #[serde(default, skip_serializing_if = "Vec::is_empty", with = "history")]
    pub history: Vec<TaskEvent>,
    /// What an adapter for another SDK keeps with the task.
    #[serde(default, skip_serializing_if = "AdapterState::is_empty")]
    pub(crate) adapter: AdapterState,
    /// The ids of the last writes, newest last. If the engine has applied a write, its id is here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) write_ids: Vec<String>,
    /// Which payloads were parts of the record at its last read or write.
    #[serde(skip)]
    pub(crate) held_parts: HeldParts,
    /// The integers of the record that a [`Value`] cannot hold.
    #[serde(skip)]
    pub(crate) exact: ExactIntegers,
    /// The events that the next write records.
    #[serde(skip)]
    pub(crate) new_events: Vec<NewEvent>,
    /// The status as a later version of this crate has written it, if this version does not know it.
    #[serde(skip)]
    pub(crate) unknown_status: Option<String>,
    /// Fields of later versions of this crate.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Task {
    /// Reads the data of a record.
    pub(crate) fn from_json(json: &[u8]) -> serde_json::Result<Self> {
        // One check of all bytes is faster than a check of each string.
        let text = std::str::from_utf8(json).map_err(serde::de::Error::custom)?;
        let task = match serde_json::from_str(text) {
            Ok(task) => task,
            Err(error) => later::read(text).ok_or(error)?,
        };
        Ok(Self { exact: ExactIntegers::of(json), ..task })
    }

    /// Writes the data of a record.
    pub(crate) fn to_json(&self) -> serde_json::Result<Vec<u8>> {
        /// Room for the JSON of most tasks.
        const TYPICAL_BYTES: usize = 1024;
        let mut json = Vec::with_capacity(TYPICAL_BYTES);
        serde_json::to_writer(&mut json, self)?;
        Ok(self.exact.restore(json))
    }

    /// Returns how long the record lives after the end of the task, if the task states it.
    pub(crate) fn retention(&self) -> Option<Duration> {
        self.retention_ms.map(Duration::from_millis)
    }

    /// Returns the name of the tool that the task runs: its [operation](Self::operation), or else the `name` in the inline
    /// arguments of a call of `tools/call`.
    pub fn tool(&self) -> Option<&str> {
        let named = || self.arguments.as_inline()?.get("name")?.as_str();
        self.operation.as_deref().or_else(|| named().filter(|_| self.method == "tools/call"))
    }

    /// Returns when the TTL elapses; `None` for never.
    pub fn deadline(&self) -> Option<DateTime<Utc>> {
        let ttl = i64::try_from(self.ttl_ms?).ok().and_then(chrono::TimeDelta::try_milliseconds)?;
        self.created_at.checked_add_signed(ttl)
    }
}

/// Reads an explicit `null` as a value.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

fn is_none_lost(losses: &u32) -> bool {
    *losses == 0
}

fn is_false(flag: &bool) -> bool {
    !flag
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// RFC 3339 in UTC with milliseconds: `2026-01-31T12:00:00.000Z`.
pub(crate) mod rfc3339_millis {
    use chrono::{DateTime, SecondsFormat, Utc};
    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(time: &DateTime<Utc>, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&time.to_rfc3339_opts(SecondsFormat::Millis, true))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<DateTime<Utc>, D::Error> {
        let text = String::deserialize(deserializer)?;
        DateTime::parse_from_rfc3339(&text).map(|time| time.to_utc()).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_json_of_a_task_is_as_documented() {
        let json = r#"{"taskId":"t1","status":"working","createdAt":"2026-01-31T12:00:00.000Z","lastUpdatedAt":"2026-01-31T12:00:01.250Z","ttlMs":null,"method":"tools/call"}"#;
        let task: Task = serde_json::from_str(json).unwrap();
        assert_eq!(serde_json::to_string(&task).unwrap(), json);
        assert_eq!(task.deadline(), None);
    }

    #[test]
    fn fields_of_later_versions_survive_a_rewrite() {
        let json = json!({
            "taskId": "t1", "status": "input_required", "statusMessage": "asking",
            "progress": {"done": 3, "total": 240, "unit": "frames"},
            "createdAt": "2026-01-31T12:00:00.000Z", "lastUpdatedAt": "2026-01-31T12:00:00.000Z",
            "ttlMs": 60_000, "retentionMs": 9_000, "pollIntervalMs": 500, "method": "tools/call", "arguments": {"name": "x"},
            "checkpoint": null,
            "inputRequests": {"a": {"method": "elicitation/create"}}, "inputResponses": {"b": null},
            "answeredRequests": {"b": {"method": "roots/list"}}, "operation": "render", "onWorkerLost": "resume",
            "maxAttempts": 5, "retry": {"firstMs": 1_000, "maxMs": 60_000, "jittered": true, "by": "b"}, "gaveUpAfter": 5, "requeuedFrom": "t0",
            "lease": {"holder": "0f1b2c3d", "attempt": 2, "losses": 1, "renewals": 3, "durationMs": 30_000, "deadline": "2026-01-31T12:00:30.000Z", "delayMs": 250, "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "zone": "b"},
            "error": {"code": 1, "message": "so far", "data": null, "retry": {"after": 3}},
            "cancelRequested": true, "variables": {"n": 1}, "extensions": {"tenant": "acme"},
            "traceparent": "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01",
            "unique": "5a1e", "writeIds": ["0badcafe"],
            "stages": {"done": [1, 2, 3]}, "zone": null,
        });
        let task: Task = serde_json::from_value(json.clone()).unwrap();
        assert_eq!(task.extra.len(), 2);
        assert_eq!(serde_json::to_value(&task).unwrap(), json);
        assert_eq!(task.deadline().unwrap().to_rfc3339(), "2026-01-31T12:01:00+00:00");
    }

    #[test]
    fn a_lease_is_live_between_the_earliest_time_of_its_renewal_and_its_deadline() {
        let at = |seconds: i64| DateTime::from_timestamp(1_000_000 + seconds, 0).unwrap();
        let lease = |holder| Lease {
            holder,
            attempt: 1,
            losses: 0,
            renewals: 0,
            duration_ms: 30_000,
            deadline: at(30),
            delay_ms: None,
            traceparent: None,
            extra: Map::new(),
        };
        let held = lease(Some("somebody".to_owned()));
        assert!(held.is_live(at(0)) && held.is_live(at(29)));
        assert!(!held.is_live(at(30)), "the lease has lapsed");
        assert!(!held.is_live(at(-1)), "the clock was set back");
        assert!(!lease(None).is_live(at(10)), "the lease has no holder");
    }

    #[test]
    fn a_null_result_is_a_result() {
        let json = json!({
            "taskId": "t1", "status": "completed", "createdAt": "2026-01-31T12:00:00.000Z",
            "lastUpdatedAt": "2026-01-31T12:00:00.000Z", "ttlMs": 1, "method": "m", "result": null,
        });
        let task: Task = serde_json::from_value(json.clone()).unwrap();
        assert_eq!(task.result, Some(Payload::Inline(Value::Null)));
        assert_eq!(serde_json::to_value(&task).unwrap(), json);
    }
}
