//! A task as it is stored: canonical JSON, in the words of the MCP Tasks extension.

pub(crate) mod exact;
pub(crate) mod payload;
pub(crate) mod snapshot;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::backend::{Expiry, TaskId};
use exact::ExactIntegers;
use payload::HeldParts;
pub use payload::{Payload, PayloadKind};
pub use snapshot::{Snapshot, StoredTask};

/// Where a task stands (MCP Tasks extension, SEP-2663, "Task Status").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskStatus {
    /// The server works on it.
    Working,
    /// It waits for the client to answer at least one request.
    InputRequired,
    /// It has a result. Terminal.
    Completed,
    /// It ended with an error. Terminal.
    Failed,
    /// It was cancelled. Terminal.
    Cancelled,
}

impl TaskStatus {
    /// Whether the task never changes any more.
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }

    /// The status as it stands on the wire.
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

/// Who works on a task, and until when it need not say so again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Lease {
    /// The store that holds it, by a random id; `None` while the task waits for a worker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holder: Option<String>,
    /// How many times work on the task was begun: 1, 2, 3, …; 0 before the first time.
    pub attempt: u32,
    /// How many of its attempts ended because the worker was lost. A [release](crate::Attempt::release) does not count.
    #[serde(default, skip_serializing_if = "is_none_lost")]
    pub losses: u32,
    /// How many times its holder has renewed it. An observer that sees the number grow knows that the holder lives.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub renewals: u64,
    /// For how many milliseconds each renewal makes it last. Observers go by this, not by a setting of their own.
    pub duration_ms: u64,
    /// When it lapses unless it is renewed, by the engine's clock. Without a holder, the earliest time at which the next
    /// attempt is to begin.
    #[serde(with = "rfc3339_millis")]
    pub deadline: DateTime<Utc>,
    /// Fields of later versions of this crate. They are kept as long as the same attempt holds the lease; the next lease
    /// of the task begins without them.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Lease {
    /// Whether somebody holds it at this time of the engine's clock. One whose deadline is further ahead than a renewal
    /// could have set it counts as lapsed: the clock was set back since.
    pub fn is_live(&self, now: DateTime<Utc>) -> bool {
        self.holder.is_some() && now < self.deadline && self.deadline <= now + self.duration()
    }

    /// For how long each renewal makes it last.
    pub fn duration(&self) -> Duration {
        // No time of a clock is further ahead than this, and sums with it stay in range.
        const LONGEST_MS: u64 = Expiry::MAX.as_millis() as u64;
        Duration::from_millis(self.duration_ms.min(LONGEST_MS))
    }
}

/// What becomes of a task whose worker is lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum OnWorkerLost {
    /// It fails, so that no client polls for ever.
    #[default]
    Fail,
    /// Its operation is run again by an instance that knows it by name, until it has lost as many workers as
    /// [it may](Task::max_attempts).
    Resume,
}

/// A JSON-RPC error object (<https://www.jsonrpc.org/specification#error_object>), with which a task failed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RpcError {
    /// A number that says what kind of error it is.
    pub code: i64,
    /// One sentence.
    pub message: String,
    /// More about it.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub data: Option<Value>,
    /// Fields of later versions of this crate. They are kept.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl RpcError {
    /// An error without data.
    pub fn new(code: i64, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), data: None, extra: Map::new() }
    }

    /// The same error with data: more about it, for programs.
    pub fn with_data(mut self, data: Value) -> Self {
        self.data = Some(data);
        self
    }
}

/// A task, as any instance of the server reads it.
///
/// Stored as JSON with camelCase names, times in RFC 3339 (UTC, milliseconds), and the fields in the order in
/// which they stand here. Fields that this version does not know are kept in [`extra`](Self::extra), in that of the
/// [`Lease`] and in that of the [`RpcError`], and written back. An integer that a [`Value`] cannot hold reads as a
/// floating point number, and a store writes it back digit by digit as long as nobody gives the field another value.
/// The JSON leaves out a payload that is [stored](Payload::Stored) as a part of the record: that the
/// record has the part `input`, `output` or `checkpoint` says that the task has the payload.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Task {
    /// The task's id.
    pub task_id: TaskId,
    /// Where it stands.
    pub status: TaskStatus,
    /// A sentence for people about where it stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status_message: Option<String>,
    /// When it was created, by the engine's clock.
    #[serde(with = "rfc3339_millis")]
    pub created_at: DateTime<Utc>,
    /// When it was last changed, by the engine's clock.
    #[serde(with = "rfc3339_millis")]
    pub last_updated_at: DateTime<Utc>,
    /// For how many milliseconds from creation the task may run; `null` is unlimited.
    pub ttl_ms: Option<u64>,
    /// How many milliseconds a client should wait between two polls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub poll_interval_ms: Option<u64>,
    /// The method that was called, `tools/call` for instance.
    pub method: String,
    /// The arguments that it was called with; an inline `null` if there are none.
    #[serde(with = "payload::required")]
    #[serde(default = "payload::required::absent", skip_serializing_if = "payload::required::is_left_out")]
    pub arguments: Payload,
    /// Requests to the client that wait for an answer, by key.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub input_requests: BTreeMap<String, Value>,
    /// The client's answers so far, by the key of their request.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub input_responses: BTreeMap<String, Value>,
    /// The requests of those answers, kept only where another attempt may make them again.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub answered_requests: BTreeMap<String, Value>,
    /// Whether the client asked to cancel. The operation decides how the task ends.
    #[serde(default, skip_serializing_if = "is_false")]
    pub cancel_requested: bool,
    /// What the worker keeps for the next attempt. A task that has ended has none.
    #[serde(default, skip_serializing_if = "payload::optional::is_left_out", with = "payload::optional")]
    pub checkpoint: Option<Payload>,
    /// The result, once completed.
    #[serde(default, skip_serializing_if = "payload::optional::is_left_out", with = "payload::optional")]
    pub result: Option<Payload>,
    /// The error, once failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<RpcError>,
    /// Who works on it. A task that nobody works on under a lease, or that has ended, has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<Lease>,
    /// The operation by the name under which instances know it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<String>,
    /// What becomes of it when its worker is lost.
    #[serde(default, skip_serializing_if = "is_default")]
    pub on_worker_lost: OnWorkerLost,
    /// How many workers may be lost before the task fails, if it can resume; `None` is 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_attempts: Option<u32>,
    /// What the server keeps with the task for itself.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub variables: BTreeMap<String, Value>,
    /// The ids of the last writes, newest last, by which a writer finds out whether its write was applied.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) write_ids: Vec<String>,
    /// Which payloads are parts of the record, as it was read or written last.
    #[serde(skip)]
    pub(crate) held_parts: HeldParts,
    /// The integers of its record that a [`Value`] alters.
    #[serde(skip)]
    pub(crate) exact: ExactIntegers,
    /// Fields of later versions of this crate.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Task {
    /// Reads the data of a record.
    pub(crate) fn from_json(json: &[u8]) -> serde_json::Result<Self> {
        let task: Self = serde_json::from_slice(json)?;
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

    /// When the TTL has elapsed; `None` for never.
    pub fn deadline(&self) -> Option<DateTime<Utc>> {
        let ttl = i64::try_from(self.ttl_ms?).ok().and_then(chrono::TimeDelta::try_milliseconds)?;
        self.created_at.checked_add_signed(ttl)
    }
}

/// A `null` that is there is a value, not a missing one.
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

fn is_default(on_worker_lost: &OnWorkerLost) -> bool {
    *on_worker_lost == OnWorkerLost::default()
}

/// RFC 3339 in UTC with milliseconds: `2026-01-31T12:00:00.000Z`.
mod rfc3339_millis {
    use chrono::{DateTime, SecondsFormat, Utc};
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(time: &DateTime<Utc>, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&time.to_rfc3339_opts(SecondsFormat::Millis, true))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<DateTime<Utc>, D::Error> {
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
            "createdAt": "2026-01-31T12:00:00.000Z", "lastUpdatedAt": "2026-01-31T12:00:00.000Z",
            "ttlMs": 60_000, "pollIntervalMs": 500, "method": "tools/call", "arguments": {"name": "x"},
            "checkpoint": null,
            "inputRequests": {"a": {"method": "elicitation/create"}}, "inputResponses": {"b": null},
            "answeredRequests": {"b": {"method": "roots/list"}}, "operation": "render", "onWorkerLost": "resume",
            "maxAttempts": 5,
            "lease": {"holder": "0f1b2c3d", "attempt": 2, "losses": 1, "renewals": 3, "durationMs": 30_000, "deadline": "2026-01-31T12:00:30.000Z", "zone": "b"},
            "error": {"code": 1, "message": "so far", "data": null, "retry": {"after": 3}},
            "cancelRequested": true, "variables": {"n": 1}, "writeIds": ["0badcafe"],
            "progress": {"done": [1, 2, 3]}, "zone": null,
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
            extra: Map::new(),
        };
        let held = lease(Some("somebody".to_owned()));
        assert!(held.is_live(at(0)) && held.is_live(at(29)));
        assert!(!held.is_live(at(30)), "it has lapsed");
        assert!(!held.is_live(at(-1)), "the clock was set back");
        assert!(!lease(None).is_live(at(10)), "it has no holder");
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
