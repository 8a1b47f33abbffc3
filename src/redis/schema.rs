//! The Redis keys of a record, and the fields of its hash.
//!
//! ```text
//! {prefix}:tasks:{owner}:{task}   hash   version, data, expires_at (ms since the epoch; no field = never),
//!                                        parts (`name=size `, for each), part:NAME
//! {prefix}:idx:{owner}            zset   for each task: its id by creation time (microseconds),
//!                                        and \255 with its id by expires_at (9e12 = never)
//! {prefix}:due:{shard}:{queue}    zset   `owner:task` by due time (ms, with a salt as its fraction)
//! {prefix}:probe                  hash   exists for a moment while a backend connects and probes commands
//!
//! {prefix}:watch:{owner}          channel   `expires_at key` for a write, or `? key` if subscribers must read the record
//! {prefix}:watch::probe           channel   for the messages of probes; with hash tags {prefix}:watch:{{prefix}:probe}
//! {prefix}:wake:{shard}           channel   `? key` of the timers of a queue that has a new earliest timer
//! ```
//!
//! Without hash tags, the timers of all owners are in shard 0. With hash tags there are 16 shards. Each has its number in
//! literal braces, and so a slot of its own; a hash of the owner selects the shard of its timers. With hash tags the owner
//! has literal braces too, so all keys of an owner are in one slot of a cluster. In keys, ids are percent-encoded where
//! they have `:`, `%`, `{`, `}` or control characters. As members of the index they are not encoded.

use std::borrow::Cow;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use redis::Value;

use crate::backend::engine::{Change, from_millis};
use crate::backend::key::{escape, stable_hash, unescape};
use crate::backend::{
    OwnerId, Part, PartName, PartSizes, Queue, Record, StorageError, TaskId, TaskKey, Version,
};
use crate::scripts::{RecordKeys, exact};

/// The fields of a record's hash, in the order of [`StoredFields::read`].
pub(super) const FIELDS: [&str; 4] = ["version", "data", "expires_at", "parts"];
/// The fields that [`StoredPart::read`] needs apart from the bytes of the part.
pub(super) const PART_FIELDS: [&str; 3] = ["version", "expires_at", "parts"];

/// How many shards of timers there are with hash tags. A different number would be a different schema.
const SHARDS: u64 = 16;

const MAX_PREFIX_BYTES: usize = 64;

#[derive(Clone, Debug)]
pub(super) struct Schema {
    prefix: String,
    hash_tags: bool,
}

impl Schema {
    pub(super) fn new(prefix: &str, hash_tags: bool) -> Result<Self, StorageError> {
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if prefix.is_empty() || prefix.len() > MAX_PREFIX_BYTES || !prefix.bytes().all(legal) {
            return Err(StorageError::InvalidKey {
                reason: format!(
                    "the prefix {prefix:?} must be 1 to {MAX_PREFIX_BYTES} characters of A-Z, a-z, 0-9, '.', '_' and '-'"
                ),
            });
        }
        Ok(Self { prefix: prefix.to_owned(), hash_tags })
    }

    /// Returns a key up to its owner, with capacity for `more` bytes.
    fn owned(&self, kind: &str, owner: &OwnerId, more: usize) -> String {
        let (open, close) = if self.hash_tags { ("{", "}") } else { ("", "") };
        let owner = escape(owner.as_str());
        let mut key = String::with_capacity(self.prefix.len() + kind.len() + owner.len() + 4 + more);
        for part in [&self.prefix, ":", kind, ":", open, &owner, close] {
            key.push_str(part);
        }
        key
    }

    pub(super) fn idx(&self, owner: &OwnerId) -> String {
        self.owned("idx", owner, 0)
    }

    /// Returns the channel of the writes of an owner.
    pub(super) fn channel(&self, owner: &OwnerId) -> String {
        self.owned("watch", owner, 0)
    }

    /// Returns the key on which a backend probes commands. No task and no owner has this key.
    pub(super) fn probe(&self) -> String {
        format!("{}:probe", self.prefix)
    }

    /// Returns the channel on which a backend probes messages. No owner has this channel. In a cluster it is in the
    /// slot of the probe's key.
    pub(super) fn probe_channel(&self) -> String {
        match self.hash_tags {
            true => format!("{}:watch:{{{}}}", self.prefix, self.probe()),
            false => format!("{}:watch::probe", self.prefix),
        }
    }

    /// Returns whether all keys of one owner are in one slot, and those of several owners are not.
    pub(super) fn has_hash_tags(&self) -> bool {
        self.hash_tags
    }

    /// Returns how many shards of timers there are.
    pub(super) fn shards(&self) -> u64 {
        if self.hash_tags { SHARDS } else { 1 }
    }

    /// Returns the shard of the timers of an owner.
    pub(super) fn shard(&self, owner: &OwnerId) -> u64 {
        let hash = stable_hash(owner.as_str().bytes());
        // The low bits of the hash depend on the low bits of each byte only.
        (hash ^ (hash >> 32)) % self.shards()
    }

    /// Returns the key of the timers of a queue in this shard.
    pub(super) fn due(&self, shard: u64, queue: &Queue) -> String {
        format!("{}:{}", self.sharded("due", shard), escape(queue.as_str()))
    }

    /// Returns the channel for timers of this shard that became the earliest of their queue.
    pub(super) fn wake(&self, shard: u64) -> String {
        self.sharded("wake", shard)
    }

    fn sharded(&self, kind: &str, shard: u64) -> String {
        let prefix = &self.prefix;
        if self.hash_tags {
            format!("{prefix}:{kind}:{{{shard}}}")
        } else {
            format!("{prefix}:{kind}:{shard}")
        }
    }

    /// Returns the pattern of the index keys of all owners.
    pub(super) fn every_idx(&self) -> String {
        // A valid prefix has no character that is special in a pattern.
        format!("{}:idx:*", self.prefix)
    }

    /// Returns the owner whose index has this key; `None` for a key of another schema.
    pub(super) fn owner_of_idx(&self, key: &[u8]) -> Option<OwnerId> {
        let owner = std::str::from_utf8(key).ok()?.strip_prefix(&self.prefix)?.strip_prefix(":idx:")?;
        let owner = if self.hash_tags { owner.strip_prefix('{')?.strip_suffix('}')? } else { owner };
        OwnerId::try_from(unescape(owner)?).ok()
    }

    /// Returns the pattern of the keys of all records.
    pub(super) fn every_task(&self) -> String {
        format!("{}:tasks:*", self.prefix)
    }

    /// Returns the record whose hash has this key; `None` for a key of another schema.
    pub(super) fn task_of_key(&self, key: &[u8]) -> Option<TaskKey> {
        let rest = std::str::from_utf8(key).ok()?.strip_prefix(&self.prefix)?.strip_prefix(":tasks:")?;
        let (owner, task) = match self.hash_tags {
            true => rest.strip_prefix('{')?.split_once("}:")?,
            false => rest.split_once(':')?,
        };
        Some(TaskKey {
            owner: OwnerId::try_from(unescape(owner)?).ok()?,
            task: TaskId::try_from(unescape(task)?).ok()?,
        })
    }

    /// Returns the pattern of the keys of all timers.
    pub(super) fn every_due(&self) -> String {
        format!("{}:due:*", self.prefix)
    }

    /// Returns the queue whose timers have this key; `None` for a key of another schema.
    pub(super) fn queue_of_due(&self, key: &[u8]) -> Option<Queue> {
        let rest = std::str::from_utf8(key).ok()?.strip_prefix(&self.prefix)?.strip_prefix(":due:")?;
        let (shard, queue) = rest.split_once(':')?;
        let shard = match self.hash_tags {
            true => shard.strip_prefix('{')?.strip_suffix('}')?,
            false => shard,
        };
        shard.parse::<u64>().ok().filter(|shard| *shard < self.shards())?;
        Queue::try_from(unescape(queue)?.as_str()).ok()
    }

    pub(super) fn task(&self, owner: &OwnerId, task: &TaskId) -> String {
        let task = escape(task.as_str());
        let mut key = self.owned("tasks", owner, 1 + task.len());
        key.push(':');
        key.push_str(&task);
        key
    }

    pub(super) fn keys(&self, key: &TaskKey) -> RecordKeys {
        RecordKeys { idx: self.idx(&key.owner), task: self.task(&key.owner, &key.task) }
    }
}

/// The fields of a record's hash, as an `HMGET` of [`FIELDS`] returns them. The record may have expired.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum StoredFields {
    Absent,
    Record(Record),
    /// A field cannot be read. Such a record still expires if its `expires_at` can be read.
    Corrupt {
        reason: Cow<'static, str>,
        expires_at: Option<DateTime<Utc>>,
    },
}

impl StoredFields {
    pub(super) fn expires_at(&self) -> Option<DateTime<Utc>> {
        match self {
            Self::Absent => None,
            Self::Record(record) => record.expires_at,
            Self::Corrupt { expires_at, .. } => *expires_at,
        }
    }

    fn corrupt(reason: &'static str, expires_at: Option<DateTime<Utc>>) -> Self {
        Self::Corrupt { reason: reason.into(), expires_at }
    }

    /// Reads the reply; `None` if it is not the reply to an `HMGET` of these fields.
    pub(super) fn read(reply: Value) -> Option<Self> {
        let Value::Array(fields) = reply else { return None };
        let [version, data, expires_at, parts] = <[Value; 4]>::try_from(fields).ok()?;
        if [&version, &data, &expires_at].into_iter().all(|field| *field == Value::Nil) {
            return Some(Self::Absent);
        }
        let (version, expires_at) = match version_and_expiry(&version, &expires_at) {
            Ok(read) => read,
            Err((reason, expires_at)) => return Some(Self::corrupt(reason, expires_at)),
        };
        let Value::BulkString(data) = data else {
            return Some(Self::corrupt("the field data is missing", expires_at));
        };
        let Some(parts) = part_sizes(&parts) else {
            return Some(Self::corrupt(UNREADABLE_PARTS, expires_at));
        };
        Some(Self::Record(Record { data: Bytes::from(data), version, expires_at, parts }))
    }
}

/// A part, as an `HMGET` of [`PART_FIELDS`] and its bytes returns it. Its record may have expired.
#[derive(Debug)]
pub(super) enum StoredPart {
    Absent,
    Found {
        /// `None` if the record has no such part.
        part: Option<Part>,
        expires_at: Option<DateTime<Utc>>,
    },
    Corrupt {
        reason: &'static str,
        expires_at: Option<DateTime<Utc>>,
    },
}

impl StoredPart {
    /// Reads the reply; `None` if it is not the reply to an `HMGET` of these fields.
    pub(super) fn read(reply: Value, name: &PartName) -> Option<Self> {
        let Value::Array(fields) = reply else { return None };
        let [version, expires_at, parts, bytes] = <[Value; 4]>::try_from(fields).ok()?;
        if [&version, &expires_at, &parts, &bytes].into_iter().all(|field| *field == Value::Nil) {
            return Some(Self::Absent);
        }
        let (version, expires_at) = match version_and_expiry(&version, &expires_at) {
            Ok(read) => read,
            Err((reason, expires_at)) => return Some(Self::Corrupt { reason, expires_at }),
        };
        let Some(parts) = part_sizes(&parts) else {
            return Some(Self::Corrupt { reason: UNREADABLE_PARTS, expires_at });
        };
        let part = match (parts.get(name), bytes) {
            (None, _) => None,
            (Some(size), Value::BulkString(data)) if data.len() == *size => {
                Some(Part { data: Bytes::from(data), version })
            }
            (Some(_), _) => {
                let reason = "the bytes of a part are missing, or of another size than the field parts says";
                return Some(Self::Corrupt { reason, expires_at });
            }
        };
        Some(Self::Found { part, expires_at })
    }
}

const UNREADABLE_PARTS: &str = "the field parts is not a list of names and sizes";

type VersionAndExpiry = (Version, Option<DateTime<Utc>>);
/// The reason why fields cannot be read, and their expiry, if that can be read.
type CorruptField = (&'static str, Option<DateTime<Utc>>);

fn version_and_expiry(version: &Value, expires_at: &Value) -> Result<VersionAndExpiry, CorruptField> {
    let expires_at = match number(expires_at) {
        Ok(millis) => millis.map(from_millis),
        Err(Unreadable) => return Err(("the field expires_at is not a time in milliseconds", None)),
    };
    match number(version) {
        Ok(Some(version)) => Ok((version.into(), expires_at)),
        _ => Err(("the field version is missing or not an integer from 1 to 2^53 - 1", expires_at)),
    }
}

/// Reads the field `parts` by the rule of `lua/include/found.lua`: for each part its name, `=`, 1 to 10 digits, and a space.
fn part_sizes(field: &Value) -> Option<PartSizes> {
    let text = match field {
        Value::Nil => return Some(PartSizes::new()),
        Value::BulkString(text) => std::str::from_utf8(text).ok()?,
        _ => return None,
    };
    let listed = text.split_inclusive(' ').map(|part| {
        let (name, size) = part.strip_suffix(' ')?.split_once('=')?;
        let is_number = (1..=10).contains(&size.len()) && size.bytes().all(|byte| byte.is_ascii_digit());
        Some((PartName::try_from(name.to_owned()).ok()?, size.parse().ok().filter(|_| is_number)?))
    });
    listed.collect()
}

/// Reads a message of an owner's channel: the key that was written, and the change.
pub(super) fn read_message(message: &[u8]) -> Option<(&str, Change)> {
    let (expires_at, key) = std::str::from_utf8(message).ok()?.split_once(' ')?;
    let signal = match (expires_at, exact(expires_at)) {
        ("", _) => Change::Written(None),
        (_, Some(millis)) => Change::Written(Some(from_millis(millis))),
        _ => Change::Unknown,
    };
    Some((key, signal))
}

struct Unreadable;

/// Reads a field that holds a number; `None` without the field.
fn number(field: &Value) -> Result<Option<u64>, Unreadable> {
    match field {
        Value::Nil => Ok(None),
        Value::BulkString(text) => std::str::from_utf8(text).ok().and_then(exact).map(Some).ok_or(Unreadable),
        _ => Err(Unreadable),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.into())
    }

    #[test]
    fn keys_are_as_documented() {
        let key = TaskKey::new("alice", "t:1").unwrap();
        let keys = Schema::new("pmcp", false).unwrap().keys(&key);
        assert_eq!([keys.task, keys.idx], ["pmcp:tasks:alice:t%3A1", "pmcp:idx:alice"]);
        assert_eq!(Schema::new("pmcp", false).unwrap().channel(&key.owner), "pmcp:watch:alice");
        assert_eq!(Schema::new("pmcp", true).unwrap().channel(&key.owner), "pmcp:watch:{alice}");
        let tagged = Schema::new("pmcp", true).unwrap().keys(&key);
        assert_eq!([tagged.task, tagged.idx], ["pmcp:tasks:{alice}:t%3A1", "pmcp:idx:{alice}"]);
    }

    #[test]
    fn the_keys_of_timers_are_as_documented() {
        let queue = Queue::try_from("work/a:{b}").unwrap();
        let single = Schema::new("pmcp", false).unwrap();
        assert_eq!(single.due(0, &queue), "pmcp:due:0:work/a%3A%7Bb%7D");
        assert_eq!(single.wake(0), "pmcp:wake:0");
        assert_eq!([single.probe(), single.probe_channel()], ["pmcp:probe", "pmcp:watch::probe"]);
        let tagged = Schema::new("pmcp", true).unwrap();
        assert_eq!(tagged.due(3, &queue), "pmcp:due:{3}:work/a%3A%7Bb%7D");
        assert_eq!(tagged.wake(3), "pmcp:wake:{3}");
        assert_eq!([tagged.probe(), tagged.probe_channel()], ["pmcp:probe", "pmcp:watch:{pmcp:probe}"]);
    }

    #[test]
    fn an_owner_has_the_same_shard_in_every_version_of_the_crate_and_owners_are_spread() {
        let (single, tagged) = (Schema::new("pmcp", false).unwrap(), Schema::new("pmcp", true).unwrap());
        let shards: Vec<u64> =
            ["alice", "bob", "carol"].iter().map(|&id| tagged.shard(&id.try_into().unwrap())).collect();
        assert_eq!(shards, [12, 13, 9]);
        let mut owners = [0; 16];
        for number in 0..1600 {
            let owner = OwnerId::try_from(format!("owner-{number}")).unwrap();
            assert_eq!(single.shard(&owner), 0);
            owners[tagged.shard(&owner) as usize] += 1;
        }
        assert!(owners.iter().all(|count| (50..200).contains(count)), "{owners:?}");
    }

    #[rstest]
    #[case::plain(false, "alice", "pmcp:idx:alice")]
    #[case::escaped(false, "a:{b}", "pmcp:idx:a%3A%7Bb%7D")]
    #[case::tagged(true, "a:{b}", "pmcp:idx:{a%3A%7Bb%7D}")]
    fn an_owner_is_read_from_the_key_of_its_index(
        #[case] tags: bool,
        #[case] owner: &str,
        #[case] key: &str,
    ) {
        let (schema, owner) = (Schema::new("pmcp", tags).unwrap(), OwnerId::try_from(owner).unwrap());
        assert_eq!(schema.idx(&owner), key);
        assert_eq!(schema.owner_of_idx(key.as_bytes()), Some(owner));
        let other = Schema::new("pmcp", !tags).unwrap().owner_of_idx(key.as_bytes());
        assert!(other.is_none() || !tags);
        for foreign in ["pmcp:idx:", "pmcp:idx:{}", "pmcp:tasks:alice", "other:idx:alice", "pmcp:idx:a%3a"] {
            assert_eq!(schema.owner_of_idx(foreign.as_bytes()), None, "{foreign}");
        }
        assert_eq!(schema.owner_of_idx(b"pmcp:idx:\xff"), None);
    }

    #[rstest]
    #[case::plain(false, "alice", "t1")]
    #[case::escaped(false, "a:{b}", "t:{1}")]
    #[case::tagged(true, "a:{b}", "}:t%1")]
    fn a_record_is_read_from_the_key_of_its_hash(
        #[case] tags: bool,
        #[case] owner: &str,
        #[case] task: &str,
    ) {
        let (schema, key) = (Schema::new("pmcp", tags).unwrap(), TaskKey::new(owner, task).unwrap());
        assert_eq!(schema.task_of_key(schema.keys(&key).task.as_bytes()), Some(key));
        for foreign in ["pmcp:tasks:alice", "pmcp:tasks::t1", "pmcp:idx:a", "other:tasks:alice:t1"] {
            assert_eq!(schema.task_of_key(foreign.as_bytes()), None, "{foreign}");
        }
    }

    #[rstest]
    #[case::single(false)]
    #[case::tagged(true)]
    fn a_queue_is_read_from_the_key_of_its_timers(#[case] tags: bool) {
        let (schema, queue) =
            (Schema::new("pmcp", tags).unwrap(), Queue::try_from("work/a:{b}\0low").unwrap());
        assert_eq!(schema.queue_of_due(schema.due(0, &queue).as_bytes()), Some(queue));
        for foreign in ["pmcp:due:0", "pmcp:due:x:leases", "pmcp:due:99:leases", "pmcp:idx:0:leases"] {
            assert_eq!(schema.queue_of_due(foreign.as_bytes()), None, "{foreign}");
        }
    }

    #[rstest]
    #[case::shortest("a")]
    #[case::all_kinds("My_app-2.0")]
    #[case::longest(&"x".repeat(64))]
    fn a_legal_prefix_is_accepted(#[case] prefix: &str) {
        Schema::new(prefix, false).unwrap();
    }

    #[rstest]
    #[case::empty("")]
    #[case::too_long(&"x".repeat(65))]
    #[case::colon("a:b")]
    #[case::brace("{a}")]
    #[case::glob("a*")]
    #[case::not_ascii("é")]
    fn an_invalid_prefix_is_refused(#[case] prefix: &str) {
        assert!(matches!(Schema::new(prefix, false), Err(StorageError::InvalidKey { .. })));
    }

    #[rstest]
    #[case::expires("1795000000000 pmcp:tasks:a:b c", Some("Written(Some(2026-11-18"))]
    #[case::never_expires(" pmcp:tasks:a:b c", Some("Written(None)"))]
    #[case::deleted("? pmcp:tasks:a:b c", Some("Unknown"))]
    #[case::not_a_time("soon pmcp:tasks:a:b c", Some("Unknown"))]
    #[case::no_key("nothing", None)]
    fn a_message_says_what_was_written_and_when_it_expires(
        #[case] message: &str,
        #[case] says: Option<&str>,
    ) {
        let read = read_message(message.as_bytes());
        assert_eq!(read.as_ref().map(|(key, _)| *key), says.map(|_| "pmcp:tasks:a:b c"));
        let signal = read.map(|(_, signal)| match signal {
            Change::Written(expires_at) => format!("Written({expires_at:?})"),
            Change::Unknown => "Unknown".to_owned(),
            Change::Failed(_) => "Failed".to_owned(),
        });
        assert!(signal.as_deref().unwrap_or_default().starts_with(says.unwrap_or_default()), "{signal:?}");
    }

    #[rstest]
    #[case::nothing(Value::Nil, Value::Nil, Value::Nil, "Absent")]
    #[case::never_expires(bulk("1"), bulk("x"), Value::Nil, "Record")]
    #[case::expires(bulk("9007199254740991"), bulk(""), bulk("1795000000000"), "Record")]
    #[case::no_version(Value::Nil, bulk("x"), Value::Nil, "Corrupt { reason: \"the field version")]
    #[case::version_zero(bulk("0"), bulk("x"), Value::Nil, "Corrupt { reason: \"the field version")]
    #[case::version_with_a_leading_zero(
        bulk("01"),
        bulk("x"),
        Value::Nil,
        "Corrupt { reason: \"the field version"
    )]
    #[case::version_signed(bulk("+1"), bulk("x"), Value::Nil, "Corrupt { reason: \"the field version")]
    #[case::version_as_a_float(bulk("1e15"), bulk("x"), Value::Nil, "Corrupt { reason: \"the field version")]
    #[case::version_too_large(
        bulk("9007199254740992"),
        bulk("x"),
        Value::Nil,
        "Corrupt { reason: \"the field version"
    )]
    #[case::no_data(bulk("1"), Value::Nil, Value::Nil, "Corrupt { reason: \"the field data")]
    #[case::text_in_expires_at(
        bulk("1"),
        bulk("x"),
        bulk("soon"),
        "Corrupt { reason: \"the field expires_at"
    )]
    fn a_hash_is_read_strictly(
        #[case] version: Value,
        #[case] data: Value,
        #[case] expires_at: Value,
        #[case] becomes: &str,
    ) {
        let stored = StoredFields::read(Value::Array(vec![version, data, expires_at, Value::Nil])).unwrap();
        assert!(format!("{stored:?}").starts_with(becomes), "{stored:?}");
    }

    #[rstest]
    #[case::none("", Some(vec![]))]
    #[case::one("input=4097 ", Some(vec![("input", 4097)]))]
    #[case::two("output=0 a_1=1234567890 ", Some(vec![("a_1", 1_234_567_890), ("output", 0)]))]
    #[case::no_space_behind("input=1", None)]
    #[case::no_size("input= ", None)]
    #[case::signed("input=+1 ", None)]
    #[case::too_long("input=12345678901 ", None)]
    #[case::no_name("=1 ", None)]
    #[case::illegal_name("In=1 ", None)]
    #[case::two_spaces("a=1  b=2 ", None)]
    fn the_parts_of_a_record_are_read_strictly(
        #[case] field: &str,
        #[case] sizes: Option<Vec<(&str, usize)>>,
    ) {
        let named = |(name, size): (&str, usize)| (PartName::try_from(name.to_owned()).unwrap(), size);
        let sizes = sizes.map(|sizes| sizes.into_iter().map(named).collect());
        assert_eq!(part_sizes(&bulk(field)), sizes);
        let stored =
            StoredFields::read(Value::Array(vec![bulk("1"), bulk("x"), Value::Nil, bulk(field)])).unwrap();
        assert_eq!(matches!(stored, StoredFields::Corrupt { .. }), sizes.is_none(), "{stored:?}");
    }

    #[rstest]
    #[case::found(
        bulk("1"),
        bulk("a=2 "),
        bulk("xy"),
        "Found { part: Some(Part { data: b\"xy\", version: Version(1) })"
    )]
    #[case::another_part_only(bulk("1"), bulk("b=2 "), Value::Nil, "Found { part: None")]
    #[case::no_parts(bulk("1"), Value::Nil, Value::Nil, "Found { part: None")]
    #[case::nothing(Value::Nil, Value::Nil, Value::Nil, "Absent")]
    #[case::no_version(Value::Nil, bulk("a=2 "), bulk("xy"), "Corrupt { reason: \"the field version")]
    #[case::unreadable_parts(bulk("1"), bulk("a"), bulk("xy"), "Corrupt { reason: \"the field parts")]
    #[case::no_bytes(bulk("1"), bulk("a=2 "), Value::Nil, "Corrupt { reason: \"the bytes of a part")]
    #[case::another_size(bulk("1"), bulk("a=2 "), bulk("x"), "Corrupt { reason: \"the bytes of a part")]
    fn a_part_is_read_strictly(
        #[case] version: Value,
        #[case] parts: Value,
        #[case] bytes: Value,
        #[case] becomes: &str,
    ) {
        let reply = Value::Array(vec![version, Value::Nil, parts, bytes]);
        let stored = StoredPart::read(reply, &PartName::from_static("a")).unwrap();
        assert!(format!("{stored:?}").starts_with(becomes), "{stored:?}");
    }
}
