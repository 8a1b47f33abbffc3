//! One stream: waits for changes, and sends the parts of the page that differ.

use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::convert::Infallible;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::Query;
use axum::http::StatusCode;
use axum::response::sse::Event;
use futures_util::stream::{self, BoxStream};
use futures_util::{Stream, StreamExt};
use mcp_task_store::{StorageBackend, StorageError, TaskKey};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep_until};

use super::page::{Page, Rendered};
use super::streams::Slot;
use crate::frame::Frame;
use crate::pages::task::Ids;
use crate::router::Shared;
use crate::security::guard;

/// How often a stream looks whether the snapshot has changed, and whether its visitor is still admitted.
const BETWEEN_LOOKS: Duration = Duration::from_secs(1);
/// The shortest time between two versions of a page.
const BETWEEN_RENDERS: Duration = Duration::from_millis(200);
/// How many times longer than the last version took the next one waits, up to [`LONGEST`], so that no stream occupies more than a
/// twentieth of a processor. A version takes long also because the engine does not answer, and the page must not stay behind then.
const REST: u32 = 20;
/// When a page is rendered again even if nothing has changed: ages grow, a lease lapses, a TTL elapses.
const LONGEST: Duration = Duration::from_secs(5);

/// A page that a visitor has open, and what it shows.
pub(super) struct Watching {
    shared: Arc<Shared>,
    page: Page,
    /// The task of the page, if it is the page of a task.
    task: Option<TaskKey>,
    changes: Option<BoxStream<'static, Result<(), StorageError>>>,
    looks: Interval,
    /// The hash of each part as it was sent last.
    sent: HashMap<String, u64>,
    is_available: bool,
    rendered_at: Instant,
    /// How long the last version took.
    took: Duration,
    /// The revision of the snapshot that the page shows.
    revision: u64,
    stop: watch::Receiver<bool>,
    /// The page as it was when the stream began.
    first: Option<Rendered>,
    has_ended: bool,
    _slot: Slot,
}

/// Why a stream continues.
enum Cause {
    Changed,
    NotAdmitted,
    Stopped,
}

/// What wakes a stream.
enum Wake {
    Change,
    WatchEnded,
    Look,
    Stop,
}

impl Watching {
    pub(super) fn new(shared: Arc<Shared>, page: Page, frame: Frame, slot: Slot, first: Rendered) -> Self {
        let ids = (page.uri.path() == "/task").then(|| Query::<Ids>::try_from_uri(&page.uri).ok()).flatten();
        let mut looks = interval(BETWEEN_LOOKS);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            // A key that the visitor may not see is not watched.
            task: ids.and_then(|Query(ids)| frame.visitor.key(&ids.owner, &ids.id)),
            changes: None,
            looks,
            sent: HashMap::new(),
            is_available: true,
            rendered_at: Instant::now(),
            took: Duration::ZERO,
            // A change between the first version of the page and now is shown with the next one.
            revision: 0,
            stop: shared.stop.clone(),
            first: Some(first),
            has_ended: false,
            _slot: slot,
            page,
            shared,
        }
    }

    /// Returns the events. Dropping the stream ends it.
    pub(super) fn events(self) -> impl Stream<Item = Result<Event, Infallible>> {
        let batches = stream::unfold(self, |mut watching| async move {
            if watching.has_ended {
                return None;
            }
            let events = watching.next().await;
            Some((stream::iter(events.into_iter().map(Ok)), watching))
        });
        batches.flatten()
    }

    async fn next(&mut self) -> Vec<Event> {
        if let Some(first) = self.first.take() {
            return self.differences(first);
        }
        match self.wait().await {
            Cause::Changed => match self.render().await {
                Some(rendered) => self.differences(rendered),
                None => self.stop(),
            },
            Cause::NotAdmitted => self.end("Signed out. Reload the page to sign in."),
            Cause::Stopped => self.stop(),
        }
    }

    /// Returns the page as it is after the rest; `None` if the streams must end before.
    async fn render(&mut self) -> Option<Rendered> {
        let mut stop = self.stop.clone();
        let rest = (self.took * REST).clamp(BETWEEN_RENDERS, LONGEST);
        let rendered = async {
            sleep_until(self.rendered_at + rest).await;
            self.revision = self.shared.snapshot.read().revision();
            self.rendered_at = Instant::now();
            let rendered = self.page.render().await;
            self.took = self.rendered_at.elapsed();
            rendered
        };
        tokio::select! {
            rendered = rendered => Some(rendered),
            // Without a signal, the sender is gone.
            Ok(_) = stop.wait_for(|stopped| *stopped) => None,
        }
    }

    async fn wait(&mut self) -> Cause {
        loop {
            match self.wake().await {
                Wake::Stop => return Cause::Stopped,
                Wake::Change => return Cause::Changed,
                Wake::WatchEnded => {
                    // The record is gone, or the watch has failed. The page says which.
                    self.task = None;
                    self.changes = None;
                    return Cause::Changed;
                }
                Wake::Look if !self.is_admitted() => return Cause::NotAdmitted,
                Wake::Look => {
                    let is_changed = self.revision != self.shared.snapshot.read().revision();
                    if self.rendered_at.elapsed() >= LONGEST || (is_changed && self.changes.is_none()) {
                        return Cause::Changed;
                    }
                }
            }
        }
    }

    async fn wake(&mut self) -> Wake {
        if self.changes.is_none()
            && let Some(key) = &self.task
        {
            self.changes = Some(self.shared.store.backend().watch(key));
        }
        let change = async {
            match &mut self.changes {
                Some(changes) => changes.next().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            change = change => if change.is_some() { Wake::Change } else { Wake::WatchEnded },
            _ = self.looks.tick() => Wake::Look,
            // Without a signal, the sender is gone.
            Ok(_) = self.stop.wait_for(|stopped| *stopped) => Wake::Stop,
        }
    }

    fn is_admitted(&self) -> bool {
        let (access, sessions) = (&self.shared.access.0, &self.shared.sessions);
        guard::admit(access, sessions, &self.page.headers, &self.page.uri).is_ok()
    }

    /// Returns the events for what has changed.
    fn differences(&mut self, rendered: Rendered) -> Vec<Event> {
        let parts = match rendered {
            Rendered::Parts(parts) => parts,
            Rendered::Other(StatusCode::NOT_FOUND) => {
                return self.end("The task does not exist any more: it was deleted, or has expired.");
            }
            Rendered::Other(StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => {
                return self.end("Signed out. Reload the page to sign in.");
            }
            Rendered::Other(_) => {
                let was_available = std::mem::replace(&mut self.is_available, false);
                return was_available
                    .then(|| Event::default().event("unavailable").data(""))
                    .into_iter()
                    .collect();
            }
        };
        let mut events = Vec::new();
        if !std::mem::replace(&mut self.is_available, true) {
            events.push(Event::default().event("available").data(""));
        }
        for (id, html) in parts {
            let mut hasher = DefaultHasher::new();
            html.hash(&mut hasher);
            let hash = hasher.finish();
            if self.sent.insert(id.clone(), hash) != Some(hash) {
                // JSON has no line breaks, which would end the event.
                let data = json!({ "id": format!("live-{id}"), "html": html }).to_string();
                events.push(Event::default().event("fragment").data(data));
            }
        }
        events
    }

    /// Ends the stream without a message. The browser connects again, to the console that takes the place of this one.
    fn stop(&mut self) -> Vec<Event> {
        self.has_ended = true;
        Vec::new()
    }

    fn end(&mut self, why: &str) -> Vec<Event> {
        self.has_ended = true;
        vec![Event::default().event("end").data(why)]
    }
}
