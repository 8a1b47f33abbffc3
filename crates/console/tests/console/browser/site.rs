//! A console that is served over HTTP on loopback, with the times of its responses.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use mcp_task_console::{Access, Console};
use mcp_task_store::TaskKey;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::support::{Browser, Engine, Store, path};
use crate::workers::announce;

/// A served console. Dropping it stops the server.
pub struct Site {
    pub store: Store,
    /// `http://127.0.0.1:PORT`
    pub origin: String,
    times: Times,
    server: JoinHandle<()>,
}

/// How long the server took for each page: its path and query, and the time until the response was complete but for its sending.
type Times = Arc<Mutex<Vec<(String, Duration)>>>;

impl Site {
    /// Serves the console of a store, once the console has read all tasks.
    pub async fn of(store: Store) -> Self {
        let browser = console(&store, Access::loopback());
        browser.until("/", |page| page.contains("Counts and lists as of")).await;
        Self::serve(store, browser).await
    }

    /// Serves the console of a store to the visitors of `access`.
    pub async fn guarded(store: Store, access: Access) -> Self {
        let browser = console(&store, access);
        Self::serve(store, browser).await
    }

    /// Serves a store that has a task of each kind. Returns the paths of all pages too.
    pub async fn with_tasks() -> (Self, Vec<String>) {
        let store = Engine::Memory.open().await;
        let mut paths = tasks(&store).await;
        let browser = console(&store, Access::loopback());
        let page = browser.until("/", |page| page.contains("Counts and lists as of")).await;
        let (_, navigation) = page.split_once("<nav aria-label=\"Console\">").unwrap();
        let links = navigation.split("</nav>").next().unwrap().split("href=\"").skip(1);
        paths.extend(links.map(|link| link.split('"').next().unwrap().to_owned()));
        assert!(
            ["/", "/tasks", "/owners"].iter().all(|path| paths.iter().any(|found| found == path)),
            "{paths:?}"
        );
        (Self::serve(store, browser).await, paths)
    }

    async fn serve(store: Store, browser: Browser) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let origin = format!("http://{}", listener.local_addr().unwrap());
        let times = Times::default();
        let router = browser.0.layer(from_fn_with_state(Arc::clone(&times), measure));
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { store, origin, times, server }
    }

    /// Returns the times since the last call.
    pub fn take_times(&self) -> Vec<(String, Duration)> {
        std::mem::take(&mut self.times.lock().unwrap())
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn console(store: &Store, access: Access) -> Browser {
    Browser(Console::new(store.backend(), access).scan_rate(1_000_000).allow_actions(true).router())
}

async fn measure(State(times): State<Times>, request: Request, next: Next) -> Response {
    let path = request.uri().to_string();
    let begun = Instant::now();
    let response = next.run(request).await;
    times.lock().unwrap().push((path, begun.elapsed()));
    response
}

/// Creates tasks, of which some are long and wide. Returns the paths of their pages.
async fn tasks(store: &Store) -> Vec<String> {
    let running = store.running("acme", "digest_folder").await.key;
    announce(store, "0f1b2c3d-aaaa", 5, json!({ "periodMs": 600_000 })).await;
    announce(store, "7e57ab1e-bbbb", 60, json!({})).await;
    let dead = store.dead("acme", "convert").await.key;
    let completed = store.completed("globex", "digest_folder").await.key;
    let asked = asking(store).await;
    let history =
        json!([[store.ago(60), "created"], [0, "started", 1, "0f1b2c3d"], [9, "lease_lost", 1, "4e5f"]]);
    let wide = json!({
        "operation": "w".repeat(200), "statusMessage": "words ".repeat(200), "history": history,
        "progress": { "done": 812, "total": 1204 }, "arguments": { "path": "/".repeat(300), "deep": [[[{ "a": 1 }]]] },
    });
    let wide = store.put(&"o".repeat(256), &"i".repeat(256), wide).await;
    let action = |name: &str, key: &TaskKey| path(key).replacen("/task", &format!("/task/{name}"), 1);
    let mut paths = vec![
        action("cancel", &running),
        action("requeue", &dead),
        action("delete", &completed),
        action("answer", &asked) + "&key=unreadable",
    ];
    paths.extend([running, dead, completed, asked, wide].iter().map(path));
    paths
}

/// Creates a task that waits for the answer to a form.
pub async fn asking(store: &Store) -> TaskKey {
    let question = json!({ "method": "elicitation/create", "params": {
        "message": "3 files cannot be read. What should the digest do?",
        "requestedSchema": { "type": "object", "required": ["choice"], "properties": {
            "choice": { "type": "string", "title": "Unreadable files", "enum": ["skip", "stop"] },
            "note": { "type": "string", "title": "Note" },
        } },
    } });
    let asked = store.running("globex", "digest_folder").await.key;
    store.tasks.request_input(&asked, [("unreadable", question)]).await.unwrap();
    asked
}
