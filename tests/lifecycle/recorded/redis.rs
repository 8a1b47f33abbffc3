//! A dump of the keys of a Redis: JSON, with the prefix of the keys left out. Bytes that are not text are characters up to U+00FF.

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use super::moved;
use crate::support::redis::Namespace;

/// The score of a record that never expires, in an index.
const NEVER: f64 = 9e12;

#[derive(Serialize, Deserialize)]
struct Dump {
    recorded_at: DateTime<Utc>,
    keys: BTreeMap<String, Key>,
}

#[derive(Serialize, Deserialize)]
struct Key {
    /// When the key expires, in milliseconds since the epoch; -1 for never.
    expires_at: i64,
    value: Value,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Value {
    Hash(BTreeMap<String, String>),
    SortedSet(BTreeMap<String, f64>),
}

fn text(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if text.is_ascii() => text.to_owned(),
        _ => bytes.iter().map(|byte| char::from(*byte)).collect(),
    }
}

fn bytes(text: &str) -> Vec<u8> {
    text.chars().map(|c| u8::try_from(c).expect("a character up to U+00FF")).collect()
}

pub fn dump(namespace: &Namespace, at: DateTime<Utc>) -> String {
    let read = |name: String| {
        let key = format!("{}:{name}", namespace.prefix);
        let expires_at = namespace.run(&["PEXPIRETIME", &key]);
        let value = if namespace.run::<String>(&["TYPE", &key]) == "hash" {
            let fields: BTreeMap<String, Vec<u8>> = namespace.run(&["HGETALL", &key]);
            Value::Hash(fields.into_iter().map(|(field, value)| (field, text(&value))).collect())
        } else {
            let members: Vec<(Vec<u8>, f64)> = namespace.run(&["ZRANGE", &key, "0", "-1", "WITHSCORES"]);
            Value::SortedSet(members.into_iter().map(|(member, score)| (text(&member), score)).collect())
        };
        (name, Key { expires_at, value })
    };
    let dump = Dump { recorded_at: at, keys: namespace.keys().into_iter().map(read).collect() };
    serde_json::to_string_pretty(&dump).unwrap() + "\n"
}

/// Writes the keys of a dump, as if it had been recorded just now.
pub fn load(namespace: &Namespace, dump: &str) {
    let dump: Dump = serde_json::from_str(dump).unwrap();
    let mut connection = namespace.connection();
    let (seconds, micros): (i64, i64) = ::redis::cmd("TIME").query(&mut connection).unwrap();
    let now = DateTime::from_timestamp(seconds, micros as u32 * 1000).unwrap();
    let by = now - dump.recorded_at;
    let ms = by.num_milliseconds();
    for (name, key) in dump.keys {
        let (kind, _) = name.split_once(':').unwrap();
        let full = format!("{}:{name}", namespace.prefix);
        match key.value {
            Value::Hash(fields) => {
                for (field, value) in fields {
                    let value = match field.as_str() {
                        "expires_at" => (value.parse::<i64>().unwrap() + ms).to_string().into_bytes(),
                        "data" => moved_data(&value, by),
                        _ => bytes(&value),
                    };
                    let set = ::redis::cmd("HSET").arg(&full).arg(field).arg(value).exec(&mut connection);
                    set.unwrap();
                }
            }
            Value::SortedSet(members) => {
                for (member, score) in members {
                    let member = bytes(&member);
                    // An index has creation times in microseconds, and expiries in milliseconds behind a byte of their own.
                    let score = match (kind, member[0]) {
                        ("idx", 0xff) if score == NEVER => score,
                        ("idx", first) if first != 0xff => score + (ms * 1000) as f64,
                        _ => score + ms as f64,
                    };
                    ::redis::cmd("ZADD").arg(&full).arg(score).arg(member).exec(&mut connection).unwrap();
                }
            }
        }
        if key.expires_at >= 0 {
            let at = key.expires_at + ms;
            ::redis::cmd("PEXPIREAT").arg(&full).arg(at).exec(&mut connection).unwrap();
        }
    }
}

fn moved_data(data: &str, by: TimeDelta) -> Vec<u8> {
    moved(std::str::from_utf8(&bytes(data)).unwrap(), by).into_bytes()
}
