//! The streams of live pages: what they send, to whom, and when they end.

use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode, header};
use futures_util::StreamExt;
use http_body_util::BodyExt;
use mcp_task_console::{Access, Console};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use rstest_reuse::apply;
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::hostile::{HOSTILE, assert_inert, hostile};
use crate::support::engine::{How, Settable};
use crate::support::{Browser, Engine, Store, on_every_engine, owner, path, resumable};

/// A change is on the screen within a second on an idle machine. A test may run on a busy one.
const LIMIT: Duration = Duration::from_secs(20);
const TOKEN: &str = "0123456789abcdef-token";

#[derive(Debug)]
struct Event {
    name: String,
    data: String,
}

impl Event {
    /// Returns the id and the HTML of a part of the page.
    fn part(&self) -> Option<(String, String)> {
        let data: Value = serde_json::from_str(&self.data).ok().filter(|_| self.name == "fragment")?;
        Some((data["id"].as_str().unwrap().to_owned(), data["html"].as_str().unwrap().to_owned()))
    }
}

/// An open stream. Dropping it is what a browser does that leaves the page.
struct Stream {
    body: futures_util::stream::BoxStream<'static, String>,
    buffer: String,
}

fn address(page: &str) -> String {
    format!("/events?page={}", utf8_percent_encode(page, NON_ALPHANUMERIC))
}

impl Stream {
    /// Opens the stream of a page; returns the status if there is none.
    async fn open(console: &Router, page: &str, headers: &[(&str, &str)]) -> Result<Self, StatusCode> {
        Self::at(console, &address(page), headers).await
    }

    async fn at(console: &Router, address: &str, headers: &[(&str, &str)]) -> Result<Self, StatusCode> {
        let mut request = Request::get(address);
        if !headers.iter().any(|(name, _)| *name == "host") {
            request = request.header(header::HOST, "127.0.0.1:8181");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = console.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        if answer.status() != StatusCode::OK {
            let status = answer.status();
            let body = answer.into_body().collect().await.unwrap().to_bytes();
            assert!(!String::from_utf8_lossy(&body).contains("s3cret"));
            return Err(status);
        }
        assert_eq!(answer.headers()[header::CONTENT_TYPE], "text/event-stream");
        assert_eq!(answer.headers()[header::CACHE_CONTROL], "no-store");
        let frames = answer.into_body().into_data_stream();
        let body = frames.map(|frame| String::from_utf8(frame.unwrap().to_vec()).unwrap()).boxed();
        Ok(Self { body, buffer: String::new() })
    }

    /// Returns the next event; `None` once the stream has ended.
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some((event, rest)) = self.buffer.split_once("\n\n") {
                let field = |name: &str| {
                    event
                        .lines()
                        .find_map(|line| line.strip_prefix(name))
                        .map(|value| value.trim().to_owned())
                };
                let event =
                    field("event:").map(|name| Event { name, data: field("data:").unwrap_or_default() });
                self.buffer = rest.to_owned();
                match event {
                    Some(event) => return Some(event),
                    None => continue,
                }
            }
            let more = self.body.next().await?;
            self.buffer.push_str(&more);
        }
    }

    /// Reads until a part is as expected. Returns the parts that came until then.
    async fn until(&mut self, id: &str, text: &str) -> Vec<(String, String)> {
        let mut parts = Vec::new();
        let read = async {
            while let Some(event) = self.next().await {
                parts.extend(event.part());
                if parts.last().is_some_and(|(of, html)| of == id && html.contains(text)) {
                    return;
                }
            }
            panic!("the stream ended");
        };
        let in_time = tokio::time::timeout(LIMIT, read).await.is_ok();
        assert!(in_time, "{id} {text}: {parts:?}");
        parts
    }

    /// Reads to the end. Returns the last event.
    async fn end(mut self) -> Event {
        let mut last = Event { name: String::new(), data: String::new() };
        let read = async {
            while let Some(event) = self.next().await {
                last = event;
            }
        };
        tokio::time::timeout(LIMIT, read).await.expect("the stream ends");
        last
    }
}

fn console(store: &Store, access: Access) -> Router {
    Console::new(store.backend(), access).scan_rate(1_000_000).router()
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_the_task_on_the_screen_arrives_within_a_second(#[case] engine: Engine) {
    let store = engine.open().await;
    let new = resumable("render").arguments(json!({ "never": "changes" }));
    let (task, attempt) = store.tasks.start(&owner("alice"), new).await.unwrap();
    let console = console(&store, Access::loopback());
    let mut stream = Stream::open(&console, &path(&task.key), &[]).await.unwrap();
    let first = stream.until("live-record", "Raw record").await;
    assert!(first.iter().any(|(id, html)| id == "live-arguments" && html.contains("changes")), "{first:?}");
    for frame in 1..=3 {
        let begun = Instant::now();
        attempt.set_status_message(format!("frame {frame}")).await.unwrap();
        let parts = stream.until("live-lead", &format!("frame {frame}")).await;
        println!("{:?}", begun.elapsed());
        assert!(parts.iter().all(|(id, _)| id != "live-arguments"), "only what has changed: {parts:?}");
    }
    attempt.complete(json!({ "content": [] })).await.unwrap();
    stream.until("live-timeline", "Completed").await;
    store.tasks.delete(&task.key).await.unwrap();
    let end = stream.end().await;
    assert!(end.name == "end" && end.data.contains("deleted, or has expired"), "{end:?}");
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn lists_and_counts_follow_the_snapshot(#[case] engine: Engine) {
    let store = engine.open().await;
    store.running("alice", "render").await;
    let console = console(&store, Access::loopback());
    let mut overview = Stream::open(&console, "/", &[]).await.unwrap();
    let mut tasks = Stream::open(&console, "/tasks?only=open", &[]).await.unwrap();
    let mut owners = Stream::open(&console, "/owners", &[]).await.unwrap();
    overview.until("live-statuses", "<strong>1</strong> <span>Working").await;
    tasks.until("live-tasks", "render").await;
    let new = store.running("bob", "print").await;
    tasks.until("live-tasks", new.key.task.as_str()).await;
    owners.until("live-owners", "bob").await;
    overview.until("live-statuses", "<strong>2</strong> <span>Working").await;
    store.tasks.cancel(&new.key).await.unwrap();
    overview.until("live-statuses", "<strong>1</strong> <span>Cancelled").await;
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn each_page_marks_its_parts_and_loads_the_script_of_the_console_only(#[case] engine: Engine) {
    let store = engine.open().await;
    let task = store.running("alice", "render").await;
    let browser = Browser(console(&store, Access::loopback()));
    for page in ["/", "/tasks", "/owners", "/workers", &path(&task.key)] {
        let answer = browser.get(page).await;
        let policy = answer.header("content-security-policy").to_owned();
        assert!(policy.contains("; script-src 'self'; connect-src 'self';"), "{policy}");
        let shown = answer.page();
        let mut ids: Vec<_> =
            shown.split("data-live=\"").skip(1).map(|id| id.split('"').next().unwrap()).collect();
        let all = ids.len();
        ids.sort_unstable();
        ids.dedup();
        assert!(all > 0 && ids.len() == all, "{page}: {ids:?}");
        assert_eq!(shown.matches("<script").count(), 1, "{page}");
        assert!(shown.contains("<script src=\"/live.js\" defer></script>"), "{page}");
    }
    let script = browser.get("/live.js").await;
    assert_eq!(
        (script.status, script.header("content-type")),
        (StatusCode::OK, "text/javascript; charset=utf-8")
    );
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_for_admitted_visitors_of_the_console_and_for_pages_only(#[case] engine: Engine) {
    let store = engine.open().await;
    store.running("alice", "s3cret-tool").await;
    let guarded = console(&store, Access::token(TOKEN).unwrap());
    let refused =
        |status: StatusCode, opened: Result<Stream, StatusCode>| assert_eq!(opened.err(), Some(status));
    refused(StatusCode::UNAUTHORIZED, Stream::open(&guarded, "/tasks", &[]).await);
    let forged = [("cookie", "mcp-tasks-console=forged")];
    refused(StatusCode::UNAUTHORIZED, Stream::open(&guarded, "/tasks", &forged).await);
    let bearer = [("authorization", format!("Bearer {TOKEN}"))];
    let bearer: Vec<(&str, &str)> = bearer.iter().map(|(name, value)| (*name, value.as_str())).collect();
    Stream::open(&guarded, "/tasks", &bearer).await.unwrap().until("live-tasks", "s3cret-tool").await;

    let open = console(&store, Access::loopback());
    for sender in [("sec-fetch-site", "cross-site"), ("origin", "https://example.com")] {
        refused(StatusCode::FORBIDDEN, Stream::open(&open, "/tasks", &[sender]).await);
    }
    refused(StatusCode::FORBIDDEN, Stream::open(&open, "/tasks", &[("host", "rebound.example.com")]).await);
    for page in [
        "/events",
        "/events?page=%2F",
        "/logout",
        "/login",
        "/task/cancel",
        "/metrics",
        "/healthz",
        "/nothing",
        "",
        "http://example.com/",
    ] {
        refused(StatusCode::NOT_FOUND, Stream::open(&open, page, &[]).await);
    }
    refused(StatusCode::NOT_FOUND, Stream::open(&open, "/task?owner=alice&id=absent", &[]).await);
    refused(StatusCode::BAD_REQUEST, Stream::at(&open, "/events", &[]).await);
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_when_its_visitor_signs_out(#[case] engine: Engine) {
    let store = engine.open().await;
    let task = store.running("alice", "render").await;
    let console = console(&store, Access::token(TOKEN).unwrap());
    let browser = Browser(console.clone());
    let cookie = browser.post("/login", &[], &format!("secret={TOKEN}")).await.cookie();
    let session = [("cookie", cookie.as_str())];
    let overview = Stream::open(&console, "/", &session).await.unwrap();
    let task = Stream::open(&console, &path(&task.key), &session).await.unwrap();
    browser.post("/logout", &session, "").await;
    for stream in [overview, task] {
        let end = stream.end().await;
        assert!(end.name == "end" && end.data.starts_with("Signed out"), "{end:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_ends_when_its_session_expires() {
    let store = Engine::Memory.open().await;
    let console = console(&store, Access::token(TOKEN).unwrap());
    let cookie = Browser(console.clone()).post("/login", &[], &format!("secret={TOKEN}")).await.cookie();
    let mut stream = Stream::open(&console, "/", &[("cookie", cookie.as_str())]).await.unwrap();
    stream.next().await.unwrap();
    tokio::time::advance(Duration::from_secs(12 * 3_600)).await;
    let end = stream.end().await;
    assert!(end.name == "end" && end.data.starts_with("Signed out"), "{end:?}");
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn the_number_of_streams_is_bounded_and_a_client_that_leaves_makes_room(#[case] engine: Engine) {
    let store = engine.open().await;
    let open = console(&store, Access::loopback());
    let mut streams = Vec::new();
    for _ in 0..64 {
        streams.push(Stream::open(&open, "/owners", &[]).await.unwrap());
    }
    assert_eq!(Stream::open(&open, "/owners", &[]).await.err(), Some(StatusCode::SERVICE_UNAVAILABLE));
    streams.pop();
    streams.push(Stream::open(&open, "/owners", &[]).await.unwrap());
    assert_eq!(Stream::open(&open, "/owners", &[]).await.err(), Some(StatusCode::SERVICE_UNAVAILABLE));

    let proxied = console(&store, Access::trusted_header("X-User").unwrap());
    let mut of_ada = Vec::new();
    for _ in 0..16 {
        of_ada.push(Stream::open(&proxied, "/owners", &[("x-user", "ada")]).await.unwrap());
    }
    let more = Stream::open(&proxied, "/owners", &[("x-user", "ada")]).await;
    assert_eq!(more.err(), Some(StatusCode::SERVICE_UNAVAILABLE));
    Stream::open(&proxied, "/owners", &[("x-user", "eve")]).await.unwrap();
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_receives_nothing_of_other_owners(#[case] engine: Engine) {
    let store = engine.open().await;
    let (own, foreign) = (store.running("alice", "render").await, store.running("bob", "s3cret").await);
    let console = console(&store, Access::tenants("X-User", "X-Owner").unwrap());
    let ann = [("x-user", "ann"), ("x-owner", "alice")];
    assert_eq!(Stream::open(&console, "/tasks", &ann[..1]).await.err(), Some(StatusCode::FORBIDDEN));
    assert_eq!(Stream::open(&console, &path(&foreign.key), &ann).await.err(), Some(StatusCode::NOT_FOUND));
    assert_eq!(Stream::open(&console, "/workers", &ann).await.err(), Some(StatusCode::NOT_FOUND));
    let mut parts = Vec::new();
    for page in ["/", "/tasks", "/owners", "/tasks?owner=bob"] {
        let mut stream = Stream::open(&console, page, &ann).await.unwrap();
        // The first pass is over, and the snapshot has all tasks.
        parts.extend(stream.until("live-as-of", "Counts and lists as of").await);
    }
    let mut tasks = Stream::open(&console, "/tasks", &ann).await.unwrap();
    let (shown, hidden) = (store.running("alice", "print").await, store.running("bob", "s3cret").await);
    parts.extend(tasks.until("live-tasks", shown.key.task.as_str()).await);
    assert!(parts.iter().any(|(_, html)| html.contains(own.key.task.as_str())));
    for (id, html) in parts {
        let foreign = ["s3cret", "bob", foreign.key.task.as_str(), hidden.key.task.as_str()];
        assert!(foreign.iter().all(|text| !html.contains(text)), "{id}: {html}");
    }
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn hostile_content_is_inert_in_every_part(#[case] engine: Engine) {
    let store = engine.open().await;
    let task = hostile(&store).await;
    let console = console(&store, Access::loopback());
    for (page, last) in [
        ("/", "live-tools"),
        ("/tasks", "live-tasks"),
        ("/owners", "live-owners"),
        (&path(&task.key), "live-record"),
    ] {
        let mut stream = Stream::open(&console, page, &[]).await.unwrap();
        for (id, html) in stream.until(last, "\\u{202e}").await {
            assert_inert(&html, &id);
        }
    }
    let mut stream = Stream::open(&console, &path(&task.key), &[]).await.unwrap();
    store
        .tasks
        .set_status_message(&task.key, format!("again {HOSTILE}\n\nevent: end\ndata: forged"))
        .await
        .unwrap();
    for (id, html) in stream.until("live-lead", "again").await {
        assert_inert(&html, &id);
    }
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn the_streams_of_a_mounted_console_end_at_its_signal(#[case] engine: Engine) {
    let store = engine.open().await;
    let task = store.running("alice", "render").await;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let signal = async move { drop(stopped.await) };
    let router = Console::new(store.backend(), Access::loopback()).live_until(signal).router();
    let outer = Router::new().nest("/ops/console", router);
    let address = format!("/ops/console{}", address(&path(&task.key)));
    let mut stream = Stream::at(&outer, &address, &[]).await.unwrap();
    let link = "href=\"/ops/console/tasks?owner=alice\"";
    stream.until("live-facts", link).await;
    stop.send(()).unwrap();
    stream.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_page_is_live_soon_after_the_engine_has_hung_and_a_stream_ends_meanwhile() {
    let store = Engine::Memory.open().await;
    let task = store.running("alice", "render").await;
    let engine = Settable::new(store.backend());
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let signal = async move { drop(stopped.await) };
    let console = Console::new(engine.agenda(), Access::loopback()).live_until(signal).router();
    let mut stream = Stream::open(&console, &path(&task.key), &[]).await.unwrap();
    stream.until("live-lead", "working").await;
    engine.set(How::Hangs);
    let unavailable = async { while stream.next().await.unwrap().name != "unavailable" {} };
    tokio::time::timeout(Duration::from_secs(60), unavailable).await.unwrap();
    engine.set(How::Answers);
    store.tasks.set_status_message(&task.key, "frame 2").await.unwrap();
    stream.until("live-lead", "frame 2").await;

    engine.set(How::Hangs);
    // The next version, which is due after 5 s, waits for the engine.
    while tokio::time::timeout(Duration::from_secs(7), stream.next()).await.is_ok() {}
    let begun = tokio::time::Instant::now();
    stop.send(()).unwrap();
    stream.end().await;
    assert!(begun.elapsed() < Duration::from_millis(100), "{:?}", begun.elapsed());
}
