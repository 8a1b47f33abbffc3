//! serve: the console as a person starts it, and what it refuses.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

use rstest_reuse::apply;

use crate::support::{Ended, Engine, command, on_every_engine};

/// A console that runs. Dropping it ends it.
pub struct Serving {
    child: Child,
    address: String,
    /// What it printed until it was ready.
    said: String,
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
        Self { child, address, said }
    }

    /// Requests a page. Returns the answer with its head.
    pub fn get(&self, path: &str, header: &str) -> String {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let address = &self.address;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{header}\r\n")
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }
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
    let interrupt = Command::new("kill").args(["-INT", &serving.child.id().to_string()]).status().unwrap();
    assert!(interrupt.success());
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
