//! serve: the console as a person starts it, and what it refuses.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, ChildStderr, Command, Stdio};

use rstest_reuse::apply;

use crate::support::{Ended, Engine, command, on_every_engine};

/// A console that runs. Dropping it ends it.
pub struct Serving {
    child: Child,
    address: String,
    /// What it printed until it was ready.
    said: String,
    lines: BufReader<ChildStderr>,
}

impl Serving {
    pub fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let (mut said, mut lines) = (String::new(), BufReader::new(child.stderr.take().unwrap()));
        while !said.contains("Ctrl-C ends it") {
            assert_ne!(lines.read_line(&mut said).unwrap(), 0, "{said}");
        }
        let (_, address) = said.split_once("the console is at http://").unwrap();
        let address = address.split('/').next().unwrap().to_owned();
        Self { child, address, said, lines }
    }

    /// Sends a request. Returns the connection with the answer.
    fn request(&self, method: &str, path: &str, headers: &str, body: &str) -> TcpStream {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let (address, length) = (&self.address, body.len());
        let head = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nContent-Length: {length}\r\n");
        write!(stream, "{head}Connection: close\r\n{headers}\r\n{body}").unwrap();
        stream
    }

    /// Requests a page. Returns the answer with its head.
    pub fn get(&self, path: &str, headers: &str) -> String {
        answer(self.request("GET", path, headers, ""))
    }

    /// Sends a form.
    fn post(&self, path: &str, headers: &str, form: &str) -> String {
        let headers = format!("Content-Type: application/x-www-form-urlencoded\r\n{headers}");
        answer(self.request("POST", path, &headers, form))
    }

    /// Returns the next line that the command prints on stderr.
    fn line(&mut self) -> String {
        let mut line = String::new();
        assert_ne!(self.lines.read_line(&mut line).unwrap(), 0, "the command has ended");
        line
    }

    /// Waits until the command has ended.
    async fn end(&mut self) -> std::process::ExitStatus {
        let begun = std::time::Instant::now();
        loop {
            if let Some(ended) = self.child.try_wait().unwrap() {
                return ended;
            }
            assert!(begun.elapsed().as_secs() < 60, "the command does not end");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }

    fn interrupt(&self) {
        let sent = Command::new("kill").args(["-INT", &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }
}

fn answer(mut stream: TcpStream) -> String {
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// Returns what is between two texts.
fn between<'a>(text: &'a str, begin: &str, end: &str) -> &'a str {
    text.split_once(begin).and_then(|(_, rest)| rest.split_once(end)).unwrap_or_else(|| panic!("{text}")).0
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn serve_shows_the_tasks_of_the_store_until_it_is_interrupted(#[case] engine: Engine) {
    let store = engine.open().await;
    let task = store.running("alice", "render").await;
    let mut serving = Serving::start(store.command(&["serve", "--listen", "127.0.0.1:0"]));
    assert!(!serving.said.contains("other machines"), "{}", serving.said);
    let page = serving.get(&format!("/task?owner=alice&id={}", task.key.task), "");
    assert!(page.starts_with("HTTP/1.1 200") && page.contains("render"), "{page}");
    let metrics = serving.get("/metrics", "");
    assert!(metrics.contains("mcp_engine_call_seconds_bucket{call=\"get\""), "{metrics}");
    assert!(metrics.contains("mcp_store_snapshot_age_seconds"), "{metrics}");
    assert!(serving.get("/healthz", "").ends_with("ok\n"));
    serving.interrupt();
    assert!(serving.child.wait().unwrap().success());
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn serve_admits_by_a_token_or_by_the_header_of_a_proxy(#[case] engine: Engine) {
    let store = engine.open().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, "0123456789abcdef\n").unwrap();
    let token = ["serve", "--listen", "127.0.0.1:0", "--token-file", file.to_str().unwrap()];
    let serving = Serving::start(store.command(&token));
    assert!(serving.get("/", "").starts_with("HTTP/1.1 401"));
    assert!(serving.get("/", "Authorization: Bearer 0123456789abcdef\r\n").starts_with("HTTP/1.1 200"));
    let header = ["serve", "--listen", "127.0.0.1:0", "--trusted-header", "X-Forwarded-User"];
    let serving = Serving::start(store.command(&header));
    assert!(serving.said.contains("without the proxy"), "{}", serving.said);
    assert!(serving.get("/", "").starts_with("HTTP/1.1 403"));
    assert!(serving.get("/", "X-Forwarded-User: ada\r\n").starts_with("HTTP/1.1 200"));
}

#[test]
fn serve_refuses_files_that_admit_nobody_or_anybody() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("secret");
    let run = |option: &str| {
        let mut command = command();
        command.args(["serve", option, file.to_str().unwrap()]);
        Ended::of(command, "")
    };
    assert!(run("--token-file").failed(1).contains("cannot be read"));
    std::fs::write(&file, "short\n").unwrap();
    let short = run("--token-file").failed(2);
    assert!(short.contains("fewer than 16 characters") && !short.contains("short"), "{short}");
    let users = run("--users-file").failed(2);
    assert!(users.contains("line 1") && !users.contains("short"), "{users}");
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn serve_changes_tasks_only_with_its_option_and_prints_each_attempt(#[case] engine: Engine) {
    let store = engine.open().await;
    let task = store.running("alice", "render").await;
    let path = format!("/task/cancel?owner=alice&id={}", task.key.task);
    let read_only = Serving::start(store.command(&["serve", "--listen", "127.0.0.1:0"]));
    assert!(read_only.get(&path, "").starts_with("HTTP/1.1 404"));
    assert!(read_only.post(&path, "", "how=now").starts_with("HTTP/1.1 403"));

    let mut serving = Serving::start(store.command(&["serve", "--listen", "127.0.0.1:0", "--allow-actions"]));
    assert!(serving.said.contains("visitors can change tasks"), "{}", serving.said);
    assert!(serving.post(&path, "", "how=now").starts_with("HTTP/1.1 403"));
    let refused = serving.line();
    assert!(
        refused.contains("mcp_task_console::audit") && refused.contains("refused: no valid CSRF token"),
        "{refused}"
    );
    let form = serving.get(&path, "");
    let cookie = format!("Cookie: {}\r\n", between(&form, "set-cookie: ", ";"));
    let token = between(&form, "name=\"csrf\" value=\"", "\"");
    let done = serving.post(&path, &cookie, &format!("csrf={token}&how=now"));
    assert!(done.starts_with("HTTP/1.1 200") && done.contains("The task is cancelled."), "{done}");
    let line = serving.line();
    for field in [
        "who=\"(loopback)\"",
        "action=\"cancel\"",
        "owner=\"alice\"",
        task.key.task.as_str(),
        "outcome=\"cancelled\"",
    ] {
        assert!(line.contains(field), "{field}: {line}");
    }
    assert_eq!(store.tasks.get(&task.key).await.unwrap().task.status, mcp_task_store::TaskStatus::Cancelled);
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn serve_shows_a_tenant_the_tasks_of_its_owner_only(#[case] engine: Engine) {
    let store = engine.open().await;
    let (own, foreign) = (store.running("alice", "render").await, store.running("bob", "print").await);
    let headers = ["--trusted-header", "X-User", "--owner-header", "X-Owner"];
    let serving =
        Serving::start(store.command(&[&["serve", "--listen", "127.0.0.1:0"], &headers[..]].concat()));
    assert!(serving.said.contains("the headers X-User and X-Owner"), "{}", serving.said);
    let alice = "X-User: ann\r\nX-Owner: alice\r\n";
    let page = |owner: &str, task: &str| serving.get(&format!("/task?owner={owner}&id={task}"), alice);
    assert!(page("alice", own.key.task.as_str()).starts_with("HTTP/1.1 200"));
    assert!(page("bob", foreign.key.task.as_str()).starts_with("HTTP/1.1 404"));
    assert!(serving.get("/", "X-User: ann\r\n").starts_with("HTTP/1.1 403"));
    let mut command = command();
    command.args(["serve", "--owner-header", "X-Owner"]);
    assert!(Ended::of(command, "").failed(2).contains("--trusted-header"));
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn serve_ends_at_an_interrupt_also_while_a_page_is_live(#[case] engine: Engine) {
    let store = engine.open().await;
    let task = store.running("alice", "render").await;
    let mut serving = Serving::start(store.command(&["serve", "--listen", "127.0.0.1:0"]));
    let page = format!("/events?page=%2Ftask%3Fowner%3Dalice%26id%3D{}", task.key.task);
    let mut live = BufReader::new(serving.request("GET", &page, "", ""));
    let mut line = String::new();
    while !line.contains("live-lead") {
        line.clear();
        assert_ne!(live.read_line(&mut line).unwrap(), 0);
    }
    serving.interrupt();
    assert!(serving.end().await.success());
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn serve_ends_at_an_interrupt_also_while_clients_do_not_end_their_requests(#[case] engine: Engine) {
    let store = engine.open().await;
    let mut serving = Serving::start(store.command(&["serve", "--listen", "127.0.0.1:0"]));
    let form = "Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 1000";
    for begun in
        ["GET / HTTP/1.1\r\nHo".to_owned(), format!("POST /login HTTP/1.1\r\nHost: a\r\n{form}\r\n\r\nus")]
    {
        let mut client = TcpStream::connect(&serving.address).unwrap();
        client.write_all(begun.as_bytes()).unwrap();
        // The console has accepted the client once it has answered a later one.
        assert!(serving.get("/healthz", "").ends_with("ok\n"));
        serving.interrupt();
        assert!(serving.end().await.success());
        assert!(serving.line().contains("their connections are closed"));
        serving = Serving::start(store.command(&["serve", "--listen", "127.0.0.1:0"]));
    }
    let mut client = TcpStream::connect(&serving.address).unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nHo").unwrap();
    assert!(serving.get("/healthz", "").ends_with("ok\n"));
    serving.interrupt();
    // The command no longer accepts clients once it has seen the first Ctrl-C.
    while TcpStream::connect(&serving.address).is_ok() {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    serving.interrupt();
    assert_eq!(serving.end().await.code(), Some(130), "a second Ctrl-C ends the command at once");
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn serve_closes_the_streams_of_clients_that_went_away(#[case] engine: Engine) {
    let store = engine.open().await;
    let serving = Serving::start(store.command(&["serve", "--listen", "127.0.0.1:0"]));
    let open = || {
        let mut head = String::new();
        let mut stream = BufReader::new(serving.request("GET", "/events?page=%2Fowners", "", ""));
        stream.read_line(&mut head).unwrap();
        (stream, head)
    };
    let streams: Vec<_> = (0..64).map(|_| open()).collect();
    assert!(streams.iter().all(|(_, head)| head.starts_with("HTTP/1.1 200")));
    assert!(open().1.starts_with("HTTP/1.1 503"));
    drop(streams);
    let begun = std::time::Instant::now();
    while !open().1.starts_with("HTTP/1.1 200") {
        assert!(begun.elapsed().as_secs() < 60, "the streams are still open");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}
