//! Where the leases of a manager are renewed: in the runtime of their operations, or on a thread of their own over a
//! connection of its own, which an operation that blocks its runtime does not hold up.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::sleep;
use tracing::{Instrument, Span};

use super::lateness::{Lateness, Unexplained};
use super::operation::Polls;
use super::renewals::Renewal;
use crate::backend::{Agenda, StorageError};
use crate::printable::Chain;
use crate::store::{BackOff, TaskStore};

/// Connects to the engine, and tries again until that succeeds.
pub(super) type Connect<B> = Box<dyn FnOnce() -> Pin<Box<dyn Future<Output = B>>> + Send>;

pub(super) fn connect<B: 'static>(
    connect: impl AsyncFn() -> Result<B, StorageError> + Send + 'static,
) -> Connect<B> {
    Box::new(move || {
        Box::pin(async move {
            let (mut back_off, mut is_first) = (BackOff::new(), true);
            loop {
                match connect().await {
                    Ok(backend) => return backend,
                    Err(error) if std::mem::take(&mut is_first) => tracing::warn!(
                        error = %Chain(&error),
                        "the dedicated renewals have no connection yet; until then leases are renewed over the connection of the store"
                    ),
                    Err(error) => {
                        tracing::debug!(error = %Chain(&error), "the dedicated renewals have no connection yet")
                    }
                }
                sleep(back_off.longer()).await;
            }
        })
    })
}

/// How many renewals of one manager begin at once. After an outage all leases are due: without a limit their calls delay
/// each other until each is given up, and none gets through.
const MOST_AT_ONCE: usize = 256;

/// Starts the renewals of one manager and its runs.
pub(super) struct Renewer<B> {
    turnstile: Arc<Semaphore>,
    /// `None` where they run in the runtime of their operation.
    thread: Option<mpsc::UnboundedSender<(Renewal<B>, Span)>>,
    /// The log says that the thread has panicked.
    is_panic_reported: AtomicBool,
    unexplained: Arc<Unexplained>,
}

impl<B: Agenda> Renewer<B> {
    /// The thread ends with the renewer, which the manager and its runs share.
    pub(super) fn new(store: &TaskStore<B>, connect: Option<Connect<B>>) -> Self {
        let thread = connect.and_then(|connect| match start_thread(store.clone(), connect) {
            Ok(thread) => Some(thread),
            Err(error) => {
                tracing::warn!(error = %Chain(&error), "the thread of the dedicated renewals could not be started; operations that block delay renewals");
                None
            }
        });
        let turnstile = Arc::new(Semaphore::new(MOST_AT_ONCE));
        Self { turnstile, thread, is_panic_reported: AtomicBool::new(false), unexplained: Arc::default() }
    }

    /// Where each renewal passes before it begins.
    pub(super) fn turnstile(&self) -> Arc<Semaphore> {
        Arc::clone(&self.turnstile)
    }

    /// Begins to renew a lease, in the current span.
    pub(super) fn start(&self, renewal: Renewal<B>) {
        let renewal = match &self.thread {
            None => renewal,
            Some(thread) => match thread.send((renewal, Span::current())) {
                Ok(()) => return,
                Err(mpsc::error::SendError((renewal, _))) => {
                    if !self.is_panic_reported.swap(true, Ordering::Relaxed) {
                        tracing::warn!(
                            "the thread of the dedicated renewals has panicked; leases are renewed in the runtimes of their \
                             operations, and operations that block delay renewals"
                        );
                    }
                    renewal
                }
            },
        };
        tokio::spawn(renewal.run().in_current_span());
    }

    /// Watches whether the renewals of an operation come in time.
    pub(super) fn lateness(&self, operation: Option<String>, polls: Arc<Polls>) -> Lateness {
        Lateness::new(operation, polls, Arc::clone(&self.unexplained))
    }
}

fn start_thread<B: Agenda>(
    store: TaskStore<B>,
    connect: Connect<B>,
) -> std::io::Result<mpsc::UnboundedSender<(Renewal<B>, Span)>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (send, receive) = mpsc::unbounded_channel();
    let serve = move || runtime.block_on(serve(store, connect, receive));
    std::thread::Builder::new().name("mcp-task-renewals".to_owned()).spawn(serve)?;
    Ok(send)
}

/// Renews leases until the manager and all its runs are gone.
async fn serve<B: Agenda>(
    store: TaskStore<B>,
    connect: Connect<B>,
    mut renewals: mpsc::UnboundedReceiver<(Renewal<B>, Span)>,
) {
    // Over the first connection until there is another.
    let (stores, twin) = watch::channel(store);
    let connect = async {
        let backend = connect().await;
        let twin = stores.borrow().twin(backend);
        stores.send_replace(twin);
        std::future::pending::<()>().await;
    };
    let renew = async {
        while let Some((renewal, span)) = renewals.recv().await {
            tokio::spawn(renewal.run_over(twin.clone()).instrument(span));
        }
    };
    tokio::select! {
        () = renew => {}
        () = connect => {}
    }
}
