//! The properties of the errors that callers receive for the errors of servers.

use std::mem::discriminant;

use redis::{ErrorKind, RedisError, Value, make_extension_error, parse_redis_value};

use super::hashes::canonical;
use crate::backend::{StorageError, TaskKey, Version};
use crate::fuzzing::fields::fields;
use crate::redis::error::Context;
use crate::redis::reply::CommandError;

/// Fields: the version that the caller expects, the owner's quota, the line of an error reply.
///
/// Every error reply becomes an error with a text. A code of the scripts or one that Redis documents becomes its variant,
/// whatever its detail. The outcome of a read is never unknown, and that of a write only after an unforeseen reply.
pub fn script_error(input: &[u8]) {
    let [expected, quota, line] = fields(input);
    let number = |text| std::str::from_utf8(text).ok().and_then(|text| text.parse::<u64>().ok());
    let t1 = TaskKey::new("alice", "t1").expect("a legal key");
    let call = Context {
        writes: true,
        expected: number(expected).map(Version::from),
        quota: number(quota),
        ..Context::reads("127.0.0.1:6379", "pmcp:tasks:alice:t1").of(&t1)
    };

    let replies = [
        [b"-", line, b"\r\n"].concat(),
        [format!("!{}\r\n", line.len()).as_bytes(), line, b"\r\n"].concat(),
        line.to_owned(),
    ];
    for reply in replies {
        if let Err(error) = parse_redis_value(&reply).and_then(Value::extract_error) {
            check_error(&call, &error);
        }
    }
    let line = String::from_utf8_lossy(line);
    let (code, detail) = match line.split_once(' ') {
        Some((code, detail)) => (code, Some(detail)),
        None => (&*line, None),
    };
    check_error(&call, &make_extension_error(code.to_owned(), detail.map(str::to_owned)));
}

fn check_error(write: &Context<'_>, error: &RedisError) {
    let is_reply = matches!(error.kind(), ErrorKind::Server(_) | ErrorKind::Extension);
    let failure = || {
        if is_reply { CommandError::ErrorReply(error.clone()) } else { CommandError::NoReply(error.clone()) }
    };
    let Context { address, key, task, expected, quota, .. } = *write;
    let read = Context { task, expected, quota, ..Context::reads(address, key) }.storage_error(failure());
    let judged = write.storage_error(failure());
    for judged in [&read, &judged] {
        assert!(!judged.to_string().is_empty());
        assert!(std::error::Error::source(judged).is_none_or(|source| !source.to_string().is_empty()));
        assert!(key_of(judged).is_none_or(|key| Some(key) == write.task));
    }
    assert_eq!(discriminant(&read), discriminant(&judged));
    assert!(!read.outcome_unknown(), "{error}");

    if !is_reply {
        assert!(judged.outcome_unknown(), "{error}");
        assert!(
            matches!(judged, StorageError::Unavailable { .. } | StorageError::Backend { .. }),
            "{judged}"
        );
        return;
    }
    assert_eq!(read.to_string(), judged.to_string());
    let becomes = |is_so: bool| assert!(is_so, "{error} becomes {judged:?}");
    let (code, detail) = (error.code().unwrap_or_default(), error.detail().unwrap_or_default());
    becomes(match code {
        "FOUND" => {
            found(detail).map_or_else(|| is_unforeseen(&judged), |found| found.becomes(&judged, write))
        }
        "CAPACITYEXCEEDED" => is_quota(&judged, write, detail),
        "TOOMANYPARTS" => is_too_many_parts(&judged, detail),
        _ => is_of_server(&judged, code),
    });
}

fn is_digits(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Returns whether this is the right error for `CAPACITYEXCEEDED`. The scripts write digits only. The decoder may
/// accept another number or not, but never as another error.
fn is_quota(judged: &StorageError, write: &Context<'_>, detail: &str) -> bool {
    let StorageError::CapacityExceeded { quota: Some(quota), .. } = *judged else {
        return is_unforeseen(judged) && !(is_digits(detail) && detail.parse::<u64>().is_ok());
    };
    match detail.parse::<u64>() {
        Ok(live) => !is_digits(detail) || quota == write.quota.unwrap_or(live),
        Err(_) => false,
    }
}

fn is_too_many_parts(judged: &StorageError, detail: &str) -> bool {
    match detail.parse::<u64>() {
        Ok(_) if is_digits(detail) => matches!(judged, StorageError::TooLarge { .. }),
        Ok(_) => is_unforeseen(judged) || matches!(judged, StorageError::TooLarge { .. }),
        Err(_) => is_unforeseen(judged),
    }
}

/// Returns whether an error with a code of the server, not of the scripts, becomes its variant.
fn is_of_server(judged: &StorageError, code: &str) -> bool {
    match code {
        "OOM" => matches!(judged, StorageError::CapacityExceeded { quota: None, .. }),
        "WRONGTYPE" => matches!(judged, StorageError::Corrupt { .. }),
        "READONLY" | "LOADING" | "CLUSTERDOWN" | "TRYAGAIN" | "MASTERDOWN" | "MISCONF" | "NOREPLICAS"
        | "BUSY" => {
            matches!(judged, StorageError::Unavailable { outcome_unknown: false, .. })
        }
        "NOAUTH" | "WRONGPASS" | "NOPERM" | "DENIED" => matches!(judged, StorageError::Denied { .. }),
        "MOVED" | "ASK" | "CROSSSLOT" => {
            matches!(judged, StorageError::Backend { outcome_unknown: false, .. })
        }
        // These codes wrap an error that a command raised inside a script. It may be any error of a server, and never
        // an error of the scripts of this crate.
        code if code == "ERR" || code.starts_with("@user_script") => {
            is_unforeseen(judged)
                || matches!(
                    judged,
                    StorageError::CapacityExceeded { quota: None, .. }
                        | StorageError::Corrupt { source: Some(_), .. }
                        | StorageError::Unavailable { outcome_unknown: false, .. }
                        | StorageError::Denied { .. }
                        | StorageError::Backend { .. }
                )
        }
        _ => is_unforeseen(judged),
    }
}

/// The record that a write found.
struct Fields {
    version: Option<String>,
    expires_at: Option<String>,
    has_data: bool,
    is_live: bool,
    /// Whether the list of its parts can be read.
    has_parts: bool,
}

impl Fields {
    /// Returns whether these fields become this error of a write.
    fn becomes(&self, judged: &StorageError, write: &Context<'_>) -> bool {
        let number = |field: &Option<String>| field.as_ref().and_then(|text| canonical(&bulk(text)));
        if !self.has_data && self.version.is_none() && self.expires_at.is_none() {
            return matches!(judged, StorageError::NotFound { .. });
        }
        if self.expires_at.is_some() && number(&self.expires_at).is_none() {
            return is_corrupt(judged, "expires_at");
        }
        if !self.is_live {
            return matches!(judged, StorageError::NotFound { .. });
        }
        let Some(found) = number(&self.version) else { return is_corrupt(judged, "version") };
        if !self.has_data {
            return is_corrupt(judged, "data");
        }
        if !self.has_parts {
            return is_corrupt(judged, "parts");
        }
        if write.expected.is_none_or(|expected| expected.get() == found) {
            return matches!(judged, StorageError::VersionExhausted { .. });
        }
        matches!(judged, StorageError::VersionConflict { expected, actual, .. }
            if Some(expected) == write.expected.as_ref() && actual.get() == found)
    }
}

/// Reads the record that a write found. A field that is not text cannot be read.
fn found(detail: &str) -> Option<Fields> {
    use serde_json::Value::{Bool, Null, String};
    let fields: Vec<serde_json::Value> = serde_json::from_str(detail).ok()?;
    let [version, expires_at, has_data, is_live, has_parts] = fields.try_into().ok()?;
    let text = |field| match field {
        Bool(false) | Null => None,
        String(text) => Some(text),
        _ => Some("?".to_owned()),
    };
    Some(Fields {
        version: text(version),
        expires_at: text(expires_at),
        has_data: has_data.as_u64().filter(|number| *number < 256)? != 0,
        is_live: !matches!(is_live, Bool(false) | Null),
        has_parts: has_parts.as_bool()?,
    })
}

fn bulk(text: &str) -> Value {
    Value::BulkString(text.into())
}

fn is_corrupt(error: &StorageError, field: &str) -> bool {
    matches!(error, StorageError::Corrupt { reason, .. } if reason.contains(field))
}

/// Returns whether the error may come from the middle of a script.
fn is_unforeseen(error: &StorageError) -> bool {
    matches!(error, StorageError::Backend { outcome_unknown: true, .. })
}

fn key_of(error: &StorageError) -> Option<&TaskKey> {
    match error {
        StorageError::NotFound { key }
        | StorageError::VersionConflict { key, .. }
        | StorageError::VersionExhausted { key }
        | StorageError::Corrupt { key, .. } => Some(key),
        _ => None,
    }
}
