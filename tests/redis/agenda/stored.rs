//! Timers as they are stored: members, scores and foreign keys.

use std::collections::{BTreeSet, HashSet};

use mcp_task_store::{Agenda, Cursor, Due, Next, RedisBackend, StorageError};
use redis::{Commands, Connection};
use rstest::rstest;

use super::{DUE, HOUR, NOW, keys, leases, queue, scores, take};
use crate::support::key;
use crate::support::redis::{Server, command};

#[tokio::test]
async fn a_timer_is_a_member_of_its_queue_and_its_score_is_the_token() {
    let server = Server::start(&[]);
    let mut admin = server.connection();
    let backend = RedisBackend::connect(&server.url()).await.unwrap();
    let before: (u64, u64) = command(&mut admin, ["TIME"]);
    backend.schedule(&queue("work/a:b"), &key("a:b", "{t}"), HOUR).await.unwrap();
    let stored = scores(&mut admin, "pmcp:due:0:work/a%3Ab");
    let [(member, score)] = &stored.into_iter().collect::<Vec<_>>()[..] else { panic!("one timer") };
    assert_eq!(member, "a%3Ab:%7Bt%7D");
    let asked = before.0 as f64 * 1000.0 + before.1 as f64 / 1000.0 + 3_600_000.0;
    assert!((score - asked).abs() < 60_000.0, "{score} {asked}");
    // The fraction is a whole number of 1024ths, and it changes with every write.
    let mut salts = HashSet::new();
    let mut salt = |admin: &mut Connection| {
        let score = scores(admin, DUE)["alice:t1"];
        let salt = score.fract() * 1024.0;
        assert_eq!(salt.fract(), 0.0);
        assert!(salts.insert(salt as u64), "{salts:?}");
        score
    };
    for _ in 0..1000 {
        backend.schedule(&leases(), &key("alice", "t1"), HOUR).await.unwrap();
        salt(&mut admin);
    }
    backend.schedule(&leases(), &key("alice", "t1"), NOW).await.unwrap();
    salt(&mut admin);
    let due = take(&backend).await.due.remove(0);
    let score = salt(&mut admin);
    assert_eq!(due.token.parse::<f64>().unwrap(), score);
    assert!(backend.resolve(&due, Next::After(HOUR)).await.unwrap());
    salt(&mut admin);
}

#[tokio::test]
async fn a_member_that_is_not_a_task_key_is_removed_and_does_not_block_the_queue() {
    let server = Server::start(&[]);
    let mut admin = server.connection();
    let backend = RedisBackend::connect(&server.url()).await.unwrap();
    let foreign: [&[u8]; 5] = [b"", b"alice", b"alice:a%3a", b"\xff:\xff", b"a:b:c"];
    for member in foreign {
        let _: () = admin.zadd(DUE, member, 1).unwrap();
    }
    backend.schedule(&leases(), &key("alice", "t1"), NOW).await.unwrap();
    let listed = backend.timers(&leases(), None).await.unwrap();
    assert_eq!((listed.timers.len(), listed.total), (1, 6));
    assert_eq!(keys(&take(&backend).await), ["alice:t1"]);
    let left: Vec<Vec<u8>> = admin.zrange(DUE, 0, -1).unwrap();
    assert_eq!(left, [b"alice:t1"]);
}

#[rstest]
#[case::negative_infinity("-inf", true)]
#[case::infinity("+inf", false)]
#[case::negative("-5.25", true)]
#[case::no_salt("17.3", true)]
#[case::far_too_large("1e300", false)]
#[case::far_too_small("-1e300", true)]
#[tokio::test]
async fn a_member_with_a_score_that_somebody_wrote_by_hand_is_a_timer(
    #[case] score: &str,
    #[case] is_due: bool,
) {
    let server = Server::start(&[]);
    let mut admin = server.connection();
    let backend = RedisBackend::connect(&server.url()).await.unwrap();
    let _: i64 = command(&mut admin, ["ZADD", DUE, score, "alice:t1"]);
    let listed = backend.timers(&leases(), None).await.unwrap();
    assert_eq!((listed.timers.len(), listed.total), (1, 1));
    if is_due {
        let due = take(&backend).await.due.remove(0);
        assert!(take(&backend).await.due.is_empty());
        assert!(backend.resolve(&due, Next::After(NOW)).await.unwrap());
    } else {
        let taken = take(&backend).await;
        assert!(taken.due.is_empty() && taken.next_in > Some(HOUR), "{taken:?}");
    }
    backend.schedule(&leases(), &key("alice", "t1"), NOW).await.unwrap();
    let due = take(&backend).await.due.remove(0);
    assert!(backend.resolve(&due, Next::Remove).await.unwrap());
    let left: Vec<String> = admin.keys("*").unwrap();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn each_timer_of_one_score_is_listed_once_whatever_their_number() {
    let server = Server::start(&[]);
    let mut admin = server.connection();
    let backend = RedisBackend::connect(&server.url()).await.unwrap();
    let names: BTreeSet<String> = (0..1000).map(|number| format!("alice:{number:04}")).collect();
    for name in &names {
        let _: () = admin.zadd(DUE, name, 1_795_000_000_000_u64).unwrap();
    }
    let (mut listed, mut after) = (Vec::new(), None::<Cursor>);
    loop {
        let page = backend.timers(&leases(), after.as_ref()).await.unwrap();
        listed.extend(page.timers.iter().map(|timer| timer.key.to_string()));
        after = page.next;
        if after.is_none() {
            break;
        }
        // The last timer of the page is removed. The cursor remains valid.
        let _: () = admin.zrem(DUE, listed.last().unwrap()).unwrap();
    }
    assert_eq!(listed, names.into_iter().collect::<Vec<_>>());
}

#[tokio::test]
async fn a_key_of_another_type_in_place_of_a_queue_is_corrupt() {
    let server = Server::start(&[]);
    let mut admin = server.connection();
    let backend = RedisBackend::connect(&server.url()).await.unwrap();
    let _: () = admin.set(DUE, "text").unwrap();
    for refused in [
        backend.schedule(&leases(), &key("alice", "t1"), NOW).await,
        backend.resolve(&Due::new(leases(), key("alice", "t1"), "1"), Next::Remove).await.map(drop),
    ] {
        assert_refused!(refused, StorageError::Corrupt { key, .. } if key.to_string() == "alice:t1");
    }
    // The call concerns no task, so the reason names the Redis key.
    for refused in [
        backend.take_due(&[leases()], 1, HOUR).await.map(drop),
        backend.timers(&leases(), None).await.map(drop),
    ] {
        assert_refused!(refused, StorageError::Backend { reason, .. } if reason.contains(DUE));
    }
}
