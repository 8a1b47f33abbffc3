//! What the thread that writes reports. Only a recorder of the whole process receives it.

use futures_util::FutureExt;
use futures_util::future::join_all;
use mcp_task_store::StorageBackend;
use metrics_util::debugging::{DebugValue, DebuggingRecorder};

use crate::support::sqlite::Folder;
use crate::support::{keep, key};

/// No other test of this program has a transaction with as many writes.
const WRITES: usize = 37;

#[tokio::test]
async fn the_writes_of_a_transaction_are_counted() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    recorder.install().unwrap();
    let folder = Folder::new();
    let store = folder.backend().await;
    let other = folder.connection();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let keys: Vec<_> = (0..WRITES).map(|number| key("alice", &number.to_string())).collect();
    let mut writes: Vec<_> = keys.iter().map(|key| store.put(key, "data".into(), keep())).collect();
    assert!(writes.iter_mut().all(|write| write.now_or_never().is_none()));
    other.execute_batch("COMMIT").unwrap();
    for written in join_all(writes).await {
        written.unwrap();
    }
    let mut received = Vec::new();
    for (key, _, _, value) in snapshotter.snapshot().into_vec() {
        if let ("mcp_engine_batch_writes", DebugValue::Histogram(values)) = (key.key().name(), value) {
            let labels: Vec<_> = key.key().labels().map(|label| (label.key(), label.value())).collect();
            assert_eq!(labels, [("engine", "sqlite")]);
            received.extend(values.into_iter().map(|value| value.into_inner() as usize));
        }
    }
    assert!(received.contains(&WRITES), "{received:?}");
}
