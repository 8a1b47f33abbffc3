//! A user who lacks one permission of the documented ACL rule: a denied write leaves the record as it was, and leaves
//! no new key that never expires.

use std::collections::BTreeMap;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use mcp_task_store::{PageRequest, PartName, RedisBackend, StorageBackend, StorageError, TaskKey, Version};
use redis::{Commands, Connection, Value};

use crate::support::redis::{Server, acl_rule, command, connection};
use crate::support::{after_ms, in_an_hour, keep, key, never, owner};

const PART: PartName = PartName::from_static("input");
const OTHER: PartName = PartName::from_static("output");

type Outcome = Result<(), StorageError>;
type Write = for<'a> fn(&'a RedisBackend) -> BoxFuture<'a, Outcome>;

fn t1() -> TaskKey {
    key("alice", "t1")
}

/// What is stored before the write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Before {
    Nothing,
    /// The record alone.
    Expires,
    NeverExpires,
    /// The record, another record that expires later, and index members whose hashes are gone.
    ExpiresWithOthers,
    NeverExpiresWithOthers,
    /// The record has expired, and the server still holds it.
    Expired,
    /// Other records have expired, and are still in the index.
    OthersExpired,
}

const ALL: [Before; 7] = [
    Before::Nothing,
    Before::Expires,
    Before::NeverExpires,
    Before::ExpiresWithOthers,
    Before::NeverExpiresWithOthers,
    Before::Expired,
    Before::OthersExpired,
];

impl Before {
    async fn set_up(self, backend: &RedisBackend, admin: &mut Connection) {
        let _: () = command(admin, ["FLUSHALL"]);
        let put = async |task: &str, options| {
            backend.put(&key("alice", task), "data".into(), options).await.unwrap().expires_at
        };
        let with_parts = |options: mcp_task_store::PutOptions| options.set_part(PART, "part");
        match self {
            Self::Nothing => {}
            Self::Expires => drop(put("t1", with_parts(in_an_hour())).await),
            Self::NeverExpires => drop(put("t1", with_parts(never())).await),
            Self::ExpiresWithOthers | Self::NeverExpiresWithOthers => {
                put("gone", in_an_hour()).await;
                put("gone too", never()).await;
                put("other", after_ms(7_200_000)).await;
                put("t1", with_parts(if self == Self::ExpiresWithOthers { in_an_hour() } else { never() }))
                    .await;
                admin.del::<_, ()>(&["pmcp:tasks:alice:gone", "pmcp:tasks:alice:gone too"]).unwrap();
            }
            Self::Expired | Self::OthersExpired => {
                let (task, other) = if self == Self::Expired { ("t1", "t2") } else { ("t2", "t3") };
                put(other, after_ms(3)).await;
                let last = put(task, with_parts(after_ms(5))).await.unwrap();
                for key in [&format!("pmcp:tasks:alice:{task}"), "pmcp:idx:alice"] {
                    let _: i64 = command(admin, ["PEXPIRE", key, "100000"]);
                }
                while backend.clock(&t1()).await.unwrap() < last {
                    tokio::task::yield_now().await;
                }
            }
        }
    }
}

/// Each write, in each form that runs different commands on the server.
const WRITES: [(&str, Write); 9] = [
    ("put that expires", |backend| put(backend, in_an_hour()).boxed()),
    ("put that never expires", |backend| put(backend, never()).boxed()),
    ("put that keeps", |backend| put(backend, keep()).boxed()),
    ("put of parts", |backend| put(backend, keep().set_part(OTHER, "new").clear_part(PART)).boxed()),
    ("put of parts that expires", |backend| put(backend, after_ms(90_000).clear_part(PART)).boxed()),
    ("put of parts that never expires", |backend| put(backend, never().set_part(PART, "new")).boxed()),
    ("compare-and-swap", |backend| {
        async { backend.put_if_version(&t1(), "new".into(), keep(), Version::FIRST).await.map(drop) }.boxed()
    }),
    ("delete", |backend| async { backend.delete(&t1()).await.map(drop) }.boxed()),
    ("page", |backend| async { backend.list(&owner("alice"), PageRequest::new(9)).await.map(drop) }.boxed()),
];

async fn put(backend: &RedisBackend, options: mcp_task_store::PutOptions) -> Outcome {
    backend.put(&t1(), "new".into(), options).await.map(drop)
}

/// All keys, and whether each expires.
fn keys(admin: &mut Connection) -> BTreeMap<String, bool> {
    let keys: Vec<String> = admin.keys("pmcp:*").unwrap();
    // -1: it never expires. It may have expired since it was listed.
    let expires = |admin: &mut Connection, key: &str| command::<i64>(admin, ["PTTL", key]) != -1;
    keys.into_iter().map(|key| (key.clone(), expires(admin, &key))).collect()
}

/// Returns the record with its part; `None` if there is no record.
async fn record(backend: &RedisBackend) -> Option<String> {
    let record = backend.get(&t1()).await.ok()?;
    let part = backend.part(&t1(), &PART).await.unwrap();
    Some(format!("{record:?} {part:?}"))
}

#[tokio::test]
async fn a_denied_write_leaves_the_record_as_it_was_and_no_new_key_that_never_expires() {
    let server = Server::start(&[]);
    let mut admin = connection(&server.url());
    let unrestricted = RedisBackend::connect(&server.url()).await.unwrap();
    let rule = acl_rule();
    let rule: Vec<&str> = rule.split(' ').collect();
    let password = rule.iter().find_map(|word| word.strip_prefix('>')).unwrap();
    let url = format!("redis://{}:{password}@127.0.0.1:{}", rule[2], server.port);
    let (mut denied, mut succeeded) = (0, 0);
    let _: Value = command(&mut admin, rule.iter().copied());
    // Connecting needs all permissions, so the user connects before it loses one.
    let backend = RedisBackend::connect(&url).await.unwrap();
    for word in rule.iter().filter(|word| word.starts_with('+')) {
        let _: Value = command(&mut admin, rule.iter().copied());
        let _: Value = command(&mut admin, ["ACL", "SETUSER", rule[2], &word.replace('+', "-")]);
        for before in ALL {
            for (name, write) in WRITES {
                before.set_up(&unrestricted, &mut admin).await;
                let (was, held) = (record(&unrestricted).await, keys(&mut admin));
                match write(&backend).await {
                    Err(StorageError::Denied { .. }) => denied += 1,
                    // The write does not need the missing permission, or has nothing to do.
                    Ok(()) | Err(StorageError::NotFound { .. }) => {
                        succeeded += 1;
                        continue;
                    }
                    Err(error) => panic!("{name} without {word} over {before:?}: {error:?}"),
                }
                let is = record(&unrestricted).await;
                assert_eq!(is, was, "{name} without {word} over {before:?}");
                for (key, expires) in keys(&mut admin) {
                    let never_did = held.get(&key).is_some_and(|expires| !expires);
                    assert!(
                        expires || never_did,
                        "{name} without {word} over {before:?}: {key} never expires"
                    );
                }
            }
        }
    }
    assert!(denied > 300 && succeeded > 300, "{denied} {succeeded}");
}
