//! A user who lacks one permission of the documented ACL rule.

use std::time::Duration;

use futures_util::future::join_all;
use mcp_task_store::{Agenda, Queue, RedisBackend, StorageBackend, StorageError};
use redis::{Commands, Connection, Value};

use super::{Outcome, Write, prepared, send_all};
use crate::support::redis::{Server, command, rule_for};
use crate::support::{after_ms, in_an_hour, key};

/// Asserts that a denied write left nothing, and that an acknowledged write is there. Returns whether it was denied.
async fn check(without: &str, write: &Write, outcome: &Outcome, reader: &RedisBackend) -> bool {
    match outcome {
        Ok(written) => {
            assert_eq!(written.version, write.version(), "{write:?} without {without}");
            write.assert_applied(reader).await;
            false
        }
        Err(error @ StorageError::Denied { .. }) => {
            assert!(!error.outcome_unknown(), "{write:?} without {without}: {error:?}");
            write.assert_not_applied(reader).await;
            true
        }
        Err(error) => panic!("{write:?} without {without}: {error:?}"),
    }
}

/// A server with a user who has the permissions of the documented ACL rule.
struct Restricted {
    _server: Server,
    admin: Connection,
    unrestricted: RedisBackend,
    user: String,
    /// `+` and a command, for each permission of the user.
    permissions: Vec<String>,
    /// Is connected as the user. Connecting needs all permissions.
    backend: RedisBackend,
}

impl Restricted {
    async fn start() -> Self {
        let server = Server::start(&[]);
        let mut admin = server.connection();
        let unrestricted = RedisBackend::connect(&server.url()).await.unwrap();
        let rule = rule_for(&mut admin);
        let words: Vec<&str> = rule.split(' ').collect();
        let (user, password) = (words[2], words.iter().find_map(|word| word.strip_prefix('>')).unwrap());
        let _: Value = command(&mut admin, words.iter().copied());
        let url = format!("redis://{user}:{password}@127.0.0.1:{}", server.port);
        let backend = RedisBackend::connect(&url).await.unwrap();
        let permissions = words.iter().filter(|word| word.starts_with('+'));
        let permissions = permissions.map(|word| (*word).to_owned()).collect();
        Self { _server: server, admin, unrestricted, user: user.to_owned(), permissions, backend }
    }

    fn delete_all(&mut self) {
        let _: () = command(&mut self.admin, ["FLUSHALL"]);
    }

    fn revoke(&mut self, permission: &str) {
        let _: Value =
            command(&mut self.admin, ["ACL", "SETUSER", &self.user, &permission.replace('+', "-")]);
    }

    fn grant(&mut self, permission: &str) {
        let _: Value = command(&mut self.admin, ["ACL", "SETUSER", &self.user, permission]);
    }

    /// Asserts that each record and each index expires. Timers do not.
    fn assert_all_expire(&mut self, without: &str) {
        for key in self.admin.keys::<_, Vec<String>>("pmcp:*").unwrap() {
            let expires = command::<i64>(&mut self.admin, ["PTTL", &key]) >= 0;
            assert!(expires || key.starts_with("pmcp:due:"), "without {without}: {key} never expires");
        }
    }
}

#[tokio::test]
async fn without_any_one_permission_each_of_many_writes_is_denied_or_applied_and_nothing_stays_for_ever() {
    let mut restricted = Restricted::start().await;
    let (unrestricted, backend) = (restricted.unrestricted.clone(), restricted.backend.clone());
    let (mut denied, mut applied) = (0, 0);
    for word in &restricted.permissions.clone() {
        // A single owner's writes and several owners' writes run different commands.
        for owners in [&["alice"][..], &["alice", "bob", "carol", "dave"]] {
            restricted.delete_all();
            // The first owner has a record that lives longer, and the last one has no index yet.
            let longer = after_ms(7_200_000);
            unrestricted.put(&key("alice", "longer"), "data".into(), longer).await.unwrap();
            let mut writes = prepared(&unrestricted, owners, 16).await;
            writes.extend((0..8).map(|task| Write::Create(key("erin", &task.to_string()))));
            restricted.revoke(word);
            let outcomes = send_all(&backend, &writes).await;
            for (write, outcome) in writes.iter().zip(&outcomes) {
                match check(word, write, outcome, &unrestricted).await {
                    true => denied += 1,
                    false => applied += 1,
                }
            }
            restricted.assert_all_expire(word);
            restricted.grant(word);
            // With all permissions again, the same calls succeed, or conflict with themselves.
            for (write, outcome) in writes.iter().zip(&outcomes) {
                if outcome.is_err() {
                    write.send(&backend).await.unwrap();
                }
                write.assert_applied(&unrestricted).await;
            }
        }
    }
    assert!(denied > 200 && applied > 200, "{denied} {applied}");
}

#[tokio::test]
async fn without_any_one_permission_each_of_many_creates_with_a_timer_is_denied_or_has_its_timer() {
    let mut restricted = Restricted::start().await;
    let (unrestricted, backend) = (restricted.unrestricted.clone(), restricted.backend.clone());
    let (leases, hour) = (Queue::leases(), Duration::from_secs(3600));
    let (mut denied, mut applied) = (0, 0);
    for word in &restricted.permissions.clone() {
        restricted.delete_all();
        restricted.revoke(word);
        let writes: Vec<Write> = (0..32)
            .map(|number| Write::Create(key(["alice", "bob"][number % 2], &number.to_string())))
            .collect();
        let create = async |write: &Write| {
            let data = format!("new {}", write.key()).into();
            backend.create_with_timer(write.key(), data, in_an_hour(), &leases, hour).await
        };
        let outcomes = join_all(writes.iter().map(create)).await;
        let timers = crate::support::timers(&unrestricted, &leases).await;
        for (write, outcome) in writes.iter().zip(&outcomes) {
            match check(word, write, outcome, &unrestricted).await {
                true => denied += 1,
                false => {
                    assert!(timers.iter().any(|timer| timer.key == *write.key()), "{write:?} without {word}");
                    applied += 1;
                }
            }
        }
        restricted.assert_all_expire(word);
        restricted.grant(word);
    }
    assert!(denied > 100 && applied > 100, "{denied} {applied}");
}

/// The script runs the missing command only for a record that it refuses, and that is not the first record.
#[tokio::test]
async fn without_a_permission_that_only_a_refused_record_needs_the_other_writes_are_answered_truthfully() {
    let mut restricted = Restricted::start().await;
    let (unrestricted, backend) = (restricted.unrestricted.clone(), restricted.backend.clone());
    for word in &restricted.permissions.clone() {
        restricted.delete_all();
        let mut writes = prepared(&unrestricted, &["alice", "bob"], 16).await;
        // Owners without an index come before, between and after owners with one.
        for owner in ["aaron", "barry", "zoe"] {
            writes.extend((0..4).map(|task| Write::Create(key(owner, &task.to_string()))));
        }
        let mut refused = Vec::new();
        for number in [1, 9] {
            refused.push(Write::Swap(key("alice", &format!("swapped-{number}-missing"))));
            let exists = key("bob", &format!("created-{number}-exists"));
            unrestricted.put(&exists, "old".into(), in_an_hour()).await.unwrap();
            refused.push(Write::Create(exists));
        }
        let all: Vec<Write> = writes.iter().chain(&refused).cloned().collect();
        restricted.revoke(word);
        let outcomes = send_all(&backend, &all).await;
        for (write, outcome) in writes.iter().zip(&outcomes) {
            check(word, write, outcome, &unrestricted).await;
        }
        for (write, outcome) in refused.iter().zip(&outcomes[writes.len()..]) {
            assert!(outcome.is_err(), "{write:?} without {word}");
        }
        restricted.assert_all_expire(word);
        restricted.grant(word);
    }
}
