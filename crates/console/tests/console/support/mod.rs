//! Stores with tasks, and a browser that sends requests to the console.

pub mod audit;
pub mod engine;

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Request, StatusCode, header};
use http_body_util::BodyExt;
use mcp_task_console::{Access, Console};
use mcp_task_store::{
    Agenda, MemoryBackend, NewTask, OnWorkerLost, OwnerId, PutOptions, RpcError, SqliteBackend,
    StorageBackend, StoreConfig, StoredTask, Synchronous, TaskKey, TaskStore,
};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};
use tempfile::TempDir;
use tower::ServiceExt;

const LONG: Duration = Duration::from_secs(3600);

// A test that applies `on_every_engine` runs once on each engine.
#[rstest_reuse::template]
#[rstest::rstest]
#[case::memory(Engine::Memory)]
#[case::sqlite(Engine::Sqlite)]
pub fn on_every_engine(#[case] engine: Engine) {}

#[derive(Clone, Copy)]
pub enum Engine {
    Memory,
    Sqlite,
}

/// A store of a test's own. Dropping it removes everything.
pub struct Store {
    pub tasks: TaskStore<Arc<dyn Agenda>>,
    _removed: Box<dyn Any + Send + Sync>,
}

impl Engine {
    pub async fn open(self) -> Store {
        let folder = TempDir::new().unwrap();
        let backend: Arc<dyn Agenda> = match self {
            Self::Memory => Arc::new(MemoryBackend::new()),
            Self::Sqlite => {
                // No test ends the power.
                let builder = SqliteBackend::builder(folder.path().join("tasks.db"));
                Arc::new(builder.synchronous(Synchronous::Normal).open().await.unwrap())
            }
        };
        // No keeper ends the tasks of a test.
        let config = StoreConfig::new().observer(true).lease(LONG).retention(LONG).max_ttl(None);
        Store { tasks: TaskStore::with_config(backend, config), _removed: Box::new(folder) }
    }
}

impl Store {
    pub fn backend(&self) -> Arc<dyn Agenda> {
        Arc::clone(self.tasks.backend())
    }

    /// Returns a browser of the console, once the console has read all tasks.
    pub async fn browse(&self) -> Browser {
        let browser = self.browser(Access::loopback());
        browser.until("/", |page| page.contains("Counts and lists as of")).await;
        browser
    }

    pub fn browser(&self, access: Access) -> Browser {
        Browser(Console::new(self.backend(), access).scan_rate(1_000_000).router())
    }

    /// Creates a task that a worker works on.
    pub async fn running(&self, owner: &str, tool: &str) -> StoredTask {
        let (stored, attempt) = self.tasks.start(&self::owner(owner), resumable(tool)).await.unwrap();
        // A worker in another process never drops its attempt here.
        std::mem::forget(attempt);
        stored
    }

    /// Creates a task that failed because its attempts are used up.
    pub async fn dead(&self, owner: &str, tool: &str) -> StoredTask {
        let new = resumable(tool).max_attempts(1);
        let (stored, attempt) = self.tasks.start(&self::owner(owner), new).await.unwrap();
        attempt.retry(RpcError::new(-32000, "the printer is down")).await.unwrap();
        self.tasks.get(&stored.key).await.unwrap()
    }

    /// Creates a task that has ended with a result.
    pub async fn completed(&self, owner: &str, tool: &str) -> StoredTask {
        let (_, attempt) = self.tasks.start(&self::owner(owner), resumable(tool)).await.unwrap();
        attempt.complete(json!({ "content": [{ "type": "text", "text": "printed" }] })).await.unwrap()
    }

    /// Writes a record with these fields, as no call of the library writes it.
    pub async fn put(&self, owner: &str, task: &str, fields: Value) -> TaskKey {
        let key = TaskKey::new(owner, task).unwrap();
        let now = self.ago(0);
        let mut record = json!({
            "taskId": task, "status": "working", "method": "tools/call", "ttlMs": null,
            "createdAt": now, "lastUpdatedAt": now,
        });
        record.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        self.tasks.backend().put(&key, record.to_string().into(), PutOptions::default()).await.unwrap();
        key
    }

    /// Returns the time this long ago, as records state it.
    pub fn ago(&self, seconds: i64) -> String {
        let time = self.tasks.backend().now() - chrono::TimeDelta::seconds(seconds);
        time.to_rfc3339_opts(chrono::SecondsFormat::Millis, true)
    }
}

pub fn resumable(tool: &str) -> NewTask {
    NewTask::new("tools/call")
        .operation(tool)
        .on_worker_lost(OnWorkerLost::Resume)
        .arguments(json!({ "copies": 17 }))
}

pub fn owner(id: &str) -> OwnerId {
    id.try_into().unwrap()
}

/// Returns the path of the page of a task.
pub fn path(key: &TaskKey) -> String {
    let encoded = |id: &str| utf8_percent_encode(id, NON_ALPHANUMERIC).to_string();
    format!("/task?owner={}&id={}", encoded(key.owner.as_str()), encoded(key.task.as_str()))
}

/// Sends requests to a console.
#[derive(Clone)]
pub struct Browser(pub Router);

#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: String,
}

impl Answer {
    /// Returns the page of a request that succeeded.
    pub fn page(self) -> String {
        assert_eq!(self.status, StatusCode::OK, "{self:?}");
        self.body
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// Returns the cookie that the answer sets, as a request sends it.
    pub fn cookie(&self) -> String {
        self.header("set-cookie").split(';').next().unwrap().to_owned()
    }
}

impl Browser {
    pub async fn send(&self, request: Request<Body>) -> Answer {
        let (parts, body) = self.0.clone().oneshot(request).await.unwrap().into_parts();
        let body = body.collect().await.unwrap().to_bytes().to_vec();
        Answer { status: parts.status, headers: parts.headers, body: String::from_utf8(body).unwrap() }
    }

    /// Requests a path with these headers.
    pub async fn get_with(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        let mut request = Request::get(path);
        if !headers.iter().any(|(name, _)| *name == "host") {
            request = request.header(header::HOST, "127.0.0.1:8181");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.send(request.body(Body::empty()).unwrap()).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.get_with(path, &[]).await
    }

    pub async fn page(&self, path: &str) -> String {
        self.get(path).await.page()
    }

    /// Sends a form.
    pub async fn post(&self, path: &str, headers: &[(&str, &str)], form: &str) -> Answer {
        let mut request = Request::post(path)
            .header(header::HOST, "127.0.0.1:8181")
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.send(request.body(Body::from(form.to_owned())).unwrap()).await
    }

    /// Requests a page until it is as expected. Returns it.
    pub async fn until(&self, path: &str, is_so: impl Fn(&str) -> bool) -> String {
        let begun = Instant::now();
        loop {
            let page = self.page(path).await;
            if is_so(&page) {
                return page;
            }
            assert!(begun.elapsed() < Duration::from_secs(120), "{path}: {page}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
