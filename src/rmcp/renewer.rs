//! Where the leases of a manager are renewed: in the runtime of their operations, or on a thread of their own over a
//! connection of its own, which an operation that blocks its runtime does not hold up.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep};
use tracing::{Instrument, Span};

use super::renewals::Renewal;
use crate::store::BackOff;
use crate::{Agenda, StorageError, TaskStore};

/// How often a late renewal is reported whose cause is unknown.
const AT_MOST_EVERY: Duration = Duration::from_secs(60);

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
                        %error,
                        "the dedicated renewals have no connection yet; leases are renewed over the first one"
                    ),
                    Err(error) => tracing::debug!(%error, "the dedicated renewals have no connection yet"),
                }
                sleep(back_off.longer()).await;
            }
        })
    })
}

/// Starts the renewals of one manager and its runs.
pub(super) struct Renewer<B> {
    /// `None` where they run in the runtime of their operation.
    thread: Option<mpsc::UnboundedSender<(Renewal<B>, Span)>>,
    reported: Mutex<Option<Instant>>,
}

impl<B: Agenda> Renewer<B> {
    /// The thread ends with the renewer, which the manager and its runs share.
    pub(super) fn new(store: &TaskStore<B>, connect: Option<Connect<B>>) -> Self {
        let thread = connect.and_then(|connect| match start_thread(store.clone(), connect) {
            Ok(thread) => Some(thread),
            Err(error) => {
                tracing::warn!(%error, "the thread of the dedicated renewals could not be started; operations that block delay renewals");
                None
            }
        });
        Self { thread, reported: Mutex::default() }
    }

    /// Begins to renew a lease, in the current span.
    pub(super) fn start(&self, renewal: Renewal<B>) {
        let renewal = match &self.thread {
            None => renewal,
            Some(thread) => match thread.send((renewal, Span::current())) {
                Ok(()) => return,
                // It has panicked with the engine.
                Err(mpsc::error::SendError((renewal, _))) => renewal,
            },
        };
        tokio::spawn(renewal.run().in_current_span());
    }

    /// Whether a late renewal is to be reported although nobody knows what held it up. One block delays the renewals of all
    /// operations of a runtime.
    pub(super) fn may_report(&self) -> bool {
        // Nothing panics while it holds the time.
        let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        if reported.is_some_and(|at| at.elapsed() < AT_MOST_EVERY) {
            return false;
        }
        *reported = Some(Instant::now());
        true
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

/// What holds a renewal up, as far as is known.
pub(super) struct Lateness<B> {
    pub(super) operation: Option<String>,
    pub(super) polls: Arc<super::operation::Polls>,
    pub(super) renewer: Arc<Renewer<B>>,
}

impl<B: Agenda> Lateness<B> {
    /// Reports a renewal that came this late although nothing but its runtime could hold it up.
    pub(super) fn report(&self, late: Duration, third: Duration) {
        let longest = self.polls.take_longest();
        let operation = self.operation.as_deref().unwrap_or_default();
        if longest > third {
            tracing::warn!(
                operation,
                "operation {operation:?} blocked the runtime for {longest:.1?}, and the renewal of its lease came {late:.1?} late; \
                 use tokio::task::spawn_blocking"
            );
        } else if self.renewer.may_report() {
            tracing::warn!(
                operation,
                "the renewal of the lease of operation {operation:?} came {late:.1?} late: something blocked the runtime, or the \
                 process was stopped; use tokio::task::spawn_blocking for work that blocks"
            );
        } else {
            tracing::debug!(operation, "the renewal of a lease came {late:.1?} late");
        }
    }
}
