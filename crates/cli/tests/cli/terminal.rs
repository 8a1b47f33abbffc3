//! The command in a terminal: tables, colors, questions, progress, Ctrl-C.

use rexpect::process::{Signal, WaitStatus};
use rstest_reuse::apply;
use serde_json::json;

use crate::answering::asking;
use crate::support::{Engine, Running, Store, name, on_every_engine};

const RED: &str = "\u{1b}[31m";
const BOLD: &str = "\u{1b}[1m";
const ENTER: &str = "\r";
const DOWN: &str = "\u{1b}[B";

fn terminal(store: &Store, args: &[&str]) -> Running {
    Running::new(store.command(args))
}

/// Stores this many tasks that have ended.
async fn ended(store: &Store, count: usize) {
    for number in 0..count {
        store.put("alice", &format!("t{number}"), json!({ "status": "completed" })).await;
    }
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn a_table_has_colors_on_a_terminal_but_not_with_no_color(#[case] engine: Engine) {
    let store = engine.open().await;
    store.dead("alice", "print").await;
    for args in [&["list"] as &[&str], &["stats"]] {
        let (shown, code) = terminal(&store, args).end();
        assert!(shown.contains(BOLD) && code == 0, "{shown:?}");
    }
    let (shown, _) = terminal(&store, &["list"]).end();
    assert!(shown.contains(RED) && shown.contains("failed (dead)"), "{shown:?}");
    let mut command = store.command(&["list"]);
    command.env("NO_COLOR", "1");
    let (plain, _) = Running::new(command).end();
    assert!(!plain.contains(RED) && !plain.contains(BOLD) && plain.contains("failed (dead)"), "{plain:?}");
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn a_long_message_is_wrapped_on_the_page_of_a_task(#[case] engine: Engine) {
    let store = engine.open().await;
    let message = "abcdefghij".repeat(20);
    let key = store.put("alice", "t1", json!({ "statusMessage": message })).await;
    let (shown, _) = terminal(&store, &["show", &name(&key)]).end();
    let lines: Vec<&str> =
        shown.lines().map(str::trim).skip_while(|line| !line.starts_with("message:")).collect();
    let joined = lines.concat().replace("message:", "").replace(' ', "");
    assert!(joined.starts_with(&message), "{shown}");
    assert!(shown.lines().all(|line| line.trim_end().chars().count() <= 80), "{shown}");
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn many_tasks_are_changed_after_a_yes(#[case] engine: Engine) {
    let store = engine.open().await;
    ended(&store, 3).await;
    let left = |store: &Store| store.run(&["list", "--json"]).json().len();
    for no in ["n", ENTER] {
        let mut asked = terminal(&store, &["purge", "--all-ended"]);
        asked.expect("Delete 3 tasks?");
        asked.send(no);
        let (rest, code) = asked.end();
        assert!(rest.contains("nothing was changed") && code == 0, "{rest:?}");
        assert_eq!(left(&store), 3);
    }
    let mut asked = terminal(&store, &["purge", "--all-ended"]);
    asked.expect("Delete 3 tasks?");
    asked.send("y");
    let (rest, code) = asked.end();
    assert!(rest.contains("deleted 3 tasks") && code == 0, "{rest:?}");
    assert_eq!(left(&store), 0);
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_at_the_question_changes_nothing(#[case] engine: Engine) {
    let store = engine.open().await;
    ended(&store, 3).await;
    let mut asked = terminal(&store, &["purge", "--all-ended"]);
    asked.expect("Delete 3 tasks?");
    asked.press_ctrl_c();
    let (_, status) = asked.end_by_any();
    let is_expected = matches!(status, WaitStatus::Signaled(_, Signal::SIGINT, _) | WaitStatus::Exited(_, 1));
    assert!(is_expected, "{status:?}");
    assert_eq!(store.run(&["list", "--json"]).json().len(), 3);
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_stops_between_two_tasks_and_the_same_command_continues(#[case] engine: Engine) {
    let store = engine.open().await;
    ended(&store, 600).await;
    // The second page waits for the rate.
    let args = ["purge", "--all-ended", "--yes", "--rate", "60"];
    let mut running = terminal(&store, &args);
    running.expect("256/600 tasks");
    running.press_ctrl_c();
    let (rest, code) = running.end();
    assert!(rest.contains("interrupted: deleted 256 of 600 tasks") && code == 1, "{rest:?}");
    assert!(
        rest.contains("to continue, run the command again") && rest.contains("purge --all-ended --yes"),
        "{rest:?}"
    );
    assert_eq!(store.run(&["list", "--json", "--limit", "1000"]).json().len(), 344);
    let (rest, code) = terminal(&store, &["purge", "--all-ended", "--yes"]).end();
    assert!(rest.contains("deleted 344 tasks") && code == 0, "{rest:?}");
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn a_person_answers_the_questions_of_a_task(#[case] engine: Engine) {
    let store = engine.open().await;
    let task = asking(&store).await;
    let mut asked = terminal(&store, &["answer", &name(&task.key)]);
    asked.expect("The answer as JSON");
    asked.send(&format!("{{{ENTER}"));
    asked.expect("enter JSON");
    asked.send(&format!("\u{7f}{{\"roots\": []}}{ENTER}"));
    asked.expect("Which tray?");
    asked.expect("Your answer");
    asked.send(ENTER);
    asked.expect("Copies (optional)");
    asked.send(&format!("many{ENTER}"));
    asked.expect("enter a whole number");
    asked.send(&format!("{}2{ENTER}", "\u{7f}".repeat(4)));
    asked.expect("tray");
    asked.expect("lower");
    asked.send(&format!("{DOWN}{ENTER}"));
    asked.expect("Print it first");
    asked.expect("urgent (optional)");
    asked.send("y");
    let (rest, code) = asked.end();
    assert!(rest.contains("answered 2 questions; the task is working") && code == 0, "{rest:?}");
    let responses = &store.record(&task.key).await.unwrap()["inputResponses"];
    let content = json!({ "copies": 2, "tray": "lower", "urgent": true });
    let tray = json!({ "action": "accept", "content": content });
    assert_eq!(*responses, json!({ "roots": { "roots": [] }, "tray": tray }));
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn a_question_can_be_declined_or_left_open(#[case] engine: Engine) {
    let store = engine.open().await;
    let task = store.running("alice", "render").await;
    let question = json!({ "method": "elicitation/create", "params": { "message": "Publish?" } });
    let questions = [("a", question.clone()), ("b", question)];
    store.tasks.request_input(&task.key, questions).await.unwrap();
    let mut asked = terminal(&store, &["answer", &name(&task.key)]);
    asked.expect("leave open");
    asked.send(&format!("{DOWN}{ENTER}"));
    asked.expect("b: elicitation/create");
    asked.expect("leave open");
    asked.send(&format!("{}{ENTER}", DOWN.repeat(3)));
    let (rest, _) = asked.end();
    assert!(rest.contains("answered 1 question, 1 still open"), "{rest:?}");
    let record = store.record(&task.key).await.unwrap();
    assert_eq!(record["inputResponses"], json!({ "a": { "action": "decline" } }));
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn the_live_table_is_drawn_again_in_place(#[case] engine: Engine) {
    let store = engine.open().await;
    let task = store.running("alice", "render").await;
    let mut live = terminal(&store, &["watch", "--interval", "50ms"]);
    live.expect("1 working");
    live.expect(&name(&task.key));
    store.tasks.set_status_message(&task.key, "frame 7").await.unwrap();
    live.expect("frame 7");
    store.tasks.complete(&task.key, json!({ "content": [] })).await.unwrap();
    let before = live.expect("1 completed");
    assert!(before.contains("\u{1b}[2K"), "the lines are cleared: {before:?}");
    live.press_ctrl_c();
    let (_, status) = live.end_by_any();
    assert!(matches!(status, WaitStatus::Signaled(_, Signal::SIGINT, _)), "{status:?}");
}
