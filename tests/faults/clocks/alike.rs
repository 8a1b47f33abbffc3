//! Two processes, one with a wrong wall clock, get the same results.

use std::time::Instant;

use chrono::{DateTime, TimeDelta, Utc};
use rstest::rstest;
use serde_json::{Value, json};

use super::other::Other;
use super::process::{Call, Clocks, Process};
use super::{HOUR_MS, MOST_LAG, SOON_MS, figure, time_of};
use crate::support::redis::Server;

/// The process that makes a call: this one, whose clock is right, or the other one.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Side {
    Own,
    Other,
}

const SIDES: [Side; 2] = [Side::Own, Side::Other];

impl Side {
    fn opposite(self) -> Self {
        match self {
            Self::Own => Self::Other,
            Self::Other => Self::Own,
        }
    }
}

struct Pair {
    server: Server,
    own: Process,
    other: Other,
    /// When the test read the other's clocks last, and their values.
    checked: Option<(Instant, Clocks)>,
}

impl Pair {
    async fn start(offset: &str) -> Self {
        let server = Server::start(&[]);
        let own = Process::start(&server.url()).await;
        let other = Other::start(&server.url(), offset);
        Self { server, own, other, checked: None }
    }

    /// Makes a call in both processes at the same time.
    async fn both(&mut self, call: Call) -> [Value; 2] {
        self.other.send(&call);
        let own = self.own.perform(call).await;
        [own, self.other.reply()]
    }

    /// Makes a call in both processes, and asserts that the results are equal.
    async fn alike(&mut self, call: Call) -> Value {
        let [own, theirs] = self.both(call.clone()).await;
        assert_eq!(own, theirs, "{call:?}");
        own
    }

    async fn one(&mut self, side: Side, call: Call) -> Value {
        match side {
            Side::Own => self.own.perform(call).await,
            Side::Other => {
                self.other.send(&call);
                self.other.reply()
            }
        }
    }

    fn server_time(&self) -> DateTime<Utc> {
        time_of(&self.server)
    }

    /// Asserts the conditions of the test: the wall clock of the other process is wrong by `wrong_by`, and its
    /// monotonic clock has been right since the last check. Asserts also that `now()` is right in both processes.
    async fn check_clocks(&mut self, wrong_by: TimeDelta) {
        let started = Instant::now();
        let [own, theirs] = self.both(Call::Clocks).await;
        let [own, theirs]: [Clocks; 2] = [own, theirs].map(|clocks| serde_json::from_value(clocks).unwrap());
        let apart = TimeDelta::microseconds(theirs.wall_us - own.wall_us) - wrong_by;
        assert!(apart.abs() < TimeDelta::minutes(1), "{apart}");
        if let Some((since, before)) = self.checked.replace((started, theirs)) {
            let (passed, most) = (theirs.monotonic - before.monotonic, since.elapsed());
            assert!(passed <= most, "the monotonic clock has jumped: {passed:?} in {most:?}");
        }
        for (whose, clocks) in [("a right", own), ("a wrong", theirs)] {
            let lag = TimeDelta::microseconds(clocks.lag_us);
            figure(&format!("most that now() lags behind the server, with {whose} wall clock"), lag);
            assert!(lag < MOST_LAG, "{whose}: {lag}");
        }
    }
}

fn time(value: &Value) -> DateTime<Utc> {
    match value {
        Value::String(in_a_task) => in_a_task.parse().unwrap(),
        micros => DateTime::from_timestamp_micros(micros.as_i64().unwrap()).unwrap(),
    }
}

fn names(page: &Value) -> Vec<&str> {
    page.as_array().unwrap().iter().map(|record| record[0].as_str().unwrap()).collect()
}

/// Makes every call in both processes, in turn.
async fn do_alike(pair: &mut Pair) {
    let listed = writes_are_alike(pair).await;
    updates_and_deletes_are_alike(pair, &listed).await;
    expiries_are_alike(pair).await;
    tasks_are_alike(pair).await;
    ttls_are_alike(pair).await;
}

/// Records in the order in which they are created, each with the process that creates it.
const RECORDS: [(&str, Side); 6] = [
    ("t0", Side::Own),
    ("t1", Side::Other),
    ("t2", Side::Own),
    ("t3", Side::Other),
    ("t4", Side::Own),
    ("t5", Side::Other),
];

/// Returns the records as both processes list them.
async fn writes_are_alike(pair: &mut Pair) -> Value {
    for (task, writer) in RECORDS {
        let earliest = pair.server_time();
        let put = Call::Put { task: task.to_owned(), lives_ms: HOUR_MS };
        let written = pair.one(writer, put).await;
        let latest = pair.server_time();
        assert_eq!(written[0], 1);
        let since = time(&written[1]) - TimeDelta::hours(1);
        assert!(earliest <= since && since <= latest + TimeDelta::milliseconds(1), "{since}");
        let read = pair.alike(Call::Get { task: task.to_owned() }).await;
        assert_eq!((&read[1], &read[2]), (&written[0], &written[1]));
    }
    let listed = pair.alike(Call::List).await;
    assert_eq!(names(&listed), ["t5", "t4", "t3", "t2", "t1", "t0"], "newest first, from both writers");
    listed
}

async fn updates_and_deletes_are_alike(pair: &mut Pair, listed: &Value) {
    for (turn, (task, creator)) in RECORDS.into_iter().enumerate() {
        let (late, writer) = (creator, creator.opposite());
        let update = Call::PutIfVersion { task: task.to_owned(), expected: 1 };
        let written = pair.one(writer, update.clone()).await;
        assert_eq!((&written[0], &written[1]), (&json!(2), &listed[5 - turn][2]), "the expiry is kept");
        let refused = pair.one(late, update.clone()).await;
        assert!(refused.as_str().unwrap().contains("expected 1, found 2"), "{refused}");
        assert_eq!(pair.alike(update).await, refused);
        pair.alike(Call::Get { task: task.to_owned() }).await;
        assert_eq!(pair.one(late, Call::Delete { task: task.to_owned() }).await, json!(true));
        let absent = pair.alike(Call::Get { task: task.to_owned() }).await;
        assert!(absent.as_str().unwrap().contains("no record"), "{absent}");
    }
    assert_eq!(pair.alike(Call::List).await, json!([]));
}

async fn expiries_are_alike(pair: &mut Pair) {
    for writer in SIDES {
        let task = format!("short {writer:?}");
        pair.one(writer, Call::Put { task: task.clone(), lives_ms: SOON_MS }).await;
        let seen = pair.both(Call::SeeExpire { task }).await;
        assert!(
            seen.iter().all(|times| times.as_u64().unwrap() > 0),
            "both processes read the record before it expired: {seen:?}"
        );
    }
}

async fn tasks_are_alike(pair: &mut Pair) {
    let mut created = Vec::new();
    for creator in SIDES {
        let earliest = pair.server_time() - MOST_LAG;
        let task = pair.one(creator, Call::Create { ttl_ms: HOUR_MS }).await;
        let latest = pair.server_time();
        let created_at = time(&task[0]["createdAt"]);
        assert!(earliest <= created_at && created_at <= latest, "{created_at}");
        created.insert(0, task);
    }
    assert_eq!(pair.alike(Call::ListTasks).await, json!(created));
    for (finisher, task) in SIDES.into_iter().zip(&created) {
        let id = task[0]["taskId"].as_str().unwrap().to_owned();
        assert_eq!(&pair.alike(Call::GetTask { task: id.clone() }).await, task);
        assert_eq!(task[0]["status"], "working");
        let done = pair.one(finisher, Call::Complete { task: id.clone() }).await;
        assert_eq!(done[0]["status"], "completed", "{done}");
        let took = time(&done[0]["lastUpdatedAt"]) - time(&done[0]["createdAt"]);
        assert!(took < TimeDelta::minutes(5), "{took}");
        assert_eq!(pair.alike(Call::GetTask { task: id.clone() }).await, done);
        pair.one(finisher, Call::Delete { task: id }).await;
    }
}

async fn ttls_are_alike(pair: &mut Pair) {
    for creator in SIDES {
        let task = pair.one(creator, Call::Create { ttl_ms: SOON_MS }).await;
        let task = task[0]["taskId"].as_str().unwrap().to_owned();
        let seen = pair.both(Call::SeeFail { task: task.clone() }).await;
        assert!(
            seen.iter().all(|times| times.as_u64().unwrap() > 0),
            "both processes read the task as working: {seen:?}"
        );
        let failed = pair.alike(Call::GetTask { task: task.clone() }).await;
        assert_eq!((&failed[0]["status"], &failed[1]), (&json!("failed"), &json!(2)), "failed once");
        pair.one(creator, Call::Delete { task }).await;
    }
}

#[rstest]
#[case::an_hour_ahead("+1h", TimeDelta::hours(1))]
#[case::an_hour_behind("-1h", TimeDelta::hours(-1))]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_with_a_wrong_wall_clock_gets_the_same_results(
    #[case] offset: &str,
    #[case] wrong_by: TimeDelta,
) {
    let mut pair = Pair::start(offset).await;
    pair.check_clocks(wrong_by).await;
    do_alike(&mut pair).await;
    pair.check_clocks(wrong_by).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_whose_wall_clock_jumps_gets_the_same_results() {
    let mut pair = Pair::start("+0").await;
    pair.check_clocks(TimeDelta::zero()).await;
    let jumps = [("+1h", TimeDelta::hours(1)), ("-1h", TimeDelta::hours(-1)), ("+0", TimeDelta::zero())];
    for (offset, wrong_by) in jumps {
        // The task is written before the jump and read after it. The record expires around the jump.
        let task = pair.own.perform(Call::Create { ttl_ms: HOUR_MS }).await;
        let id = task[0]["taskId"].as_str().unwrap().to_owned();
        let short = "since before the jump".to_owned();
        pair.one(Side::Other, Call::Put { task: short.clone(), lives_ms: SOON_MS }).await;
        pair.other.send(&Call::SeeExpire { task: short.clone() });
        pair.other.set_clock(offset);
        pair.own.perform(Call::SeeExpire { task: short }).await;
        assert!(pair.other.reply().as_u64().unwrap() > 0);
        assert_eq!(pair.alike(Call::GetTask { task: id.clone() }).await, task);
        pair.one(Side::Other, Call::Delete { task: id }).await;
        pair.check_clocks(wrong_by).await;
        do_alike(&mut pair).await;
    }
    pair.check_clocks(TimeDelta::zero()).await;
}
