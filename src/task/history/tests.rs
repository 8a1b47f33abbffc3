use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::task::Lease;

fn at(ms: i64) -> DateTime<Utc> {
    "2026-01-31T12:00:00Z".parse::<DateTime<Utc>>().unwrap() + TimeDelta::milliseconds(ms)
}

fn task(history: &Value) -> serde_json::Result<Task> {
    let json = json!({
        "taskId": "t1", "status": "working", "createdAt": "2026-01-31T12:00:00.000Z",
        "lastUpdatedAt": "2026-01-31T12:00:00.000Z", "ttlMs": null, "method": "m", "history": history,
    });
    Task::from_json(json.to_string().as_bytes())
}

fn written(task: &Task) -> Value {
    serde_json::from_slice::<Value>(&task.to_json().unwrap()).unwrap()["history"].take()
}

fn lease(holder: Option<&str>, attempt: u32) -> Option<Lease> {
    let lease = json!({
        "holder": holder, "attempt": attempt, "durationMs": 30_000, "deadline": "2026-01-31T12:00:30.000Z",
    });
    Some(serde_json::from_value(lease).unwrap())
}

#[test]
fn the_json_of_a_history_is_as_documented() {
    let mut task = task(&json!([])).unwrap();
    task.lease = lease(Some("0f1b2c3d-aaaa-4bbb-8ccc-0123456789ab"), 1);
    task.note(EventKind::Created);
    task.note(EventKind::Started);
    task.record_events(at(0));
    task.note(EventKind::InputRequested);
    task.note_detail("name");
    task.record_events(at(1_250));
    task.lease = lease(None, 1);
    task.note(EventKind::Cancelled);
    task.record_events(at(2_000));
    let json = json!([
        ["2026-01-31T12:00:00.000Z", "created"],
        [0, "started", 1, "0f1b2c3d"],
        [1_250, "input_requested", 1, null, "name"],
        [2_000, "cancelled"],
    ]);
    assert_eq!(written(&task), json);
    let read = self::task(&json).unwrap();
    assert_eq!(read.history, task.history);
    assert_eq!((read.history[2].at, read.history[2].holder.as_deref()), (at(1_250), Some("0f1b2c3d")));
    assert_eq!((read.history[3].attempt, &read.history[3].holder), (None, &None));
}

#[test]
fn kinds_and_elements_of_later_versions_survive_a_rewrite() {
    let json = json!([
        ["2026-01-31T12:00:00.000Z", "created", null, null, null, { "zone": "b" }, 7],
        [5, "paused", 2, "0f1b2c3d", "at night", null],
        [-3, "resumed", 3],
    ]);
    let mut task = task(&json).unwrap();
    assert_eq!(written(&task), json);
    let paused = &task.history[1];
    assert_eq!((paused.kind.as_str(), &paused.kind), ("paused", &EventKind::Unknown("paused".to_owned())));
    assert_eq!((paused.at, &*paused.extra), (at(5), &[Value::Null][..]));
    task.note(EventKind::Completed);
    task.record_events(at(9));
    let mut longer = json.as_array().unwrap().clone();
    longer.push(json!([9, "completed"]));
    assert_eq!(written(&task), json!(longer));
}

#[test]
fn every_kind_has_a_name_of_its_own() {
    for (kind, name) in NAMES {
        assert_eq!((kind.as_str(), EventKind::from_name(name)), (name, kind.clone()));
    }
}

#[test]
fn a_history_that_no_version_writes_is_unreadable() {
    for history in [
        json!({}),
        json!([[0, "created"]]),
        json!([["2026-01-31", "created"]]),
        json!([["2026-01-31T12:00:00.000Z"]]),
        json!([["2026-01-31T12:00:00.000Z", 7]]),
        json!([["2026-01-31T12:00:00.000Z", "created"], [u64::MAX, "started"]]),
        json!([["2026-01-31T12:00:00.000Z", "created"], [i64::MAX, "started"]]),
        json!(["created"]),
    ] {
        assert!(task(&history).is_err(), "{history}");
    }
}

#[test]
fn a_shrunk_history_keeps_the_first_event_as_long_as_another_fits() {
    let mut task = task(&json!([])).unwrap();
    for kind in [EventKind::Created, EventKind::Started, EventKind::Released, EventKind::Resumed] {
        task.note(kind);
    }
    task.record_events(at(0));
    let kinds = |task: &Task| task.history.iter().map(|event| event.kind.to_string()).collect::<Vec<_>>();
    let bytes = task.history_bytes();
    task.shrink_history(bytes);
    assert_eq!(kinds(&task).len(), 4);
    task.shrink_history(bytes - 1);
    assert_eq!(kinds(&task), ["created", "released", "resumed"]);
    task.shrink_history(70);
    assert_eq!(kinds(&task), ["created", "resumed"]);
    task.shrink_history(60);
    assert_eq!(kinds(&task), ["resumed"]);
    assert_eq!(written(&task), json!([["2026-01-31T12:00:00.000Z", "resumed"]]));
    task.shrink_history(0);
    assert_eq!((task.history_bytes(), written(&task)), (0, Value::Null));
}

/// An event: its kind, its detail, the holder and the attempt of its lease.
fn event() -> impl Strategy<Value = (usize, String, Option<String>, u32)> {
    let detail = prop_oneof![Just(String::new()), "[a\"\\\\\\x00-\\x1fé🦀]{0,60}"];
    (1..NAMES.len(), detail, proptest::option::of("[0-9a-fé]{0,40}"), 0..u32::MAX)
}

proptest! {
    #[test]
    fn any_history_stays_within_its_bounds_and_keeps_the_first_event_and_the_last_ones(
        events in prop::collection::vec(event(), 1..80),
        elsewhere in prop::collection::vec("[a-z\\x00]{0,50}", 0..30),
    ) {
        let mut task = task(&json!([])).unwrap();
        task.note(EventKind::Created);
        task.record_events(at(0));
        let mut all = task.history.clone();
        for (number, (kind, detail, holder, attempt)) in (1..).zip(events) {
            task.lease = lease(holder.as_deref(), attempt);
            task.note(NAMES[kind].0.clone());
            if !detail.is_empty() {
                task.note_detail(detail);
            }
            task.record_events(at(number * 977));
            all.push(task.history.last().unwrap().clone());

            prop_assert!(task.history.len() <= MAX_EVENTS && task.history_bytes() <= MAX_HISTORY_BYTES);
            prop_assert_eq!(&task.history[0], &all[0]);
            let kept = task.history.len() - 1;
            prop_assert_eq!(&task.history[1..], &all[all.len() - kept..]);
            // As much is kept as fits.
            if let Some(dropped) = all.len().checked_sub(kept + 1).filter(|at| *at > 0) {
                let mut longer = task.clone();
                longer.history.insert(1, all[dropped].clone());
                prop_assert!(longer.history.len() > MAX_EVENTS || longer.history_bytes() > MAX_HISTORY_BYTES);
            }
            prop_assert_eq!(&Task::from_json(&task.to_json().unwrap()).unwrap().history, &task.history);
        }
        let without = Task { history: Vec::new(), ..task.clone() };
        let bytes = |task: &Task| task.to_json().unwrap().len();
        prop_assert_eq!(bytes(&task) - bytes(&without), task.history_bytes());

        // What another program has written may be larger than the bounds.
        let first = task.history[0].clone();
        task.history.extend(elsewhere.iter().map(|name| {
            TaskEvent { kind: EventKind::Unknown(name.repeat(40)), ..first.clone() }
        }));
        task.note(EventKind::Completed);
        task.record_events(at(1_000_000));
        prop_assert!(task.history.len() <= MAX_EVENTS && task.history_bytes() <= MAX_HISTORY_BYTES);
        prop_assert_eq!(&task.history.last().unwrap().kind, &EventKind::Completed);
    }
}
