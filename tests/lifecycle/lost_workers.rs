//! Lost workers, and workers that only seem to be lost: what ends their tasks, and how long it takes to find a lost worker.

mod bound;
mod cancel;
#[cfg(feature = "redis-tests")]
mod outages;
mod renewals;
mod this_process;

use std::sync::Arc;
use std::time::Duration;

use mcp_task_store::{Agenda, StoreConfig, TaskStore};

use crate::common::{
    LONG, PATIENCE, SHORT, TaskAttempt, Tasks, claim_now, has_ended, plain, record, resumable, start, until,
    waits_for_a_worker,
};

fn config(lease: Duration) -> StoreConfig {
    StoreConfig::new()
        .lease(lease)
        .call_timeout(Duration::from_secs(1))
        .retention(LONG)
        .max_tasks_per_owner(None)
}

fn open(agenda: &Arc<dyn Agenda>, config: StoreConfig) -> Tasks {
    TaskStore::with_config(Arc::clone(agenda), config)
}
