//! The records: tasks in the format of the peer, which reads their expiry from the JSON.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pmcp_tasks::TaskRecord;
use serde_json::json;

use crate::contender::Contender;

/// The size of most records, in bytes.
pub const TYPICAL: usize = 700;

/// Creates the id and the JSON of a task of `owner` with this TTL. The JSON is padded to `size` bytes. If a whole task is
/// larger than `size`, the JSON has only the fields that the peer reads.
pub fn record(owner: &str, size: usize, ttl: Duration) -> (String, Bytes) {
    let ttl = u64::try_from(ttl.as_millis()).expect("not that long");
    let mut record = TaskRecord::new(owner.to_owned(), "tools/call".to_owned(), Some(ttl));
    let json = |record: &TaskRecord| serde_json::to_vec(record).expect("a record is JSON");
    let task = record.task.task_id.clone();
    let Some(missing) = size.checked_sub(json(&record).len()) else {
        let times =
            json!({ "expiresAt": record.expires_at, "task": { "createdAt": record.task.created_at } });
        return (task, times.to_string().into());
    };
    // `"pad":""` itself takes 8 bytes.
    if let Some(missing) = missing.checked_sub(8) {
        record.variables.insert("pad".to_owned(), "x".repeat(missing).into());
    }
    (task, json(&record).into())
}

/// Records with the keys of a contender.
pub type Records<C> = Arc<Vec<(<C as Contender>::Key, Bytes)>>;

/// Creates `count` records of `size` bytes, spread over `owners`.
pub fn records<C: Contender>(count: usize, owners: usize, size: usize, ttl: Duration) -> Records<C> {
    let one = |number: usize| {
        let owner = format!("owner-{}", number % owners);
        let (task, data) = record(&owner, size, ttl);
        (C::key(&owner, &task), data)
    };
    Arc::new((0..count).map(one).collect())
}
