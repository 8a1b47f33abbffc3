//! The documented ACL rule, and users with less.

use std::time::Duration;

use futures_util::StreamExt;
use mcp_task_store::{
    Agenda, NewTask, PageRequest, Queue, RedisBackend, StorageBackend, StorageError, TaskError, TaskStore,
    Version,
};
use redis::{Commands, Value};
use rstest::rstest;

use super::{assert_names, every_operation, url_of_the_user};
use crate::support::redis::{Server, acl_rule, command, connection};
use crate::support::{in_an_hour, keep, key, never, owner};

#[tokio::test]
async fn the_documented_acl_rule_is_sufficient_and_every_word_of_it_is_needed() {
    let server = Server::start(&[]);
    let mut admin = connection(&server.url());
    let rule = acl_rule();
    let rule: Vec<&str> = rule.split(' ').collect();
    let _: Value = command(&mut admin, rule.iter().copied());
    let user = rule[2];
    let password = rule.iter().find_map(|word| word.strip_prefix('>')).unwrap();
    let url = format!("redis://{user}:{password}@127.0.0.1:{}", server.port);
    let backend = RedisBackend::connect(&url).await.unwrap();
    every_operation(&backend, &mut admin).await.unwrap();
    let outside = RedisBackend::builder().prefix("other").connect(&url).await;
    assert!(matches!(outside, Err(StorageError::Denied { .. })), "{outside:?}");

    let permitted: Vec<_> = rule.iter().filter(|word| word.starts_with(['+', '~', '&'])).collect();
    assert!(permitted.len() > 10);
    for word in permitted {
        let without = rule.iter().filter(|other| *other != word).copied();
        let _: Value = command(&mut admin, ["ACL", "DELUSER", user]);
        let _: Value = command(&mut admin, without);
        let outcome = match RedisBackend::connect(&url).await {
            Ok(backend) => every_operation(&backend, &mut admin).await,
            Err(error) => Err(error),
        };
        match outcome {
            Err(StorageError::Denied { .. }) => {}
            other => panic!("without {word}: {other:?}"),
        }
        let left: Vec<String> = admin.keys("pmcp:*").unwrap();
        left.into_iter().for_each(|key| admin.del(key).unwrap());
    }
}

#[tokio::test]
async fn a_user_with_permission_to_read_only_can_read_and_is_denied_every_write() {
    let server = Server::start(&[]);
    let mut admin = connection(&server.url());
    let writer = RedisBackend::connect(&server.url()).await.unwrap();
    for task in ["t1", "t2"] {
        writer.put(&key("alice", task), "data".into(), in_an_hour()).await.unwrap();
    }
    admin.del::<_, ()>("pmcp:tasks:alice:t2").unwrap();
    let rule = "ACL SETUSER reader on >secret ~* &* +@all";
    let _: Value = command(&mut admin, rule.split(' '));
    let url = format!("redis://reader:secret@127.0.0.1:{}", server.port);
    let reader = RedisBackend::connect(&url).await.unwrap();
    let rule = "ACL SETUSER reader resetkeys ~pmcp:* -@all +@read +time +eval";
    let _: Value = command(&mut admin, rule.split(' '));
    let (t1, t3) = (key("alice", "t1"), key("alice", "t3"));
    assert_eq!(reader.get(&t1).await.unwrap().data, "data");
    // The page is returned although the reader lacks the permission to repair the index.
    assert_eq!(reader.list(&owner("alice"), PageRequest::new(10)).await.unwrap().records.len(), 1);
    for refused in [
        reader.put(&t1, "lost".into(), keep()).await.map(drop),
        reader.put(&t3, "lost".into(), in_an_hour()).await.map(drop),
        reader.put_if_version(&t1, "lost".into(), keep(), Version::FIRST).await.map(drop),
        reader.delete(&t1).await.map(drop),
    ] {
        let error = refused.unwrap_err();
        assert!(matches!(error, StorageError::Denied { .. }), "{error:?}");
        assert!(!error.is_retryable() && !error.outcome_unknown());
    }
    let record = writer.get(&t1).await.unwrap();
    assert_eq!((record.data, record.version), ("data".into(), Version::FIRST));
    assert!(writer.get(&t3).await.is_err());
}

#[tokio::test]
async fn a_watch_by_a_user_that_may_not_subscribe_is_denied_and_ends() {
    let server = Server::start(&[]);
    let mut admin = server.connection();
    let writer = TaskStore::new(RedisBackend::connect(&server.url()).await.unwrap());
    let task = writer.create(&owner("alice"), NewTask::new("tools/call")).await.unwrap();
    let rule = acl_rule();
    // The backend must not fall back to SUBSCRIBE: writes publish with SPUBLISH, so it would never receive a message.
    let _: Value = command(&mut admin, rule.split(' '));
    let backend = RedisBackend::connect(&url_of_the_user(server.port)).await.unwrap();
    let _: Value = command(&mut admin, ["ACL", "SETUSER", "tasks", "-ssubscribe", "+subscribe"]);
    let tasks = TaskStore::new(backend.clone());
    tasks.get(&task.key).await.unwrap();
    let in_time = async {
        let mut watch = backend.watch(&task.key);
        let denied = watch.next().await;
        assert!(matches!(denied, Some(Err(StorageError::Denied { .. }))), "{denied:?}");
        assert!(watch.next().await.is_none());
        // `wait` uses a watch, so it is denied too.
        let denied = tasks.wait(&task.key).await;
        assert!(matches!(denied, Err(TaskError::Storage(StorageError::Denied { .. }))), "{denied:?}");
    };
    tokio::time::timeout(Duration::from_secs(60), in_time).await.expect("the watch is denied");
}

#[tokio::test]
async fn two_tenants_with_a_prefix_and_a_user_each_cannot_reach_each_other() {
    let server = Server::start(&[]);
    let mut admin = connection(&server.url());
    let mut tenants = Vec::new();
    for name in ["red", "blue"] {
        let rule = acl_rule().replace("pmcp:", &format!("{name}:")).replace(" tasks ", &format!(" {name} "));
        let _: Value = command(&mut admin, rule.split(' '));
        let password = rule.split(' ').find_map(|word| word.strip_prefix('>')).unwrap();
        let url = format!("redis://{name}:{password}@127.0.0.1:{}", server.port);
        let own = RedisBackend::builder().prefix(name).connect(&url).await.unwrap();
        own.put(&key("alice", "t1"), name.into(), in_an_hour()).await.unwrap();
        tenants.push((name, url, own));
    }
    let (t1, leases) = (key("alice", "t1"), Queue::try_from("leases").unwrap());
    for (intruder, victim) in [(0, 1), (1, 0)] {
        let (name, _, own) = &tenants[victim];
        let connect = || RedisBackend::builder().prefix(*name).connect(&tenants[intruder].1);
        let refused = connect().await;
        assert!(matches!(refused, Err(StorageError::Denied { .. })), "{refused:?}");
        // A backend of the intruder that connected while its user had the permission.
        let of_intruder = tenants[intruder].0;
        let _: Value = command(&mut admin, ["ACL", "SETUSER", of_intruder, "allkeys", "allchannels"]);
        let foreign = connect().await.unwrap();
        let rule = acl_rule()
            .replace("pmcp:", &format!("{of_intruder}:"))
            .replace(" tasks ", &format!(" {of_intruder} "));
        let _: Value = command(&mut admin, rule.split(' '));
        for refused in [
            foreign.get(&t1).await.map(drop),
            foreign.put(&t1, "lost".into(), keep()).await.map(drop),
            foreign.put(&key("alice", "t2"), "lost".into(), in_an_hour()).await.map(drop),
            foreign.put_if_version(&t1, "lost".into(), keep(), Version::FIRST).await.map(drop),
            foreign.put_if_version(&t1, "lost".into(), never(), Version::FIRST).await.map(drop),
            foreign.delete(&t1).await.map(drop),
            foreign.list(&owner("alice"), PageRequest::new(5)).await.map(drop),
            foreign.watch(&t1).next().await.expect("a refusal"),
            foreign.schedule(&leases, &t1, Duration::ZERO).await,
            foreign.take_due(std::slice::from_ref(&leases), 1, Duration::ZERO).await.map(drop),
            foreign.timers(&leases, None).await.map(drop),
        ] {
            assert!(matches!(refused, Err(StorageError::Denied { .. })), "{refused:?}");
        }
        let record = own.get(&t1).await.unwrap();
        assert_eq!((record.data, record.version), ((*name).into(), Version::FIRST));
        assert_eq!(own.list(&owner("alice"), PageRequest::new(5)).await.unwrap().records.len(), 1);
    }
}

#[rstest]
#[case::to_publish("-spublish", "SPUBLISH")]
#[case::to_subscribe("-ssubscribe", "SSUBSCRIBE")]
#[case::to_end_a_subscription("-sunsubscribe", "SUNSUBSCRIBE")]
#[case::to_the_channels("resetchannels", "SSUBSCRIBE")]
#[tokio::test]
async fn connecting_without_a_permission_for_notifications_names_it_and_the_setting_that_does_not_need_it(
    #[case] word: &str,
    #[case] lacking: &str,
) {
    let server = Server::start(&[]);
    let mut admin = server.connection();
    let rule = acl_rule();
    let _: Value = command(&mut admin, rule.split(' ').chain([word]));
    let url = url_of_the_user(server.port);
    let error = RedisBackend::connect(&url).await.unwrap_err();
    assert!(matches!(error, StorageError::Denied { .. }), "{error:?}");
    assert_names(&error, &[lacking, "notifications(false)", &format!("127.0.0.1:{}", server.port)]);
    let quiet = RedisBackend::builder().notifications(false).connect(&url).await.unwrap();
    every_operation(&quiet, &mut admin).await.unwrap();
}
