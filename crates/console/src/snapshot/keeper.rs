//! Keeps a snapshot fresh: passes over all records, and between them the open tasks again.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{join_all, join3};
use mcp_task_store::{Agenda, StorageBackend, TaskError, TaskFilter, TaskKey, TaskStore};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until};

use super::{Snapshot, Tasks, Workers};
use crate::router::Store;

/// How long the keeper waits between two passes.
const BETWEEN_PASSES: Duration = Duration::from_secs(10);
/// How long the keeper waits before it reads the open tasks again.
const BETWEEN_ROUNDS: Duration = Duration::from_secs(2);
/// How long the keeper waits after an error.
const AFTER_ERROR: Duration = Duration::from_secs(2);
/// How long the keeper waits before it counts the workers again.
const BETWEEN_COUNTS: Duration = Duration::from_secs(5);
/// How many pages of workers it reads at most, each with 100.
const MAX_WORKER_PAGES: usize = 20;
/// How many tasks the keeper reads at the same time.
const AT_ONCE: usize = 16;

/// Keeps the snapshot fresh until it is dropped.
pub(crate) struct Keeper(JoinHandle<()>);

impl Keeper {
    /// Begins. It reads at most this many records a second.
    pub(crate) fn start(store: Store, snapshot: Arc<Snapshot>, rate: u32) -> Self {
        let reader = Reader { store, snapshot };
        let half = (rate / 2).max(1);
        Self(tokio::spawn(async move {
            let passes = reader.pass_forever(rate.saturating_sub(half).max(1));
            join3(passes, reader.reread_forever(half), reader.count_workers_forever()).await;
        }))
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.0.abort();
    }
}

struct Reader {
    store: TaskStore<Arc<dyn Agenda>>,
    snapshot: Arc<Snapshot>,
}

impl Reader {
    async fn pass_forever(&self, rate: u32) {
        loop {
            match self.pass(rate).await {
                Ok(()) => sleep(BETWEEN_PASSES).await,
                Err(error) => self.wait_after(&error).await,
            }
        }
    }

    async fn pass(&self, rate: u32) -> Result<(), TaskError> {
        self.snapshot.write().begin_pass(self.store.backend().now());
        let mut scan = self.store.scan(TaskFilter::new()).rate(rate);
        while let Some(page) = scan.next_page().await? {
            let now = self.store.backend().now();
            let mut tasks = self.snapshot.write();
            page.tasks.iter().for_each(|stored| tasks.record(stored, now));
            tasks.unreadable.this_pass += page.unreadable.len() as u64;
            tasks.set_failure(None);
        }
        let begun = Instant::now();
        let dead = self.dead_tasks(rate).await?;
        let mut tasks = self.snapshot.write();
        tasks.set_dead(&dead, begun);
        tasks.end_pass();
        Ok(())
    }

    /// Reads the list of dead tasks, which leaves out those that were requeued. The list reads two records for each.
    async fn dead_tasks(&self, rate: u32) -> Result<HashSet<TaskKey>, TaskError> {
        let (mut dead, mut cursor) = (HashSet::new(), None);
        loop {
            let page = self.store.dead_tasks(cursor.as_ref()).await?;
            let next = Instant::now() + Duration::from_secs(2) * page.tasks.len() as u32 / rate;
            dead.extend(page.tasks.into_iter().map(|stored| stored.key));
            cursor = page.next;
            if cursor.is_none() {
                return Ok(dead);
            }
            sleep_until(next).await;
        }
    }

    async fn reread_forever(&self, rate: u32) {
        // One round reads at most what the rate allows until the next one.
        let most = usize::try_from(rate).unwrap_or(usize::MAX).saturating_mul(2);
        loop {
            let open = self.snapshot.read().open_tasks_by_read(most);
            match self.reread(&open, rate).await {
                Ok(()) => sleep(BETWEEN_ROUNDS).await,
                Err(error) => self.wait_after(&error).await,
            }
        }
    }

    async fn reread(&self, open: &[TaskKey], rate: u32) -> Result<(), TaskError> {
        for keys in open.chunks(AT_ONCE) {
            let next = Instant::now() + Duration::from_secs(1) * keys.len() as u32 / rate;
            read_again(&self.store, &self.snapshot, keys).await.into_iter().collect::<Result<Vec<_>, _>>()?;
            sleep_until(next).await;
        }
        Ok(())
    }

    async fn count_workers_forever(&self) {
        loop {
            match self.count_workers().await {
                Ok(workers) => {
                    self.snapshot.write().set_workers(workers);
                    sleep(BETWEEN_COUNTS).await;
                }
                Err(error) => self.wait_after(&error).await,
            }
        }
    }

    async fn count_workers(&self) -> Result<Workers, TaskError> {
        let (mut workers, mut cursor) = (Workers::default(), None);
        for _ in 0..MAX_WORKER_PAGES {
            let page = self.store.workers(cursor.as_ref()).await?;
            let now = self.store.backend().now();
            let lost = page.workers.iter().filter(|worker| worker.is_lost(now)).count() as u64;
            workers.lost += lost;
            workers.running += page.workers.len() as u64 - lost;
            cursor = page.next;
            if cursor.is_none() {
                break;
            }
        }
        Ok(workers)
    }

    async fn wait_after(&self, error: &TaskError) {
        tracing::warn!(error = %error, "the console cannot read the store");
        self.snapshot.write().set_failure(Some(error.to_string()));
        sleep(AFTER_ERROR).await;
    }
}

/// Reads tasks, and notes them in the snapshot. Returns each as it is now; `None` if it is gone. A record that cannot be read
/// is left to the next pass, which counts it.
pub(crate) async fn read_again(
    store: &Store,
    snapshot: &Snapshot,
    keys: &[TaskKey],
) -> Vec<Result<Option<mcp_task_store::StoredTask>, TaskError>> {
    let mut reads = Vec::with_capacity(keys.len());
    for some in keys.chunks(AT_ONCE) {
        reads.extend(join_all(some.iter().map(|key| store.get(key))).await);
    }
    let now = store.backend().now();
    let mut tasks = snapshot.write();
    let note = |(key, read): (&TaskKey, Result<_, TaskError>)| match read {
        Ok(stored) => {
            tasks.record(&stored, now);
            Ok(Some(stored))
        }
        Err(TaskError::NotFound { .. }) => {
            tasks.forget(key);
            Ok(None)
        }
        Err(error) if error.is_retryable() => Err(error),
        Err(_) => Ok(None),
    };
    keys.iter().zip(reads).map(note).collect()
}

impl Tasks {
    /// Returns the open tasks whose last read is the longest ago, in this order.
    fn open_tasks_by_read(&self, most: usize) -> Vec<TaskKey> {
        let mut open: Vec<_> = self.entries.iter().filter(|(_, entry)| entry.is_open()).collect();
        if open.len() > most {
            open.select_nth_unstable_by_key(most, |(_, entry)| entry.read_at);
            open.truncate(most);
        }
        open.into_iter().map(|(key, _)| key.clone()).collect()
    }
}
