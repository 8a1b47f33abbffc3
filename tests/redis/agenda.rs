//! The agenda on Redis: stored keys, messages, and lost servers. The tests of the contract are elsewhere.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::support::cluster::{Cluster, eventually};
use crate::support::redis::{Server, can_shard_publishing, command, rule_for};
use crate::support::sentinel::{MASTER, Watched};
use crate::support::{in_an_hour, key};
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use mcp_task_store::{
    Agenda, Cursor, Due, NewTask, Next, OwnerId, PageRequest, Queue, RedisBackend, StorageBackend,
    StorageError, Taken, TaskError, TaskStore,
};
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{Cmd, Commands, Connection, Pipeline, RedisFuture, Value};
use rstest::rstest;

const NOW: Duration = Duration::ZERO;
const HOUR: Duration = Duration::from_secs(3600);
const PATIENCE: Duration = Duration::from_secs(60);
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(1);
const DUE: &str = "pmcp:due:0:leases";

fn queue(name: &str) -> Queue {
    name.try_into().unwrap()
}

fn leases() -> Queue {
    queue("leases")
}

async fn take(agenda: &RedisBackend) -> Taken {
    agenda.take_due(&[leases()], 256, HOUR).await.unwrap()
}

fn keys(taken: &Taken) -> Vec<String> {
    taken.due.iter().map(|due| due.key.to_string()).collect()
}

async fn item(wakeups: &mut BoxStream<'static, ()>) {
    tokio::time::timeout(PATIENCE, wakeups.next()).await.expect("an item").expect("the stream does not end");
}

/// Waits until earlier messages yield no more items.
async fn quiet(wakeups: &mut BoxStream<'static, ()>) {
    while tokio::time::timeout(Duration::from_millis(200), wakeups.next()).await.is_ok() {}
}

fn wakeups(backend: &RedisBackend) -> BoxStream<'static, ()> {
    backend.wakeups(&[leases()])
}

/// The scores of a queue's timers as the server prints them.
fn scores(connection: &mut Connection, due: &str) -> BTreeMap<String, f64> {
    let pairs: Vec<(String, f64)> = connection.zrange_withscores(due, 0, -1).unwrap();
    pairs.into_iter().collect()
}

// Stored keys

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

#[tokio::test]
async fn owners_skips_keys_that_are_not_the_index_of_an_owner() {
    let server = Server::start(&[]);
    let mut admin = server.connection();
    let backend = RedisBackend::connect(&server.url()).await.unwrap();
    backend.put(&key("alice", "t1"), "data".into(), in_an_hour()).await.unwrap();
    let _: () = admin.set("pmcp:idx:text", "text").unwrap();
    for foreign in ["pmcp:idx:", "pmcp:idx:a%3a", "pmcp:idx:{bob}:", "pmcp:idx:\u{7f}", "other:idx:bob"] {
        let _: () = admin.zadd(foreign, "t1", 1).unwrap();
    }
    let _: () = admin.zadd(b"pmcp:idx:\xff", "t1", 1).unwrap();
    let page = backend.owners(None).await.unwrap();
    let owners: Vec<&str> = page.owners.iter().map(|owner| owner.as_str()).collect();
    assert_eq!((owners, page.next), (vec!["alice"], None));
}

#[tokio::test]
async fn owners_are_found_among_many_other_keys_in_bounded_steps() {
    let server = Server::start(&[]);
    let mut admin = server.connection();
    let backend = RedisBackend::connect(&server.url()).await.unwrap();
    let mut many = redis::pipe();
    for number in 0..30_000 {
        many.set(format!("other:{number}"), "").ignore();
    }
    let _: () = many.query(&mut admin).unwrap();
    for number in 0..50 {
        let key = key(&format!("owner-{number}"), "t1");
        backend.put(&key, "data".into(), in_an_hour()).await.unwrap();
    }
    let (mut owners, mut after, mut pages) = (BTreeSet::new(), None::<Cursor>, 0);
    loop {
        let page = backend.owners(after.as_ref()).await.unwrap();
        owners.extend(page.owners.iter().map(ToString::to_string));
        (after, pages) = (page.next, pages + 1);
        if after.is_none() {
            break;
        }
    }
    assert_eq!(owners.len(), 50);
    assert!(pages > 5, "a page looks at a few thousand keys: {pages}");
}

// Messages

#[tokio::test]
async fn another_process_receives_a_wakeup_within_10_ms() {
    let server = Server::start(&[]);
    let [scheduling, waiting] = [
        RedisBackend::connect(&server.url()).await.unwrap(),
        RedisBackend::connect(&server.url()).await.unwrap(),
    ];
    let mut stream = wakeups(&waiting);
    // The first item arrives when the subscription is live.
    item(&mut stream).await;
    let mut took = Vec::new();
    for number in 0..50 {
        let after = HOUR - number * Duration::from_secs(1);
        let since = Instant::now();
        scheduling.schedule(&leases(), &key("alice", &number.to_string()), after).await.unwrap();
        item(&mut stream).await;
        took.push(since.elapsed());
    }
    took.sort();
    println!(
        "figure | from schedule to the wakeup of another process: median of 50, most | {:.1?}, {:.1?}",
        took[25], took[49]
    );
    assert!(took[25] < Duration::from_millis(100), "{took:?}");
}

#[tokio::test]
async fn one_subscription_serves_all_queues_and_streams_and_ends_with_the_last() {
    let server = Server::start(&[]);
    let mut admin = server.connection();
    let asked = if can_shard_publishing(&mut admin) { "SHARDNUMSUB" } else { "NUMSUB" };
    let mut subscribers = || {
        let [_, count]: [Value; 2] = command(&mut admin, ["PUBSUB", asked, "pmcp:wake:0"]);
        redis::from_redis_value::<i64>(count).unwrap()
    };
    let backend = Arc::new(RedisBackend::connect(&server.url()).await.unwrap());
    let mut streams: Vec<_> =
        (0..3).map(|number| backend.wakeups(&[leases(), queue(&format!("work/{number}"))])).collect();
    for stream in &mut streams {
        item(stream).await;
    }
    assert_eq!(subscribers(), 1);
    streams.truncate(1);
    quiet(&mut streams[0]).await;
    backend.schedule(&leases(), &key("alice", "t1"), NOW).await.unwrap();
    item(&mut streams[0]).await;
    drop(streams);
    let ended = async {
        while subscribers() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, ended).await.expect("the subscription ends");
}

#[rstest]
#[case::notifications_are_off("", false)]
#[case::resp2("?protocol=resp2", true)]
#[tokio::test]
async fn without_messages_an_item_comes_each_second(#[case] query: &str, #[case] notifications: bool) {
    let server = Server::start(&[]);
    let builder = RedisBackend::builder().notifications(notifications);
    let backend = builder.connect(&format!("{}{query}", server.url())).await.unwrap();
    let mut stream = wakeups(&backend);
    let since = Instant::now();
    for _ in 0..3 {
        item(&mut stream).await;
    }
    assert!(since.elapsed() > Duration::from_millis(2900), "{:?}", since.elapsed());
}

#[tokio::test]
async fn over_a_connection_of_the_caller_an_item_comes_each_second() {
    let server = Server::start(&[]);
    let client = redis::Client::open(server.url()).unwrap();
    let connection = client.get_multiplexed_async_connection().await.unwrap();
    let backend = RedisBackend::builder().over(connection).await.unwrap();
    let mut stream = wakeups(&backend);
    item(&mut stream).await;
    backend.schedule(&leases(), &key("alice", "t1"), NOW).await.unwrap();
    assert_eq!(keys(&take(&backend).await), ["alice:t1"]);
}

#[tokio::test]
async fn after_a_lost_subscription_the_backend_subscribes_again_and_yields_an_item() {
    let server = Server::start(&[]);
    let mut admin = server.connection();
    let backend = RedisBackend::connect(&server.url()).await.unwrap();
    let mut stream = wakeups(&backend);
    item(&mut stream).await;
    quiet(&mut stream).await;
    let killed: i64 = command(&mut admin, ["CLIENT", "KILL", "TYPE", "pubsub"]);
    assert_eq!(killed, 1);
    item(&mut stream).await;
    quiet(&mut stream).await;
    backend.schedule(&leases(), &key("alice", "t1"), HOUR).await.unwrap();
    item(&mut stream).await;
}

#[tokio::test]
async fn while_the_server_is_down_an_item_comes_each_second_and_messages_return_with_it() {
    let mut server = Server::start(&[]);
    let backend = RedisBackend::connect(&server.url()).await.unwrap();
    let mut stream = wakeups(&backend);
    item(&mut stream).await;
    quiet(&mut stream).await;
    server.kill();
    for _ in 0..3 {
        item(&mut stream).await;
    }
    server.start_again();
    item(&mut stream).await;
    let messages_return = async {
        // Messages arrive again once an item takes less than a second.
        for number in 0.. {
            let after = HOUR - number * Duration::from_secs(1);
            let t1 = key("alice", &number.to_string());
            while backend.schedule(&leases(), &t1, after).await.is_err() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            quiet(&mut stream).await;
            let since = Instant::now();
            backend.schedule(&leases(), &t1, after / 2).await.unwrap();
            item(&mut stream).await;
            if since.elapsed() < Duration::from_millis(100) {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, messages_return).await.expect("messages arrive again");
}

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

// Replicas and failover

#[tokio::test]
async fn with_wait_for_replicas_a_timer_that_no_replica_has_is_not_acknowledged() {
    let server = Server::start(&[]);
    let builder = RedisBackend::builder().wait_for_replicas(1, Duration::from_millis(50));
    let backend = builder.connect(&server.url()).await.unwrap();
    let refused = backend.schedule(&leases(), &key("alice", "t1"), NOW).await.unwrap_err();
    assert!(
        matches!(refused, StorageError::TooFewReplicas { .. }) && refused.outcome_unknown(),
        "{refused:?}"
    );
    // Taking and removing do not wait for replicas: a timer that a failover restores does no harm.
    let due = take(&backend).await.due.remove(0);
    assert_refused!(backend.resolve(&due, Next::After(HOUR)).await, StorageError::TooFewReplicas { .. });
    backend.schedule(&leases(), &key("alice", "t1"), NOW).await.unwrap_err();
    let due = take(&backend).await.due.remove(0);
    assert!(backend.resolve(&due, Next::Remove).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_sentinels_the_agenda_works_after_a_failover() {
    let watched = Watched::start(&[]);
    let builder = RedisBackend::builder().response_timeout(RESPONSE_TIMEOUT);
    let backend =
        builder.connect_sentinel(watched.sentinel_urls(), &format!("redis://{MASTER}")).await.unwrap();
    backend.schedule(&leases(), &key("alice", "before"), NOW).await.unwrap();
    let mut stream = wakeups(&backend);
    item(&mut stream).await;
    let mut replica = watched.replica.connection();
    eventually(|| replica.exists(DUE).unwrap());
    watched.master.signal("KILL");
    watched.failed_over();
    let t1 = key("alice", "after");
    while let Err(error) = backend.schedule(&leases(), &t1, NOW).await {
        assert!(matches!(error, StorageError::Unavailable { .. }), "{error:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let taken = take(&backend).await;
    assert_eq!(keys(&taken), ["alice:before", "alice:after"]);
    for due in &taken.due {
        assert!(backend.resolve(due, Next::Remove).await.unwrap());
    }
    let messages_arrive = async {
        for number in 0.. {
            quiet(&mut stream).await;
            let since = Instant::now();
            let after = HOUR - number * Duration::from_secs(1);
            backend.schedule(&leases(), &key("alice", &number.to_string()), after).await.unwrap();
            item(&mut stream).await;
            if since.elapsed() < Duration::from_millis(100) {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, messages_arrive).await.expect("messages of the new master arrive");
}

// Several shards

/// A connection that delays the commands for one shard of timers.
#[derive(Clone)]
struct Delayed {
    connection: MultiplexedConnection,
    shard: u64,
    /// The delays in milliseconds: of a call that takes no timers, and of a call that takes timers.
    look_ms: Arc<AtomicU64>,
    take_ms: Arc<AtomicU64>,
    takes: Arc<AtomicU64>,
}

impl Delayed {
    async fn new(server: &Server, shard: u64) -> Self {
        let client = redis::Client::open(server.url()).unwrap();
        let connection = client.get_multiplexed_async_connection().await.unwrap();
        let [look_ms, take_ms, takes] = [0, 0, 0].map(|number| Arc::new(AtomicU64::new(number)));
        Self { connection, shard, look_ms, take_ms, takes }
    }

    fn delay(&self, command: &Cmd) -> Duration {
        let of_shard = format!(":due:{{{}}}:", self.shard);
        let words: Vec<_> = command
            .args_iter()
            .map(|word| match word {
                redis::Arg::Simple(bytes) => String::from_utf8_lossy(bytes),
                _ => "".into(),
            })
            .collect();
        let millis = match words.get(3) {
            Some(key) if !key.contains(&of_shard) => 0,
            Some(_) if words.last().is_some_and(|limit| limit == "0") => self.look_ms.load(Ordering::SeqCst),
            Some(_) => {
                self.takes.fetch_add(1, Ordering::SeqCst);
                self.take_ms.load(Ordering::SeqCst)
            }
            None => 0,
        };
        Duration::from_millis(millis)
    }
}

impl ConnectionLike for Delayed {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        Box::pin(async move {
            tokio::time::sleep(self.delay(command)).await;
            self.connection.req_packed_command(command).await
        })
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        commands: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        self.connection.req_packed_commands(commands, offset, count)
    }

    fn get_db(&self) -> i64 {
        self.connection.get_db()
    }
}

/// A backend with shards on one server, of which one is slow, an owner in that shard, and an owner in another shard.
async fn with_a_slow_shard() -> (Server, RedisBackend, Delayed, [String; 2]) {
    let server = Server::start(&[]);
    let delayed = Delayed::new(&server, 3).await;
    let builder = RedisBackend::builder().hash_tags(true).response_timeout(RESPONSE_TIMEOUT);
    let backend = builder.over(delayed.clone()).await.unwrap();
    let mut admin = server.connection();
    let mut owners = [None, None];
    for number in 0.. {
        let owner = format!("owner-{number}");
        backend.schedule(&leases(), &key(&owner, "t1"), NOW).await.unwrap();
        let shard: Vec<String> = admin.keys("pmcp:due:*").unwrap();
        let _: () = command(&mut admin, ["FLUSHALL"]);
        let is_slow = shard == ["pmcp:due:{3}:leases"];
        owners[usize::from(!is_slow)].get_or_insert(owner);
        if let [Some(slow), Some(other)] = &owners {
            return (server, backend, delayed, [slow.clone(), other.clone()]);
        }
    }
    unreachable!()
}

#[tokio::test]
async fn takers_wait_again_for_a_slow_shard_that_replies_again() {
    let (_server, backend, delayed, owners) = with_a_slow_shard().await;
    for owner in &owners {
        backend.schedule(&leases(), &key(owner, "t1"), NOW).await.unwrap();
    }
    delayed.look_ms.store(600, Ordering::SeqCst);
    assert_eq!(keys(&take(&backend).await), [format!("{}:t1", owners[1])]);
    delayed.look_ms.store(60, Ordering::SeqCst);
    let taken = async {
        loop {
            let taken = take(&backend).await;
            if !taken.due.is_empty() {
                return taken;
            }
            tokio::time::sleep(taken.next_in.unwrap()).await;
        }
    };
    let taken =
        tokio::time::timeout(PATIENCE, taken).await.expect("the call takes the timer of the slow shard");
    assert_eq!(keys(&taken), [format!("{}:t1", owners[0])]);
}

#[tokio::test]
async fn one_call_asks_a_shard_that_does_not_reply_only_once() {
    let (_server, backend, delayed, [slow, other]) = with_a_slow_shard().await;
    for task in 0..200 {
        backend.schedule(&leases(), &key(&slow, &task.to_string()), NOW).await.unwrap();
    }
    backend.schedule(&leases(), &key(&other, "t1"), NOW).await.unwrap();
    delayed.take_ms.store(60_000, Ordering::SeqCst);
    delayed.takes.store(0, Ordering::SeqCst);
    assert_eq!(keys(&take(&backend).await), [format!("{other}:t1")]);
    assert_eq!(delayed.takes.load(Ordering::SeqCst), 1);
}

// A cluster

async fn connect(cluster: &Cluster) -> RedisBackend {
    let builder = RedisBackend::builder().response_timeout(RESPONSE_TIMEOUT);
    builder.connect_cluster(cluster.urls().split(',')).await.unwrap()
}

/// One owner for each shard, by the shard of its timer.
async fn owners_by_shard(backend: &RedisBackend, cluster: &Cluster) -> BTreeMap<u64, String> {
    let mut owners = BTreeMap::new();
    for number in 0..2000 {
        let name = format!("owner-{number}");
        let queue = queue("probe");
        backend.schedule(&queue, &key(&name, "t1"), NOW).await.unwrap();
        let holds = |shard: &u64| {
            let due = format!("pmcp:due:{{{shard}}}:probe");
            let mut master = cluster.nodes[cluster.master_for(&due)].connection();
            master.exists::<_, bool>(&due).unwrap()
        };
        let shard = (0..16).find(holds).expect("one of 16 shards");
        owners.entry(shard).or_insert(name);
        for due in backend.take_due(&[queue], 256, HOUR).await.unwrap().due {
            assert!(backend.resolve(&due, Next::Remove).await.unwrap());
        }
        if owners.len() == 16 {
            return owners;
        }
    }
    panic!("no owner for each shard: {owners:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_cluster_a_lost_master_delays_only_its_own_timers() {
    let cluster = Cluster::start(3, 0);
    for node in &cluster.nodes {
        let partly = ["CONFIG", "SET", "cluster-require-full-coverage", "no"];
        let _: () = command(&mut node.connection(), partly);
    }
    let backend = connect(&cluster).await;
    let owners = owners_by_shard(&backend, &cluster).await;
    let mut stream = wakeups(&backend);
    item(&mut stream).await;
    quiet(&mut stream).await;

    // Each shard yields a wakeup, and one call takes from all shards.
    for owner in owners.values() {
        backend.schedule(&leases(), &key(owner, "t1"), NOW).await.unwrap();
        item(&mut stream).await;
    }
    let taken = take(&backend).await;
    assert_eq!(taken.due.len(), 16);
    for due in &taken.due {
        assert!(backend.resolve(due, Next::After(NOW)).await.unwrap());
    }
    let masters: BTreeMap<u64, usize> =
        (0..16).map(|shard| (shard, cluster.master_for(&format!("{{{shard}}}")))).collect();
    let by_master = (0..3).map(|node| masters.values().filter(|master| **master == node).count());
    let by_master: Vec<usize> = by_master.collect();
    println!("figure | shards of timers on each of three masters | {by_master:?}");
    assert!(by_master.iter().all(|count| *count > 0), "{by_master:?}");

    let lost = masters[&0];
    let on_lost = |shard: &u64| masters[shard] == lost;
    let healthy: BTreeSet<&String> =
        owners.iter().filter(|(shard, _)| !on_lost(shard)).map(|(_, owner)| owner).collect();
    let of_lost_shards = owners.iter().filter(|(shard, _)| on_lost(shard)).map(|(_, owner)| owner);
    let has_records_elsewhere = |owner: &&String| cluster.master_for(&format!("{{{owner}}}")) != lost;
    let owner = of_lost_shards
        .clone()
        .find(has_records_elsewhere)
        .expect("an owner whose timers are on the lost master and whose records are not");
    let owner = OwnerId::try_from(owner.as_str()).unwrap();
    for signal in ["STOP", "CONT", "KILL"] {
        cluster.nodes[lost].signal(signal);
        if signal == "CONT" {
            let all = async {
                while take(&backend).await.next_in.is_none_or(|next| next <= Duration::from_secs(1)) {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            };
            tokio::time::timeout(PATIENCE, all).await.expect("all shards answer again");
            for owner in owners.values() {
                backend.schedule(&leases(), &key(owner, "t1"), NOW).await.unwrap();
            }
            continue;
        }
        let since = Instant::now();
        let (mut found, mut rounds) = (BTreeSet::new(), 0);
        while found.len() < healthy.len() {
            let taken = take(&backend).await;
            found.extend(taken.due.iter().map(|due| due.key.owner.to_string()));
            assert!(taken.next_in.is_some_and(|next| next <= Duration::from_secs(1)), "{taken:?}");
            rounds += 1;
        }
        println!(
            "figure | a master of timers gets SIG{signal}: until those of the others are taken | {:.0?}, {rounds} calls",
            since.elapsed()
        );
        assert_eq!(found.iter().collect::<BTreeSet<_>>(), healthy);
        assert!(since.elapsed() < Duration::from_secs(20), "{:?}", since.elapsed());
        // From then on, the lost master delays no call.
        let since = Instant::now();
        for round in 0..10 {
            let owner = healthy.iter().nth(round % healthy.len()).unwrap();
            backend.schedule(&leases(), &key(owner, "t2"), NOW).await.unwrap();
            assert_eq!(keys(&take(&backend).await), [format!("{owner}:t2")]);
        }
        println!("figure | the same, a schedule and a take_due from then on | {:.0?}", since.elapsed() / 10);
        assert!(since.elapsed() / 10 < RESPONSE_TIMEOUT / 2, "{:?}", since.elapsed() / 10);

        // A task whose timer cannot be set must not be created.
        let error = backend.schedule(&leases(), &key(&owners[&0], "t9"), NOW).await.unwrap_err();
        assert!(matches!(error, StorageError::Unavailable { .. }), "{error:?}");
        let refused = backend.timers(&leases(), None).await;
        assert!(matches!(refused, Err(StorageError::Unavailable { .. })), "{refused:?}");
    }

    // This holds even for an owner whose records are on a master that replies: nothing is written.
    let tasks = TaskStore::new(backend.clone());
    let started = tasks.start(&owner, NewTask::new("tools/call")).await;
    assert!(matches!(started, Err(TaskError::Storage(StorageError::Unavailable { .. }))), "{started:?}");
    assert!(backend.list(&owner, PageRequest::new(9)).await.unwrap().records.is_empty());
    tasks.create(&owner, NewTask::new("tools/call")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_cluster_that_has_lost_all_masters_take_due_is_unavailable() {
    let cluster = Cluster::start(2, 0);
    let backend = connect(&cluster).await;
    backend.schedule(&leases(), &key("alice", "t1"), NOW).await.unwrap();
    cluster.nodes.iter().for_each(|node| node.signal("KILL"));
    let error = backend.take_due(&[leases()], 5, HOUR).await.unwrap_err();
    assert!(matches!(error, StorageError::Unavailable { .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_cluster_owners_lists_the_owners_of_every_master_even_after_a_failover() {
    let cluster = Cluster::start(3, 3);
    let backend = connect(&cluster).await;
    let wanted: BTreeSet<String> = (0..60).map(|number| format!("owner-{number}")).collect();
    for name in &wanted {
        backend.put(&key(name, "t1"), "data".into(), in_an_hour()).await.unwrap();
    }
    let mut owners = BTreeSet::new();
    let mut after = None::<Cursor>;
    let mut pages = 0;
    loop {
        let page = match backend.owners(after.as_ref()).await {
            Ok(page) => page,
            Err(error) => {
                assert!(matches!(error, StorageError::Unavailable { .. }), "{error:?}");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        owners.extend(page.owners.iter().map(ToString::to_string));
        (after, pages) = (page.next, pages + 1);
        let Some(cursor) = &after else { break };
        if pages == 1 {
            // The next master goes down, and its replica takes over.
            let port: u16 = cursor.as_str().split('.').nth(2).unwrap().parse().unwrap();
            let next = cluster.nodes.iter().position(|node| node.port == port).unwrap();
            cluster.nodes[next].signal("KILL");
            let survivors = cluster.urls_without(next);
            eventually(|| {
                let masters = crate::support::redis::masters(&survivors);
                masters.len() == 3 && !masters.values().any(|url| url.ends_with(&port.to_string()))
            });
        }
    }
    assert_eq!(owners, wanted);
    assert!(pages >= 3, "each page has owners of one master: {pages}");
}
