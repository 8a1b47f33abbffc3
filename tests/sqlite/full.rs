//! A file that may not grow.

use mcp_task_store::{StorageBackend, StorageError, Version};

use crate::support::sqlite::Folder;
use crate::support::{after_ms, keep, key};

#[tokio::test]
async fn a_full_file_refuses_writes_loses_nothing_and_uses_freed_space_again() {
    let folder = Folder::roomy();
    let store = folder.builder().max_file_bytes(512 * 1024).open().await.unwrap();
    let small = key("alice", "small");
    store.put(&small, "data".into(), keep()).await.unwrap();
    let mut stored = Vec::new();
    let error = loop {
        let key = key("alice", &stored.len().to_string());
        match store.put(&key, vec![b'x'; 8 * 1024].into(), keep()).await {
            Ok(_) => {
                stored.push(key);
                assert!(stored.len() < 100, "the file has no limit");
            }
            Err(error) => break error,
        }
    };
    assert!(stored.len() > 20, "{}", stored.len());
    assert!(matches!(error, StorageError::CapacityExceeded { quota: None, .. }), "{error:?}");
    assert!(
        error.is_retryable() && !error.outcome_unknown() && error.to_string().contains("tasks.db"),
        "{error}"
    );
    let refused = key("alice", &stored.len().to_string());
    assert_refused!(store.get(&refused).await, StorageError::NotFound { .. });
    for key in &stored {
        assert_eq!(store.get(key).await.unwrap().data.len(), 8 * 1024);
    }
    let check: String =
        folder.connection().query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(check, "ok");

    // A small update needs no more space, and a delete frees some.
    assert_eq!(store.put(&small, "more".into(), keep()).await.unwrap().version.get(), 2);
    assert!(store.delete(&stored[1]).await.unwrap());
    let written = store.put(&refused, vec![b'x'; 8 * 1024].into(), keep()).await.unwrap();
    assert_eq!(written.version, Version::FIRST);
}

#[tokio::test]
async fn a_full_file_of_expired_records_takes_writes_again() {
    let folder = Folder::roomy();
    let store = folder.builder().max_file_bytes(512 * 1024).open().await.unwrap();
    let mut number = 0;
    let mut put = async || {
        number += 1;
        let key = key("alice", &number.to_string());
        store.put(&key, vec![b'x'; 8 * 1024].into(), after_ms(2_000)).await
    };
    let filled = async {
        while put().await.is_ok() {}
        // The engine removes expired records in steps, also while each write fails.
        while put().await.is_err() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(60), filled).await.expect("space is freed");
}
