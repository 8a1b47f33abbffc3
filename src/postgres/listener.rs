//! Notifications: one connection per process listens for the changes of records and timers.
//!
//! The connection lives on a thread of its own, so that it does not depend on the runtime of any caller. If it breaks, the thread connects
//! again, and then makes every subscriber look.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::select;
use futures_util::{StreamExt, stream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};
use tokio_postgres::{AsyncMessage, Client, Config, Notification};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::error::{Errors, Failed, Stage};
use super::names::Names;
use crate::backend::engine::{Change, Wakers, Watchers, from_millis};
use crate::backend::key::unescape;
use crate::backend::{Queue, StorageError};
use crate::printable::Chain;

/// How long the thread waits before it connects again, at first and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How often the thread asks the server whether the connection still lives. TCP alone notices a lost peer much later.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// The subscribers of this process.
#[derive(Default)]
pub(super) struct Subscribers {
    /// By the key as the database stores it: owner and task with a colon between.
    pub(super) watchers: Watchers<String>,
    wakers: Mutex<Wakers>,
    is_live: AtomicBool,
}

impl Subscribers {
    /// Locks the subscribers of wakeups. No code panics while it holds the lock, so the data behind a poisoned lock is consistent.
    pub(super) fn wakers(&self) -> MutexGuard<'_, Wakers> {
        let mut wakers = self.wakers.lock().unwrap_or_else(PoisonError::into_inner);
        wakers.remove_left();
        wakers
    }

    /// Returns whether notifications arrive at present.
    pub(super) fn is_live(&self) -> bool {
        self.is_live.load(Ordering::Acquire)
    }

    fn set_live(&self) {
        self.is_live.store(true, Ordering::Release);
        // What happened before the connection was live has no notification.
        self.watchers.notify_all(&Change::Unknown);
        self.wakers().wake_all();
    }

    fn set_failed(&self, error: Arc<dyn Fn() -> StorageError + Send + Sync>) {
        self.is_live.store(false, Ordering::Release);
        self.watchers.notify_all(&Change::Failed(error));
    }

    fn received(&self, notification: &Notification, changes: &str) {
        let payload = notification.payload();
        if notification.channel() == changes {
            // When the record expires (0 for never, - for a record that was removed), and its key. An id may contain spaces.
            let Some((expires_at, key)) = payload.split_once(' ') else { return };
            let change = expires_at.parse().map_or(Change::Unknown, |at: u64| {
                Change::Written(Some(at).filter(|at| *at > 0).map(from_millis))
            });
            self.watchers.notify(key, change);
        } else if let Some(queue) = unescape(payload).and_then(|queue| Queue::try_from(queue.as_str()).ok()) {
            self.wakers().wake(&queue);
        }
    }
}

/// The thread that listens. It ends when this handle is dropped.
pub(super) struct Listener {
    _ends: oneshot::Sender<()>,
}

/// How the thread connects.
pub(super) struct Listening {
    pub(super) config: Config,
    pub(super) tls: MakeRustlsConnect,
    pub(super) errors: Errors,
    pub(super) names: Names,
}

impl Listening {
    /// Starts the thread, and waits until it listens.
    ///
    /// # Errors
    /// If the thread cannot connect or listen.
    pub(super) async fn start(self, subscribers: Arc<Subscribers>) -> Result<Listener, StorageError> {
        let (ends, ended) = oneshot::channel();
        let (listens, listening) = oneshot::channel();
        let errors = self.errors.clone();
        let thread = std::thread::Builder::new().name("postgres-listener".to_owned());
        let started = thread.spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            match runtime {
                Ok(runtime) => {
                    let runs = pin!(self.run(&subscribers, listens));
                    runtime.block_on(select(runs, ended));
                }
                Err(error) => {
                    let error =
                        self.errors.unavailable("the system starts no runtime", false, Some(error.into()));
                    let _ = listens.send(Err(error));
                }
            }
        });
        started
            .map_err(|error| errors.unavailable("the system starts no thread", false, Some(error.into())))?;
        let stopped = |_| Err(errors.stopped(Stage::NothingWritten));
        listening.await.unwrap_or_else(stopped)?;
        Ok(Listener { _ends: ends })
    }

    /// Listens until the runtime ends. Reports the first attempt.
    async fn run(&self, subscribers: &Subscribers, first: oneshot::Sender<Result<(), StorageError>>) {
        let (mut first, mut pause) = (Some(first), FIRST_PAUSE);
        loop {
            match self.connect().await {
                Ok((client, notifications)) => {
                    subscribers.set_live();
                    pause = FIRST_PAUSE;
                    if let Some(first) = first.take() {
                        let _ = first.send(Ok(()));
                    }
                    self.receive(&client, notifications, subscribers).await;
                    subscribers.is_live.store(false, Ordering::Release);
                    tracing::warn!(server = %self.errors.address, "the connection that listens broke; connecting again");
                }
                Err(failed) => match first.take() {
                    Some(first) => {
                        let _ = first.send(Err(self.errors.of(failed)));
                        return;
                    }
                    None => {
                        let errors = self.errors.clone();
                        tracing::debug!(error = %Chain(&errors.of(failed.clone())), "the connection that listens cannot be made");
                        subscribers.set_failed(Arc::new(move || errors.of(failed.clone())));
                    }
                },
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Connects and listens. Returns the notifications as they arrive.
    async fn connect(&self) -> Result<(Client, mpsc::UnboundedReceiver<Notification>), Failed> {
        let connecting = async {
            let (client, mut connection) = self.config.connect(self.tls.clone()).await?;
            let (sender, notifications) = mpsc::unbounded_channel();
            tokio::spawn(async move {
                let mut messages = stream::poll_fn(|context| connection.poll_message(context));
                while let Some(Ok(message)) = messages.next().await {
                    if let AsyncMessage::Notification(notification) = message {
                        // The receiver leaves before it connects again.
                        let _ = sender.send(notification);
                    }
                }
            });
            client.batch_execute(&self.names.in_sql("LISTEN \"{c}changes\"; LISTEN \"{c}timers\"")).await?;
            Ok((client, notifications))
        };
        match timeout(self.errors.limit, connecting).await {
            Ok(connected) => connected.map_err(|error: tokio_postgres::Error| {
                Failed::Statement(Arc::new(error), Stage::NothingWritten)
            }),
            Err(_) => Err(Failed::TimedOut(Stage::NothingWritten)),
        }
    }

    /// Passes notifications on until the connection breaks or stops answering.
    async fn receive(
        &self,
        client: &Client,
        mut notifications: mpsc::UnboundedReceiver<Notification>,
        subscribers: &Subscribers,
    ) {
        let changes = self.names.in_sql("{c}changes");
        loop {
            match timeout(HEARTBEAT, notifications.recv()).await {
                Ok(Some(notification)) => subscribers.received(&notification, &changes),
                Ok(None) => return,
                Err(_) => match timeout(self.errors.limit, client.batch_execute("")).await {
                    Ok(Ok(())) => {}
                    _ => return,
                },
            }
        }
    }
}
