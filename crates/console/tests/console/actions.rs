//! The actions: what they do, and who may do it. The module `answers` has what is special to answers.

use axum::http::StatusCode;
use futures_util::FutureExt;
use mcp_task_console::{Access, Console};
use mcp_task_store::{TaskKey, TaskStatus};
use rstest_reuse::apply;
use serde_json::json;

use crate::answers::asking;
use crate::support::engine::{How, Settable};
use crate::support::{Answer, Browser, Engine, Store, audit, on_every_engine, path};

/// A visitor of a console with actions.
pub struct Visitor {
    pub browser: Browser,
    /// What identifies the visitor, besides cookies.
    pub headers: Vec<(&'static str, String)>,
}

/// A form that the console has shown.
pub struct Shown {
    pub action: String,
    pub token: String,
    pub cookie: String,
    pub page: String,
}

impl Visitor {
    pub fn new(store: &Store, access: Access) -> Self {
        Self::of(Console::new(store.backend(), access).scan_rate(1_000_000))
    }

    fn of(console: Console) -> Self {
        audit::record();
        Self { browser: Browser(console.allow_actions(true).router()), headers: Vec::new() }
    }

    pub fn with(&self, headers: &[(&'static str, &str)]) -> Self {
        let headers = headers.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        Self { browser: self.browser.clone(), headers }
    }

    fn all_headers<'a>(&'a self, more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
        let own = self.headers.iter().map(|(name, value)| (*name, value.as_str()));
        own.chain(more.iter().copied()).collect()
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.browser.get_with(path, &self.all_headers(&[])).await
    }

    /// Opens the form of an action.
    pub async fn open(&self, action: &str, key: &TaskKey) -> Shown {
        self.open_path(&path(key).replace("/task?", &format!("/task/{action}?"))).await
    }

    pub async fn open_path(&self, path: &str) -> Shown {
        let answer = self.get(path).await;
        let set = answer.header("set-cookie").to_owned();
        assert!(set.is_empty() || set.contains("; HttpOnly; SameSite=Strict"), "{set}");
        let cookie = set.split(';').next().unwrap().to_owned();
        let page = answer.page();
        let token =
            page.split("name=\"csrf\" value=\"").nth(1).unwrap().split('"').next().unwrap().to_owned();
        Shown { action: path.to_owned(), token, cookie, page }
    }

    pub async fn send(&self, form: &Shown, fields: &str) -> Answer {
        self.send_with(form, fields, &[("sec-fetch-site", "same-origin")]).await
    }

    pub async fn send_with(&self, form: &Shown, fields: &str, headers: &[(&str, &str)]) -> Answer {
        let body = format!("csrf={}&{fields}", form.token);
        let mut headers = self.all_headers(headers);
        if !form.cookie.is_empty() {
            headers.push(("cookie", &form.cookie));
        }
        self.browser.post(&form.action, &headers, &body).await
    }
}

pub async fn status(store: &Store, key: &TaskKey) -> TaskStatus {
    store.tasks.get(key).await.unwrap().task.status
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn each_action_asks_and_then_does_what_it_says(#[case] engine: Engine) {
    let store = engine.open().await;
    let visitor = Visitor::new(&store, Access::loopback());
    let (now, later) = (store.running("alice", "render").await, store.running("alice", "render").await);
    let form = visitor.open("cancel", &now.key).await;
    assert_eq!(status(&store, &now.key).await, TaskStatus::Working, "the page only asks");
    let done = visitor.send(&form, "how=now").await.page();
    assert!(done.contains("The task is cancelled."), "{done}");
    assert_eq!(status(&store, &now.key).await, TaskStatus::Cancelled);

    let form = visitor.open("cancel", &later.key).await;
    let done = visitor.send(&form, "how=request").await.page();
    assert!(done.contains("The cancel is requested."), "{done}");
    assert!(store.tasks.get(&later.key).await.unwrap().task.cancel_requested);

    let dead = store.dead("alice", "print").await;
    let done = visitor.send(&visitor.open("requeue", &dead.key).await, "").await.page();
    let new = done.split("id=\"requeued\" href=\"").nth(1).unwrap().split('"').next().unwrap();
    let shown = visitor.get(&new.replace("&amp;", "&")).await.page();
    assert!(shown.contains("Requeued from"), "{shown}");

    let done = visitor.send(&visitor.open("delete", &now.key).await, "").await.page();
    assert!(done.contains("The task is deleted."), "{done}");
    assert!(store.tasks.get(&now.key).await.is_err());

    let lines = audit::lines(&[&now.key, &later.key, &dead.key]);
    let outcomes = [
        "outcome=\"cancelled\"",
        "outcome=\"cancel_requested\"",
        "outcome=\"requeued as ",
        "outcome=\"deleted\"",
    ];
    assert_eq!(lines.len(), outcomes.len(), "{lines:?}");
    for (line, outcome) in lines.iter().zip(outcomes) {
        assert!(line.contains(outcome) && line.contains("who=\"(loopback)\""), "{line}");
    }
    assert!(lines[0].contains("action=\"cancel\"") && lines[0].contains(now.key.task.as_str()), "{lines:?}");
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn only_actions_that_suit_the_task_are_offered(#[case] engine: Engine) {
    let store = engine.open().await;
    let visitor = Visitor::new(&store, Access::loopback());
    let (running, dead) = (store.running("alice", "render").await, store.dead("alice", "print").await);
    let no_operation = store.put("alice", "no-operation", json!({ "status": "completed" })).await;
    for (key, offered) in [(&running.key, "cancel"), (&dead.key, "requeue delete"), (&no_operation, "delete")]
    {
        let page = visitor.get(&path(key)).await.page();
        for action in ["cancel", "requeue", "delete"] {
            assert_eq!(
                page.contains(&format!("/task/{action}?")),
                offered.contains(action),
                "{action} {key}"
            );
        }
    }
    let read_only = store.browser(Access::loopback());
    assert!(!read_only.page(&path(&running.key)).await.contains("/task/"));
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn without_permission_every_action_is_refused_and_audited(#[case] engine: Engine) {
    let store = engine.open().await;
    let task = asking(&store, "alice").await;
    let ended = store.completed("alice", "print").await;
    let browser = store.browser(Access::loopback());
    audit::record();
    for (action, key) in
        [("cancel", &task.key), ("requeue", &ended.key), ("delete", &ended.key), ("answer", &task.key)]
    {
        let path = path(key).replace("/task?", &format!("/task/{action}?"));
        assert_eq!(browser.get(&path).await.status, StatusCode::NOT_FOUND);
        let refused = browser
            .post(&path, &[("sec-fetch-site", "same-origin")], "how=now&key=q%261&answer=decline")
            .await;
        assert_eq!(refused.status, StatusCode::FORBIDDEN, "{refused:?}");
    }
    assert_eq!(status(&store, &task.key).await, TaskStatus::InputRequired);
    assert_eq!(store.tasks.get(&ended.key).await.unwrap().version, ended.version);
    let lines = audit::lines(&[&task.key, &ended.key]);
    assert!(
        lines.len() == 4 && lines.iter().all(|line| line.contains("refused: actions are not allowed")),
        "{lines:?}"
    );
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn a_form_of_another_visitor_or_without_its_token_is_refused(#[case] engine: Engine) {
    let store = engine.open().await;
    let task = store.running("alice", "render").await;
    let visitor = Visitor::new(&store, Access::loopback());
    let (mine, foreign) = (visitor.open("cancel", &task.key).await, visitor.open("cancel", &task.key).await);
    assert!(mine.cookie != foreign.cookie && mine.token != foreign.token);
    let with = |token: &str, cookie: &str| Shown {
        action: mine.action.clone(),
        token: token.to_owned(),
        cookie: cookie.to_owned(),
        page: String::new(),
    };
    let forged = "0".repeat(64);
    for form in [
        with("", &mine.cookie),
        with(&forged, &mine.cookie),
        with(&mine.token[..63], &mine.cookie),
        with(&foreign.token, &mine.cookie),
        with(&mine.token, ""),
        with(&mine.token, "mcp-tasks-visitor="),
    ] {
        let refused = visitor.send(&form, "how=now").await;
        assert_eq!(refused.status, StatusCode::FORBIDDEN, "{refused:?}");
    }
    // The token of another console, as after a restart.
    let other = Visitor::new(&store, Access::loopback());
    assert_eq!(other.send(&mine, "how=now").await.status, StatusCode::FORBIDDEN);
    assert_eq!(status(&store, &task.key).await, TaskStatus::Working);
    let lines = audit::lines(&[&task.key]);
    assert!(
        lines.len() == 7 && lines.iter().all(|line| line.contains("refused: no valid CSRF token")),
        "{lines:?}"
    );
    visitor.send(&mine, "how=now").await.page();
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_bound_to_its_session_or_user(#[case] engine: Engine) {
    let store = engine.open().await;
    let task = store.running("alice", "render").await;
    let console = Visitor::new(&store, Access::token("0123456789abcdef").unwrap());
    let mut sessions = Vec::new();
    for _ in 0..2 {
        let login = console.browser.post("/login", &[], "secret=0123456789abcdef").await;
        sessions.push(login.cookie());
    }
    let [one, two] = [0, 1].map(|index: usize| console.with(&[("cookie", &sessions[index])]));
    let form = one.open("cancel", &task.key).await;
    assert_eq!(form.cookie, "", "the session has a cookie already");
    assert_eq!(two.send(&form, "how=now").await.status, StatusCode::FORBIDDEN);
    assert_eq!(status(&store, &task.key).await, TaskStatus::Working);
    one.send(&form, "how=now").await.page();

    let task = store.running("alice", "render").await;
    let proxied = Visitor::new(&store, Access::trusted_header("X-User").unwrap());
    let form = proxied.with(&[("x-user", "ada")]).open("cancel", &task.key).await;
    // Even with the cookie.
    assert_eq!(proxied.with(&[("x-user", "eve")]).send(&form, "how=now").await.status, StatusCode::FORBIDDEN);
    proxied.with(&[("x-user", "ada")]).send(&form, "how=now").await.page();
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn a_form_from_another_site_or_a_stranger_is_refused(#[case] engine: Engine) {
    let store = engine.open().await;
    let task = store.running("alice", "render").await;
    let visitor = Visitor::new(&store, Access::loopback());
    let form = visitor.open("cancel", &task.key).await;
    for sender in [
        ("sec-fetch-site", "cross-site"),
        ("sec-fetch-site", "same-site"),
        ("origin", "https://example.com"),
        ("origin", "null"),
    ] {
        let refused = visitor.send_with(&form, "how=now", &[sender]).await;
        assert_eq!(refused.status, StatusCode::FORBIDDEN, "{sender:?}");
    }
    let stranger = Visitor::new(&store, Access::token("0123456789abcdef").unwrap());
    assert_eq!(stranger.send(&form, "how=now").await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(status(&store, &task.key).await, TaskStatus::Working);
    let lines = audit::lines(&[&task.key]);
    assert_eq!(
        lines.iter().filter(|line| line.contains("refused: sent by another site")).count(),
        4,
        "{lines:?}"
    );
    assert!(
        lines[4].contains("who=\"(not admitted)\"") && lines[4].contains("action=\"cancel\""),
        "{lines:?}"
    );
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn an_action_on_a_task_that_has_changed_says_what_happened_instead(#[case] engine: Engine) {
    let store = engine.open().await;
    let task = store.running("alice", "render").await;
    let visitor = Visitor::new(&store, Access::loopback());
    let form = visitor.open("cancel", &task.key).await;
    store.tasks.complete(&task.key, json!({ "content": [] })).await.unwrap();
    let late = visitor.send(&form, "how=now").await;
    assert_eq!(late.status, StatusCode::CONFLICT);
    assert!(late.body.contains("has ended as completed. Nothing was changed."), "{late:?}");
    assert_eq!(status(&store, &task.key).await, TaskStatus::Completed);

    let open = store.running("alice", "render").await;
    let form = Shown { action: path(&open.key).replace("/task?", "/task/delete?"), ..form };
    let refused = visitor.send(&form, "").await;
    assert!(
        refused.status == StatusCode::CONFLICT && refused.body.contains("The task is working."),
        "{refused:?}"
    );
    assert_eq!(status(&store, &open.key).await, TaskStatus::Working);

    let form = visitor.open("delete", &task.key).await;
    store.tasks.delete(&task.key).await.unwrap();
    assert_eq!(visitor.send(&form, "").await.status, StatusCode::NOT_FOUND);
    let lines = audit::lines(&[&task.key, &open.key]);
    assert!(
        lines.len() == 3 && lines[0].contains("nothing done: the task has ended as completed"),
        "{lines:?}"
    );
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn no_name_or_id_can_forge_a_line_of_the_audit_log(#[case] engine: Engine) {
    let store = engine.open().await;
    let id = format!("{}\n WARN \u{1b}[2K\u{202e} outcome=\"deleted\"", uuid::Uuid::new_v4());
    let key = store.put("alice", &id, json!({ "status": "completed" })).await;
    let proxied = Visitor::new(&store, Access::trusted_header("X-User").unwrap());
    let eve = proxied.with(&[("x-user", "eve\" action=\"none")]);
    let refused = eve
        .browser
        .post(&path(&key).replace("/task?", "/task/delete?"), &[("x-user", "eve\" action=\"none")], "")
        .await;
    assert_eq!(refused.status, StatusCode::FORBIDDEN);
    let uuid = TaskKey::new("alice", &id[..36]).unwrap();
    let lines = audit::lines_with(uuid.task.as_str());
    let [line] = lines.as_slice() else { panic!("{lines:?}") };
    assert!(!line.contains(mcp_task_store::Printable::escapes), "{line}");
    assert!(line.contains("who=\"eve\\\" action=\\\"none\" action=\"delete\""), "{line}");
    assert!(
        !line.contains("outcome=\"deleted\"") && line.contains("outcome=\"refused: no valid CSRF token\""),
        "{line}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_is_audited_also_if_the_visitor_leaves_before_the_answer() {
    let store = Engine::Memory.open().await;
    let engine = Settable::new(store.backend());
    let visitor = Visitor::of(Console::new(engine.agenda(), Access::loopback()));
    let (cancelled, answered) = (store.running("alice", "render").await, asking(&store, "alice").await);
    let cancel = visitor.open("cancel", &cancelled.key).await;
    let answer = visitor
        .open_path(&format!("{}&key=q%261", path(&answered.key).replace("/task?", "/task/answer?")))
        .await;
    engine.set(How::Hangs);
    // Each request waits for the engine, and its connection is closed.
    assert!(visitor.send(&cancel, "how=now").now_or_never().is_none());
    assert!(visitor.send(&answer, "answer=decline").now_or_never().is_none());
    engine.set(How::Answers);
    for (key, outcome) in [(&cancelled.key, "outcome=\"cancelled\""), (&answered.key, "outcome=\"answered\"")]
    {
        let begun = std::time::Instant::now();
        while !audit::lines(&[key]).iter().any(|line| line.contains(outcome)) {
            assert!(begun.elapsed().as_secs() < 60, "{outcome}: {:?}", audit::lines(&[key]));
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }
    assert_eq!(status(&store, &cancelled.key).await, TaskStatus::Cancelled);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_and_the_audit_log_say_that_an_attempt_without_an_answer_may_have_been_applied() {
    let store = Engine::Memory.open().await;
    let engine = Settable::new(store.backend());
    let task = store.completed("alice", "render").await;
    let visitor = Visitor::of(Console::new(engine.agenda(), Access::loopback()));
    let form = visitor.open("delete", &task.key).await;
    engine.set(How::LosesAnswers);
    let failed = visitor.send(&form, "").await;
    assert_eq!(failed.status, StatusCode::SERVICE_UNAVAILABLE, "{failed:?}");
    assert!(failed.body.contains("may have been applied"), "{failed:?}");
    let lines = audit::lines(&[&task.key]);
    assert!(lines.len() == 1 && lines[0].contains("failed, and may have been applied: "), "{lines:?}");
}
