//! `doctor` and `init` on Redis: each fault made on purpose.

use std::time::Duration;

use mcp_task_store::{Expiry, PageRequest, PutOptions, RedisBackend, StorageBackend, TaskKey};
use rstest::rstest;

use crate::doctor::{assert_counts, assert_worst, line};
use crate::support::server::{Server, until};
use crate::support::{Ended, LONG, command, owner};

fn doctor_at(url: &str, more: &[&str]) -> Ended {
    let mut command = command();
    command.env("MCP_TASKS_URL", url).args(["doctor", "--json", "-q"]).args(more);
    Ended::of(command, "")
}

fn doctor(server: &Server, more: &[&str]) -> Ended {
    doctor_at(&server.url(), more)
}

fn health(ended: &Ended, check: &str) -> String {
    line(ended, check)["health"].as_str().unwrap().to_owned()
}

/// A server with the records `alice:t0` to `alice:t2`.
struct Faulty {
    server: Server,
    backend: RedisBackend,
}

impl Faulty {
    async fn new(expiry: Expiry) -> Self {
        let server = Server::recommended(&[]);
        let backend = RedisBackend::connect(&server.url()).await.unwrap();
        let faulty = Self { server, backend };
        for task in ["t0", "t1", "t2"] {
            faulty.put(task, expiry).await;
        }
        faulty
    }

    async fn put(&self, task: &str, expiry: Expiry) {
        let task = TaskKey::new("alice", task).unwrap();
        let json = r#"{"taskId":"t","status":"completed","method":"tools/call","ttlMs":null,
            "createdAt":"2026-01-31T12:00:00.000Z","lastUpdatedAt":"2026-01-31T12:00:00.000Z"}"#;
        self.backend.put(&task, json.into(), PutOptions::new(expiry)).await.unwrap();
    }

    async fn listed(&self) -> Vec<String> {
        let page = self.backend.list(&owner("alice"), PageRequest::new(10)).await.unwrap();
        page.records.iter().map(|record| record.task.as_str().to_owned()).collect()
    }

    fn index(&self) -> Vec<Vec<u8>> {
        self.server.send(&["ZRANGE", "pmcp:idx:alice", "0", "-1", "WITHSCORES"])
    }

    fn remove_mark(&self, task: &str) {
        let mark = [b"\xff", task.as_bytes()].concat();
        let mut connection = redis::Client::open(self.server.url()).unwrap().get_connection().unwrap();
        let removed: u32 = redis::cmd("ZREM").arg("pmcp:idx:alice").arg(mark).query(&mut connection).unwrap();
        assert_eq!(removed, 1);
    }

    /// Asserts that the index expires with the longest-lived record, or never.
    fn assert_index_expires(&self, expires: bool) {
        let index: i64 = self.server.send(&["PTTL", "pmcp:idx:alice"]);
        assert_eq!(index > 0, expires, "{index}");
        for task in ["t0", "t1", "t2"] {
            let record: i64 = self.server.send(&["PTTL", &format!("pmcp:tasks:alice:{task}")]);
            assert!(!expires || record <= index + 1_000, "{task}: {record}, {index}");
        }
    }
}

#[test]
fn a_server_with_the_recommended_settings_is_green_and_keeps_no_key() {
    let server = Server::recommended(&[]);
    let ended = doctor(&server, &[]);
    assert_worst(&ended, 0);
    for check in [
        "permissions",
        "version",
        "persistence",
        "maxmemory-policy",
        "lazyfree-lazy-expire",
        "replication",
        "clock",
    ] {
        assert_eq!(health(&ended, check), "green", "{ended:?}");
    }
    assert!(line(&ended, "latency")["what"].as_str().unwrap().contains("99 %"), "{ended:?}");
    assert!(!ended.out.contains("\"cluster\""), "{ended:?}");
    assert_eq!(server.keys(), 0);
}

#[rstest]
#[case::no_persistence(&["--appendonly", "no", "--save", ""], "persistence", "red", 2)]
#[case::snapshots(&["--appendonly", "no", "--save", "3600 1"], "persistence", "yellow", 1)]
#[case::no_sync(&["--appendfsync", "no"], "persistence", "yellow", 1)]
#[case::evicts(&["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"], "maxmemory-policy", "red", 2)]
#[case::may_evict(&["--maxmemory-policy", "volatile-ttl"], "maxmemory-policy", "yellow", 1)]
#[case::not_lazy(&["--lazyfree-lazy-expire", "no"], "lazyfree-lazy-expire", "yellow", 1)]
#[case::too_few_replicas(&["--min-replicas-to-write", "1"], "replication", "red", 2)]
fn each_wrong_setting_is_one_line(
    #[case] settings: &[&str],
    #[case] check: &str,
    #[case] expected: &str,
    #[case] code: i32,
) {
    let server = Server::recommended(settings);
    let ended = doctor(&server, &["--quick"]);
    assert_eq!(health(&ended, check), expected, "{ended:?}");
    assert_worst(&ended, code);
    assert!(line(&ended, check)["advice"].is_string());
    let is_other = |line: &&str| !line.contains("\"green\"") && !line.contains("\"latency\"");
    let bad = ended.out.lines().filter(is_other).count();
    assert_eq!(bad, 1, "{ended:?}");
}

#[test]
fn a_replica_is_red_and_a_master_names_its_replicas() {
    let master = Server::recommended(&[]);
    let replica = Server::recommended(&["--replicaof", &format!("127.0.0.1 {}", master.port)]);
    until("the replica is online", || {
        master.send::<String>(&["INFO", "replication"]).contains("state=online")
    });
    let ended = doctor(&replica, &["--quick"]);
    assert_eq!(health(&ended, "replication"), "red", "{ended:?}");
    assert_worst(&ended, 2);
    let ended = doctor(&master, &["--quick"]);
    assert_eq!(line(&ended, "replication")["what"], "a master with 1 replica", "{ended:?}");
}

#[test]
fn a_clock_that_differs_is_yellow() {
    let server = Server::with_clock_ahead(3_600);
    let ended = doctor(&server, &["--quick"]);
    assert_eq!(health(&ended, "clock"), "yellow", "{ended:?}");
    let what = line(&ended, "clock")["what"].as_str().unwrap().to_owned();
    let offset = what.split("by ").nth(1).and_then(|rest| rest.strip_suffix(" ms")?.parse::<i64>().ok());
    assert!((3_500_000..3_700_000).contains(&offset.unwrap()), "{what}");
}

/// Returns the words of the ACL rule of docs/operations.md after the name of the user.
fn rule(server: &Server) -> Vec<String> {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/operations.md");
    let page = std::fs::read_to_string(page).unwrap();
    let rule = page.lines().find(|line| line.starts_with("ACL SETUSER ")).unwrap();
    let is_sharded =
        server.send::<Vec<redis::Value>>(&["COMMAND", "INFO", "SPUBLISH"]) != [redis::Value::Nil];
    let rule = match is_sharded {
        true => rule.to_owned(),
        false => rule.replace("+spublish +ssubscribe +sunsubscribe", "+publish +subscribe +unsubscribe"),
    };
    rule.split(' ').skip(3).map(str::to_owned).collect()
}

#[test]
fn each_right_that_the_user_lacks_is_named() {
    let server = Server::recommended(&[]);
    let rule = rule(&server);
    let words: Vec<&str> = rule.iter().map(String::as_str).collect();
    let url = format!("redis://tasks:change-this@127.0.0.1:{}", server.port);
    let set = |more: &[&str]| server.send::<()>(&[&["ACL", "SETUSER", "tasks"], &words[..], more].concat());

    set(&[]);
    let ended = doctor_at(&url, &[]);
    assert_worst(&ended, 1);
    assert_eq!((health(&ended, "permissions"), health(&ended, "server")), ("green".into(), "yellow".into()));
    assert!(line(&ended, "server")["advice"].as_str().unwrap().contains("+config|get"), "{ended:?}");

    set(&["+info"]);
    let ended = doctor_at(&url, &[]);
    assert_eq!(
        (health(&ended, "version"), health(&ended, "lazyfree-lazy-expire")),
        ("green".into(), "yellow".into())
    );

    for right in ["hset", "zadd", "eval", "persist", "hstrlen"] {
        set(&[&format!("-{right}")]);
        let ended = doctor_at(&url, &[]);
        assert_worst(&ended, 2);
        let what = line(&ended, "connection")["what"].as_str().unwrap().to_owned();
        assert!(what.contains(&right.to_uppercase()), "{right}: {what}");
        set(&[&format!("+{right}")]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn members_of_a_record_that_was_deleted_by_hand_are_found_and_removed() {
    let faulty = Faulty::new(Expiry::After(LONG)).await;
    let before = faulty.index();
    faulty.server.send::<()>(&["DEL", "pmcp:tasks:alice:t1"]);
    for _ in 0..2 {
        let ended = doctor(&faulty.server, &[]);
        assert_worst(&ended, 1);
        assert_counts(&ended, "members, no record", "yellow", 1, 0);
    }
    assert_eq!(faulty.index(), before, "doctor without --repair changes nothing");
    let ended = doctor(&faulty.server, &["--repair"]);
    assert_worst(&ended, 0);
    assert_counts(&ended, "members, no record", "green", 1, 1);
    assert_eq!(faulty.index().len(), before.len() - 4);
    assert_eq!(faulty.listed().await, ["t2", "t0"]);
    assert_counts(&doctor(&faulty.server, &[]), "members, no record", "green", 0, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_members_without_a_record_leave_no_index() {
    let faulty = Faulty::new(Expiry::Never).await;
    for task in ["t0", "t1", "t2"] {
        faulty.server.send::<()>(&["DEL", &format!("pmcp:tasks:alice:{task}")]);
    }
    // Only the member for the expiry is left of one of them.
    faulty.server.send::<()>(&["ZREM", "pmcp:idx:alice", "t1"]);
    assert_counts(&doctor(&faulty.server, &["--repair"]), "members, no record", "green", 3, 3);
    assert_eq!(faulty.server.keys(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn members_of_an_expired_record_are_no_fault() {
    let faulty = Faulty::new(Expiry::After(LONG)).await;
    faulty.put("short", Expiry::After(Duration::from_millis(1))).await;
    until("the record has expired", || faulty.server.send::<u64>(&["EXISTS", "pmcp:tasks:alice:short"]) == 0);
    assert_eq!(faulty.index().len(), 16);
    assert_counts(&doctor(&faulty.server, &["--repair"]), "members, no record", "green", 0, 0);
    assert_eq!(faulty.index().len(), 16);
}

#[rstest]
#[case::expires(Expiry::After(LONG), true)]
#[case::never_expires(Expiry::Never, false)]
#[tokio::test(flavor = "multi_thread")]
async fn a_record_without_its_members_is_listed_again(#[case] expiry: Expiry, #[case] expires: bool) {
    let faulty = Faulty::new(expiry).await;
    faulty.server.send::<()>(&["ZREM", "pmcp:idx:alice", "t0"]);
    faulty.remove_mark("t0");
    faulty.remove_mark("t1");
    assert_eq!(faulty.listed().await, ["t2", "t1"]);
    let before = faulty.index();
    let ended = doctor(&faulty.server, &[]);
    assert_worst(&ended, 2);
    assert_counts(&ended, "records, no member", "red", 2, 0);
    assert_eq!(faulty.index(), before, "doctor without --repair changes nothing");
    let ended = doctor(&faulty.server, &["--repair"]);
    assert_worst(&ended, 0);
    assert_counts(&ended, "records, no member", "green", 2, 2);
    // A record keeps its creation time if it is known. Otherwise it becomes the newest one.
    assert_eq!(faulty.listed().await, ["t0", "t2", "t1"]);
    assert_eq!(faulty.index().len(), 12);
    faulty.assert_index_expires(expires);
    assert_counts(&doctor(&faulty.server, &[]), "records, no member", "green", 0, 0);
}

#[rstest]
#[case::expires(Expiry::After(LONG), true)]
#[case::never_expires(Expiry::Never, false)]
#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_was_lost_is_built_again(#[case] expiry: Expiry, #[case] expires: bool) {
    let faulty = Faulty::new(expiry).await;
    faulty.server.send::<()>(&["DEL", "pmcp:idx:alice"]);
    assert_counts(&doctor(&faulty.server, &["--repair"]), "records, no member", "green", 3, 3);
    assert_eq!(faulty.listed().await.len(), 3);
    faulty.assert_index_expires(expires);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_with_another_expiry_than_its_record_is_corrected() {
    let faulty = Faulty::new(Expiry::After(LONG)).await;
    let mark = [b"\xff".as_slice(), b"t2"].concat();
    let mut connection = redis::Client::open(faulty.server.url()).unwrap().get_connection().unwrap();
    let _: () = redis::cmd("ZADD")
        .arg("pmcp:idx:alice")
        .arg("9000000000000")
        .arg(mark)
        .query(&mut connection)
        .unwrap();
    faulty.server.send::<()>(&["PERSIST", "pmcp:idx:alice"]);
    assert_counts(&doctor(&faulty.server, &["--repair"]), "records, no member", "green", 1, 1);
    faulty.assert_index_expires(true);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_cannot_be_read_is_yellow_and_left_alone() {
    let faulty = Faulty::new(Expiry::After(LONG)).await;
    faulty.server.send::<()>(&["HSET", "pmcp:tasks:alice:t1", "expires_at", "soon"]);
    faulty.server.send::<()>(&["SET", "pmcp:tasks:alice:t2", "not a hash"]);
    let ended = doctor(&faulty.server, &["--repair"]);
    assert_counts(&ended, "unreadable records", "yellow", 1, 0);
    assert_counts(&ended, "records, no member", "green", 0, 0);
    assert_eq!(faulty.server.send::<String>(&["HGET", "pmcp:tasks:alice:t1", "expires_at"]), "soon");
}

#[tokio::test(flavor = "multi_thread")]
async fn overdue_timers_are_yellow_with_and_without_a_task() {
    let faulty = Faulty::new(Expiry::After(LONG)).await;
    for (queue, member) in [("leases", "alice:t0"), ("leases", "alice:gone"), ("work/x", "alice:gone")] {
        faulty.server.send::<()>(&["ZADD", &format!("pmcp:due:0:{queue}"), "1000", member]);
    }
    let ended = doctor(&faulty.server, &[]);
    assert_worst(&ended, 1);
    assert_counts(&ended, "overdue timers", "yellow", 1, 0);
    assert_counts(&ended, "timers, no task", "yellow", 2, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_is_checked_and_repaired() {
    let server = Server::cluster();
    let node = server.url();
    let backend = RedisBackend::builder().connect_cluster([&node]).await.unwrap();
    for owner in ["alice", "bob"] {
        let key = TaskKey::new(owner, "t1").unwrap();
        backend.put(&key, "{}".into(), PutOptions::default()).await.unwrap();
    }
    server.send::<()>(&["DEL", "pmcp:idx:{alice}"]);
    server.send::<()>(&["DEL", "pmcp:tasks:{bob}:t1"]);
    let url = format!("redis+cluster://127.0.0.1:{}", server.port);
    let ended = doctor_at(&url, &["--repair"]);
    assert_eq!(health(&ended, "cluster"), "green", "{ended:?}");
    assert_counts(&ended, "records, no member", "green", 1, 1);
    assert_counts(&ended, "members, no record", "green", 1, 1);
    assert_eq!(backend.list(&owner("alice"), PageRequest::new(9)).await.unwrap().records.len(), 1);

    server.send::<()>(&["CONFIG", "SET", "cluster-require-full-coverage", "no"]);
    server.send::<()>(&["CLUSTER", "DELSLOTS", "7"]);
    let ended = doctor_at(&url, &["--quick"]);
    assert_eq!(health(&ended, "cluster"), "red", "{ended:?}");
    assert_worst(&ended, 2);
}

#[test]
fn init_creates_nothing_on_redis_and_says_so() {
    let server = Server::recommended(&[]);
    let mut command = command();
    command.env("MCP_TASKS_URL", server.url()).args(["init", "--json"]);
    let ended = Ended::of(command, "");
    assert_worst(&ended, 0);
    assert!(ended.err.contains("Redis needs no tables") && ended.out.contains("permissions"), "{ended:?}");
    assert_eq!(server.keys(), 0);
}
