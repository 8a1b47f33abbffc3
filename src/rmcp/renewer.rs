//! Starts the renewals of a manager: in the runtime of each operation, or on a thread of their own over a dedicated
//! connection. An operation that blocks its runtime does not delay that thread.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::sleep;
use tracing::{Instrument, Span};

use super::operation::PollTimer;
use super::renewal_delay::{RenewalDelay, UnexplainedDelays};
use super::renewals::{LeaseRenewal, RenewalHandle};
use crate::backend::{Agenda, StorageError};
use crate::printable::Chain;
use crate::store::{Attempt, BackOff, TaskStore};
use crate::task::StoredTask;

/// How many renewals of one manager begin at once. After an outage all leases are due. Without this limit, so many
/// calls would delay each other that all of them exceed their time limits.
const MAX_CONCURRENT: usize = 256;

/// Connects to the engine, and tries again until it succeeds.
pub(super) type Connect<B> = Box<dyn FnOnce() -> Pin<Box<dyn Future<Output = B>>> + Send>;

pub(super) fn connect<B: 'static>(
    connect: impl AsyncFn() -> Result<B, StorageError> + Send + 'static,
) -> Connect<B> {
    Box::new(move || Box::pin(connect_until_success(connect)))
}

async fn connect_until_success<B>(connect: impl AsyncFn() -> Result<B, StorageError>) -> B {
    let (mut back_off, mut is_first) = (BackOff::new(), true);
    loop {
        match connect().await {
            Ok(backend) => return backend,
            Err(error) if std::mem::take(&mut is_first) => tracing::warn!(
                error = %Chain(&error),
                "the dedicated renewals have no connection yet; until they connect, leases are renewed over the connection of \
                 the store"
            ),
            Err(error) => {
                tracing::debug!(error = %Chain(&error), "the dedicated renewals have no connection yet")
            }
        }
        sleep(back_off.next_pause()).await;
    }
}

/// Starts the renewals of one manager and its runs.
pub(super) struct Renewer<B> {
    admission: Arc<Semaphore>,
    /// The thread of the dedicated renewals. `None` if the renewals run in the runtime of their operation.
    thread: Option<mpsc::UnboundedSender<(LeaseRenewal<B>, Span)>>,
    /// Whether the log already reports that the thread has panicked.
    is_panic_reported: AtomicBool,
    unexplained: Arc<UnexplainedDelays>,
}

impl<B: Agenda> Renewer<B> {
    /// Creates a renewer. The manager and its runs share the renewer. Its thread ends when they have dropped it.
    pub(super) fn new(store: &TaskStore<B>, connect: Option<Connect<B>>) -> Self {
        let thread = connect.and_then(|connect| match start_thread(store.clone(), connect) {
            Ok(thread) => Some(thread),
            Err(error) => {
                tracing::warn!(
                    error = %Chain(&error),
                    "the thread of the dedicated renewals could not be started; operations that block delay renewals"
                );
                None
            }
        });
        let admission = Arc::new(Semaphore::new(MAX_CONCURRENT));
        Self { admission, thread, is_panic_reported: AtomicBool::new(false), unexplained: Arc::default() }
    }

    /// Begins to renew the lease of an attempt, in the current span.
    pub(super) fn start(
        &self,
        store: &TaskStore<B>,
        attempt: &Attempt<B>,
        stored: &StoredTask,
        polls: &Arc<PollTimer>,
    ) -> RenewalHandle {
        let operation = stored.task.operation.clone();
        let delay = RenewalDelay::new(operation, Arc::clone(polls), Arc::clone(&self.unexplained));
        let admission = Arc::clone(&self.admission);
        let (renewal, handle) = LeaseRenewal::new(store.clone(), attempt.clone(), stored, delay, admission);
        if let Some(renewal) = self.send_to_thread(renewal) {
            // Boxed, because Tokio copies a future several times until it runs, and this one has kilobytes.
            tokio::spawn(Box::pin(renewal.run()).in_current_span());
        }
        handle
    }

    /// Hands a renewal to the thread of the dedicated renewals. Returns the renewal if there is no such thread, or if
    /// the thread has panicked.
    fn send_to_thread(&self, renewal: LeaseRenewal<B>) -> Option<LeaseRenewal<B>> {
        let Some(thread) = &self.thread else { return Some(renewal) };
        let Err(mpsc::error::SendError((renewal, _))) = thread.send((renewal, Span::current())) else {
            return None;
        };
        if !self.is_panic_reported.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "the thread of the dedicated renewals has panicked; leases are renewed in the runtimes of their operations, \
                 and operations that block delay renewals"
            );
        }
        Some(renewal)
    }
}

fn start_thread<B: Agenda>(
    store: TaskStore<B>,
    connect: Connect<B>,
) -> std::io::Result<mpsc::UnboundedSender<(LeaseRenewal<B>, Span)>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (send, receive) = mpsc::unbounded_channel();
    let serve = move || runtime.block_on(serve(store, connect, receive));
    std::thread::Builder::new().name("mcp-task-renewals".to_owned()).spawn(serve)?;
    Ok(send)
}

/// Renews leases until the manager and all its runs have ended.
async fn serve<B: Agenda>(
    store: TaskStore<B>,
    connect: Connect<B>,
    mut renewals: mpsc::UnboundedReceiver<(LeaseRenewal<B>, Span)>,
) {
    // The renewals use the connection of the store until the dedicated connection exists.
    let (newest, stores) = watch::channel(store);
    let connect = async {
        let backend = connect().await;
        let dedicated = newest.borrow().twin(backend);
        newest.send_replace(dedicated);
        std::future::pending::<()>().await;
    };
    let renew = async {
        while let Some((renewal, span)) = renewals.recv().await {
            tokio::spawn(renewal.run_dedicated(stores.clone()).instrument(span));
        }
    };
    tokio::select! {
        () = renew => {}
        () = connect => {}
    }
}
