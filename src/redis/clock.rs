//! The clock of a Redis server.

use redis::Value;

pub(super) use crate::backend::server_clock::Clock;
use crate::scripts;

/// Returns the time in a reply to `TIME`, in microseconds.
pub(crate) fn server_time(reply: &Value) -> Option<u64> {
    match reply {
        Value::Array(time) => scripts::clock(time),
        _ => None,
    }
}
