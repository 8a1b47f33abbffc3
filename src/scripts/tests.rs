use std::collections::BTreeMap;

use bytes::Bytes;
use rstest::rstest;

use super::insert::InsertTimer;
use super::put::ExpiryArgument;
use super::*;
use crate::backend::engine::WriteMode;
use crate::backend::{PartChange, PartName, TaskId, Version};

/// Collects the names under which arguments are passed.
#[derive(Default)]
struct Names {
    keys: Vec<&'static str>,
    args: Vec<&'static str>,
}

impl Encoder for Names {
    fn key(&mut self, name: &'static str, _key: &str) {
        assert!(self.args.is_empty(), "all keys come before all other arguments");
        self.keys.push(name);
    }

    fn arg(&mut self, name: &'static str, _value: impl ToRedisArgs) {
        self.args.push(name);
    }
}

/// The declarations in the header of a Lua file.
struct Header {
    keys: Vec<String>,
    args: Vec<String>,
    errors: Vec<String>,
}

fn header(source: &str) -> Header {
    let comments = || source.lines().map_while(|line| line.strip_prefix("--").map(str::trim));
    let declared = |table: &str| -> Vec<String> {
        let lines = comments().filter_map(|line| line.strip_prefix(table)?.strip_prefix('['));
        let numbered: BTreeMap<usize, String> = lines
            .map(|line| {
                let (number, rest) = line.split_once(']').expect("KEYS[n]");
                let name = rest.split_whitespace().next().expect("a name").to_owned();
                let repeats = number.ends_with("..");
                let number = number.trim_end_matches('.').parse().expect("a number");
                (number, if repeats { format!("{name}..") } else { name })
            })
            .collect();
        assert!(numbered.keys().copied().eq(1..=numbered.len()), "{table} are numbered from 1 on");
        numbered.into_values().collect()
    };
    let errors = comments().find_map(|line| line.strip_prefix("Errors: ")).expect("a line of errors");
    assert!(comments().any(|line| line.starts_with("Reply: ")), "a line says what the reply is");
    Header {
        keys: declared("KEYS"),
        args: declared("ARGV"),
        errors: errors.split(", ").filter(|code| *code != "none of its own").map(str::to_owned).collect(),
    }
}

fn keys() -> RecordKeys {
    RecordKeys { idx: "i".into(), task: "t".into() }
}

fn id(text: &str) -> TaskId {
    text.try_into().unwrap()
}

fn notice() -> Notice {
    Notice { channel: "c".into(), pubsub: Pubsub::Plain }
}

fn put() -> Put {
    Put {
        keys: keys(),
        id: id("id"),
        data: Bytes::from_static(b"data"),
        expiry: ExpiryArgument::Keep,
        quota: Some(3),
        mode: WriteMode::Create,
        notice: Some(notice()),
        parts: [
            (PartName::from_static("a"), PartChange::Set(Bytes::from_static(b"bytes"))),
            (PartName::from_static("b"), PartChange::Clear),
        ]
        .into(),
    }
}

fn cas_put(task: &str) -> CasPut {
    let data = Bytes::from_static(b"data");
    CasPut { task: task.into(), data, expected: Version::FIRST, next: 2.into(), channel: Some("c".into()) }
}

fn insert(owner: &str, task: &str, quota: Option<u64>) -> Insert {
    let keys = RecordKeys { idx: owner.into(), task: task.into() };
    let timer = InsertTimer { due: "q".into(), member: "m".into(), after_ms: 1, channel: Some("c".into()) };
    Insert { keys, id: id("id"), data: Bytes::from_static(b"data"), expiry_ms: 2, quota, timer: Some(timer) }
}

fn reap() -> Reap {
    let task = |text: &str| (id(text), text.to_owned());
    Reap { idx: "i".into(), tasks: vec![task("a"), task("b"), task("c")] }
}

fn audit() -> Audit {
    Audit { idx: "i".into(), repair: true, tasks: reap().tasks }
}

fn schedule() -> Schedule {
    Schedule { due: "q".into(), member: "m".into(), after_ms: 1, notice: Some(notice()) }
}

fn resolve() -> Resolve {
    Resolve { due: "q".into(), member: "m".into(), token: "1".into(), after_ms: None, notice: None }
}

fn take_due() -> TakeDue {
    TakeDue { due: vec!["q".into(), "r".into()], hide_ms: 1, limit: 1 }
}

#[rstest]
#[case::put(include_str!("../../lua/put.lua"), put())]
#[case::cas_put(include_str!("../../lua/cas_put.lua"), CasPuts { records: &[cas_put("t")], pubsub: None })]
#[case::cas_put_batch(
    include_str!("../../lua/cas_put_batch.lua"),
    CasPuts { records: &[cas_put("t"), cas_put("u")], pubsub: None }
)]
#[case::create(include_str!("../../lua/create.lua"), Create(&insert("i", "t", None)))]
#[case::insert(
    include_str!("../../lua/insert.lua"),
    Inserts { records: &[insert("i", "t", None), insert("i", "u", None)], notice: Some(notice()) }
)]
#[case::delete(include_str!("../../lua/delete.lua"), Delete { keys: keys(), id: id("id"), notice: None })]
#[case::list(include_str!("../../lua/list.lua"), List { idx: "i".into(), below: None, limit: 1 })]
#[case::reap(include_str!("../../lua/reap.lua"), reap())]
#[case::audit(include_str!("../../lua/audit.lua"), audit())]
#[case::schedule(include_str!("../../lua/schedule.lua"), schedule())]
#[case::take_due(include_str!("../../lua/take_due.lua"), take_due())]
#[case::resolve(include_str!("../../lua/resolve.lua"), resolve())]
#[case::probe(include_str!("../../lua/probe.lua"), Probe { probe: "p".into() })]
#[case::publish(include_str!("../../lua/publish.lua"), Publish { notice: notice(), message: "m".into() })]
fn the_header_of_each_script_names_the_arguments_as_the_rust_side_passes_them(
    #[case] source: &str,
    #[case] arguments: impl Arguments,
) {
    let header = header(source);
    let mut passed = Names::default();
    arguments.encode(&mut passed);
    assert_eq!(arguments.key_count(), passed.keys.len());
    for (declared, passed) in [(header.keys, passed.keys), (header.args, passed.args)] {
        let repeated = declared.last().and_then(|name| name.strip_suffix("..")).map(str::to_owned);
        let fixed = declared.len() - usize::from(repeated.is_some());
        assert_eq!(declared[..fixed], passed[..fixed]);
        assert!(passed[fixed..].iter().all(|name| Some(*name) == repeated.as_deref()), "{passed:?}");
    }
}

#[rstest]
#[case::put(include_str!("../../lua/put.lua"))]
#[case::cas_put(include_str!("../../lua/cas_put.lua"))]
#[case::cas_put_batch(include_str!("../../lua/cas_put_batch.lua"))]
#[case::create(include_str!("../../lua/create.lua"))]
#[case::insert(include_str!("../../lua/insert.lua"))]
#[case::delete(include_str!("../../lua/delete.lua"))]
#[case::list(include_str!("../../lua/list.lua"))]
#[case::reap(include_str!("../../lua/reap.lua"))]
#[case::audit(include_str!("../../lua/audit.lua"))]
#[case::schedule(include_str!("../../lua/schedule.lua"))]
#[case::take_due(include_str!("../../lua/take_due.lua"))]
#[case::resolve(include_str!("../../lua/resolve.lua"))]
#[case::probe(include_str!("../../lua/probe.lua"))]
#[case::publish(include_str!("../../lua/publish.lua"))]
fn every_error_code_of_a_script_is_in_its_header_and_becomes_a_refusal(#[case] source: &str) {
    let declared = header(source).errors;
    let text = whole(source);
    let returned =
        text.split("redis.error_reply('").skip(1).filter_map(|rest| rest.split(['\'', ' ']).next());
    for code in returned {
        assert!(declared.iter().any(|declared| declared.starts_with(code)), "{code} is not declared");
    }
    for declared in declared {
        let (code, detail) = declared.split_once(' ').expect("a code and its detail");
        assert!(text.contains(&format!("'{code} ")), "{code} is declared and never returned with a detail");
        let detail = if detail.starts_with('[') { r#"["1",false,1,true,true]"# } else { "1" };
        assert!(Refusal::parse(code, Some(detail)).is_some(), "{code} becomes no refusal");
    }
}

#[test]
fn a_script_is_sent_minified_as_eval_with_keys_before_arguments() {
    let packed = PUT.command(&put()).get_packed_command();
    let sent = String::from_utf8(packed).unwrap();
    assert!(sent.starts_with("*18\r\n$4\r\nEVAL\r\n"), "{sent}");
    assert!(!sent.contains("--") && !sent.contains("\n  "), "{sent}");
    let tail = "$1\r\n2\r\n$1\r\ni\r\n$1\r\nt\r\n$2\r\nid\r\n$4\r\ndata\r\n$4\r\nkeep\r\n$1\r\n3\r\n$6\r\ncreate\r\n$1\r\nc\r\n\
        $7\r\nPUBLISH\r\n$1\r\na\r\n$3\r\nset\r\n$5\r\nbytes\r\n$1\r\nb\r\n$5\r\nclear\r\n$0\r\n\r\n";
    assert!(sent.ends_with(tail), "{sent}");
}

const CLOCK_US: u64 = 1_795_000_000_000_025;

fn text(text: &str) -> Value {
    Value::BulkString(text.into())
}

/// Returns a reply of the server's clock and these lists.
fn with_lists(lists: &[Value]) -> Value {
    Value::Array([&[text("1795000000 25")], lists].concat())
}

#[test]
fn the_reply_of_a_write_is_read() {
    let unlimited = PUT.decode(text("1795000000 25 7 ")).unwrap();
    assert_eq!(unlimited.server_us, CLOCK_US);
    assert_eq!((unlimited.value.version, unlimited.value.expires_at), (Version::from(7), None));
    let expires = PUT.decode(text("1795000000 25 7 1795000000001")).unwrap();
    assert_eq!(expires.value.expires_at.unwrap().timestamp_millis(), 1_795_000_000_001);
    let kept = CAS_PUT.decode(text("1795000000 25 1795000000001")).unwrap();
    assert_eq!((kept.server_us, kept.value.0), (CLOCK_US, expires.value.expires_at));
    assert_eq!(DELETE.decode(text("1795000000 25 1")).unwrap().value.0, 1);
}

#[test]
fn the_reply_of_a_page_is_read() {
    let members = Value::Array(vec![text("t1"), text("1795000000000001")]);
    let listed = LIST.decode(with_lists(std::slice::from_ref(&members))).unwrap();
    assert_eq!(listed.server_us, CLOCK_US);
    assert_eq!(listed.value.0, [(b"t1".to_vec(), 1_795_000_000_000_001)]);
    LIST.decode(with_lists(&[Value::Array(vec![text("t1")])])).unwrap_err();
    LIST.decode(with_lists(&[members.clone(), members])).unwrap_err();
}

#[test]
fn the_reply_of_take_due_is_read() {
    let queues = Value::Array(vec![text("1795000001000.5"), Value::Int(0), text(""), Value::Int(0)]);
    let timer = [Value::Int(2), text("alice:t1"), text("1795000000000"), text("1795000009000.25")];
    let lists = [queues, Value::Array(timer.to_vec())];
    let found = TAKE_DUE.decode(with_lists(&lists)).unwrap();
    assert_eq!(found.server_us, CLOCK_US);
    let firsts: Vec<_> = found.value.queues.iter().map(|queue| (queue.first, queue.due)).collect();
    assert_eq!(firsts, [(Some(1_795_000_001_000.5), 0), (None, 0)]);
    let [taken] = &found.value.taken[..] else { panic!("{found:?}") };
    assert_eq!((taken.queue, &taken.member[..], taken.due_at), (1, &b"alice:t1"[..], 1_795_000_000_000.0));
    assert_eq!(taken.token, "1795000009000.25");
    // One value is missing, one is too many, or one has another form.
    for (place, wrong) in [
        (0, Value::Array(vec![text("")])),
        (0, Value::Array(vec![text("soon"), Value::Int(0)])),
        (0, Value::Array(vec![text("nan"), Value::Int(0)])),
        (0, Value::Array(vec![text(""), Value::Int(-1)])),
        (1, Value::Array(timer[..3].to_vec())),
        (1, Value::Array([&[Value::Int(0)][..], &timer[1..]].concat())),
        (1, Value::Array([&timer[..3], &[text("x")]].concat())),
        (1, Value::Nil),
    ] {
        let mut lists = lists.clone();
        lists[place] = wrong;
        TAKE_DUE.decode(with_lists(&lists)).unwrap_err();
    }
}

#[test]
fn the_replies_of_schedule_and_resolve_are_read() {
    assert_eq!(SCHEDULE.decode(text("1795000000 25")).unwrap().server_us, CLOCK_US);
    for (effect, resolved) in [("1", true), ("0", false)] {
        assert_eq!(RESOLVE.decode(text(&format!("1795000000 25 {effect}"))).unwrap().value.0, resolved);
    }
    RESOLVE.decode(text("1795000000 25 2")).unwrap_err();
}

#[test]
fn the_reply_of_audit_is_read() {
    let states = Value::Array(["ok", "gone", "member", "record", "damaged"].map(text).to_vec());
    let audited = AUDIT.decode(with_lists(&[states])).unwrap();
    assert_eq!(audited.server_us, CLOCK_US);
    let expected = [
        RecordState::Agrees,
        RecordState::Gone,
        RecordState::MemberWithoutRecord,
        RecordState::RecordWithoutMember,
        RecordState::Damaged,
    ];
    assert_eq!(audited.value.0, expected);
    AUDIT.decode(with_lists(&[Value::Array(vec![text("fine")])])).unwrap_err();
    AUDIT.decode(text("1795000000 25")).unwrap_err();
}

#[test]
fn the_replies_of_probe_and_publish_are_read() {
    assert!(PROBE.decode(with_lists(&[Value::Array(vec![])])).unwrap().value.0.is_empty());
    let failed = Value::Array(["HSET", "ERR no"].map(text).to_vec());
    let failed = PROBE.decode(with_lists(&[failed])).unwrap().value.0;
    assert_eq!(failed, [("HSET".to_owned(), "ERR no".to_owned())]);
    PROBE.decode(with_lists(&[Value::Array(vec![text("HSET")])])).unwrap_err();
    PROBE.decode(Value::Okay).unwrap_err();
    PUBLISH.decode(text("1795000000 25")).unwrap();
    PUBLISH.decode(Value::Okay).unwrap_err();
}

/// The length is in bytes, of the minified text. The server reads and hashes all of it with each call.
#[rstest]
#[case::put(include_str!("../../lua/put.lua"), 3010)]
#[case::cas_put(include_str!("../../lua/cas_put.lua"), 664)]
#[case::cas_put_batch(include_str!("../../lua/cas_put_batch.lua"), 931)]
#[case::create(include_str!("../../lua/create.lua"), 1130)]
#[case::insert(include_str!("../../lua/insert.lua"), 2355)]
#[case::delete(include_str!("../../lua/delete.lua"), 785)]
#[case::list(include_str!("../../lua/list.lua"), 165)]
#[case::reap(include_str!("../../lua/reap.lua"), 582)]
#[case::audit(include_str!("../../lua/audit.lua"), 1700)]
#[case::schedule(include_str!("../../lua/schedule.lua"), 541)]
#[case::take_due(include_str!("../../lua/take_due.lua"), 759)]
#[case::resolve(include_str!("../../lua/resolve.lua"), 593)]
fn a_script_stays_short(#[case] source: &str, #[case] length: usize) {
    let text = minify(&whole(source));
    assert!(text.len() <= length, "{} bytes: {text}", text.len());
}

#[test]
fn the_probe_runs_each_command_that_the_other_scripts_run() {
    let commands = |source: &str, call: &str| -> std::collections::BTreeSet<String> {
        let text = whole(source);
        let calls = text.split(call).skip(1).filter_map(|rest| rest.split('\'').next());
        calls.map(str::to_owned).collect()
    };
    let probed = commands(include_str!("../../lua/probe.lua"), "try('");
    let mut run = std::collections::BTreeSet::new();
    for source in [
        include_str!("../../lua/put.lua"),
        include_str!("../../lua/cas_put.lua"),
        include_str!("../../lua/cas_put_batch.lua"),
        include_str!("../../lua/create.lua"),
        include_str!("../../lua/insert.lua"),
        include_str!("../../lua/delete.lua"),
        include_str!("../../lua/list.lua"),
        include_str!("../../lua/reap.lua"),
        include_str!("../../lua/audit.lua"),
        include_str!("../../lua/schedule.lua"),
        include_str!("../../lua/take_due.lua"),
        include_str!("../../lua/resolve.lua"),
    ] {
        run.extend(commands(source, "call('"));
    }
    assert_eq!(probed, run);
}

#[test]
fn a_reply_of_an_unknown_form_is_an_error() {
    for reply in [
        Value::Nil,
        Value::Okay,
        Value::Array(vec![]),
        Value::Array(vec![Value::Int(1), Value::Int(-1), Value::Int(0)]),
        Value::Array(vec![text("1795000000 25"), text("1"), text("2"), text("3")]),
        text(""),
        text("1795000000"),
        text("1795000000 1 1 never"),
        text("1795000000 1 1 1795000000000 1"),
        text("1795000000 -1 1 "),
        text("99999999999999999999 1 1 "),
    ] {
        PUT.decode(reply.clone()).unwrap_err();
        CAS_PUT.decode(reply.clone()).unwrap_err();
        LIST.decode(reply.clone()).unwrap_err();
        SCHEDULE.decode(reply.clone()).unwrap_err();
        RESOLVE.decode(reply.clone()).unwrap_err();
        TAKE_DUE.decode(reply.clone()).unwrap_err();
        DELETE.decode(reply).unwrap_err();
    }
}
