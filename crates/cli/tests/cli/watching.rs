//! watch in a pipe.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Stdio};

use rstest_reuse::apply;
use serde_json::{Value, json};

use crate::support::{Engine, Store, name, on_every_engine, owner, resumable};

/// A command whose lines a test reads as they come. Dropping it kills the process.
struct Lines {
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Lines {
    fn of(store: &Store, args: &[&str]) -> Self {
        let mut command = store.command(args);
        let mut child = command.stdout(Stdio::piped()).stdin(Stdio::null()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        Self { child, out }
    }

    fn next(&mut self) -> String {
        let mut line = String::new();
        self.out.read_line(&mut line).unwrap();
        line
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn a_watched_task_has_a_line_for_each_change_until_it_ends(#[case] engine: Engine) {
    let store = engine.open().await;
    let task = store.running("alice", "render").await;
    let mut lines = Lines::of(&store, &["watch", &name(&task.key)]);
    assert!(lines.next().trim_end().ends_with("working"));
    store.tasks.set_status_message(&task.key, "frame 7").await.unwrap();
    assert!(lines.next().contains("working  frame 7"));
    store.tasks.request_cancel(&task.key).await.unwrap();
    assert!(lines.next().contains("working (cancel requested)"));
    store.tasks.complete(&task.key, json!({ "content": [] })).await.unwrap();
    assert!(lines.next().contains("completed"));
    assert_eq!(lines.next(), "", "the command ends");
    assert_eq!(lines.child.wait().unwrap().code(), Some(0));
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn a_watched_task_that_is_deleted_ends_the_command_with_an_error(#[case] engine: Engine) {
    let store = engine.open().await;
    let task = store.running("alice", "render").await;
    let mut lines = Lines::of(&store, &["watch", "--json", &name(&task.key)]);
    let first: Value = serde_json::from_str(&lines.next()).unwrap();
    assert_eq!((&first["taskId"], &first["status"]), (&json!(task.key.task), &json!("working")));
    store.tasks.delete(&task.key).await.unwrap();
    assert_eq!(lines.next(), "");
    assert_eq!(lines.child.wait().unwrap().code(), Some(1));
    store.run(&["watch", &name(&task.key)]).failed(1);
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn all_tasks_that_match_have_a_line_for_each_change_in_a_pipe(#[case] engine: Engine) {
    let store = engine.open().await;
    let (task, _other) = (store.running("alice", "render").await, store.running("alice", "print").await);
    store.completed("alice", "render").await;
    let mut lines = Lines::of(&store, &["watch", "--tool", "render", "--interval", "20ms"]);
    let first = lines.next();
    assert!(first.contains(&name(&task.key)) && first.trim_end().ends_with("working"), "{first}");
    store.tasks.set_status_message(&task.key, "frame 7").await.unwrap();
    assert!(lines.next().trim_end().ends_with("working  frame 7"));
    let new = store.running("bob", "render").await;
    assert!(lines.next().contains(&name(&new.key)));
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn a_renewal_of_a_lease_has_no_line(#[case] engine: Engine) {
    let store = engine.open().await;
    let (task, attempt) = store.tasks.start(&owner("alice"), resumable("render")).await.unwrap();
    let mut all = Lines::of(&store, &["watch", "--interval", "20ms"]);
    let mut one = Lines::of(&store, &["watch", &name(&task.key)]);
    for lines in [&mut all, &mut one] {
        assert!(lines.next().trim_end().ends_with("working"));
    }
    attempt.renew().await.unwrap();
    // A task that begins after the renewal is in a later scan.
    let new = store.running("bob", "render").await;
    assert!(all.next().contains(&name(&new.key)));
    attempt.renew().await.unwrap();
    attempt.complete(json!({ "content": [] })).await.unwrap();
    for lines in [&mut all, &mut one] {
        let line = lines.next();
        assert!(line.contains("completed"), "{line}");
    }
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_closes_the_pipe_ends_the_command(#[case] engine: Engine) {
    let store = engine.open().await;
    let task = store.running("alice", "render").await;
    let mut lines = Lines::of(&store, &["watch", "--interval", "20ms"]);
    lines.next();
    let Lines { child, out } = &mut lines;
    // The test keeps no end of the pipe open.
    drop(std::mem::replace(out, BufReader::new(closed())));
    let ended = async {
        loop {
            store.tasks.set_status_message(&task.key, "frame").await.unwrap();
            if let Some(status) = child.try_wait().unwrap() {
                return status;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    let ended =
        tokio::time::timeout(std::time::Duration::from_secs(60), ended).await.expect("the command ends");
    assert_eq!(ended.code(), Some(0));
}

/// Returns the output of a process that has ended.
fn closed() -> ChildStdout {
    let mut ended = std::process::Command::new("true").stdout(Stdio::piped()).spawn().unwrap();
    ended.wait().unwrap();
    ended.stdout.unwrap()
}
