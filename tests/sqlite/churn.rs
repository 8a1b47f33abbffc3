//! Records that expire free their space, so the file does not grow under a steady load.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use mcp_task_store::StorageBackend;
use tokio::task::JoinSet;

use crate::support::sqlite::Folder;
use crate::support::{after_ms, heavy, key};

/// Creates records without end, at a steady rate. Each lives for a second.
async fn churn(store: impl StorageBackend + Clone, created: Arc<AtomicU64>, until: Instant) {
    let mut writers = JoinSet::new();
    for writer in 0..16 {
        let (store, created) = (store.clone(), Arc::clone(&created));
        writers.spawn(async move {
            for number in 0.. {
                if Instant::now() >= until {
                    return;
                }
                let key = key(&format!("owner-{}", number % 50), &format!("{writer}-{number}"));
                let data = vec![b'x'; 200 + (number * 37 % 1_000)];
                store.put(&key, data.into(), after_ms(1_000)).await.unwrap();
                created.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
    }
    writers.join_all().await;
}

async fn stays_flat(load: Duration) {
    let _alone = heavy().await;
    let folder = Folder::roomy();
    let store = folder.backend().await;
    let created = Arc::<AtomicU64>::default();
    let size = || std::fs::metadata(folder.path()).unwrap().len();
    let log = || std::fs::metadata(folder.path().with_file_name("tasks.db-wal")).unwrap().len();
    churn(store.clone(), Arc::clone(&created), Instant::now() + Duration::from_secs(4)).await;
    folder.connection().execute_batch("PRAGMA wal_checkpoint(PASSIVE)").unwrap();
    let early = size();
    churn(store.clone(), Arc::clone(&created), Instant::now() + load).await;
    folder.connection().execute_batch("PRAGMA wal_checkpoint(PASSIVE)").unwrap();
    let (late, log) = (size(), log());
    let created = created.load(Ordering::Relaxed);
    println!(
        "figure | SQLite: {load:?} of churn, {created} records of a second | {early} bytes at first, {late} at the end, log {log}"
    );
    assert!(created > 1_000, "too little was written: {created}");
    assert!(late <= early + early / 4, "the file grew from {early} to {late} bytes");
    assert!(log < 16 * 1024 * 1024, "the log has {log} bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn under_a_steady_load_of_expiring_records_the_file_does_not_grow() {
    stays_flat(Duration::from_secs(6)).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes ten minutes"]
async fn long_form_of_a_steady_load() {
    stays_flat(Duration::from_secs(600)).await;
}

#[tokio::test]
async fn a_process_that_writes_no_more_still_drops_what_has_expired() {
    let folder = Folder::new();
    let store = folder.backend().await;
    for number in 0..20 {
        store.put(&key("alice", &number.to_string()), "data".into(), after_ms(20)).await.unwrap();
    }
    let count = || -> i64 {
        folder.connection().query_row("SELECT count(*) FROM records", [], |row| row.get(0)).unwrap()
    };
    assert!(count() > 0);
    let dropped = async {
        while count() > 0 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), dropped).await.expect("the engine drops expired records");
    drop(store);
}
