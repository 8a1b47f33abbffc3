//! Keys of the Redis engine, and states of them that no call of the contract creates or shows.

use std::collections::BTreeMap;

use crate::support::redis::Namespace;
use crate::support::{Engine, Store, after_ms, in_an_hour, keep, key, never, owner};
use chrono::TimeDelta;
use mcp_task_store::{PageRequest, PartName, PartSizes, StorageBackend, StorageError, Version};
use rstest::rstest;

const PART: PartName = PartName::from_static("input");
const OTHER: PartName = PartName::from_static("output");

fn version(number: u64) -> Version {
    Version::from(number)
}

fn sizes<const N: usize>(parts: [(PartName, usize); N]) -> PartSizes {
    parts.into()
}

async fn open() -> Store {
    Engine::Redis.open().await
}

fn redis(store: &Store) -> &Namespace {
    store.redis.as_ref().unwrap()
}

/// The expiry of an index key in milliseconds since the epoch; -1 for none, -2 for no key. Redis 7 has a command for
/// this. The calculation here works on 6.2 too.
fn expires(store: &Store, key: &str) -> i64 {
    let script = "local t = redis.call('TIME') local left = redis.call('PTTL', KEYS[1]) \
                  return left < 0 and left or t[1] * 1000 + math.floor(t[2] / 1000) + left";
    redis(store).run(&["EVAL", script, "1", &format!("{{}}:{key}")])
}

fn assert_index_expires(store: &Store, at: Option<i64>) {
    let expires = expires(store, "idx:alice");
    // Reading the clock and the remaining time takes a moment.
    assert!(at.map_or(expires == -1, |at| (expires - at).abs() <= 20), "{expires}, not {at:?}");
}

#[tokio::test]
async fn keys_fields_and_expiry_are_as_documented() {
    let store = open().await;
    let never_expires = key("alice", "t1");
    store.put(&never_expires, "data".into(), keep()).await.unwrap();
    assert_eq!(redis(&store).keys(), ["idx:alice", "tasks:alice:t1"]);
    let expires = store.put(&key("alice", "a:b"), "data".into(), in_an_hour()).await.unwrap();
    assert_eq!(redis(&store).keys(), ["idx:alice", "tasks:alice:a%3Ab", "tasks:alice:t1"]);
    let fields: Vec<String> = redis(&store).run(&["HGETALL", "{}:tasks:alice:t1"]);
    assert_eq!(fields, ["version", "1", "data", "data"]);
    let at = expires.expires_at.unwrap().timestamp_millis();
    let fields: Vec<String> = redis(&store).run(&["HGETALL", "{}:tasks:alice:a%3Ab"]);
    assert_eq!(fields, ["version", "1", "data", "data", "expires_at", &at.to_string()]);
    let left: i64 = redis(&store).run(&["PTTL", "{}:tasks:alice:a%3Ab"]);
    assert!((3_590_000..=3_600_001).contains(&left));
    let members: Vec<(Vec<u8>, i64)> = redis(&store).run(&["ZRANGE", "{}:idx:alice", "0", "1", "WITHSCORES"]);
    assert_eq!(members, [(b"\xffa:b".to_vec(), at), (b"\xfft1".to_vec(), 9_000_000_000_000)]);
    let members: Vec<(Vec<u8>, i64)> =
        redis(&store).run(&["ZRANGE", "{}:idx:alice", "2", "-1", "WITHSCORES"]);
    let page = store.list(&owner("alice"), PageRequest::new(2)).await.unwrap();
    let created = |at: usize| page.records[at].created_at.timestamp_micros();
    assert_eq!(members, [(b"t1".to_vec(), created(1)), (b"a:b".to_vec(), created(0))]);

    let options = keep().set_part(PartName::from_static("output"), "12345").set_part(PART, "");
    store.put(&never_expires, "data".into(), options).await.unwrap();
    let fields: BTreeMap<String, String> = redis(&store).run(&["HGETALL", "{}:tasks:alice:t1"]);
    assert_eq!(fields.len(), 5);
    assert_eq!((&*fields["part:output"], &*fields["part:input"]), ("12345", ""));
    let mut parts: Vec<&str> = fields["parts"].split_inclusive(' ').collect();
    parts.sort_unstable();
    assert_eq!(parts, ["input=0 ", "output=5 "]);
}

#[tokio::test]
async fn with_hash_tags_the_owner_is_in_braces_in_each_key() {
    let namespace = Namespace::new();
    let backend = namespace.builder().hash_tags(true).connect(&namespace.url()).await.unwrap();
    backend.put(&key("{a}", "t1"), "data".into(), in_an_hour()).await.unwrap();
    assert_eq!(namespace.keys(), ["idx:{%7Ba%7D}", "tasks:{%7Ba%7D}:t1"]);
    assert_eq!(backend.list(&owner("{a}"), PageRequest::new(1)).await.unwrap().records.len(), 1);
    let plain = namespace.backend().await;
    assert_refused!(plain.get(&key("{a}", "t1")).await, StorageError::NotFound { .. });
}

#[tokio::test]
async fn the_server_itself_never_returns_an_expired_record() {
    let store = open().await;
    for round in 0..20 {
        let key = key("alice", &round.to_string());
        let at = store.put(&key, "data".into(), after_ms(3)).await.unwrap().expires_at.unwrap();
        let redis = redis(&store);
        loop {
            // The test reads the clock first. So a record that it then finds was returned at this time or later.
            let (seconds, micros): (i64, i64) = redis.run(&["TIME"]);
            let found: i64 = redis.run(&["EXISTS", &format!("{{}}:tasks:alice:{round}")]);
            if found == 0 {
                break;
            }
            assert!(seconds * 1000 + micros / 1000 < at.timestamp_millis());
        }
    }
}

#[tokio::test]
async fn a_record_still_expires_after_its_expiry_on_the_server_was_removed_by_hand() {
    let (store, key) = (open().await, key("alice", "t1"));
    let written = store.put(&key, "old".into(), after_ms(50).set_part(PART, "old")).await.unwrap();
    let kept: i64 = redis(&store).run(&["PERSIST", "{}:tasks:alice:t1"]);
    assert_eq!(kept, 1);
    let _: i64 = redis(&store).run(&["PERSIST", "{}:idx:alice"]);
    let _: i64 = redis(&store).run(&["HSET", "{}:tasks:alice:t1", "by_hand", "1"]);
    store.until(written.expires_at.unwrap()).await;
    assert_refused!(store.get(&key).await, StorageError::NotFound { .. });
    assert_refused!(store.part(&key, &PART).await, StorageError::NotFound { .. });
    assert!(store.ids("alice").await.is_empty());
    let put = store.put_if_version(&key, "lost".into(), keep(), Version::FIRST).await;
    assert_refused!(put, StorageError::NotFound { .. });
    let written = store.put(&key, "new".into(), after_ms(60_000).set_part(OTHER, "new")).await.unwrap();
    assert_eq!(written.version, Version::FIRST);
    let fields: Vec<String> = redis(&store).run(&["HKEYS", "{}:tasks:alice:t1"]);
    assert_eq!(fields, ["version", "data", "part:output", "parts", "expires_at"]);
    assert_eq!(store.get(&key).await.unwrap().parts, sizes([(OTHER, 3)]));
    assert_eq!(store.ids("alice").await, ["t1"]);
    let _: i64 = redis(&store).run(&["HSET", "{}:tasks:alice:t1", "expires_at", "1"]);
    assert!(!store.delete(&key).await.unwrap());
    assert!(redis(&store).keys().is_empty());
}

#[tokio::test]
async fn a_new_record_that_never_expires_does_not_inherit_the_expiry_of_an_expired_record() {
    let (store, key) = (open().await, key("alice", "t1"));
    let _: i64 = redis(&store).run(&["HSET", "{}:tasks:alice:t1", "by_hand", "1"]);
    let _: i64 = redis(&store).run(&["EXPIRE", "{}:tasks:alice:t1", "1000"]);
    store.put(&key, "data".into(), never()).await.unwrap();
    let left: i64 = redis(&store).run(&["TTL", "{}:tasks:alice:t1"]);
    assert_eq!(left, -1);
}

#[tokio::test]
async fn no_key_is_left_when_the_last_record_is_deleted_or_has_expired() {
    let store = open().await;
    for options in [keep(), in_an_hour()] {
        for task in ["t1", "t2"] {
            store.put(&key("alice", task), "data".into(), options.clone()).await.unwrap();
        }
        store.delete(&key("alice", "t1")).await.unwrap();
        store.delete(&key("alice", "t2")).await.unwrap();
        assert!(redis(&store).keys().is_empty());
    }
    let mut last = None;
    for task in 0..50 {
        let key = key("alice", &task.to_string());
        last = last.max(store.put(&key, "data".into(), after_ms(40 + task)).await.unwrap().expires_at);
    }
    store.until(last.unwrap() + TimeDelta::milliseconds(2)).await;
    // The test does not wait for the server to reclaim the memory. A key that `EXISTS` does not find has expired.
    let held: i64 = redis(&store).run(&["EXISTS", "{}:idx:alice", "{}:tasks:alice:49"]);
    assert_eq!(held, 0);
}

#[tokio::test]
async fn no_key_is_left_when_the_other_records_have_expired_after_a_delete_of_the_longest_lived_one() {
    let store = open().await;
    for (task, options) in [("short", after_ms(40)), ("long", after_ms(60)), ("longest", in_an_hour())] {
        store.put(&key("alice", task), "data".into(), options).await.unwrap();
    }
    let last = store.get(&key("alice", "long")).await.unwrap().expires_at.unwrap();
    assert!(store.delete(&key("alice", "longest")).await.unwrap());
    store.until(last + TimeDelta::milliseconds(2)).await;
    let held: i64 =
        redis(&store).run(&["EXISTS", "{}:idx:alice", "{}:tasks:alice:short", "{}:tasks:alice:long"]);
    assert_eq!(held, 0);
}

#[tokio::test]
async fn the_index_expires_with_the_longest_lived_record() {
    let store = open().await;
    let ms = |written: mcp_task_store::Written| Some(written.expires_at.unwrap().timestamp_millis() - 1);
    let put = async |task: &str, options| store.put(&key("alice", task), "x".into(), options).await;
    let hour = ms(put("hour", in_an_hour()).await.unwrap());
    assert_index_expires(&store, hour);
    put("minute", after_ms(60_000)).await.unwrap();
    assert_index_expires(&store, hour);
    let day = ms(put("day", after_ms(86_400_000)).await.unwrap());
    assert_index_expires(&store, day);
    put("never", never()).await.unwrap();
    assert_index_expires(&store, None);
    put("day", after_ms(86_400_000)).await.unwrap();
    assert_index_expires(&store, None);
    // The expiry is set again when the longest-lived record is deleted, or rewritten by `put` or `put_if_version`.
    let day = ms(put("day", after_ms(86_400_000)).await.unwrap());
    assert!(store.delete(&key("alice", "never")).await.unwrap());
    assert_index_expires(&store, day);
    put("day", never()).await.unwrap();
    assert_index_expires(&store, None);
    let version = store.get(&key("alice", "day")).await.unwrap().version;
    let two = after_ms(7_200_000);
    let two = ms(store.put_if_version(&key("alice", "day"), "x".into(), two, version).await.unwrap());
    assert_index_expires(&store, two);
    put("day", after_ms(1_000)).await.unwrap();
    assert_index_expires(&store, hour);
    assert!(store.delete(&key("alice", "minute")).await.unwrap());
    assert_index_expires(&store, hour);
    let late = after_ms(30_000);
    let late = ms(store.put(&key("alice", "late"), "x".into(), late).await.unwrap());
    assert!(store.delete(&key("alice", "hour")).await.unwrap());
    assert_index_expires(&store, late);
    // The expiry is exact to the millisecond. On some versions the clock advances between two commands of a script, so
    // the median counts.
    let script = "return redis.call('PTTL', KEYS[1]) - redis.call('PTTL', KEYS[2])";
    let eval = ["EVAL", script, "2", "{}:idx:alice", "{}:tasks:alice:late"];
    let mut samples: Vec<i64> = std::iter::repeat_with(|| redis(&store).run(&eval)).take(9).collect();
    samples.sort_unstable();
    assert_eq!(samples[4], 0, "{samples:?}");
}

#[tokio::test]
async fn an_insert_removes_members_of_expired_records_in_bounded_batches() {
    let store = open().await;
    store.put(&key("alice", "stays"), "data".into(), in_an_hour()).await.unwrap();
    let mut last = None;
    for task in 0..100 {
        let key = key("alice", &task.to_string());
        last = last.max(store.put(&key, "data".into(), after_ms(30)).await.unwrap().expires_at);
    }
    store.until(last.unwrap()).await;
    let mut held = vec![redis(&store).run::<i64>(&["ZCARD", "{}:idx:alice"])];
    for round in 0..4 {
        store.put(&key("alice", &format!("new-{round}")), "data".into(), in_an_hour()).await.unwrap();
        held.push(redis(&store).run::<i64>(&["ZCARD", "{}:idx:alice"]));
    }
    assert_eq!(held.last(), Some(&10), "two members for each record");
    assert!(held.windows(2).all(|pair| pair[0] - pair[1] <= 62), "{held:?}");
}

#[tokio::test]
async fn the_next_writes_rebuild_a_lost_index_and_it_is_removed_with_their_records() {
    let store = open().await;
    let mut last = None;
    for task in 0..5 {
        let key = key("alice", &task.to_string());
        last = last.max(store.put(&key, "data".into(), after_ms(300)).await.unwrap().expires_at);
    }
    let _: i64 = redis(&store).run(&["DEL", "{}:idx:alice"]);
    let written = store.put(&key("alice", "0"), "data".into(), after_ms(400)).await.unwrap();
    assert_eq!(written.version, version(2));
    assert_eq!(store.ids("alice").await, ["0"]);
    assert_index_expires(&store, written.expires_at.map(|at| at.timestamp_millis() - 1));
    store.until(written.expires_at.max(last).unwrap()).await;
    assert!(redis(&store).keys().is_empty());
}

/// Somebody may remove members by hand.
#[rstest]
#[case::by_creation(["ZREMRANGEBYSCORE", "{}:idx:alice", "100000000000000", "+inf"])]
#[case::by_expiry(["ZREMRANGEBYSCORE", "{}:idx:alice", "-inf", "100000000000000"])]
#[tokio::test]
async fn an_index_that_lost_half_of_its_members_is_still_removed_with_the_last_record(
    #[case] damage: [&str; 4],
) {
    let store = open().await;
    let mut last = None;
    for task in 0..5 {
        let key = key("alice", &task.to_string());
        last = last.max(store.put(&key, "data".into(), after_ms(300)).await.unwrap().expires_at);
    }
    assert_eq!(redis(&store).run::<i64>(&damage), 5);
    let written = store.put(&key("alice", "0"), "data".into(), after_ms(400)).await.unwrap();
    assert_eq!(written.version, version(2));
    store.until(last.unwrap()).await;
    let last = store.put(&key("alice", "new"), "data".into(), after_ms(300)).await.unwrap().expires_at;
    assert_eq!(store.ids("alice").await, ["new", "0"]);
    store.until(written.expires_at.max(last).unwrap()).await;
    assert!(redis(&store).keys().is_empty());
}

#[tokio::test]
async fn cleanup_does_nothing_and_returns_0() {
    let store = open().await;
    store.put_expired(&key("alice", "t1")).await;
    assert_eq!(store.cleanup_expired().await.unwrap(), 0);
}

#[tokio::test]
async fn a_write_over_the_last_version_is_version_exhausted() {
    let (store, key) = (open().await, key("alice", "t1"));
    store.put(&key, "old".into(), keep()).await.unwrap();
    let near = ["HSET", "{}:tasks:alice:t1", "version", "9007199254740989"];
    let _: i64 = redis(&store).run(&near);
    let put = store.put(&key, "data".into(), in_an_hour()).await.unwrap();
    assert_eq!(put.version.get(), 9_007_199_254_740_990);
    let last = store.put_if_version(&key, "last".into(), keep(), put.version).await.unwrap();
    assert_eq!(last.version, Version::MAX);
    let stored: String = redis(&store).run(&["HGET", "{}:tasks:alice:t1", "version"]);
    assert_eq!(stored, "9007199254740991");
    for refused in [
        store.put(&key, "new".into(), keep()).await,
        store.put_if_version(&key, "new".into(), never(), Version::MAX).await,
    ] {
        assert_refused!(refused, StorageError::VersionExhausted { .. });
    }
    assert_eq!(store.get(&key).await.unwrap().data, "last");
    assert!(store.delete(&key).await.unwrap());
}

#[tokio::test]
async fn versions_that_lua_would_write_with_an_exponent_are_exact() {
    let (store, key) = (open().await, key("alice", "t1"));
    store.put(&key, "data".into(), keep()).await.unwrap();
    for start in ["99999999999999", "999999999999999", "123456789012345"] {
        let _: i64 = redis(&store).run(&["HSET", "{}:tasks:alice:t1", "version", start]);
        let before = version(start.parse().unwrap());
        let written = store.put(&key, "data".into(), keep()).await.unwrap();
        assert_eq!(Some(written.version), before.next());
        let written = store.put_if_version(&key, "data".into(), keep(), written.version).await.unwrap();
        assert_eq!(store.get(&key).await.unwrap().version, written.version);
    }
}

#[tokio::test]
async fn creation_times_increase_after_the_servers_clock_steps_back() {
    let store = open().await;
    store.put(&key("alice", "before"), "data".into(), keep()).await.unwrap();
    // The record has the creation time of a clock that was a day ahead.
    let ahead = (store.now() + TimeDelta::days(1)).timestamp_micros();
    let _: i64 = redis(&store).run(&["ZADD", "{}:idx:alice", &ahead.to_string(), "before"]);
    for task in ["after", "and after"] {
        store.put(&key("alice", task), "data".into(), in_an_hour()).await.unwrap();
    }
    let records = store.walk(&owner("alice"), 1).await;
    let listed: Vec<_> =
        records.iter().map(|record| (record.task.as_str(), record.created_at.timestamp_micros())).collect();
    assert_eq!(listed, [("and after", ahead + 2), ("after", ahead + 1), ("before", ahead)]);
}

#[rstest]
#[case::no_version(&["HDEL", "{}:tasks:alice:bad", "version"])]
#[case::version_is_text(&["HSET", "{}:tasks:alice:bad", "version", "one"])]
#[case::version_is_zero(&["HSET", "{}:tasks:alice:bad", "version", "0"])]
#[case::version_is_a_float(&["HSET", "{}:tasks:alice:bad", "version", "1e3"])]
#[case::version_is_too_large(&["HSET", "{}:tasks:alice:bad", "version", "9007199254740992"])]
#[case::version_is_far_too_large(&["HSET", "{}:tasks:alice:bad", "version", "18446744073709551616"])]
#[case::version_is_no_text(&["EVAL", "redis.call('HSET', KEYS[1], 'version', '7\\255\\n\"\\0')", "1", "{}:tasks:alice:bad"])]
#[case::no_data(&["HDEL", "{}:tasks:alice:bad", "data"])]
#[case::text_in_expires_at(&["HSET", "{}:tasks:alice:bad", "expires_at", "tomorrow"])]
#[case::a_float_in_expires_at(&["HSET", "{}:tasks:alice:bad", "expires_at", "1e3"])]
#[case::a_space_in_expires_at(&["HSET", "{}:tasks:alice:bad", "expires_at", " 4000000000000"])]
#[case::expires_at_is_too_large(&["HSET", "{}:tasks:alice:bad", "expires_at", "9007199254740992"])]
#[case::expires_at_is_no_text(&["EVAL", "redis.call('HSET', KEYS[1], 'expires_at', '7\\255\\n')", "1", "{}:tasks:alice:bad"])]
#[case::text_in_parts(&["HSET", "{}:tasks:alice:bad", "parts", "input"])]
#[case::no_space_behind_a_part(&["HSET", "{}:tasks:alice:bad", "parts", "input=1"])]
#[case::parts_are_no_text(&["EVAL", "redis.call('HSET', KEYS[1], 'parts', 'a\\255=1 ')", "1", "{}:tasks:alice:bad"])]
#[case::nothing_in_expires_at(&["HSET", "{}:tasks:alice:bad", "expires_at", ""])]
#[case::a_string(&["SET", "{}:tasks:alice:bad", "text"])]
#[case::a_list(&["EVAL", "redis.call('DEL', KEYS[1]) redis.call('RPUSH', KEYS[1], 'a')", "1", "{}:tasks:alice:bad"])]
#[tokio::test]
async fn a_damaged_record_is_corrupt_and_affects_no_other_record(#[case] damage: &[&str]) {
    let (store, bad) = (open().await, key("alice", "bad"));
    for task in ["older", "bad", "newer"] {
        store.put(&key("alice", task), "data".into(), in_an_hour()).await.unwrap();
    }
    let _: ::redis::Value = redis(&store).run(damage);
    let dump = || redis(&store).run::<Option<Vec<u8>>>(&["DUMP", "{}:tasks:alice:bad"]);
    let damaged = dump();
    let stored_at = redis(&store).key("{}:tasks:alice:bad");
    for error in [
        store.get(&bad).await.unwrap_err(),
        store.put(&bad, "new".into(), keep()).await.unwrap_err(),
        store.put(&bad, "new".into(), keep().set_part(PART, "new")).await.unwrap_err(),
        store.put(&bad, "new".into(), in_an_hour()).await.unwrap_err(),
        store.put_if_version(&bad, "new".into(), keep(), Version::ABSENT).await.unwrap_err(),
        store.put_if_version(&bad, "new".into(), keep(), Version::FIRST).await.unwrap_err(),
    ] {
        let StorageError::Corrupt { key, reason, .. } = &error else { panic!("{error:?}") };
        assert!(*key == bad && reason.contains(&stored_at), "{error:?}");
        assert!(!error.is_retryable() && !error.outcome_unknown());
    }
    assert_eq!(dump(), damaged);
    let page = store.list(&owner("alice"), PageRequest::new(10)).await.unwrap();
    let good: Vec<_> = page.records.iter().map(|record| record.task.as_str()).collect();
    assert_eq!(good, ["newer", "older"]);
    assert_eq!(page.corrupt.len(), 1);
    assert_eq!(page.corrupt[0].task.as_str(), "bad");
    store.put(&key("alice", "newer"), "again".into(), never()).await.unwrap();
    assert!(store.delete(&bad).await.unwrap());
    assert_eq!(store.put(&bad, "new".into(), keep()).await.unwrap().version, Version::FIRST);
    assert_eq!(store.ids("alice").await, ["bad", "newer", "older"]);
}

#[tokio::test]
async fn a_write_that_needs_a_damaged_index_is_refused_and_changes_nothing() {
    let (store, key) = (open().await, key("alice", "t1"));
    store.put(&key, "data".into(), in_an_hour()).await.unwrap();
    let _: ::redis::Value = redis(&store).run(&["SET", "{}:idx:alice", "text"]);
    let before = store.get(&key).await.unwrap();
    for refused in [
        store.put(&key, "lost".into(), never()).await,
        store.put(&crate::support::key("alice", "t2"), "lost".into(), in_an_hour()).await,
        store.put(&crate::support::key("alice", "t2"), "lost".into(), never()).await,
        store.put_if_version(&key, "lost".into(), in_an_hour(), Version::FIRST).await,
    ] {
        assert_refused!(refused, StorageError::Corrupt { .. });
    }
    assert_refused!(store.delete(&key).await, StorageError::Corrupt { .. });
    assert_eq!(store.get(&key).await.unwrap(), before);
    assert_refused!(store.get(&crate::support::key("alice", "t2")).await, StorageError::NotFound { .. });
    store.put(&key, "kept".into(), keep()).await.unwrap();
}

#[tokio::test]
async fn a_page_removes_index_members_without_a_hash() {
    let store = open().await;
    for task in 0..150 {
        let options = if task % 2 == 0 { keep() } else { in_an_hour() };
        store.put(&key("alice", &task.to_string()), "data".into(), options).await.unwrap();
    }
    for task in 1..150 {
        let _: i64 = redis(&store).run(&["DEL", &format!("{{}}:tasks:alice:{task}")]);
    }
    assert_eq!(store.ids("alice").await, ["0"]);
    assert_eq!(redis(&store).keys(), ["idx:alice", "tasks:alice:0"]);
    let members: Vec<Vec<u8>> = redis(&store).run(&["ZRANGE", "{}:idx:alice", "0", "-1"]);
    assert_eq!(members, [&b"\xff0"[..], b"0"]);
    let _: i64 = redis(&store).run(&["DEL", "{}:tasks:alice:0"]);
    assert!(store.ids("alice").await.is_empty());
    assert!(redis(&store).keys().is_empty());
}

#[tokio::test]
async fn after_a_reap_the_index_expires_with_the_remaining_records() {
    let store = open().await;
    let left = store.put(&key("alice", "left"), "data".into(), after_ms(60_000)).await.unwrap();
    for (task, options) in [("day", after_ms(86_400_000)), ("never", never())] {
        store.put(&key("alice", task), "data".into(), options).await.unwrap();
        let _: i64 = redis(&store).run(&["DEL", &format!("{{}}:tasks:alice:{task}")]);
    }
    assert_eq!(store.ids("alice").await, ["left"]);
    assert_index_expires(&store, Some(left.expires_at.unwrap().timestamp_millis() - 1));
}

#[tokio::test]
async fn members_without_a_hash_do_not_use_up_the_quota() {
    let store = open().await;
    for task in 0..300 {
        store.put(&key("alice", &task.to_string()), "data".into(), in_an_hour()).await.unwrap();
    }
    // The deleted hash is that of the oldest record, so the repair must go to the last page. It must not end at an
    // expired record on the first page.
    let short = store.put(&key("alice", "short"), "data".into(), after_ms(20)).await.unwrap();
    let _: i64 = redis(&store).run(&["DEL", "{}:tasks:alice:0"]);
    store.until(short.expires_at.unwrap()).await;
    store.put(&key("alice", "new"), "data".into(), in_an_hour().quota(300)).await.unwrap();
    let full = store.put(&key("alice", "one more"), "data".into(), in_an_hour().quota(300)).await;
    assert_refused!(full, StorageError::CapacityExceeded { quota: Some(300), .. });
    assert_eq!(store.ids("alice").await.len(), 300);
}

#[tokio::test]
async fn a_record_that_is_created_again_after_its_hash_was_lost_keeps_nothing_of_the_old_one() {
    let store = open().await;
    store.put(&key("alice", "t1"), "data".into(), never()).await.unwrap();
    let _: i64 = redis(&store).run(&["DEL", "{}:tasks:alice:t1"]);
    let written = store.put(&key("alice", "t1"), "data".into(), after_ms(60_000)).await.unwrap();
    assert_index_expires(&store, Some(written.expires_at.unwrap().timestamp_millis() - 1));
}

#[tokio::test]
async fn a_write_of_the_expiry_restores_a_lost_index_member() {
    let store = open().await;
    for task in ["t1", "t2"] {
        store.put(&key("alice", task), "data".into(), in_an_hour()).await.unwrap();
    }
    let _: i64 = redis(&store).run(&["ZREM", "{}:idx:alice", "t1"]);
    store.put(&key("alice", "t1"), "data".into(), in_an_hour()).await.unwrap();
    assert_eq!(store.ids("alice").await, ["t1", "t2"]);
}

#[tokio::test]
async fn a_page_leaves_out_an_index_member_that_is_not_a_task_id() {
    let store = open().await;
    store.put(&key("alice", "t1"), "data".into(), keep()).await.unwrap();
    let _: i64 = redis(&store).run(&["ZADD", "{}:idx:alice", "1", "", "2", &"x".repeat(300)]);
    assert_eq!(store.ids("alice").await, ["t1"]);
}

#[tokio::test]
async fn now_never_leads_the_servers_clock() {
    let store = open().await;
    let mut connection = redis(&store).connection();
    for _ in 0..100 {
        store.put(&key("alice", "t1"), "data".into(), keep()).await.unwrap();
        let ours = store.now().timestamp_micros();
        let (seconds, micros): (i64, i64) = ::redis::cmd("TIME").query(&mut connection).unwrap();
        assert!(ours <= seconds * 1_000_000 + micros);
    }
}

#[tokio::test]
async fn a_backend_works_over_a_connection_that_the_caller_made() {
    let namespace = Namespace::new();
    let client = ::redis::Client::open(namespace.url()).unwrap();
    let connection = client.get_multiplexed_async_connection().await.unwrap();
    let backend = namespace.builder().over(connection).await.unwrap();
    backend.put(&key("alice", "t1"), "data".into(), in_an_hour()).await.unwrap();
    assert_eq!(namespace.backend().await.get(&key("alice", "t1")).await.unwrap().data, "data");
    assert_eq!(backend.list(&owner("alice"), PageRequest::new(1)).await.unwrap().records.len(), 1);
}

#[tokio::test]
async fn two_prefixes_are_two_stores() {
    let (one, two) = (open().await, open().await);
    one.put(&key("alice", "t1"), "one".into(), keep()).await.unwrap();
    assert_refused!(two.get(&key("alice", "t1")).await, StorageError::NotFound { .. });
    assert!(two.ids("alice").await.is_empty());
    let illegal = mcp_task_store::RedisBackend::builder().prefix("a:b").connect("redis://127.0.0.1").await;
    assert_refused!(illegal, StorageError::InvalidKey { .. });
}
