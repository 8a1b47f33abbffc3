//! Users without the permission to publish or to subscribe.

use std::time::{Duration, Instant};

use mcp_task_store::{Agenda, Next, RedisBackend, StorageError};
use redis::{Commands, Value};

use super::{DUE, NOW, item, leases, scores, take, wakeups};
use crate::support::key;
use crate::support::redis::{Server, command, rule_for};

#[tokio::test]
async fn a_user_without_permission_to_publish_is_refused_and_writes_nothing() {
    let server = Server::start(&[]);
    let mut admin = server.connection();
    let rule = rule_for(&mut admin);
    let words = rule.split(' ').filter(|word| !word.starts_with("&pmcp:wake"));
    let _: Value = command(&mut admin, words);
    let password = rule.split(' ').find_map(|word| word.strip_prefix('>')).unwrap();
    let url = format!("redis://tasks:{password}@127.0.0.1:{}", server.port);
    let backend = RedisBackend::connect(&url).await.unwrap();
    let refused = backend.schedule(&leases(), &key("alice", "t1"), NOW).await.unwrap_err();
    assert!(matches!(refused, StorageError::Denied { .. }), "{refused:?}");
    let left: Vec<String> = admin.keys("*").unwrap();
    assert!(left.is_empty(), "{left:?}");
    // A timer that another user scheduled does not move either.
    let other = RedisBackend::connect(&server.url()).await.unwrap();
    other.schedule(&leases(), &key("alice", "t1"), NOW).await.unwrap();
    let due = take(&backend).await.due.remove(0);
    let before = scores(&mut admin, DUE);
    let refused = backend.resolve(&due, Next::After(NOW)).await.unwrap_err();
    assert!(matches!(refused, StorageError::Denied { .. }), "{refused:?}");
    assert_eq!(scores(&mut admin, DUE), before);
}

#[tokio::test]
async fn a_user_without_permission_to_subscribe_gets_an_item_each_second() {
    let server = Server::start(&[]);
    let mut admin = server.connection();
    let rule = rule_for(&mut admin);
    let _: Value = command(&mut admin, rule.split(' '));
    let password = rule.split(' ').find_map(|word| word.strip_prefix('>')).unwrap();
    let url = format!("redis://tasks:{password}@127.0.0.1:{}", server.port);
    let backend = RedisBackend::connect(&url).await.unwrap();
    let taken = rule.split(' ').filter(|word| word.ends_with("subscribe")).map(|word| word.replace('+', "-"));
    let taken: Vec<String> = taken.collect();
    let words = ["ACL", "SETUSER", "tasks"].into_iter().chain(taken.iter().map(String::as_str));
    let _: Value = command(&mut admin, words);
    let mut stream = wakeups(&backend);
    let since = Instant::now();
    for _ in 0..3 {
        item(&mut stream).await;
    }
    assert!(since.elapsed() > Duration::from_millis(2900), "{:?}", since.elapsed());
}
