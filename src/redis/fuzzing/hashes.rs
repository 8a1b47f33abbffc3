//! The properties of reading a record's hash.

use bytes::Bytes;
use chrono::{DateTime, Utc};
use redis::{Value, parse_redis_value};

use crate::backend::{PartName, PartSizes, Record};
use crate::fuzzing::fields::fields;
use crate::redis::schema::StoredFields;

/// Fields: the four of a hash, `version`, `expires_at`, `data`, `parts`; and the whole input once more as a reply in the
/// protocol of Redis.
///
/// A hash is a record only if every field is exactly what a script writes. Only a hash without fields is absent.
pub fn record(input: &[u8]) {
    let [version, expires_at, data, parts] = fields(input).map(field);
    check_reading(Value::Array(vec![version, data, expires_at, parts]));
    if let Ok(reply) = parse_redis_value(input) {
        check_reading(reply);
    }
}

/// Returns a field as `HMGET` returns it or, by its first byte, a value that `HMGET` never returns.
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
        assert_eq!(StoredFields::read(reply), None);
        return;
    };
    let is = |stored: StoredFields| assert_eq!(StoredFields::read(reply.clone()), Some(stored));
    let is_corrupt = |field: &str, at| match StoredFields::read(reply.clone()) {
        Some(StoredFields::Corrupt { reason, expires_at }) => {
            assert!(reason.contains(field), "{reason}");
            assert_eq!(expires_at, at);
        }
        other => panic!("the field {field} of {reply:?} is read as {other:?}"),
    };

    if [&version, &data, &expires_at].into_iter().all(|field| matches!(field, Value::Nil)) {
        return is(StoredFields::Absent);
    }
    let expires_at = match (&expires_at, canonical(&expires_at)) {
        (Value::Nil, _) => None,
        (_, None) => return is_corrupt("expires_at", None),
        // A time without a date in the calendar is later than all dates.
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
            is(StoredFields::Record(Record { data, version, expires_at, parts }));
        }
        (Some(_), Value::BulkString(_), None) => is_corrupt("parts", expires_at),
        (Some(_), ..) => is_corrupt("data", expires_at),
    }
}

/// Returns the names and sizes in the field `parts`, `None` for text that no script writes.
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

/// Returns an integer from 1 to 2^53 - 1 in its canonical form.
pub(super) fn canonical(field: &Value) -> Option<u64> {
    let Value::BulkString(text) = field else { return None };
    let number: u64 = std::str::from_utf8(text).ok()?.parse().ok()?;
    ((1..=9_007_199_254_740_991).contains(&number) && number.to_string().as_bytes() == text).then_some(number)
}
