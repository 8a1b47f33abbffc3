//! `doctor` and `init` on a SQLite file: each fault made on purpose.

use rusqlite::Connection;

use crate::doctor::{assert_counts, assert_worst, line};
use crate::support::{Ended, Engine, Store, command};

struct Faulty {
    store: Store,
    path: String,
}

impl Faulty {
    async fn new() -> Self {
        let store = Engine::Sqlite.open().await;
        let path = store.url.strip_prefix("sqlite:").unwrap().to_owned();
        Self { store, path }
    }

    fn connection(&self) -> Connection {
        Connection::open(&self.path).unwrap()
    }

    fn change(&self, sql: &str) {
        self.connection().execute_batch(sql).unwrap();
    }

    fn doctor(&self, more: &[&str]) -> Ended {
        self.store.run(&[&["doctor", "--json", "-q"], more].concat())
    }
}

fn health(ended: &Ended, check: &str) -> String {
    line(ended, check)["health"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_healthy_file_is_green_and_the_exit_code_is_0() {
    let faulty = Faulty::new().await;
    faulty.store.running("alice", "render").await;
    let ended = faulty.doctor(&[]);
    assert_worst(&ended, 0);
    for check in
        ["version", "write-ahead log", "quick_check", "writable", "free pages", "expired records", "parts"]
    {
        assert_eq!(health(&ended, check), "green");
    }
    assert!(line(&ended, "latency")["what"].as_str().unwrap().contains("99 %"), "{ended:?}");
    assert!(!faulty.doctor(&["--quick"]).out.contains("quick_check"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_count_is_yellow_and_corrected() {
    let faulty = Faulty::new().await;
    faulty.store.waiting("alice", "render").await;
    faulty.store.waiting("bob", "render").await;
    faulty.change("UPDATE owners SET records = 9, newest = 0 WHERE name = 'alice'");
    let ended = faulty.doctor(&[]);
    assert_worst(&ended, 1);
    assert_counts(&ended, "counts of owners", "yellow", 1, 0);
    let ended = faulty.doctor(&["--repair"]);
    assert_worst(&ended, 0);
    assert_counts(&ended, "counts of owners", "green", 1, 1);
    let count = "SELECT records = 1 AND newest = (SELECT created_at FROM records WHERE owner = owners.id)
        FROM owners WHERE name = 'alice'";
    assert!(faulty.connection().query_row(count, [], |row| row.get::<_, bool>(0)).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_without_an_owner_is_red_and_is_left() {
    let faulty = Faulty::new().await;
    faulty.store.waiting("alice", "render").await;
    faulty.change("UPDATE records SET owner = 999");
    for more in [&[] as &[&str], &["--repair"]] {
        let ended = faulty.doctor(more);
        assert_worst(&ended, 2);
        assert_counts(&ended, "records, no member", "red", 1, 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn overdue_timers_are_yellow_with_and_without_a_task() {
    let faulty = Faulty::new().await;
    faulty.store.waiting("alice", "render").await;
    faulty.change(
        "UPDATE timers SET due_at = due_at - 600000;
         INSERT INTO timers VALUES ('leases', 'alice', 'gone', 1, 1), ('work/x', 'alice', 'gone', 1, 1)",
    );
    let ended = faulty.doctor(&[]);
    assert_worst(&ended, 1);
    // The timer of the lease is an hour ahead.
    assert_counts(&ended, "overdue timers", "yellow", 1, 0);
    assert_counts(&ended, "timers, no task", "yellow", 2, 0);
    assert!(line(&ended, "overdue timers")["what"].as_str().unwrap().contains("in queue work/render"));
}

#[tokio::test(flavor = "multi_thread")]
async fn expired_records_that_nobody_removes_are_yellow_and_removed() {
    let faulty = Faulty::new().await;
    faulty.store.waiting("alice", "render").await;
    faulty.change(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)
         INSERT INTO records (owner, task, version, created_at, expires_at, parts, data)
         SELECT 1, 'old' || i, 1, i, 1, '', x'' FROM n",
    );
    assert_eq!(health(&faulty.doctor(&["--quick"]), "expired records"), "yellow");
    let ended = faulty.store.run(&["doctor", "--json", "--repair"]);
    assert_eq!(health(&ended, "expired records"), "green");
    assert!(ended.err.contains("expired records"), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_of_no_record_are_yellow() {
    let faulty = Faulty::new().await;
    faulty.change("INSERT INTO parts VALUES (999, 'input', x'00')");
    let ended = faulty.doctor(&[]);
    assert_eq!(health(&ended, "parts"), "yellow", "{ended:?}");
    assert_worst(&ended, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_a_reader_keeps_long_is_yellow() {
    let faulty = Faulty::new().await;
    let reader = faulty.connection();
    reader.execute_batch("BEGIN; SELECT count(*) FROM owners").unwrap();
    faulty.change("PRAGMA wal_autocheckpoint = 0; INSERT INTO parts VALUES (999, 'input', zeroblob(40000000)); DELETE FROM parts");
    let ended = faulty.doctor(&["--quick"]);
    assert_eq!(health(&ended, "write-ahead log"), "yellow", "{ended:?}");
    drop(reader);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_free_pages_are_yellow() {
    let faulty = Faulty::new().await;
    faulty.change("INSERT INTO parts VALUES (999, 'input', zeroblob(80000000)); DELETE FROM parts");
    let ended = faulty.doctor(&["--quick"]);
    assert_eq!(health(&ended, "free pages"), "yellow", "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_file_is_red() {
    let faulty = Faulty::new().await;
    let page: u64 = {
        let connection = faulty.connection();
        let root = "SELECT rootpage FROM sqlite_schema WHERE name = 'timers_by_due'";
        connection.query_row(root, [], |row| row.get::<_, i64>(0)).unwrap().unsigned_abs()
    };
    // The copy has no log that could hide the damage.
    let copy = format!("{}.damaged", faulty.path);
    faulty.connection().execute("VACUUM INTO ?1", [&copy]).unwrap();
    let mut bytes = std::fs::read(&copy).unwrap();
    let begin = usize::try_from((page - 1) * 4096).unwrap();
    bytes[begin..begin + 4096].fill(0x5a);
    std::fs::write(&copy, bytes).unwrap();
    let mut command = command();
    command.args(["doctor", "--json", "-q", "--url", &format!("sqlite:{copy}")]);
    let ended = Ended::of(command, "");
    assert_eq!(health(&ended, "quick_check"), "red", "{ended:?}");
    assert_worst(&ended, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_another_process_keeps_locked_is_red() {
    let faulty = Faulty::new().await;
    let locks = faulty.connection();
    locks.execute_batch("BEGIN IMMEDIATE").unwrap();
    let ended = faulty.doctor(&["--quick"]);
    assert_worst(&ended, 2);
    assert!(ended.out.contains("\"red\"") && ended.out.contains("lock"), "{ended:?}");
}

#[test]
fn init_creates_the_file_once_and_a_foreign_file_stays_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tasks.db");
    let run = |path: &std::path::Path| {
        let mut command = command();
        command.args(["init", "--json", "--url", &format!("sqlite:{}", path.display())]);
        Ended::of(command, "")
    };
    for _ in 0..2 {
        let ended = run(&path);
        assert_eq!(health(&ended, "version"), "green", "{ended:?}");
        assert_worst(&ended, 0);
        assert!(ended.err.contains("creates the file"), "{ended:?}");
    }
    let foreign = folder.path().join("foreign.db");
    Connection::open(&foreign).unwrap().execute_batch("CREATE TABLE notes (text TEXT)").unwrap();
    let before = std::fs::read(&foreign).unwrap();
    let ended = run(&foreign);
    assert_eq!(health(&ended, "connection"), "red", "{ended:?}");
    assert_worst(&ended, 2);
    assert_eq!(std::fs::read(&foreign).unwrap(), before);
}
