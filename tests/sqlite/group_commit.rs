//! Writes that wait at the same moment share one transaction, and each keeps its own result.

use std::fs;

use futures_util::FutureExt;
use futures_util::future::join_all;
use mcp_task_store::{PutOptions, StorageBackend, StorageError, Version};

use crate::support::sqlite::Folder;
use crate::support::{in_an_hour, keep, key};

/// The bytes before the first frame of a write-ahead log, and those before the page of each frame
/// (<https://www.sqlite.org/fileformat.html#the_write_ahead_log>).
const HEADER: usize = 32;
const FRAME_HEADER: usize = 24;
const PAGE: usize = 4096;

/// Returns how many transactions the write-ahead log holds. The last frame of a transaction has the size of the database.
fn transactions(folder: &Folder) -> usize {
    let log = fs::read(folder.path().with_file_name("tasks.db-wal")).unwrap();
    let salt = &log[16..24];
    let frames = log[HEADER..].chunks_exact(FRAME_HEADER + PAGE);
    frames.filter(|frame| frame[8..16] == *salt && frame[4..8] != [0; 4]).count()
}

#[tokio::test]
async fn writes_that_wait_share_one_transaction_and_a_refused_one_undoes_no_other() {
    let folder = Folder::new();
    let store = folder.backend().await;
    store.put(&key("alice", "exists"), "data".into(), keep()).await.unwrap();
    let before = transactions(&folder);
    let other = folder.connection();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let keys: Vec<_> = (0..20).map(|number| key("alice", &number.to_string())).collect();
    let exists = key("alice", "exists");
    let full = key("bob", "t1");
    let create = |key| store.put_if_version(key, "data".into(), in_an_hour(), Version::ABSENT);
    let mut writes: Vec<_> = keys.iter().map(create).collect();
    writes.insert(7, create(&exists));
    writes.insert(13, store.put(&full, "data".into(), PutOptions::default().quota(0)));
    assert!(writes.iter_mut().all(|write| write.now_or_never().is_none()));
    other.execute_batch("COMMIT").unwrap();

    let mut results = join_all(writes).await;
    assert_refused!(results.remove(13), StorageError::CapacityExceeded { quota: Some(0), .. });
    assert_refused!(results.remove(7), StorageError::VersionConflict { .. });
    for (key, result) in keys.iter().zip(results) {
        assert_eq!(result.unwrap().version, Version::FIRST);
        assert_eq!(store.get(key).await.unwrap().data, "data");
    }
    assert_eq!(transactions(&folder) - before, 1, "one transaction, and one sync of the disk");
    // The refused write left no row of its owner.
    assert_eq!(count(&folder, "owners WHERE name = 'bob'"), 0);
}

fn count(folder: &Folder, of: &str) -> i64 {
    folder.connection().query_row(&format!("SELECT count(*) FROM {of}"), [], |row| row.get(0)).unwrap()
}

#[tokio::test]
async fn a_write_that_fails_in_a_shared_transaction_undoes_no_other() {
    let folder = Folder::roomy();
    let store = folder.builder().max_file_bytes(512 * 1024).open().await.unwrap();
    let other = folder.connection();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let keys: Vec<_> = (0..11).map(|number| key("alice", &number.to_string())).collect();
    // The sixth does not fit into the file.
    let data = |number| vec![b'x'; if number == 5 { 600 * 1024 } else { 100 }].into();
    let mut writes: Vec<_> =
        keys.iter().enumerate().map(|(number, key)| store.put(key, data(number), keep())).collect();
    assert!(writes.iter_mut().all(|write| write.now_or_never().is_none()));
    other.execute_batch("COMMIT").unwrap();
    for (number, result) in join_all(writes).await.into_iter().enumerate() {
        if number == 5 {
            assert_refused!(result, StorageError::CapacityExceeded { quota: None, .. });
            assert_refused!(store.get(&keys[number]).await, StorageError::NotFound { .. });
        } else {
            result.unwrap();
            assert_eq!(store.get(&keys[number]).await.unwrap().version, Version::FIRST);
        }
    }
}
