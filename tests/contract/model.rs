//! The memory engine and Redis give the same reply to every call of a random sequence.
//!
//! `PROPTEST_CASES` sets the number of sequences.

use std::collections::HashMap;
use std::time::Duration;

use crate::support::{Engine, Store, key, owner};
use chrono::{DateTime, TimeDelta, Utc};
use mcp_task_store::{Expiry, PartChange, PartName, PutOptions, StorageError, TaskKey, Version, Written};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

const OWNERS: [&str; 3] = ["alice", "a:b", "{bob}"];
const TASKS: [&str; 6] = ["t1", "t:2", "t%3", "🦀", "five", " "];
const CALLS: usize = 60;
/// The minimum time between a call and an expiry, because the two engines do not expire a record at the same instant.
const MARGIN: TimeDelta = TimeDelta::milliseconds(20);

#[derive(Clone, Debug)]
enum Call {
    Get(TaskKey),
    Part(TaskKey, PartName),
    Put(TaskKey, u8, PutOptions),
    PutIfVersion(TaskKey, u8, PutOptions, u64),
    Delete(TaskKey),
    Walk(&'static str, usize),
    /// Waits until the next record has expired.
    Expire,
}

fn keys() -> impl Strategy<Value = TaskKey> {
    (0..OWNERS.len(), 0..TASKS.len()).prop_map(|(owner, task)| key(OWNERS[owner], TASKS[task]))
}

fn options() -> impl Strategy<Value = PutOptions> {
    let expiry = prop_oneof![
        4 => Just(Expiry::Keep),
        2 => Just(Expiry::Never),
        3 => (50_u64..250).prop_map(|millis| Expiry::After(Duration::from_millis(millis))),
        1 => Just(Expiry::After(Duration::from_secs(3600))),
        1 => Just(Expiry::After(Duration::ZERO)),
    ];
    (expiry, proptest::option::weighted(0.3, 0_u64..6), vec(part(), 0..3)).prop_map(
        |(expiry, quota, parts)| {
            let mut options = PutOptions::new(expiry);
            (options.quota, options.parts) = (quota, parts.into_iter().collect());
            options
        },
    )
}

/// Returns one of several names. There are more names than a record may have parts.
fn part_name() -> impl Strategy<Value = PartName> {
    (0..5).prop_map(|number| PartName::try_from(format!("p{number}")).unwrap())
}

fn part() -> impl Strategy<Value = (PartName, PartChange)> {
    let change = prop_oneof![
        2 => vec(any::<u8>(), 0..20).prop_map(|data| PartChange::Set(data.into())),
        1 => Just(PartChange::Clear),
    ];
    (part_name(), change)
}

fn calls() -> impl Strategy<Value = Call> {
    prop_oneof![
        3 => keys().prop_map(Call::Get),
        3 => (keys(), part_name()).prop_map(|(key, name)| Call::Part(key, name)),
        5 => (keys(), any::<u8>(), options()).prop_map(|(key, data, options)| Call::Put(key, data, options)),
        6 => (keys(), any::<u8>(), options(), 0_u64..4)
            .prop_map(|(key, data, options, expected)| Call::PutIfVersion(key, data, options, expected)),
        2 => keys().prop_map(Call::Delete),
        2 => (0..OWNERS.len(), 1_usize..8).prop_map(|(owner, limit)| Call::Walk(OWNERS[owner], limit)),
        1 => Just(Call::Expire),
    ]
}

/// Formats a reply without its times, because the engines have two clocks.
fn written(reply: Result<Written, StorageError>) -> String {
    match reply {
        Ok(written) => format!("version {}, expires: {}", written.version, written.expires_at.is_some()),
        Err(error) => refusal(error),
    }
}

/// Formats an error without its key, because each engine writes the key in its own form.
fn refusal(error: StorageError) -> String {
    match error {
        StorageError::NotFound { .. } => "not found".to_owned(),
        StorageError::VersionConflict { expected, actual, .. } => format!("conflict {expected} {actual}"),
        StorageError::CapacityExceeded { quota: Some(quota), .. } => format!("quota {quota}"),
        StorageError::InvalidExpiry { given } => format!("invalid expiry {given:?}"),
        StorageError::TooLarge { what, size, max } => format!("{what} {size} {max}"),
        other => panic!("no call of this test leads to {other:?}"),
    }
}

async fn reply(store: &Store, call: &Call) -> String {
    match call {
        Call::Get(key) => match store.get(key).await {
            Ok(record) => {
                let (expires, parts) = (record.expires_at.is_some(), record.parts);
                format!("{:?} at {}, expires: {expires}, {parts:?}", record.data, record.version)
            }
            Err(error) => refusal(error),
        },
        Call::Part(key, name) => match store.part(key, name).await {
            Ok(part) => format!("{part:?}"),
            Err(error) => refusal(error),
        },
        Call::Put(key, data, options) => written(store.put(key, vec![*data].into(), options.clone()).await),
        Call::PutIfVersion(key, data, options, expected) => {
            let expected = Version::from(*expected);
            written(store.put_if_version(key, vec![*data].into(), options.clone(), expected).await)
        }
        Call::Delete(key) => format!("deleted: {}", store.delete(key).await.unwrap()),
        Call::Walk(owner_id, limit) => {
            let records = store.walk(&owner(owner_id), *limit).await;
            assert!(records.is_sorted_by(|newer, older| newer.created_at > older.created_at));
            let listed = records.iter().map(|record| {
                format!(
                    "{} {:?} {} {} {:?}",
                    record.task,
                    record.data,
                    record.version,
                    record.expires_at.is_some(),
                    record.parts
                )
            });
            listed.collect::<Vec<_>>().join(", ")
        }
        Call::Expire => String::new(),
    }
}

/// The expiry of each record on the two engines, by their own clocks. Records that never expire are left out.
type Expiries = HashMap<TaskKey, [DateTime<Utc>; 2]>;

/// The two engines, and the expiry of records by their replies.
struct Pair {
    stores: [Store; 2],
    expiries: Expiries,
}

impl Pair {
    /// Returns the remaining lifetime of a record on each engine; negative once it has expired.
    fn left(&self, at: &[DateTime<Utc>; 2]) -> [TimeDelta; 2] {
        [at[0] - self.stores[0].now(), at[1] - self.stores[1].now()]
    }

    /// Returns whether no record is about to expire, and no record has expired on only one of the engines.
    fn is_clear_of_expiries(&self) -> bool {
        self.expiries.values().all(|at| {
            let [one, two] = self.left(at);
            one > MARGIN && two > MARGIN || one < TimeDelta::zero() && two < TimeDelta::zero()
        })
    }

    async fn until_clear_of_expiries(&self) {
        while !self.is_clear_of_expiries() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    async fn until_the_next_expiry(&self) {
        let within_a_second = |at: &&[DateTime<Utc>; 2]| {
            let [one, two] = self.left(at);
            one.max(two) > TimeDelta::zero() && one < TimeDelta::seconds(1)
        };
        if let Some(at) = self.expiries.values().filter(within_a_second).min() {
            for (store, at) in self.stores.iter().zip(at) {
                store.until(*at).await;
            }
        }
    }

    /// Makes a call on both engines. Returns `None` if a record expired during the call, because the test cannot
    /// compare the replies then.
    async fn call(&mut self, call: &Call) -> Option<[String; 2]> {
        if let Call::Expire = call {
            self.until_the_next_expiry().await;
        }
        self.until_clear_of_expiries().await;
        let live: Vec<_> =
            self.expiries.values().filter(|at| self.left(at)[0] > TimeDelta::zero()).copied().collect();
        let (one, two) = (reply(&self.stores[0], call).await, reply(&self.stores[1], call).await);
        if live.iter().any(|at| self.left(at).into_iter().any(|left| left < MARGIN / 4)) {
            return None;
        }
        if let Call::Put(key, ..) | Call::PutIfVersion(key, ..) | Call::Delete(key) = call {
            self.expiries.remove(key);
            let (one, two) = (self.stores[0].get(key).await, self.stores[1].get(key).await);
            if let (Ok(Some(one)), Ok(Some(two))) = (one.map(|r| r.expires_at), two.map(|r| r.expires_at)) {
                self.expiries.insert(key.clone(), [one, two]);
            }
        }
        Some([one, two])
    }
}

/// Runs the calls on both engines. Starts again if a record expired during a call.
async fn replies(calls: &[Call]) -> Vec<[String; 2]> {
    for _ in 0..50 {
        let stores = [Engine::Memory.open().await, Engine::Redis.open().await];
        let mut pair = Pair { stores, expiries: Expiries::new() };
        let mut replies = Vec::with_capacity(calls.len());
        for call in calls {
            match pair.call(call).await {
                Some(both) => replies.push(both),
                None => break,
            }
        }
        if replies.len() == calls.len() {
            return replies;
        }
    }
    panic!("the machine is too slow: records expired during calls in every round");
}

#[test]
fn the_engines_give_the_same_reply_to_every_call() {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(48);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    let outcome = TestRunner::new(config).run(&vec(calls(), CALLS), |calls| {
        let replies = runtime.block_on(replies(&calls));
        for (number, (call, [memory, redis])) in calls.iter().zip(replies).enumerate() {
            prop_assert_eq!(memory, redis, "call {} {:?}", number, call);
        }
        Ok(())
    });
    outcome.unwrap_or_else(|failure| panic!("{failure}"));
}
