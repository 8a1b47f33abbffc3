//! The limits on the content of a task, and the reserved owners.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Map, Value};

use super::config::{MAX_JSON_DEPTH, StoreConfig};
use super::error::TaskError;
use crate::backend::{Expiry, OwnerId, TaskKey};

pub(super) fn check(what: &'static str, actual: usize, limit: usize) -> Result<(), TaskError> {
    if actual > limit {
        return Err(TaskError::LimitExceeded {
            what: what.to_owned(),
            actual: actual.to_string(),
            limit: limit.to_string(),
        });
    }
    Ok(())
}

pub(super) fn check_depth(what: &'static str, value: &Value, limit: usize) -> Result<(), TaskError> {
    if is_deeper_than(value, limit) {
        return Err(TaskError::LimitExceeded {
            what: what.to_owned(),
            actual: format!("more than {limit}"),
            limit: limit.to_string(),
        });
    }
    Ok(())
}

/// The poll intervals that a task may have.
const POLL_INTERVALS: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(24 * 3600);

pub(super) fn check_poll_interval(interval: Duration) -> Result<(), TaskError> {
    if POLL_INTERVALS.contains(&interval) {
        return Ok(());
    }
    let reason = format!("a poll interval of {interval:?} is not between 1 ms and 24 hours; choose another");
    Err(TaskError::InvalidArgument { reason })
}

pub(super) fn check_retention(retention: Duration) -> Result<(), TaskError> {
    if (Duration::from_millis(1)..=Expiry::MAX).contains(&retention) {
        return Ok(());
    }
    let reason = format!("a retention of {retention:?} is not between 1 ms and 100 years; choose another");
    Err(TaskError::InvalidArgument { reason })
}

/// Checks how long the record of a task lives.
pub(super) fn check_life(life: Duration) -> Result<(), TaskError> {
    if life <= Expiry::MAX {
        return Ok(());
    }
    let reason = "the TTL and the retention are over 100 years together; choose shorter ones".to_owned();
    Err(TaskError::InvalidArgument { reason })
}

/// Checks the merged variables of a task against the configured limits.
pub(super) fn check_variables(
    variables: &BTreeMap<String, Value>,
    config: &StoreConfig,
) -> Result<(), TaskError> {
    for (name, value) in variables {
        check_depth("depth of a variable", value, config.max_variables_depth)?;
        let longest = longest_string(value).max(name.len());
        check("bytes of a string in the variables", longest, config.max_variables_string_bytes)?;
    }
    check("bytes of the variables as JSON", json_bytes(variables), config.max_variables_bytes)
}

/// The maximum size of the extensions of a task as JSON. Every update of the task rewrites them.
const MAX_EXTENSIONS_BYTES: usize = 4096;

pub(super) fn check_extensions(extensions: &Map<String, Value>) -> Result<(), TaskError> {
    for value in extensions.values() {
        check_depth("depth of an extension", value, MAX_JSON_DEPTH)?;
    }
    check("bytes of the extensions as JSON", json_bytes(extensions), MAX_EXTENSIONS_BYTES)
}

/// Returns the size of a map as JSON.
fn json_bytes(map: &impl Serialize) -> usize {
    let mut bytes = ByteCounter(0);
    // This never fails: the counter accepts every byte, and a map with string keys can always be written as JSON.
    let _ = serde_json::to_writer(&mut bytes, map);
    bytes.0
}

fn is_deeper_than(value: &Value, limit: usize) -> bool {
    let Some(below) = limit.checked_sub(1) else {
        return true;
    };
    match value {
        Value::Array(items) => items.iter().any(|item| is_deeper_than(item, below)),
        Value::Object(members) => members.values().any(|member| is_deeper_than(member, below)),
        _ => false,
    }
}

fn longest_string(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::Array(items) => items.iter().map(longest_string).max().unwrap_or(0),
        Value::Object(members) => {
            members.iter().map(|(name, value)| name.len().max(longest_string(value))).max().unwrap_or(0)
        }
        _ => 0,
    }
}

struct ByteCounter(usize);

impl std::io::Write for ByteCounter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The owners that begin with this prefix are reserved for records of the server's runtime.
const RESERVED_OWNERS: &str = "\0mcp/";

fn is_reserved(owner: &OwnerId) -> bool {
    owner.as_str().starts_with(RESERVED_OWNERS)
}

pub(super) fn check_owner(owner: &OwnerId) -> Result<(), TaskError> {
    if is_reserved(owner) {
        let reason = format!("owner ids that begin with {RESERVED_OWNERS:?} are reserved; choose another");
        return Err(TaskError::InvalidArgument { reason });
    }
    Ok(())
}

/// The error for a task of a reserved owner is the same as for a task that does not exist.
pub(super) fn check_key(key: &TaskKey) -> Result<(), TaskError> {
    if is_reserved(&key.owner) {
        return Err(TaskError::NotFound { task: key.task.clone() });
    }
    Ok(())
}
