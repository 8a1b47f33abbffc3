//! Authentication, permissions and the address: the errors that a caller receives from a server that refuses or is
//! unreachable.

#[cfg(feature = "pmcp")]
mod chains;
mod credentials;
mod permissions;
use std::time::Duration;

use crate::support::cluster::Cluster;
use crate::support::redis::{Server, acl_rule, command, connection, free_port};
use crate::support::sentinel::{MASTER, Watched};
use crate::support::{after_ms, in_an_hour, keep, key, never, owner, page};
use futures_util::StreamExt;
use mcp_task_store::{
    Agenda, Expiry, NewTask, Next, PageRequest, PartName, PutOptions, Queue, RedisBackend, StorageBackend,
    StorageError, TaskError, TaskKey, TaskStore, Version,
};
use redis::{Commands, Connection, Value};
use rstest::rstest;

/// Calls every operation of the backend, in every form that runs different commands on the server. The administrator
/// deletes a hash in between. Returns at the first error.
async fn every_operation(backend: &RedisBackend, admin: &mut Connection) -> Result<(), StorageError> {
    let (t1, t2) = (key("alice", "t1"), key("alice", "t2"));
    backend.put(&t1, "data".into(), in_an_hour().quota(9)).await?;
    backend.put(&t1, "data".into(), keep()).await?;
    backend.put(&t1, "data".into(), never()).await?;
    backend.put_if_version(&t1, "data".into(), in_an_hour(), Version::from(3)).await?;
    backend.put_if_version(&t2, "data".into(), never(), Version::ABSENT).await?;
    backend.get(&t1).await?;
    let part = PartName::from_static("input");
    backend.put(&t1, "data".into(), keep().set_part(part.clone(), "part")).await?;
    backend.part(&t1, &part).await?;
    backend.put(&t1, "data".into(), keep().clear_part(part)).await?;
    backend.clock(&t1).await?;
    backend.watch(&t1).next().await.expect("the record is live")?;
    let expired = backend.put(&key("alice", "t3"), "data".into(), after_ms(1)).await?.expires_at;
    while backend.now() < expired.unwrap() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    backend.put(&key("alice", "t4"), "data".into(), in_an_hour()).await?;
    // Two inserts at the quota: the first with an index member whose hash is gone, the second without one.
    admin.del::<_, ()>("pmcp:tasks:alice:t2").unwrap();
    backend.put(&key("alice", "t5"), "data".into(), in_an_hour().quota(3)).await?;
    match backend.put(&key("alice", "t6"), "data".into(), in_an_hour().quota(3)).await {
        Err(StorageError::CapacityExceeded { quota: Some(3), .. }) => {}
        Err(error) => return Err(error),
        Ok(_) => panic!("a put over the quota succeeded"),
    }
    // A record whose expiry on the server was removed by hand makes the backend read the server's clock.
    let kept = backend.put(&key("alice", "t7"), "data".into(), after_ms(5)).await?.expires_at.unwrap();
    let _: Value = command(admin, ["PERSIST", "pmcp:tasks:alice:t7"]);
    while backend.now() < kept {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    match backend.get(&key("alice", "t7")).await {
        Err(StorageError::NotFound { .. }) => {}
        Err(error) => return Err(error),
        Ok(_) => panic!("an expired record was read"),
    }
    for task in 100..140 {
        backend.put(&key("alice", &task.to_string()), "data".into(), in_an_hour()).await?;
    }
    let page = backend.list(&owner("alice"), PageRequest::new(100)).await?;
    assert_eq!(page.records.len(), 43);
    for task in page.records {
        backend.delete(&TaskKey { owner: owner("alice"), task: task.task }).await?;
    }
    backend.delete(&key("alice", "t7")).await?;
    backend.cleanup_expired().await?;
    every_operation_of_the_agenda(backend, admin).await
}

async fn every_operation_of_the_agenda(
    backend: &RedisBackend,
    admin: &mut Connection,
) -> Result<(), StorageError> {
    let (leases, t1, hour) =
        (Queue::try_from("leases").unwrap(), key("alice", "t1"), Duration::from_secs(3600));
    let queues = [leases.clone()];
    backend.schedule(&leases, &t1, Duration::ZERO).await?;
    admin.zadd::<_, _, _, ()>("pmcp:due:0:leases", "no task", 1).unwrap();
    let due = backend.take_due(&queues, 5, hour).await?.due.remove(0);
    assert!(backend.resolve(&due, Next::After(Duration::ZERO)).await?);
    let due = backend.take_due(&queues, 5, hour).await?.due.remove(0);
    assert_eq!(backend.timers(&leases, None).await?.total, 1);
    assert!(backend.resolve(&due, Next::Remove).await?);
    backend.owners(None).await.map(drop)
}

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

/// Asserts that the text of an error contains these words, and not the password.
fn assert_names(error: &StorageError, words: &[&str]) {
    let mut texts = format!("{error} {error:?}");
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        texts.push_str(&format!(" {cause} {cause:?}"));
        source = cause.source();
    }
    for word in words {
        assert!(texts.contains(word), "{word} is missing: {texts}");
    }
    assert!(!texts.contains("pass-word"), "{texts}");
}

#[tokio::test]
async fn the_error_for_an_unreachable_server_names_its_host_and_port() {
    let port = free_port();
    let url = format!("redis://user:pass-word@127.0.0.1:{port}");
    let error = RedisBackend::connect(&url).await.unwrap_err();
    assert!(matches!(error, StorageError::Unavailable { outcome_unknown: false, .. }), "{error:?}");
    assert!(error.is_retryable());
    assert_names(&error, &[&format!("127.0.0.1:{port}"), "no server accepts connections there"]);
}

#[tokio::test]
async fn connecting_to_a_server_that_never_answers_fails_at_the_connect_timeout() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let url = format!("redis://user:pass-word@{address}");
    let connecting = RedisBackend::builder().connect_timeout(Duration::from_millis(200)).connect(&url);
    // Far above the timeout, so that this fails only if the call never ends.
    let ended = tokio::time::timeout(Duration::from_secs(20), connecting).await;
    let error = ended.expect("connect returns").unwrap_err();
    assert!(matches!(error, StorageError::Unavailable { outcome_unknown: false, .. }), "{error:?}");
    assert_names(&error, &[&address]);
}

#[tokio::test]
async fn the_error_for_a_url_that_cannot_be_read_does_not_hold_the_password() {
    let form = "redis://[user:password@]host[:port][/database][?protocol=resp2]";
    for (url, part) in [
        ("redis//user:pass-word@host", "`redis://`"),
        ("redis://user:pass-word@:port", "host"),
        ("http://user:pass-word@host", "scheme"),
        ("redis://user:pass-word@host?db=2", "`db`"),
        ("redis://user:pass-word@host?protcol=resp2", "`protcol`"),
        ("redis://user:pass-word#1@host", "%23"),
        ("rediss://user:pass-word@host#insecure", "insecure"),
        ("", "`redis://`"),
    ] {
        let builder = RedisBackend::builder;
        let good = "redis://127.0.0.1:1";
        for (error, which) in [
            (builder().connect(url).await.unwrap_err(), "the URL"),
            (builder().connect_cluster([good, url]).await.unwrap_err(), "the URL of node 2"),
            (
                builder().connect_sentinel([good, url], "redis://mymaster").await.unwrap_err(),
                "the URL of sentinel 2",
            ),
            (builder().connect_sentinel([good], url).await.unwrap_err(), "the URL"),
        ] {
            assert!(!error.is_retryable() && !error.outcome_unknown(), "{error}");
            assert_names(&error, &[form, part, which]);
        }
    }
}

#[tokio::test]
async fn a_password_with_the_text_of_a_setting_is_used_as_the_password() {
    let server = Server::start(&["--requirepass", "protocol=resp2/?#@%"]);
    let url = format!("redis://:protocol=resp2%2F%3F%23%40%25@127.0.0.1:{}", server.port);
    let backend = RedisBackend::connect(&url).await.unwrap();
    backend.put(&key("alice", "t1"), "data".into(), keep()).await.unwrap();
    // The backend uses RESP3, so it subscribes.
    backend.watch(&key("alice", "t1")).next().await.unwrap().unwrap();
    let clients: String = redis::cmd("CLIENT").arg("LIST").query(&mut connection(&url)).unwrap();
    assert!(clients.contains("resp=3"), "{clients}");
}

#[tokio::test]
async fn a_wrong_or_missing_password_is_denied() {
    let server = Server::start(&["--requirepass", "right"]);
    for user in ["", ":pass-word@", "somebody:pass-word@"] {
        let error =
            RedisBackend::connect(&format!("redis://{user}127.0.0.1:{}", server.port)).await.unwrap_err();
        assert!(matches!(error, StorageError::Denied { .. }), "{error:?}");
        assert_names(&error, &[&format!("127.0.0.1:{}", server.port)]);
    }
    let backend = RedisBackend::connect(&format!("redis://:right@127.0.0.1:{}", server.port)).await.unwrap();
    backend.put(&key("alice", "t1"), "data".into(), keep()).await.unwrap();
    assert!(!format!("{backend:?}").contains("right"));
}

#[tokio::test]
async fn the_database_of_the_url_is_used() {
    let server = Server::start(&[]);
    let backend = RedisBackend::connect(&format!("{}/3", server.url())).await.unwrap();
    backend.put(&key("alice", "t1"), "data".into(), keep()).await.unwrap();
    let mut connection = connection(&server.url());
    assert!(!connection.exists::<_, bool>("pmcp:tasks:alice:t1").unwrap());
    let _: Value = command(&mut connection, ["SELECT", "3"]);
    assert!(connection.exists::<_, bool>("pmcp:tasks:alice:t1").unwrap());
}

#[tokio::test]
async fn the_backend_uses_resp2_if_the_url_says_so() {
    let server = Server::start(&[]);
    let mut admin = connection(&server.url());
    let backend = RedisBackend::connect(&format!("{}?protocol=resp2", server.url())).await.unwrap();
    every_operation(&backend, &mut admin).await.unwrap();
}

#[tokio::test]
async fn writes_to_a_server_without_memory_exceed_the_capacity_and_change_nothing() {
    let server = Server::start(&[]);
    let backend = RedisBackend::connect(&server.url()).await.unwrap();
    let t1 = key("alice", "t1");
    backend.put(&t1, "data".into(), in_an_hour()).await.unwrap();
    let mut admin = connection(&server.url());
    let _: Value = command(&mut admin, ["CONFIG", "SET", "maxmemory", "1"]);
    for refused in [
        backend.put(&t1, "lost".into(), keep()).await,
        backend.put(&key("alice", "t2"), "lost".into(), in_an_hour()).await,
        backend.put_if_version(&t1, "lost".into(), keep(), Version::FIRST).await,
    ] {
        let error = refused.unwrap_err();
        assert!(matches!(error, StorageError::CapacityExceeded { quota: None, .. }), "{error:?}");
        assert!(!error.outcome_unknown());
    }
    assert_eq!(backend.get(&t1).await.unwrap().version, Version::FIRST);
    assert!(backend.delete(&t1).await.unwrap(), "a delete makes room");
    let keys: Vec<String> = admin.keys("*").unwrap();
    assert!(keys.is_empty(), "{keys:?}");
}

#[tokio::test]
async fn a_server_without_memory_refuses_writes_for_new_owners_and_writes_that_also_remove_data() {
    let server = Server::start(&[]);
    let backend = RedisBackend::connect(&server.url()).await.unwrap();
    let (t1, part) = (key("alice", "t1"), PartName::from_static("output"));
    backend.put(&t1, "data".into(), in_an_hour().set_part(part.clone(), "result")).await.unwrap();
    // The index member of this record stays until the next insert removes it.
    let brief = Expiry::After(Duration::from_millis(1));
    backend.put(&key("alice", "brief"), "data".into(), brief.into()).await.unwrap();
    let mut admin = connection(&server.url());
    while admin.exists("pmcp:tasks:alice:brief").unwrap() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let _: Value = command(&mut admin, ["CONFIG", "SET", "maxmemory", "1"]);
    for (name, refused) in [
        ("a new owner", backend.put(&key("bob", "t1"), "lost".into(), in_an_hour()).await),
        ("a new owner, never", backend.put(&key("bob", "t1"), "lost".into(), never()).await),
        (
            "an insert that removes an expired member",
            backend.put(&key("alice", "t2"), "lost".into(), in_an_hour()).await,
        ),
        (
            "an insert that removes an expired member, never",
            backend.put(&key("alice", "t2"), "lost".into(), never()).await,
        ),
        ("a put that removes the expiry", backend.put(&t1, "lost".into(), never()).await),
        ("a put that removes a part", backend.put(&t1, "lost".into(), keep().clear_part(part.clone())).await),
    ] {
        let error = refused.map(|_| name).unwrap_err();
        assert!(matches!(error, StorageError::CapacityExceeded { quota: None, .. }), "{name}: {error:?}");
    }
    let record = backend.get(&t1).await.unwrap();
    assert_eq!((record.version, record.parts.len()), (Version::FIRST, 1));
    assert!(record.expires_at.is_some());
    let mut keys: Vec<String> = admin.keys("*").unwrap();
    keys.sort();
    assert_eq!(keys, ["pmcp:idx:alice", "pmcp:tasks:alice:t1"]);
}

#[tokio::test]
async fn a_replica_serves_reads_and_writes_to_it_are_unavailable() {
    let master = Server::start(&[]);
    let at_master = RedisBackend::connect(&master.url()).await.unwrap();
    at_master.put(&key("alice", "t1"), "data".into(), in_an_hour()).await.unwrap();
    let port = master.port.to_string();
    let replica = Server::start(&["--replicaof", "127.0.0.1", &port]);
    let backend = RedisBackend::connect(&replica.url()).await.unwrap();
    // The replica copies the master's data in the background.
    while backend.get(&key("alice", "t1")).await.is_err() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(backend.list(&owner("alice"), PageRequest::new(1)).await.unwrap().records.len(), 1);
    for refused in [
        backend.put(&key("alice", "t1"), "lost".into(), keep()).await.map(drop),
        backend.delete(&key("alice", "t1")).await.map(drop),
    ] {
        let error = refused.unwrap_err();
        assert!(matches!(error, StorageError::Unavailable { outcome_unknown: false, .. }), "{error:?}");
    }
}

#[tokio::test]
async fn each_call_to_a_server_that_hangs_fails_at_the_response_timeout() {
    const LIMIT: Duration = Duration::from_millis(200);
    let server = Server::start(&[]);
    let backend = RedisBackend::builder().response_timeout(LIMIT).connect(&server.url()).await.unwrap();
    let t1 = key("alice", "t1");
    backend.put(&t1, "data".into(), keep()).await.unwrap();
    server.signal("STOP");
    // Far above the limit, so that this fails only if a call ignores the limit.
    let (put, get) = tokio::time::timeout(20 * LIMIT, async {
        (backend.put(&t1, "again".into(), keep()).await, backend.get(&t1).await)
    })
    .await
    .expect("the calls return");
    let (put, get) = (put.unwrap_err(), get.unwrap_err());
    assert!(matches!(put, StorageError::Unavailable { outcome_unknown: true, .. }), "{put:?}");
    assert!(matches!(get, StorageError::Unavailable { outcome_unknown: false, .. }), "{get:?}");
    assert_names(&put, &[&format!("127.0.0.1:{}", server.port), "no reply within 200ms"]);
    server.signal("CONT");
    while let Err(error) = backend.get(&t1).await {
        assert!(matches!(error, StorageError::Unavailable { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn after_a_restart_of_the_server_the_same_backend_works_again() {
    let mut server = Server::start(&[]);
    let backend = RedisBackend::connect(&server.url()).await.unwrap();
    let t1: TaskKey = key("alice", "t1");
    let options = PutOptions::new(Expiry::Never);
    backend.put(&t1, "data".into(), options.clone()).await.unwrap();
    server.kill();
    let error = backend.put(&t1, "data".into(), options.clone()).await.unwrap_err();
    assert!(matches!(error, StorageError::Unavailable { .. }), "{error:?}");
    server.start_again();
    while let Err(error) = backend.put(&t1, "data".into(), options.clone()).await {
        assert!(matches!(error, StorageError::Unavailable { .. }), "{error:?}");
    }
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

/// Returns the permissions that docs/operations.md adds to the ACL rule for this case.
fn documented_addition(case: &str) -> Vec<String> {
    let page = page("docs/operations.md");
    let line = page.lines().find(|line| line.starts_with("ACL SETUSER ") && line.ends_with(case)).unwrap();
    line.split_whitespace().filter(|word| word.starts_with('+')).map(str::to_owned).collect()
}

/// Gives the user of the ACL rule the permissions of the rule and these.
fn permit(admin: &mut Connection, words: &[String]) {
    let rule = acl_rule();
    let reset = rule.replace("SETUSER tasks ", "SETUSER tasks reset ");
    let words = reset.split(' ').chain(words.iter().map(String::as_str));
    let _: Value = command(admin, words);
}

fn url_of_the_user(port: u16) -> String {
    let rule = acl_rule();
    let password = rule.split(' ').find_map(|word| word.strip_prefix('>')).unwrap();
    format!("redis://tasks:{password}@127.0.0.1:{port}")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_documented_additions_for_a_cluster_are_sufficient_and_each_is_needed() {
    let cluster = Cluster::start(2, 0);
    let (from, slot) = (cluster.master_for("{alice}"), cluster.slot("{alice}"));
    let permit_all = |words: &[String]| {
        cluster.nodes.iter().for_each(|node| permit(&mut node.connection(), words));
    };
    let urls: Vec<String> = cluster.nodes.iter().map(|node| url_of_the_user(node.port)).collect();
    let all = documented_addition("# in a cluster");
    permit_all(&all);
    let backend = RedisBackend::builder().connect_cluster(&urls).await.unwrap();
    let t1 = key("alice", "t1");
    backend.put(&t1, "data".into(), in_an_hour()).await.unwrap();
    // While the slot is being migrated, the backend sends ASKING to the other node.
    cluster.set_slot(1 - from, &slot, "IMPORTING", from);
    cluster.set_slot(from, &slot, "MIGRATING", 1 - from);
    cluster.migrate(from, 1 - from, "pmcp:tasks:{alice}:t1");
    backend.get(&t1).await.unwrap();
    for word in &all {
        let without: Vec<String> = all.iter().filter(|other| *other != word).cloned().collect();
        permit_all(&without);
        let failed = match RedisBackend::builder().connect_cluster(&urls).await {
            Ok(backend) => backend.get(&t1).await.map(drop),
            Err(error) => Err(error),
        };
        assert!(matches!(failed, Err(StorageError::Denied { .. })), "{word} is not needed: {failed:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_documented_additions_for_sentinels_and_replicas_are_sufficient_and_each_is_needed() {
    let watched = Watched::start(&[]);
    let url = url_of_the_user(watched.master.port).replace("127.0.0.1", MASTER);
    let connect = || RedisBackend::builder().connect_sentinel(watched.sentinel_urls(), &url);
    permit(&mut watched.master.connection(), &[]);
    let denied = connect().await.unwrap_err();
    assert!(matches!(denied, StorageError::Denied { .. }), "{denied:?}");
    let role = documented_addition("# behind sentinels");
    permit(&mut watched.master.connection(), &role);
    connect().await.unwrap().put(&key("alice", "t1"), "data".into(), in_an_hour()).await.unwrap();

    let wait = RedisBackend::builder().wait_for_replicas(1, Duration::from_secs(1));
    let denied = wait.clone().connect_sentinel(watched.sentinel_urls(), &url).await.unwrap_err();
    assert!(matches!(denied, StorageError::Denied { .. }), "{denied:?}");
    assert!(denied.to_string().contains("WAIT"), "{denied}");
    let more = documented_addition("# with wait_for_replicas");
    permit(&mut watched.master.connection(), &[role.clone(), more.clone()].concat());
    let waiting = wait.connect_sentinel(watched.sentinel_urls(), &url).await.unwrap();
    permit(&mut watched.master.connection(), &role);
    let refused = waiting.put(&key("alice", "t1"), "data".into(), keep()).await.unwrap_err();
    assert!(refused.outcome_unknown(), "the master wrote it, and no replica was waited for: {refused:?}");
    assert_names(&refused, &["0 of 1 replicas", "'wait' command"]);
    let store = TaskStore::new(waiting.clone());
    store.create(&owner("alice"), NewTask::new("tools/call")).await.unwrap_err();
    permit(&mut watched.master.connection(), &[role, more].concat());
    waiting.put(&key("alice", "t1"), "data".into(), keep()).await.unwrap();
}

#[rstest]
#[case::scripts("EVAL")]
#[case::a_read_of_a_page("HSTRLEN")]
#[case::a_read("HMGET")]
#[case::a_command_of_scripts("HSETNX")]
#[case::another_command_of_scripts("ZADD")]
#[tokio::test]
async fn connecting_to_a_server_that_lacks_a_command_names_the_command(#[case] lacking: &str) {
    let server = Server::start(&["--rename-command", lacking, ""]);
    let error = RedisBackend::connect(&server.url()).await.unwrap_err();
    assert!(matches!(error, StorageError::Backend { outcome_unknown: false, .. }), "{error:?}");
    assert!(!error.is_retryable());
    assert_names(&error, &[lacking, &format!("127.0.0.1:{}", server.port)]);
    let texts = format!("{error:?} {:?}", std::error::Error::source(&error));
    assert!(!texts.contains("local") && !texts.contains("redis.pcall"), "the text of the script: {texts}");
}

#[tokio::test]
async fn connecting_to_a_server_that_lacks_hello_names_the_setting_and_works_with_it() {
    let server = Server::start(&["--rename-command", "HELLO", "", "--requirepass", "pass-word"]);
    let url = format!("redis://:pass-word@127.0.0.1:{}", server.port);
    let error = RedisBackend::connect(&url).await.unwrap_err();
    assert!(!error.is_retryable() && !error.outcome_unknown());
    assert_names(&error, &["HELLO", "?protocol=resp2", &format!("127.0.0.1:{}", server.port)]);
    let backend = RedisBackend::connect(&format!("{url}?protocol=resp2")).await.unwrap();
    backend.put(&key("alice", "t1"), "data".into(), in_an_hour()).await.unwrap();
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

/// The backend can read, and it can write once the state has passed.
#[rstest]
#[case::is_out_of_memory(&["CONFIG", "SET", "maxmemory", "1"], &["CONFIG", "SET", "maxmemory", "0"])]
#[case::has_too_few_replicas(
    &["CONFIG", "SET", "min-replicas-to-write", "1"],
    &["CONFIG", "SET", "min-replicas-to-write", "0"]
)]
#[case::is_a_replica(&["REPLICAOF", "127.0.0.1", "1"], &["REPLICAOF", "NO", "ONE"])]
#[tokio::test]
async fn a_backend_connects_while_the_server(#[case] state: &[&str], #[case] passed: &[&str]) {
    let server = Server::start(&[]);
    let mut admin = server.connection();
    let _: Value = command(&mut admin, state.iter().copied());
    let backend = RedisBackend::connect(&server.url()).await.unwrap();
    let t1 = key("alice", "t1");
    let error = backend.put(&t1, "data".into(), in_an_hour()).await.unwrap_err();
    assert!(error.is_retryable() && !error.outcome_unknown(), "{error:?}");
    assert!(matches!(backend.get(&t1).await, Err(StorageError::NotFound { .. })));
    let _: Value = command(&mut admin, passed.iter().copied());
    // A server that becomes a master closes its connections.
    while let Err(error) = backend.put(&t1, "data".into(), in_an_hour()).await {
        assert!(error.is_retryable(), "{error:?}");
    }
    let keys: Vec<String> = admin.keys("*probe*").unwrap();
    assert!(keys.is_empty(), "{keys:?}");
}

/// Each call connects to a server of another kind than it expects.
#[tokio::test]
async fn connecting_to_another_kind_of_server_names_the_method_that_connects_to_it() {
    let server = Server::start(&[]);
    let error = RedisBackend::builder().connect_cluster([server.url()]).await.unwrap_err();
    assert_names(&error, &["is not a node of a cluster", "connect with connect"]);
    let error = RedisBackend::builder().connect_sentinel([server.url()], "redis://main").await.unwrap_err();
    assert_names(&error, &["not a sentinel", "26379"]);
    assert!(!format!("{error:?}").contains("args"), "{error:?}");
    let watched = Watched::start(&[]);
    let sentinels = watched.sentinel_urls();
    let error = RedisBackend::connect(&sentinels[0]).await.unwrap_err();
    assert_names(&error, &["connect_sentinel"]);
    let error = RedisBackend::builder().connect_sentinel(&sentinels, "redis://other").await.unwrap_err();
    assert!(error.is_retryable(), "{error:?}");
    assert_names(&error, &["do not know a master of this name", "other"]);
}

#[tokio::test]
async fn the_error_for_a_host_name_without_an_address_differs_from_that_for_a_server_that_is_down() {
    let error = RedisBackend::connect("redis://redis.invalid").await.unwrap_err();
    assert!(matches!(error, StorageError::Unavailable { .. }), "{error:?}");
    assert_names(&error, &["redis.invalid:6379", "no address was found for the host name"]);
}
