//! What a later version of this crate has written into the record of a task, and this version does not understand.
//!
//! Unknown fields survive every write, because the task keeps them in its `extra`. This module covers the rest:
//!
//! * A record that states a larger [`FORMAT`] is read, and never written.
//! * A record with an unknown status is read as `working`, and never written: this version cannot tell whether the task has ended.
//! * An unknown `priority` or `onWorkerLost` survives every write. Only what depends on it is left to later versions: to claim
//!   the task, and to take its lease.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::{OnWorkerLost, Task, TaskStatus};
use crate::backend::Priority;
use crate::printable::Printable;

/// The number of the record format that this version writes. A record without the field `format` has format 1. A later version
/// states a larger number in the records that no earlier version may change.
const FORMAT: u64 = 1;
const FIELD: &str = "format";
const STATUS: &str = "status";
const PRIORITY: &str = "priority";
const ON_WORKER_LOST: &str = "onWorkerLost";

/// How many characters of an unknown value an error shows.
const SHOWN: usize = 40;

/// Reads a record that has a status, a priority or an `onWorkerLost` of a later version. Returns `None` if it has none of them, or
/// is unreadable for another reason.
pub(super) fn read(json: &str) -> Option<Task> {
    let mut record: Map<String, Value> = serde_json::from_str(json).ok()?;
    let status = remove_unknown::<TaskStatus>(&mut record, STATUS);
    if status.is_some() {
        record.insert(STATUS.to_owned(), TaskStatus::Working.as_str().into());
    }
    let fields = [
        (PRIORITY, remove_unknown::<Priority>(&mut record, PRIORITY)),
        (ON_WORKER_LOST, remove_unknown::<OnWorkerLost>(&mut record, ON_WORKER_LOST)),
    ];
    if status.is_none() && fields.iter().all(|(_, unknown)| unknown.is_none()) {
        return None;
    }
    let mut task = Task::deserialize(Value::Object(record)).ok()?;
    task.unknown_status = status;
    // The field itself has its default, which the JSON leaves out. So `extra` writes the unknown value back.
    let unknown = fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?.into())));
    task.extra.extend(unknown);
    Some(task)
}

/// Removes the text of a field that has no value of this type.
fn remove_unknown<T: DeserializeOwned>(record: &mut Map<String, Value>, field: &str) -> Option<String> {
    let text = record.get(field)?.as_str()?.to_owned();
    if serde_json::from_value::<T>(record[field].clone()).is_ok() {
        return None;
    }
    record.remove(field);
    Some(text)
}

impl Task {
    /// Returns what in the record forbids every write; `None` for a record that this version may change.
    pub(crate) fn forbids_writes(&self) -> Option<String> {
        let format =
            self.extra.get(FIELD).filter(|format| format.as_u64().is_none_or(|format| format > FORMAT));
        match (format, &self.unknown_status) {
            (Some(format), _) => Some(shown(FIELD, &format.to_string())),
            (None, Some(status)) => Some(shown(STATUS, status)),
            (None, None) => None,
        }
    }

    /// Returns what in the record forbids to claim the task, and to take its lease; `None` for a task that this version may run.
    pub(crate) fn forbids_leases(&self) -> Option<String> {
        let unknown = |field| Some(shown(field, self.extra.get(field)?.as_str()?));
        self.forbids_writes().or_else(|| unknown(PRIORITY)).or_else(|| unknown(ON_WORKER_LOST))
    }

    /// Returns whether a later attempt may make the requests of this one again.
    pub(crate) fn may_resume(&self) -> bool {
        self.on_worker_lost == OnWorkerLost::Resume || self.extra.contains_key(ON_WORKER_LOST)
    }
}

fn shown(field: &str, value: &str) -> String {
    let end = value.char_indices().nth(SHOWN).map_or(value.len(), |(end, _)| end);
    let cut = if end < value.len() { "…" } else { "" };
    format!("{field} `{}{cut}`", Printable(&value[..end]))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn record(fields: Value) -> Value {
        let mut record = json!({
            "taskId": "t1", "status": "input_required", "createdAt": "2026-01-31T12:00:00.000Z",
            "lastUpdatedAt": "2026-01-31T12:00:00.000Z", "ttlMs": 1, "method": "m", "zone": "b",
        });
        record.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        record
    }

    fn task(fields: Value) -> serde_json::Result<Task> {
        Task::from_json(record(fields).to_string().as_bytes())
    }

    #[test]
    fn an_unknown_priority_or_reaction_to_lost_workers_survives_a_rewrite() {
        for fields in [
            json!({ "priority": "urgent" }),
            json!({ "onWorkerLost": "requeue", "priority": "low" }),
            json!({ "onWorkerLost": "requeue", "priority": "urgent", "big": 1e300 }),
            json!({ "format": 1, "priority": "urgent" }),
        ] {
            let task = task(fields.clone()).unwrap();
            assert_eq!(task.forbids_writes(), None);
            assert!(task.forbids_leases().is_some());
            assert_eq!(task.may_resume(), fields["onWorkerLost"] == "requeue");
            let written: Value = serde_json::from_slice(&task.to_json().unwrap()).unwrap();
            assert_eq!(written, record(fields));
        }
        let known = task(json!({ "priority": "low", "onWorkerLost": "resume", "format": 1 })).unwrap();
        assert_eq!((known.forbids_leases(), known.may_resume()), (None, true));
    }

    #[test]
    fn an_unknown_status_or_a_later_format_is_read_and_forbids_writes() {
        let later = task(json!({ "status": "paused" })).unwrap();
        assert_eq!(
            (later.status, later.forbids_writes()),
            (TaskStatus::Working, Some("status `paused`".into()))
        );
        for format in [json!(2), json!(1e30), json!("two"), json!(null)] {
            let later = task(json!({ "format": format })).unwrap();
            assert_eq!(later.status, TaskStatus::InputRequired);
            assert_eq!(later.forbids_writes(), Some(shown(FIELD, &format.to_string())));
        }
        let long = task(json!({ "status": format!("\n{}", "é".repeat(500)) })).unwrap();
        assert_eq!(long.forbids_writes(), Some(format!("status `\\u{{a}}{}…`", "é".repeat(SHOWN - 1))));
    }

    #[test]
    fn a_record_that_is_not_a_task_stays_unreadable() {
        for fields in [
            json!({ "status": 7 }),
            json!({ "ttlMs": "x", "priority": "urgent" }),
            json!({ "priority": ["urgent"] }),
            json!({ "onWorkerLost": null }),
        ] {
            assert!(task(fields.clone()).is_err(), "{fields}");
        }
    }
}
