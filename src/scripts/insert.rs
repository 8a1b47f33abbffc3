//! `lua/insert.lua` and `lua/create.lua`: create records that expire and have no parts.

use bytes::Bytes;
use chrono::{DateTime, Utc};
use once_cell::sync::Lazy;
use redis::Value;

use super::{Arguments, Encoder, Notice, RecordKeys, Reply, Script, encode_notice, expiry};
use crate::backend::TaskId;

pub(crate) static INSERT: Lazy<Script<Inserts<'_>, Inserted>> =
    Lazy::new(|| Script::new(include_str!("../../lua/insert.lua")));

/// Takes one record, which has no timer.
pub(crate) static CREATE: Lazy<Script<Create<'_>, Inserted>> =
    Lazy::new(|| Script::new(include_str!("../../lua/create.lua")));

#[derive(Debug)]
pub(crate) struct Create<'a>(pub(crate) &'a Insert);

/// Records to create. Those of one owner stand one after the other, and each task occurs once. All have timers of one queue, or
/// none has a timer.
#[derive(Debug)]
pub(crate) struct Inserts<'a> {
    pub(crate) records: &'a [Insert],
    /// How to notify the takers of the timers; `None` sends no notification.
    pub(crate) notice: Option<Notice>,
}

#[derive(Debug)]
pub(crate) struct Insert {
    pub(crate) keys: RecordKeys,
    pub(crate) id: TaskId,
    pub(crate) data: Bytes,
    /// The milliseconds until the record expires.
    pub(crate) expiry_ms: u64,
    pub(crate) quota: Option<u64>,
    pub(crate) timer: Option<InsertTimer>,
}

/// The timer that the script schedules before it creates the record.
#[derive(Debug)]
pub(crate) struct InsertTimer {
    /// The key of the queue's timers, the same for all records of one script.
    pub(crate) due: String,
    pub(crate) member: String,
    pub(crate) after_ms: u64,
    /// The channel of the takers; `None` sends no notification.
    pub(crate) channel: Option<String>,
}

/// The expiry of each record; `None` for a record that the script left out.
#[derive(Debug)]
pub(crate) struct Inserted(pub(crate) Vec<Option<DateTime<Utc>>>);

impl Arguments for Create<'_> {
    fn key_count(&self) -> usize {
        2
    }

    fn payload(&self) -> usize {
        self.0.data.len()
    }

    fn encode(&self, to: &mut impl Encoder) {
        self.0.keys.encode(to);
        to.arg("id", self.0.id.as_str());
        to.arg("data", &self.0.data[..]);
        to.arg("expiry", self.0.expiry_ms);
        to.arg("quota", self.0.quota.map(|quota| quota.to_string()).unwrap_or_default());
    }
}

impl Inserts<'_> {
    /// Returns the records of each owner.
    fn by_owner(&self) -> impl Iterator<Item = &[Insert]> {
        self.records.chunk_by(|one, next| one.keys.idx == next.keys.idx)
    }

    fn timers(&self) -> impl Iterator<Item = &InsertTimer> {
        self.records.iter().filter_map(|record| record.timer.as_ref())
    }

    fn due(&self) -> Option<&str> {
        self.timers().map(|timer| &timer.due[..]).next()
    }
}

impl Arguments for Inserts<'_> {
    fn key_count(&self) -> usize {
        self.by_owner().count() + self.records.len() + usize::from(self.due().is_some())
    }

    fn payload(&self) -> usize {
        self.records.iter().map(|record| record.data.len()).sum()
    }

    fn encode(&self, to: &mut impl Encoder) {
        for records in self.by_owner() {
            to.key("key", &records[0].keys.idx);
        }
        for record in self.records {
            to.key("key", &record.keys.task);
        }
        if let Some(due) = self.due() {
            to.key("key", due);
        }
        to.arg("owners", self.by_owner().count());
        to.arg("records", self.records.len());
        encode_notice(self.notice.as_ref(), to);
        for records in self.by_owner() {
            // put decides on a record that only the quota of another record forbids.
            let quota = records.iter().filter_map(|record| record.quota).min();
            to.arg("record", quota.map(|quota| quota.to_string()).unwrap_or_default());
            to.arg("record", records.len());
            for record in records {
                to.arg("record", record.id.as_str());
                to.arg("record", &record.data[..]);
                to.arg("record", record.expiry_ms);
            }
        }
        for timer in self.timers() {
            to.arg("record", timer.after_ms);
            to.arg("record", &timer.member);
        }
    }
}

impl Reply for Inserted {
    fn decode(words: &[&str], lists: Vec<Value>) -> Option<Self> {
        let inserted = |word: &&str| match *word {
            "0" => Some(None),
            "" => None,
            expires_at => expiry(expires_at),
        };
        if !lists.is_empty() {
            return None;
        }
        words.iter().map(inserted).collect::<Option<_>>().map(Self)
    }
}
