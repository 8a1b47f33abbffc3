//! Asks the nodes for the layout of the cluster.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use super::layout::{Layout, View, trusted};
use super::member::Member;
use super::{Cluster, QUESTION_LIMIT};
use crate::backend::StorageError;
use crate::backend::engine::on_drop;
use crate::redis::error::Context;

/// How often some nodes are asked, and how many.
const ASKED_EVERY: Duration = Duration::from_secs(1);
const ASKED: usize = 3;
/// How often all are asked while the cluster is down or a node that keeps slots is lost.
const ASKED_EVERY_IN_TROUBLE: Duration = Duration::from_millis(200);
/// How many are asked at most, and how soon after one survey the next may begin.
const MOST_ASKED: usize = 32;
const LEAST_PAUSE: Duration = Duration::from_millis(100);
/// How long the nodes may take to answer if none of them answers within the usual limit.
const SLOW_LIMIT: Duration = Duration::from_secs(1);
/// How long the others may take once most have answered.
const PATIENCE: Duration = Duration::from_millis(50);
/// How long a node that no longer belongs to the cluster stays known after a redirection named it: a node without slots
/// that imports some.
const REMEMBERED: Duration = Duration::from_secs(10);

/// The surveys of a cluster, made one after the other by a task in the background.
pub(super) struct Surveys {
    has_task: AtomicBool,
    /// Receives a message when all nodes must be asked now.
    wanted: Arc<Notify>,
    /// The number of the latest that has begun, and of the latest that is done.
    begun: AtomicU64,
    done: watch::Sender<u64>,
    /// The member that is asked next.
    turn: AtomicUsize,
    is_in_trouble: AtomicBool,
}

impl Default for Surveys {
    fn default() -> Self {
        Self {
            has_task: AtomicBool::new(false),
            wanted: Arc::default(),
            begun: AtomicU64::new(0),
            done: watch::Sender::new(0),
            turn: AtomicUsize::new(0),
            is_in_trouble: AtomicBool::new(false),
        }
    }
}

/// Makes surveys until the backend is dropped.
async fn survey_regularly(cluster: Weak<Cluster>, wanted: Arc<Notify>) {
    loop {
        let pause = match cluster.upgrade() {
            Some(cluster) if cluster.surveys.is_in_trouble.load(Ordering::Relaxed) => ASKED_EVERY_IN_TROUBLE,
            Some(_) => ASKED_EVERY,
            None => return,
        };
        let is_wanted = tokio::time::timeout(pause, wanted.notified()).await.is_ok();
        let Some(cluster) = cluster.upgrade() else { return };
        cluster.look_at_lost_members();
        cluster.survey(is_wanted || pause < ASKED_EVERY).await;
        drop(cluster);
        tokio::time::sleep(LEAST_PAUSE).await;
    }
}

impl Cluster {
    /// Starts the task that makes surveys, unless it runs. Its runtime may have been shut down since.
    pub(super) fn keep_surveying(self: &Arc<Self>) {
        if self.surveys.has_task.load(Ordering::Relaxed) {
            return;
        }
        let Ok(runtime) = Handle::try_current() else { return };
        if self.surveys.has_task.swap(true, Ordering::SeqCst) {
            return;
        }
        let ended = on_drop({
            let cluster = Arc::downgrade(self);
            move || {
                if let Some(cluster) = cluster.upgrade() {
                    cluster.surveys.has_task.store(false, Ordering::SeqCst);
                }
            }
        });
        let surveying = survey_regularly(Arc::downgrade(self), Arc::clone(&self.surveys.wanted));
        runtime.spawn(async move {
            let _ended = ended;
            surveying.await;
        });
    }

    /// Has all nodes asked soon.
    pub(super) fn want_survey(self: &Arc<Self>) {
        self.keep_surveying();
        self.surveys.wanted.notify_one();
    }

    /// Returns when a survey is done that began after this call.
    pub(super) async fn survey_again(self: &Arc<Self>) {
        let mut done = self.surveys.done.subscribe();
        let begun = self.surveys.begun.load(Ordering::SeqCst);
        self.want_survey();
        // The sender lives as long as this does.
        let _ = done.wait_for(|number| *number > begun).await;
    }

    /// Asks the nodes that the caller named, all at the same time.
    pub(super) async fn first_survey(self: &Arc<Self>) -> Result<(), StorageError> {
        let seeds: Vec<Arc<Member>> = self.seeds.iter().map(|node| self.member(node)).collect();
        let mut asking: FuturesUnordered<_> =
            seeds.iter().map(|member| async move { (member, member.view().await) }).collect();
        let (mut views, mut refusal) = (Vec::new(), None);
        let mut until = None;
        loop {
            let next = match until {
                Some(until) => tokio::time::timeout_at(until, asking.next()).await.unwrap_or_default(),
                None => asking.next().await,
            };
            let Some((member, view)) = next else { break };
            match view {
                Ok(view) => {
                    let patience = if view.is_ok { PATIENCE } else { QUESTION_LIMIT };
                    until.get_or_insert(tokio::time::Instant::now() + patience);
                    views.push(view);
                }
                Err(failure) => {
                    let error = Context::reads(&member.name, "").storage_error(failure);
                    let is_telling = |error: &StorageError| !error.is_retryable();
                    if refusal.as_ref().is_none_or(|other| !is_telling(other) && is_telling(&error)) {
                        refusal = Some(error);
                    }
                }
            }
        }
        match refusal {
            Some(error) if views.is_empty() => return Err(error),
            _ => {}
        }
        // There is nothing better to follow.
        self.take_in(&views, true);
        Ok(())
    }

    fn look_at_lost_members(&self) {
        for member in self.state().members.values() {
            member.look_if_due();
        }
    }

    async fn survey(self: &Arc<Self>, of_all: bool) {
        let number = self.surveys.begun.fetch_add(1, Ordering::SeqCst) + 1;
        let (asked, is_whole) = self.next_asked(of_all);
        let mut asking: FuturesUnordered<_> = asked.iter().map(answer).collect();
        let mut views: Vec<View> = Vec::new();
        let begun = tokio::time::Instant::now();
        let mut until = begun + QUESTION_LIMIT;
        loop {
            match tokio::time::timeout_at(until, asking.next()).await {
                Ok(Some(view)) => {
                    views.extend(view);
                    if views.len() * 2 > asked.len() {
                        until = until.min(tokio::time::Instant::now() + PATIENCE);
                    }
                }
                // All of them are slow, or far away.
                Err(_) if views.is_empty() && until < begun + SLOW_LIMIT => until = begun + SLOW_LIMIT,
                Ok(None) | Err(_) => break,
            }
        }
        let is_whole = is_whole && views.len() == asked.len();
        self.take_in(&views, is_whole);
        self.surveys.done.send_replace(number);
    }

    /// Who is asked this time, and whether these are all that can be.
    fn next_asked(&self, of_all: bool) -> (Vec<Arc<Member>>, bool) {
        let mut known: Vec<Arc<Member>> = self.state().members.values().cloned().collect();
        known.retain(|member| member.lost().is_none());
        let count = known.len().min(if of_all { MOST_ASKED } else { ASKED });
        let is_whole = count == known.len();
        if !known.is_empty() {
            let first = self.surveys.turn.fetch_add(count, Ordering::Relaxed) % known.len();
            known.rotate_left(first);
        }
        known.truncate(count);
        (known, is_whole)
    }

    /// Follows what these views show.
    fn take_in(self: &Arc<Self>, views: &[View], is_whole: bool) {
        let mut state = self.state_mut();
        let has_majority = views.iter().any(|view| view.is_ok);
        let layout = Layout::of_views(views, &state.layout);
        let is_behind = layout.as_ref().is_none_or(|layout| layout.epoch < state.layout.epoch);
        // Some nodes may be behind or cut off from the majority, but not all of them.
        let is_followed = is_whole && (has_majority || !is_behind) || has_majority && !is_behind;
        let is_sure = has_majority && !is_behind;
        if let Some(layout) = layout.filter(|_| is_followed) {
            self.follow(&mut state, layout);
            let named: Vec<_> = trusted(views).into_iter().flat_map(View::nodes).cloned().collect();
            for node in named.iter().chain(&self.seeds) {
                self.member_in(&mut state, node);
            }
            let now = Instant::now();
            state.members.retain(|node, member| {
                let stays = named.contains(node)
                    || self.seeds.contains(node)
                    || now.saturating_duration_since(member.named()) < REMEMBERED;
                if !stays {
                    tracing::debug!(node = member.name, "a node has left the cluster");
                    // Connections that are still in use end at their next check.
                    member.master.void(member.master.epoch());
                }
                stays
            });
        }
        let has_lost = state.keepers.iter().any(|member| member.lost().is_some());
        let is_in_trouble = !is_sure || has_lost || !state.layout.is_complete();
        self.surveys.is_in_trouble.store(is_in_trouble, Ordering::Relaxed);
        drop(state);
    }
}

/// Returns the view of a member, if it replies in time. A member that is silent for the usual limit is probed.
async fn answer(member: &Arc<Member>) -> Option<View> {
    let mut asked = pin!(member.view());
    let view = match timeout(QUESTION_LIMIT, &mut asked).await {
        Ok(view) => view,
        Err(_) => {
            member.check(false);
            timeout(SLOW_LIMIT, asked).await.ok()?
        }
    };
    match view {
        Ok(view) => Some(view),
        Err(failure) => {
            tracing::debug!(node = member.name, ?failure, "a node does not say how the cluster stands");
            None
        }
    }
}
