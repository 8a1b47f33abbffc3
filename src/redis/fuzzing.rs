//! The properties of the key schema, of what is read out of a hash, and of what a server's errors become.

use std::collections::HashMap;
use std::mem::discriminant;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use redis::{ErrorKind, RedisError, Value, make_extension_error, parse_redis_value};

use super::error::Context;
use super::reply::CommandError;
use super::schema::{Schema, Stored};
use crate::backend::key::escape;
use crate::backend::{
    MAX_ID_BYTES, OwnerId, PartName, PartSizes, Record, StorageError, TaskId, TaskKey, Version,
};
use crate::fuzzing::fields;

/// Fields: four ids, a prefix.
///
/// Every key decodes to the ids, the kind and the prefix that it was made of, so that no two share one. With hash
/// tags a cluster hashes exactly the owner; without, whole keys.
pub fn key(input: &[u8]) {
    let [a, b, c, d, prefix] = fields(input).map(|field| String::from_utf8_lossy(field).into_owned());
    let prefix = if prefix_is_legal(&prefix) { &prefix } else { "pmcp" };
    // Beside the given ids, those that would reach another's keys if an id were written as it is.
    let (ab, bc) = (format!("{a}:{b}"), format!("{b}:{c}"));
    let (tagged, escaped) = (format!("{{{a}}}"), escape(&a).into_owned());
    for id in [&a, &b, &c, &d, &ab, &tagged, &escaped] {
        check_escape(id);
        let is_legal = (1..=MAX_ID_BYTES).contains(&id.len());
        assert_eq!(OwnerId::try_from(id.as_str()).is_ok(), is_legal);
        assert_eq!(TaskId::try_from(id.as_str()).is_ok(), is_legal);
    }
    let pairs = [
        (&a, &b),
        (&c, &d),
        (&a, &bc),
        (&ab, &c),
        (&tagged, &b),
        (&escaped, &b),
        (&b, &tagged),
        (&b, &escaped),
    ];

    let mut made_of = HashMap::new();
    let mut add = |key: String, parts: Decoded| {
        assert_eq!(decode(&key).as_ref(), Some(&parts), "{key}");
        let hashed = if parts.hash_tag { escape(&parts.owner) } else { key.as_str().into() };
        assert_eq!(hash_slot_part(&key), hashed);
        let before = made_of.entry(key).or_insert_with(|| parts.clone());
        assert_eq!(*before, parts, "two sets of ids have one key");
    };
    for (owner, task) in pairs {
        let Ok(key) = TaskKey::new(owner, task) else { continue };
        let shown = key.to_string();
        let (shown_owner, shown_task) = shown.split_once(':').expect("a colon between the ids");
        assert_eq!(unescape(shown_owner).as_ref(), Some(owner));
        assert_eq!(unescape(shown_task).as_ref(), Some(task));

        for hash_tag in [false, true] {
            let schema = Schema::new(prefix, hash_tag).expect("a legal prefix");
            let parts = |kind: &str, task: Option<&String>| Decoded {
                prefix: prefix.to_owned(),
                kind: kind.to_owned(),
                hash_tag,
                owner: owner.clone(),
                task: task.cloned(),
            };
            let keys = schema.keys(&key);
            assert_eq!(keys.idx, schema.idx(&key.owner));
            add(keys.task, parts("tasks", Some(task)));
            add(keys.idx, parts("idx", None));
        }
    }
}

fn prefix_is_legal(prefix: &str) -> bool {
    let is_legal = (1..=64).contains(&prefix.len())
        && prefix.chars().all(|c| matches!(c, 'A'..='Z' | 'a'..='z' | '0'..='9' | '.' | '_' | '-'));
    assert_eq!(Schema::new(prefix, false).is_ok(), is_legal, "{prefix:?}");
    is_legal
}

/// What the documentation says that a key is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Decoded {
    prefix: String,
    kind: String,
    hash_tag: bool,
    owner: String,
    task: Option<String>,
}

fn decode(key: &str) -> Option<Decoded> {
    let parts: Vec<_> = key.split(':').collect();
    let (prefix, kind, owner, task) = match parts[..] {
        [prefix, kind, owner] => (prefix, kind, owner, None),
        [prefix, kind, owner, task] => (prefix, kind, owner, Some(unescape(task)?)),
        _ => return None,
    };
    let tagged = owner.strip_prefix('{').and_then(|owner| owner.strip_suffix('}'));
    Some(Decoded {
        prefix: prefix.to_owned(),
        kind: kind.to_owned(),
        hash_tag: tagged.is_some(),
        owner: unescape(tagged.unwrap_or(owner))?,
        task,
    })
}

fn must_be_escaped(c: char) -> bool {
    matches!(c, ':' | '%' | '{' | '}' | '\0'..='\u{1f}' | '\u{7f}'..='\u{9f}')
}

/// Percent-decoding in other words than those of the key; `None` for text that no id is written as.
fn unescape(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let mut digit = || match rest.next()? {
                digit @ b'0'..=b'9' => Some(digit - b'0'),
                digit @ b'A'..=b'F' => Some(digit - b'A' + 10),
                _ => None,
            };
            bytes.push(digit()? << 4 | digit()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

fn check_escape(id: &str) {
    let escaped = escape(id);
    assert!(!escaped.contains(|c| c != '%' && must_be_escaped(c)), "{escaped:?}");
    assert_eq!(unescape(&escaped).as_deref(), Some(id));
    let added: usize = id.chars().filter(|c| must_be_escaped(*c)).map(|c| 2 * c.len_utf8()).sum();
    assert_eq!(escaped.len(), id.len() + added, "{escaped:?} escapes more than it must");
}

/// The part of a key that a cluster hashes (<https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/#hash-tags>).
fn hash_slot_part(key: &str) -> &str {
    let tag = key.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map(|(tag, _)| tag);
    tag.filter(|tag| !tag.is_empty()).unwrap_or(key)
}

/// Fields: the four of a hash, `version`, `expires_at`, `data`, `parts`; and the whole input once more as a reply in the
/// protocol of Redis.
///
/// A hash is read as a record only if every field is exactly what a script writes; nothing is read as absent but a
/// hash that is.
pub fn record(input: &[u8]) {
    let [version, expires_at, data, parts] = fields(input).map(field);
    check_reading(Value::Array(vec![version, data, expires_at, parts]));
    if let Ok(reply) = parse_redis_value(input) {
        check_reading(reply);
    }
}

/// A field as `HMGET` gives it, or by its first byte something that `HMGET` never gives.
fn field(bytes: &[u8]) -> Value {
    match bytes {
        [] => Value::Nil,
        [b'$', text @ ..] => Value::BulkString(text.to_owned()),
        [b'+', text @ ..] => Value::SimpleString(String::from_utf8_lossy(text).into_owned()),
        [b':', text @ ..] => Value::Int(String::from_utf8_lossy(text).parse().unwrap_or(1)),
        [b'*', text @ ..] => Value::Array(vec![Value::BulkString(text.to_owned())]),
        text => Value::BulkString(text.to_owned()),
    }
}

fn check_reading(reply: Value) {
    let fields = match &reply {
        Value::Array(fields) => <&[Value; 4]>::try_from(&fields[..]).ok(),
        _ => None,
    };
    let Some([version, data, expires_at, parts]) = fields.cloned() else {
        assert_eq!(Stored::read(reply), None);
        return;
    };
    let is = |stored: Stored| assert_eq!(Stored::read(reply.clone()), Some(stored));
    let is_corrupt = |field: &str, at| match Stored::read(reply.clone()) {
        Some(Stored::Corrupt { reason, expires_at }) => {
            assert!(reason.contains(field), "{reason}");
            assert_eq!(expires_at, at);
        }
        other => panic!("the field {field} of {reply:?} is read as {other:?}"),
    };

    if [&version, &data, &expires_at].into_iter().all(|field| matches!(field, Value::Nil)) {
        return is(Stored::Nothing);
    }
    let expires_at = match (&expires_at, canonical(&expires_at)) {
        (Value::Nil, _) => None,
        (_, None) => return is_corrupt("expires_at", None),
        // Times that the calendar has no date for are further away than any that it has.
        (_, Some(millis)) => Some(
            i64::try_from(millis)
                .ok()
                .and_then(DateTime::from_timestamp_millis)
                .unwrap_or(DateTime::<Utc>::MAX_UTC),
        ),
    };
    match (canonical(&version), data, parts_of(&parts)) {
        (None, ..) => is_corrupt("version", expires_at),
        (Some(version), Value::BulkString(data), Some(parts)) => {
            let (data, version) = (Bytes::from(data), version.into());
            is(Stored::Record(Record { data, version, expires_at, parts }));
        }
        (Some(_), Value::BulkString(_), None) => is_corrupt("parts", expires_at),
        (Some(_), ..) => is_corrupt("data", expires_at),
    }
}

/// The names and sizes that the field `parts` lists, `None` if it is nothing that a script writes.
fn parts_of(field: &Value) -> Option<PartSizes> {
    let text = match field {
        Value::Nil => return Some(PartSizes::new()),
        Value::BulkString(text) => String::from_utf8(text.clone()).ok()?,
        _ => return None,
    };
    let Some(listed) = text.strip_suffix(' ') else { return text.is_empty().then(PartSizes::new) };
    let part = |part: &str| {
        let (name, size) = part.split_at_checked(part.find('=')?)?;
        let digits = &size[1..];
        if digits.is_empty() || digits.len() > 10 || digits.contains(|c: char| !c.is_ascii_digit()) {
            return None;
        }
        Some((PartName::try_from(name.to_owned()).ok()?, digits.parse().ok()?))
    };
    listed.split(' ').map(part).collect()
}

/// An integer from 1 to 2^53 - 1 in the one way of writing it.
fn canonical(field: &Value) -> Option<u64> {
    let Value::BulkString(text) = field else { return None };
    let number: u64 = std::str::from_utf8(text).ok()?.parse().ok()?;
    ((1..=9_007_199_254_740_991).contains(&number) && number.to_string().as_bytes() == text).then_some(number)
}

/// Fields: the version that the caller expects, the owner's quota, the line of an error reply.
///
/// Whatever the server says becomes an error with a text; a code that is ours, or that Redis documents, becomes its
/// variant whatever stands behind it. No reply leaves a read in doubt, and a write only if nobody foresaw the reply.
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
    let code = error.code().unwrap_or_default();
    let detail = error.detail().unwrap_or_default();
    let is_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    match (code, detail.parse::<u64>()) {
        ("FOUND", _) => becomes(match found(detail) {
            None => is_unforeseen(&judged),
            Some(Fields { has_data: false, version: None, expires_at: None, .. }) => {
                matches!(judged, StorageError::NotFound { .. })
            }
            Some(Fields { expires_at: Some(at), .. }) if canonical(&bulk(&at)).is_none() => {
                is_corrupt(&judged, "expires_at")
            }
            Some(Fields { is_live: false, .. }) => matches!(judged, StorageError::NotFound { .. }),
            Some(Fields { has_data, version, has_parts, .. }) => {
                match (version.and_then(|version| canonical(&bulk(&version))), has_data) {
                    (None, _) => is_corrupt(&judged, "version"),
                    (_, false) => is_corrupt(&judged, "data"),
                    _ if !has_parts => is_corrupt(&judged, "parts"),
                    (Some(found), _) if write.expected.is_none_or(|expected| expected.get() == found) => {
                        matches!(judged, StorageError::VersionExhausted { .. })
                    }
                    (Some(found), _) => {
                        matches!(judged, StorageError::VersionConflict { expected, actual, .. }
                    if Some(expected) == write.expected && actual.get() == found)
                    }
                }
            }
        }),
        ("CAPACITYEXCEEDED", Ok(live)) if is_digits(detail) => becomes(
            matches!(judged, StorageError::CapacityExceeded { quota, .. } if quota == Some(write.quota.unwrap_or(live))),
        ),
        // As a number, and not as the scripts write it: taken or not, but never as something else.
        ("CAPACITYEXCEEDED", Ok(_)) => becomes(
            is_unforeseen(&judged) || matches!(judged, StorageError::CapacityExceeded { quota: Some(_), .. }),
        ),
        ("TOOMANYPARTS", Ok(_)) if is_digits(detail) => {
            becomes(matches!(judged, StorageError::TooLarge { .. }));
        }
        // As a number, and not as the scripts write it.
        ("TOOMANYPARTS", Ok(_)) => {
            becomes(is_unforeseen(&judged) || matches!(judged, StorageError::TooLarge { .. }));
        }
        ("OOM", _) => becomes(matches!(judged, StorageError::CapacityExceeded { quota: None, .. })),
        ("WRONGTYPE", _) => becomes(matches!(judged, StorageError::Corrupt { .. })),
        (
            "READONLY" | "LOADING" | "CLUSTERDOWN" | "TRYAGAIN" | "MASTERDOWN" | "MISCONF" | "NOREPLICAS"
            | "BUSY",
            _,
        ) => {
            becomes(matches!(judged, StorageError::Unavailable { outcome_unknown: false, .. }));
        }
        ("NOAUTH" | "WRONGPASS" | "NOPERM" | "DENIED", _) => {
            becomes(matches!(judged, StorageError::Denied { .. }))
        }
        ("MOVED" | "ASK" | "CROSSSLOT", _) => {
            becomes(matches!(judged, StorageError::Backend { outcome_unknown: false, .. }));
        }
        // These wrap what a command raised inside a script: any of the server's errors, and none of the scripts' own.
        (code, _) if code == "ERR" || code.starts_with("@user_script") => becomes(
            is_unforeseen(&judged)
                || matches!(
                    judged,
                    StorageError::CapacityExceeded { quota: None, .. }
                        | StorageError::Corrupt { source: Some(_), .. }
                        | StorageError::Unavailable { outcome_unknown: false, .. }
                        | StorageError::Denied { .. }
                        | StorageError::Backend { .. }
                ),
        ),
        _ => becomes(is_unforeseen(&judged)),
    }
}

/// What a write found.
struct Fields {
    version: Option<String>,
    expires_at: Option<String>,
    has_data: bool,
    is_live: bool,
    /// Whether the list of its parts can be read.
    has_parts: bool,
}

/// Reads what a write found, if it is that. A field that is no text cannot be read.
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

/// An error that may have come in the middle of a script.
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
