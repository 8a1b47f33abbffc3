//! The limit on how many calls of one tool run in this process at once.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use rmcp::task_manager::TaskExit;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use super::context::TaskContext;

/// The places of one tool. Calls that wait for a place take it in the order of their arrival. Clones share the places.
#[derive(Clone)]
pub(super) struct Places {
    free: Arc<Semaphore>,
    claimers: Arc<Mutex<Vec<Arc<Notify>>>>,
}

impl fmt::Debug for Places {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Places").field("free", &self.free.available_permits()).finish_non_exhaustive()
    }
}

impl Places {
    pub(super) const MAX: usize = Semaphore::MAX_PERMITS;

    /// Creates `number` places; `None` if that is zero, or over the maximum.
    pub(super) fn new(number: usize) -> Option<Self> {
        let is_possible = (1..=Self::MAX).contains(&number);
        is_possible.then(|| Self { free: Arc::new(Semaphore::new(number)), claimers: Arc::default() })
    }

    /// Returns whether a call would run at once.
    pub(super) fn has_free(&self) -> bool {
        self.free.available_permits() > 0
    }

    /// Notifies a claimer each time that a place becomes free.
    pub(super) fn notify(&self, claimer: &Arc<Notify>) {
        self.claimers.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(claimer));
    }

    /// Waits for a place. A claimed task yields its slot meanwhile.
    ///
    /// # Errors
    /// `Cancelled` if the operation must stop first.
    pub(super) async fn take(&self, context: &TaskContext) -> Result<Place, TaskExit> {
        let free = Arc::clone(&self.free);
        let permit = match Arc::clone(&free).try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => {
                let permit = async {
                    tokio::select! {
                        permit = free.acquire_owned() => permit.ok(),
                        () = context.cancelled() => None,
                    }
                };
                context.without_slot(permit).await?
            }
        };
        Ok(Place { permit: Some(permit), claimers: Arc::clone(&self.claimers) })
    }
}

/// The place of one call, which is free again when this value is dropped.
pub(super) struct Place {
    permit: Option<OwnedSemaphorePermit>,
    claimers: Arc<Mutex<Vec<Arc<Notify>>>>,
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(self.permit.take());
        for claimer in self.claimers.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            claimer.notify_one();
        }
    }
}
