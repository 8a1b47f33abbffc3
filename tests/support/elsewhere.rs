//! An engine whose stores take all other stores for stores of another process.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use mcp_task_store::{Agenda, StorageError};

use super::intercept::{Call, Hooks, Intercept, Reply};

/// The text that precedes the name of a holder in a record. Within a string, its quotes would be escaped.
const HOLDER: &str = r#""holder":""#;
const OTHER: &str = r#""holder":"another's "#;

/// This text never occurs in JSON.
const MARK: &str = "\u{1}";

/// Renames the holders of leases in the records. So the stores that use this engine and all other stores take each
/// other for stores of another process.
struct Elsewhere {
    engine: Arc<dyn Agenda>,
    /// The text that replaces [`HOLDER`] in the records for leases of the stores that use this engine.
    own: String,
}

/// Returns the same engine for the stores of another process.
pub fn elsewhere(engine: &Arc<dyn Agenda>) -> Arc<dyn Agenda> {
    static PROCESSES: AtomicUsize = AtomicUsize::new(0);
    let own = format!("{HOLDER}process {} ", PROCESSES.fetch_add(1, Ordering::Relaxed));
    Intercept::new(Elsewhere { engine: Arc::clone(engine), own })
}

impl Elsewhere {
    /// Restores the names of the holders in this process, and marks all others as holders in another process.
    fn read(&self, data: &mut Bytes) {
        replace(data, [(&*self.own, MARK), (HOLDER, OTHER), (MARK, HOLDER)]);
    }

    /// Reverses [`read`](Self::read).
    fn write(&self, data: &mut Bytes) {
        replace(data, [(OTHER, MARK), (HOLDER, &*self.own), (MARK, HOLDER)]);
    }
}

fn replace(data: &mut Bytes, replacements: [(&str, &str); 3]) {
    // Data that is not text is not the record of a task.
    if let Ok(text) = std::str::from_utf8(data)
        && text.contains(HOLDER)
    {
        let replace = |text: String, (from, to)| text.replace(from, to);
        *data = replacements.into_iter().fold(text.to_owned(), replace).into();
    }
}

#[async_trait]
impl Hooks for Elsewhere {
    fn engine(&self) -> Arc<dyn Agenda> {
        Arc::clone(&self.engine)
    }

    async fn call(&self, mut call: Call) -> Result<Reply, StorageError> {
        if let Call::Put { data, .. } | Call::PutIfVersion { data, .. } = &mut call {
            self.write(data);
        }
        let mut reply = call.send(&*self.engine).await?;
        match &mut reply {
            Reply::Record(record) => self.read(&mut record.data),
            Reply::Page(page) => page.records.iter_mut().for_each(|record| self.read(&mut record.data)),
            _ => {}
        }
        Ok(reply)
    }
}
