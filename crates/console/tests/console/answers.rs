//! The form that answers a question of a task.

use axum::http::StatusCode;
use mcp_task_console::Access;
use mcp_task_store::{StoredTask, TaskKey, TaskStatus};
use rstest_reuse::apply;
use serde_json::{Value, json};

use crate::actions::{Shown, Visitor, status};
use crate::hostile::{HOSTILE, assert_inert};
use crate::support::{Engine, Store, audit, on_every_engine, path};

pub fn question() -> Value {
    json!({ "method": "elicitation/create", "params": {
        "message": "Which tray?",
        "requestedSchema": { "type": "object", "required": ["copies", "tray"], "properties": {
            "copies": { "type": "integer", "title": "Copies", "minimum": 1, "maximum": 9 },
            "note": { "type": "string", "maxLength": 5 },
            "tray": { "type": "string", "enum": ["upper", "lower"], "default": "lower" },
            "urgent": { "type": "boolean", "description": "Print it first" },
        } },
    } })
}

pub async fn asking(store: &Store, owner: &str) -> StoredTask {
    let task = store.running(owner, "render").await;
    store.tasks.request_input(&task.key, [("q&1", question())]).await.unwrap()
}

async fn open_answer(visitor: &Visitor, task: &StoredTask) -> Shown {
    visitor.open_path(&answer_path(task)).await
}

fn answer_path(task: &StoredTask) -> String {
    format!("{}&key=q%261", path(&task.key).replace("/task?", "/task/answer?"))
}

async fn responses(store: &Store, key: &TaskKey) -> Value {
    json!(store.tasks.get(key).await.unwrap().task.input_responses)
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn a_question_is_answered_by_a_form_once(#[case] engine: Engine) {
    let store = engine.open().await;
    let task = asking(&store, "alice").await;
    let visitor = Visitor::new(&store, Access::loopback());
    let shown = visitor.get(&path(&task.key)).await.page();
    assert!(shown.contains(&answer_path(&task).replace('&', "&amp;")), "{shown}");
    let form = open_answer(&visitor, &task).await;
    for part in [
        "Which tray?",
        "id=\"field-0\" type=\"number\" step=\"1\"",
        "id=\"field-1\" type=\"text\"",
        "<option value=\"1\" selected>lower",
        "id=\"field-3\" type=\"checkbox\"",
        "Print it first",
    ] {
        assert!(form.page.contains(part), "{part}: {}", form.page);
    }
    let answered =
        visitor.send(&form, "answer=accept&field-0=2&field-1=&field-2=0&field-3=true").await.page();
    assert!(answered.contains("The answer is stored."), "{answered}");
    let content = json!({ "copies": 2, "tray": "upper", "urgent": true });
    assert_eq!(
        responses(&store, &task.key).await,
        json!({ "q&1": { "action": "accept", "content": content } })
    );
    assert_eq!(status(&store, &task.key).await, TaskStatus::Working);

    let again = visitor.send(&form, "answer=decline").await;
    assert_eq!(again.status, StatusCode::CONFLICT);
    assert!(again.body.contains("has already been answered"), "{again:?}");
    assert_eq!(responses(&store, &task.key).await["q&1"]["action"], "accept");
    let lines = audit::lines(&[&task.key]);
    assert!(lines.len() == 2 && lines[0].contains("outcome=\"answered\""), "{lines:?}");
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_answer_is_shown_with_its_mistakes_and_not_sent(#[case] engine: Engine) {
    let store = engine.open().await;
    let task = asking(&store, "alice").await;
    let visitor = Visitor::new(&store, Access::loopback());
    let form = open_answer(&visitor, &task).await;
    for (fields, mistakes) in [
        ("answer=accept&field-0=many&field-2=0", &["enter a whole number"] as &[&str]),
        (
            "answer=accept&field-0=10&field-1=too+long&field-2=0",
            &["at most 9", "at most 5 characters", "value=\"too long\""],
        ),
        ("answer=accept&field-0=&field-2=7", &["an answer is required", "choose one of the values"]),
        ("answer=json&json=%7B", &["It is not JSON"]),
        ("answer=json&json=%7B%22copies%22%3A1%7D", &["tray: an answer is required"]),
        ("answer=agree", &["no answer to this question"]),
        ("", &["no answer to this question"]),
    ] {
        let wrong = visitor.send(&form, fields).await;
        assert_eq!(wrong.status, StatusCode::UNPROCESSABLE_ENTITY, "{fields}: {wrong:?}");
        assert!(mistakes.iter().all(|mistake| wrong.body.contains(mistake)), "{fields}: {wrong:?}");
    }
    assert_eq!(responses(&store, &task.key).await, json!({}));
    let json = "answer=json&json=%7B%22copies%22%3A1%2C%22tray%22%3A%22upper%22%7D";
    visitor.send(&form, json).await.page();
    let content = json!({ "copies": 1, "tray": "upper" });
    assert_eq!(responses(&store, &task.key).await["q&1"], json!({ "action": "accept", "content": content }));
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn a_question_can_be_declined_and_others_have_their_own_forms(#[case] engine: Engine) {
    let store = engine.open().await;
    let task = store.running("alice", "render").await;
    let sampling = json!({ "method": "sampling/createMessage", "params": { "messages": [] } });
    let page = json!({ "method": "elicitation/create", "params": { "mode": "url", "url": "https://example.com/pay", "message": "Pay" } });
    let questions = [
        ("form", question()),
        ("page", page),
        ("roots", json!({ "method": "roots/list" })),
        ("sampling", sampling),
    ];
    store.tasks.request_input(&task.key, questions).await.unwrap();
    let visitor = Visitor::new(&store, Access::loopback());
    for (key, fields) in [
        ("form", "answer=decline"),
        ("page", "answer=accept"),
        ("roots", "answer=json&json=%7B%22roots%22%3A%5B%5D%7D"),
        ("sampling", "answer=reply&reply=Hello"),
    ] {
        let path = format!("{}&key={key}", path(&task.key).replace("/task?", "/task/answer?"));
        let form = visitor.open_path(&path).await;
        assert!(
            key != "page"
                || form.page.contains("https://example.com/pay") && !form.page.contains("href=\"https")
        );
        visitor.send(&form, fields).await.page();
    }
    let reply = json!({ "role": "assistant", "content": { "type": "text", "text": "Hello" }, "model": "an operator" });
    assert_eq!(
        responses(&store, &task.key).await,
        json!({ "form": { "action": "decline" }, "page": { "action": "accept" }, "roots": { "roots": [] }, "sampling": reply })
    );
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_question_is_inert_in_its_form_and_can_be_answered(#[case] engine: Engine) {
    let store = engine.open().await;
    let task = store.running("alice", "render").await;
    let field = |kind: Value| {
        let mut field =
            json!({ "title": HOSTILE, "description": HOSTILE, "default": HOSTILE, "format": HOSTILE });
        field.as_object_mut().unwrap().extend(kind.as_object().unwrap().clone());
        field
    };
    let properties = json!({
        format!("1{HOSTILE}"): field(json!({ "type": "string" })),
        format!("2{HOSTILE}"): field(json!({ "enum": [HOSTILE] })),
        format!("3{HOSTILE}"): field(json!({ "type": "array", "items": { "enum": [HOSTILE] } })),
        format!("4{HOSTILE}"): field(json!({ "type": "boolean" })),
    });
    let question = json!({ "method": "elicitation/create", "params": {
        "message": HOSTILE, "requestedSchema": { "properties": properties, "required": [format!("1{HOSTILE}")] },
    } });
    let page = json!({ "method": "elicitation/create", "params": { "mode": "url", "url": format!("javascript:{HOSTILE}") } });
    let many = json!({ "method": "elicitation/create", "params": { "requestedSchema": {
        "properties": (0..100_000).map(|at| (format!("f{at}"), json!({}))).collect::<serde_json::Map<_, _>>(),
    } } });
    store.tasks.request_input(&task.key, [(HOSTILE, question), ("page", page)]).await.unwrap();
    store.tasks.request_input(&task.key, [("many", many)]).await.unwrap_err();
    let visitor = Visitor::new(&store, Access::loopback());
    let encoded =
        percent_encoding::utf8_percent_encode(HOSTILE, percent_encoding::NON_ALPHANUMERIC).to_string();
    for key in [encoded.as_str(), "page"] {
        let path = format!("{}&key={key}", path(&task.key).replace("/task?", "/task/answer?"));
        let form = visitor.open_path(&path).await;
        assert_inert(&form.page, key);
        let wrong = visitor.send(&form, &format!("answer=json&json={encoded}&field-0={encoded}")).await;
        assert_eq!(wrong.status, StatusCode::UNPROCESSABLE_ENTITY);
        assert_inert(&wrong.body, key);
        let fields = format!("answer=accept&field-0={encoded}&field-1=0&field-2=0");
        assert_inert(&visitor.send(&form, &fields).await.page(), key);
    }
    let content = &responses(&store, &task.key).await[HOSTILE]["content"];
    let expected = json!({
        format!("1{HOSTILE}"): HOSTILE, format!("2{HOSTILE}"): HOSTILE, format!("3{HOSTILE}"): [HOSTILE], format!("4{HOSTILE}"): false,
    });
    assert_eq!(*content, expected);
}
