//! The console as a router.

use std::fmt;
use std::sync::Arc;

use axum::Router;
use axum::http::header;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use futures_util::future::BoxFuture;
use mcp_task_store::{Agenda, StorageBackend, StoreConfig, TaskStore};
use tokio::sync::{Semaphore, watch};
use tokio::task::AbortHandle;

use crate::health::{self, LastHealth};
use crate::live::{self, Streams};
use crate::metrics::{self, Render};
use crate::pages::{overview, owners, task, tasks, workers};
use crate::security::csrf::Csrf;
use crate::security::sessions::Sessions;
use crate::security::{Access, guard, headers, login};
use crate::snapshot::keeper::Keeper;
use crate::snapshot::{MAX_TASKS, Snapshot};

pub(crate) type Store = TaskStore<Arc<dyn Agenda>>;

/// How many records the console reads a second by default.
const DEFAULT_RATE: u32 = 5_000;

/// The console of one store. [`router`](Self::router) returns it as a router, to be mounted or served.
///
/// The console only shows tasks, unless [`allow_actions`](Self::allow_actions) lets visitors change them. An open page is live: it follows
/// its tasks by server-sent events. At most 64 pages are live at the same time, and 16 of one named user; a further page is shown and
/// tries again.
#[must_use]
pub struct Console {
    backend: Arc<dyn Agenda>,
    access: Access,
    scan_rate: u32,
    allows_actions: bool,
    until: Option<BoxFuture<'static, ()>>,
    render: Option<Render>,
}

/// What all requests share.
pub(crate) struct Shared {
    pub(crate) store: Store,
    pub(crate) snapshot: Arc<Snapshot>,
    pub(crate) access: Access,
    pub(crate) sessions: Sessions,
    pub(crate) csrf: Csrf,
    pub(crate) allows_actions: bool,
    /// Lets one login at a time verify a password.
    pub(crate) logins: Arc<Semaphore>,
    pub(crate) streams: Streams,
    /// Becomes true when the streams must end.
    pub(crate) stop: watch::Receiver<bool>,
    _stopper: Option<Stopper>,
    pub(crate) health: LastHealth,
    pub(crate) render: Option<Render>,
    _keeper: Keeper,
}

/// Tells the streams to end. Dropping it stops waiting for the signal.
struct Stopper(AbortHandle);

impl Drop for Stopper {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl fmt::Debug for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { backend: _, access, scan_rate, allows_actions, until: _, render } = self;
        f.debug_struct("Console")
            .field("access", access)
            .field("scan_rate", scan_rate)
            .field("allows_actions", allows_actions)
            .field("metrics", &render.is_some())
            .finish_non_exhaustive()
    }
}

impl Console {
    /// Returns a console for the tasks of this engine, which only the visitors of `access` see.
    pub fn new(backend: Arc<dyn Agenda>, access: Access) -> Self {
        Self { backend, access, scan_rate: DEFAULT_RATE, allows_actions: false, until: None, render: None }
    }

    /// Sets how many records the console reads a second at most for its lists and counts; 5,000 by default, at least 2. Half of
    /// them are open tasks that it reads again. It stops for ten seconds after it has read all tasks.
    pub fn scan_rate(mut self, records_per_second: u32) -> Self {
        self.scan_rate = records_per_second.max(2);
        self
    }

    /// Lets visitors cancel, requeue and delete tasks, and answer their questions; off by default.
    ///
    /// Each attempt, also a refused one, is an event of `tracing` with the target `mcp_task_console::audit` and the fields `who`,
    /// `action`, `owner`, `task` and `outcome`. Record this target.
    pub fn allow_actions(mut self, allow: bool) -> Self {
        self.allows_actions = allow;
        self
    }

    /// Ends the live streams once `signal` completes. Without it, a graceful shutdown of the server waits for every browser that has a
    /// page open. Browsers connect again by themselves.
    pub fn live_until(mut self, signal: impl Future<Output = ()> + Send + 'static) -> Self {
        self.until = Some(Box::pin(signal));
        self
    }

    /// Adds what the process records to `/metrics`: the text of its recorder, in the format of Prometheus. By default `/metrics` has only
    /// the gauges of the store.
    ///
    /// With `metrics-exporter-prometheus`, pass `move || handle.render()` with the `PrometheusHandle` of the recorder.
    pub fn metrics(mut self, render: impl Fn() -> String + Send + Sync + 'static) -> Self {
        self.render = Some(Arc::new(render));
        self
    }

    /// Returns the router, and begins to read the store. It ends to read once the last clone of the router is dropped.
    ///
    /// Mount it at any path with [`Router::nest`], or serve it as it is.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn router(self) -> Router {
        // As an observer, the store writes nothing.
        let store = TaskStore::with_config(self.backend, StoreConfig::new().observer(true));
        let snapshot = Arc::new(Snapshot::new(store.backend().now(), MAX_TASKS));
        let (stopped, stop) = watch::channel(false);
        let stopper = self.until.map(|signal| {
            let stopping = tokio::spawn(async move {
                signal.await;
                stopped.send_replace(true);
            });
            Stopper(stopping.abort_handle())
        });
        let shared = Arc::new(Shared {
            streams: Streams::default(),
            stop,
            _stopper: stopper,
            _keeper: Keeper::start(store.clone(), Arc::clone(&snapshot), self.scan_rate),
            store,
            snapshot,
            access: self.access,
            sessions: Sessions::default(),
            csrf: Csrf::new(),
            allows_actions: self.allows_actions,
            logins: Arc::new(Semaphore::new(1)),
            health: LastHealth::default(),
            render: self.render,
        });
        let pages = Router::new()
            .route("/", get(overview::show))
            .route("/tasks", get(tasks::show))
            .route("/task", get(task::show))
            .route("/owners", get(owners::show))
            .route("/workers", get(workers::show));
        let guarded = from_fn_with_state(Arc::clone(&shared), guard::guard);
        let watched = pages.clone().layer(guarded.clone()).with_state(Arc::clone(&shared));
        pages
            .merge(live::routes(watched))
            .merge(crate::actions::routes())
            .route("/metrics", get(metrics::show))
            .route("/logout", post(login::sign_out))
            .fallback(crate::pages::not_found)
            .layer(guarded)
            // Everybody may see what the login page needs.
            .route("/login", get(login::redirect).post(login::sign_in))
            .route("/healthz", get(health::answer))
            .route("/style.css", get(style))
            .route("/live.js", get(live::script))
            .route("/icon.svg", get(icon))
            .layer(from_fn(headers::set))
            .with_state(shared)
    }
}

async fn style() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/css; charset=utf-8")], include_str!("style.css"))
}

async fn icon() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "image/svg+xml")], include_str!("icon.svg"))
}
