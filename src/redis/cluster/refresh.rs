//! Keeps the slot map up to date.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::node::Node;
use super::nodes::Nodes;
use super::view::View;
use crate::backend::StorageError;
use crate::backend::engine::on_drop;
use crate::redis::error::Context;

/// How long a node may take to answer a question that any other node can answer.
pub(super) const ANSWER_LIMIT: Duration = Duration::from_millis(300);
/// How often the backend asks some nodes, and how many.
const REFRESHED_EVERY: Duration = Duration::from_secs(1);
const NODES_ASKED: usize = 3;
/// How often the backend asks all nodes while the cluster is not healthy.
const REFRESHED_EVERY_IN_TROUBLE: Duration = Duration::from_millis(200);
/// How many nodes the backend asks at most, and the shortest pause between two refreshes.
const MAX_NODES_ASKED: usize = 32;
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
/// How long the nodes may take to answer if none of them answers within the usual limit.
const SLOW_ANSWER_LIMIT: Duration = Duration::from_secs(1);
/// How long the backend waits for the other nodes once most nodes have answered.
const OTHERS_LIMIT: Duration = Duration::from_millis(50);

/// Asks the nodes which master serves which slot. A background task runs one refresh after the other.
pub(super) struct Refresher {
    nodes: Arc<Nodes>,
    is_running: AtomicBool,
    /// Receives a notification when all nodes must be asked now.
    requested: Arc<Notify>,
    /// The number of the latest refresh that has begun, and of the latest that is done.
    begun: AtomicU64,
    done: watch::Sender<u64>,
    /// The index of the node that is asked next.
    next: AtomicUsize,
    is_healthy: AtomicBool,
}

impl Refresher {
    pub(super) fn new(nodes: Arc<Nodes>) -> Self {
        Self {
            nodes,
            is_running: AtomicBool::new(false),
            requested: Arc::default(),
            begun: AtomicU64::new(0),
            done: watch::Sender::new(0),
            next: AtomicUsize::new(0),
            is_healthy: AtomicBool::new(true),
        }
    }

    /// Starts the background task, unless it runs. The runtime of an earlier one may have shut down.
    pub(super) fn keep_running(self: &Arc<Self>) {
        if self.is_running.load(Ordering::Relaxed) {
            return;
        }
        let Ok(runtime) = Handle::try_current() else { return };
        if self.is_running.swap(true, Ordering::SeqCst) {
            return;
        }
        let ended = on_drop({
            let refresher = Arc::downgrade(self);
            move || {
                if let Some(refresher) = refresher.upgrade() {
                    refresher.is_running.store(false, Ordering::SeqCst);
                }
            }
        });
        let refreshing = run(Arc::downgrade(self), Arc::clone(&self.requested));
        runtime.spawn(async move {
            let _ended = ended;
            refreshing.await;
        });
    }

    /// Asks all nodes soon.
    pub(super) fn request(self: &Arc<Self>) {
        self.keep_running();
        self.requested.notify_one();
    }

    /// Returns when a refresh that began after this call is done.
    pub(super) async fn refresh(self: &Arc<Self>) {
        let mut done = self.done.subscribe();
        let begun = self.begun.load(Ordering::SeqCst);
        self.request();
        // The sender lives as long as this refresher.
        let _ = done.wait_for(|number| *number > begun).await;
    }

    /// Asks the nodes that the caller named, all at the same time.
    ///
    /// # Errors
    /// If no node replies: the error of one of them, preferably an error that is not temporary.
    pub(super) async fn first_refresh(&self) -> Result<(), StorageError> {
        let seeds = self.nodes.seeds();
        let mut asking: FuturesUnordered<_> =
            seeds.iter().map(|node| async move { (node, node.view().await) }).collect();
        let (mut views, mut refusal): (Vec<View>, Option<StorageError>) = (Vec::new(), None);
        let mut until = None;
        loop {
            let next = match until {
                Some(until) => timeout_at(until, asking.next()).await.unwrap_or_default(),
                None => asking.next().await,
            };
            let Some((node, view)) = next else { break };
            match view {
                Ok(view) => {
                    let limit = if view.is_ok { OTHERS_LIMIT } else { ANSWER_LIMIT };
                    until.get_or_insert(Instant::now() + limit);
                    views.push(view);
                }
                Err(failure) => {
                    let error = Context::reads(&node.name, "").storage_error(failure);
                    if refusal.as_ref().is_none_or(|other| other.is_retryable() && !error.is_retryable()) {
                        refusal = Some(error);
                    }
                }
            }
        }
        match refusal {
            Some(error) if views.is_empty() => return Err(error),
            _ => {}
        }
        // The views are complete, because no other node is known yet.
        self.update(&views, true);
        Ok(())
    }

    async fn refresh_now(&self, asks_all: bool) {
        let number = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
        let (asked, are_all) = self.choose(asks_all);
        let mut asking: FuturesUnordered<_> = asked.iter().map(answer).collect();
        let mut views: Vec<View> = Vec::new();
        let begun = Instant::now();
        let mut until = begun + ANSWER_LIMIT;
        loop {
            match timeout_at(until, asking.next()).await {
                Ok(Some(view)) => {
                    views.extend(view);
                    if views.len() * 2 > asked.len() {
                        until = until.min(Instant::now() + OTHERS_LIMIT);
                    }
                }
                // No node has answered yet: all of them may be slow or far away.
                Err(_) if views.is_empty() && until < begun + SLOW_ANSWER_LIMIT => {
                    until = begun + SLOW_ANSWER_LIMIT;
                }
                Ok(None) | Err(_) => break,
            }
        }
        self.update(&views, are_all && views.len() == asked.len());
        self.done.send_replace(number);
    }

    /// Chooses the nodes to ask. Also returns whether these are all nodes that can be asked.
    fn choose(&self, asks_all: bool) -> (Vec<Arc<Node>>, bool) {
        let mut reachable = self.nodes.all();
        reachable.retain(|node| node.lost().is_none());
        let count = reachable.len().min(if asks_all { MAX_NODES_ASKED } else { NODES_ASKED });
        let are_all = count == reachable.len();
        if !reachable.is_empty() {
            let first = self.next.fetch_add(count, Ordering::Relaxed) % reachable.len();
            reachable.rotate_left(first);
        }
        reachable.truncate(count);
        (reachable, are_all)
    }

    fn update(&self, views: &[View], is_complete: bool) {
        let is_healthy = self.nodes.update(views, is_complete);
        self.is_healthy.store(is_healthy, Ordering::Relaxed);
    }
}

/// Refreshes until the backend is dropped.
async fn run(refresher: Weak<Refresher>, requested: Arc<Notify>) {
    loop {
        let pause = match refresher.upgrade() {
            Some(refresher) if refresher.is_healthy.load(Ordering::Relaxed) => REFRESHED_EVERY,
            Some(_) => REFRESHED_EVERY_IN_TROUBLE,
            None => return,
        };
        let is_requested = timeout(pause, requested.notified()).await.is_ok();
        let Some(refresher) = refresher.upgrade() else { return };
        refresher.nodes.all().iter().for_each(Node::retry_if_due);
        refresher.refresh_now(is_requested || pause < REFRESHED_EVERY).await;
        drop(refresher);
        sleep(SHORTEST_PAUSE).await;
    }
}

/// Returns the view of a node, if it replies in time. Probes a node that exceeds the usual limit.
async fn answer(node: &Arc<Node>) -> Option<View> {
    let mut asked = pin!(node.view());
    let view = match timeout(ANSWER_LIMIT, &mut asked).await {
        Ok(view) => view,
        Err(_) => {
            node.probe(false);
            timeout(SLOW_ANSWER_LIMIT, asked).await.ok()?
        }
    };
    match view {
        Ok(view) => Some(view),
        Err(failure) => {
            tracing::debug!(node = node.name, ?failure, "asking a node for its view of the cluster failed");
            None
        }
    }
}
