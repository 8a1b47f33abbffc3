//! Tests of the checker: each rule, against logs written by hand.

use std::collections::BTreeMap;

use super::checker::{Bounds, Report, Rule, check};
use super::ends::{End, Outcome};
use super::log::{Event, Found, Line};
use super::operation::Plan;

const BOUNDS: Bounds = Bounds {
    silence: 1_000_000,
    storing: 3_000_000,
    max_attempts: 3,
    begins_where_created: true,
    least_resumptions: 0,
};

/// A log of one task `t`, with one event each second, and its final record.
struct Run {
    plan: Plan,
    lines: Vec<Line>,
    ends: BTreeMap<String, End>,
    bounds: Bounds,
}

impl Run {
    /// Starts a log with the processes `a` and `b`.
    fn new(plan: Plan) -> Self {
        let mut run = Self { plan, lines: Vec::new(), ends: BTreeMap::new(), bounds: BOUNDS };
        for name in ["a", "b"] {
            run.add(Event::Started { run: name.to_owned() });
        }
        run
    }

    fn resumes() -> Self {
        Self::new(Plan { resume: true, ..Plan::default() })
    }

    fn fails() -> Self {
        Self::new(Plan::default())
    }

    fn add(&mut self, event: Event) {
        self.lines.push(Line { at: (self.lines.len() as u64 + 1) * 1_000_000, event });
    }

    fn with(mut self, event: Event) -> Self {
        self.add(event);
        self
    }

    /// Adds seconds without an event that matters.
    fn quiet(mut self, seconds: u64) -> Self {
        for _ in 0..seconds {
            self.add(Event::Clock { ahead_s: 0 });
        }
        self
    }

    fn created(self) -> Self {
        let plan = self.plan.clone();
        self.with(Event::Created { task: "t".to_owned(), run: "a".to_owned(), plan })
    }

    fn begin(self, attempt: u32, run: &str) -> Self {
        let plan = self.plan.clone();
        self.with(Event::Begin { task: "t".to_owned(), attempt, run: run.to_owned(), plan })
    }

    fn produced(self, attempt: u32, run: &str) -> Self {
        let (task, run, nonce) = ("t".to_owned(), run.to_owned(), format!("result of {attempt}"));
        self.with(Event::Produced { task, attempt, run, nonce })
    }

    fn killed(self, run: &str) -> Self {
        self.with(Event::Killed { run: run.to_owned() })
    }

    fn paused(self, run: &str, seconds: u64) -> Self {
        let run = run.to_owned();
        self.with(Event::Paused { run: run.clone() }).quiet(seconds - 1).with(Event::Continued { run })
    }

    fn cancelled(self, found: Found) -> Self {
        let task = "t".to_owned();
        self.with(Event::CancelSent { task: task.clone() }).with(Event::Cancelled { task, found })
    }

    fn seen(self, status: &str) -> Self {
        self.with(Event::Ended { task: "t".to_owned(), status: status.to_owned() })
    }

    fn ends(mut self, end: End) -> Self {
        self.ends.insert("t".to_owned(), end);
        self
    }

    fn completes(self, attempt: u32) -> Self {
        let result = Outcome { attempt, nonce: format!("result of {attempt}"), answer: None };
        self.ends(End { status: "completed".to_owned(), result: Some(result), ..End::default() })
    }

    fn fails_with(self, error: &str) -> Self {
        self.ends(End { status: "failed".to_owned(), error: Some(error.to_owned()), ..End::default() })
    }

    fn ends_cancelled(self) -> Self {
        self.ends(End { status: "cancelled".to_owned(), ..End::default() })
    }

    fn check(&self) -> Report {
        check(&self.lines, &self.ends, self.bounds)
    }

    /// Asserts that exactly these rules are broken.
    #[track_caller]
    fn breaks(&self, rules: &[Rule]) {
        let violations = self.check().violations;
        assert_eq!(
            violations.iter().map(|violation| violation.rule).collect::<Vec<_>>(),
            rules,
            "{violations:?}"
        );
    }
}

/// Returns the record of an open task with a worker, right after its cancel was acknowledged.
fn held(attempt: u32) -> Found {
    Found { status: "working".to_owned(), cancel_requested: true, attempt: Some(attempt), is_held: true }
}

const LOST: &str = "the worker of the task was lost";
const GAVE_UP: &str = "gave up after 3 attempts: the worker was lost";

#[test]
fn a_run_that_keeps_all_rules_passes() {
    let run = Run::resumes().created().begin(1, "a").produced(1, "a").seen("completed").completes(1);
    run.breaks(&[]);
    let report = run.check();
    assert_eq!((report.acknowledged, report.kept_results, report.resumptions), (1, 1, 0));
    let run = Run::resumes().created().begin(1, "a").killed("a").begin(2, "b").produced(2, "b").completes(2);
    run.breaks(&[]);
    assert_eq!(run.check().resumptions, 1);
}

#[test]
fn an_acknowledged_task_that_is_open_or_absent_at_the_end_is_reported() {
    let open = End { status: "working".to_owned(), ..End::default() };
    Run::fails().created().begin(1, "a").ends(open.clone()).breaks(&[Rule::AcknowledgedTasksEnd]);
    Run::fails().created().begin(1, "a").breaks(&[Rule::AcknowledgedTasksEnd]);
    // A task that was not acknowledged may end later.
    Run::fails().begin(1, "a").ends(open).breaks(&[]);
}

#[test]
fn a_result_that_no_operation_produced_is_reported() {
    let run = |attempt| Run::resumes().created().begin(1, "a").begin(2, "b").produced(attempt, "b");
    run(2).completes(2).breaks(&[]);
    run(1).completes(2).breaks(&[Rule::ResultsWereProduced]);
    let none = End { status: "completed".to_owned(), ..End::default() };
    Run::fails().created().begin(1, "a").ends(none).breaks(&[Rule::ResultsWereProduced]);
}

#[test]
fn a_result_under_the_name_of_another_attempt_is_reported() {
    let result = Outcome { attempt: 2, nonce: "result of 1".to_owned(), answer: None };
    let end = End { status: "completed".to_owned(), result: Some(result), ..End::default() };
    Run::fails().created().begin(1, "a").produced(1, "a").ends(end).breaks(&[Rule::ResultsWereProduced]);
}

#[test]
fn an_answer_that_the_client_did_not_give_is_reported() {
    let plan = Plan { asks: true, ..Plan::default() };
    let answer = |answer: String| Event::GotAnswer { task: "t".to_owned(), attempt: 1, answer };
    let result = |answer| Outcome { attempt: 1, nonce: "result of 1".to_owned(), answer };
    let end = |answer| End { status: "completed".to_owned(), result: Some(result(answer)), ..End::default() };
    let run =
        |given: String| Run::new(plan.clone()).created().begin(1, "a").with(answer(given)).produced(1, "a");
    run(plan.answer()).ends(end(Some(plan.answer()))).breaks(&[]);
    run("no".to_owned()).ends(end(Some(plan.answer()))).breaks(&[Rule::ResultsWereProduced]);
    run(plan.answer()).ends(end(None)).breaks(&[Rule::ResultsWereProduced]);
}

#[test]
fn a_result_that_is_replaced_is_reported() {
    let run = || Run::resumes().created().begin(1, "a").produced(1, "a").quiet(5);
    run().begin(2, "b").produced(2, "b").completes(2).breaks(&[Rule::ResultsAreNotReplaced]);
    // The later death of its worker is no reason.
    run().killed("a").begin(2, "b").produced(2, "b").completes(2).breaks(&[Rule::ResultsAreNotReplaced]);
    let error = "the outcome of the operation cannot be stored";
    run().fails_with(error).breaks(&[Rule::ResultsAreNotReplaced, Rule::ReasonsAreHonest]);
}

#[test]
fn a_result_may_be_lost_with_its_worker() {
    let replaced = |run: Run| run.quiet(5).begin(2, "b").produced(2, "b").completes(2);
    let run = || Run::resumes().created().begin(1, "a");
    replaced(run().produced(1, "a").killed("a")).breaks(&[]);
    replaced(run().paused("a", 5).produced(1, "a")).breaks(&[]);
    replaced(run().produced(1, "a").paused("a", 5)).breaks(&[]);
    // The server was down, so the worker could not store the result before it died.
    let away = run().produced(1, "a").with(Event::ServerKilled).quiet(5).killed("a").with(Event::ServerUp);
    replaced(away).breaks(&[]);
    let report = replaced(run().produced(1, "a").killed("a")).check();
    assert_eq!((report.kept_results, report.excused_results), (1, 1));
}

#[test]
fn an_outage_of_the_server_is_no_reason_to_replace_a_result() {
    let run = Run::resumes().created().begin(1, "a").with(Event::ServerPaused).quiet(9).produced(1, "a");
    let run = run.with(Event::ServerUp).quiet(5).begin(2, "b").produced(2, "b").completes(2);
    run.breaks(&[Rule::ResultsAreNotReplaced]);
}

#[test]
fn a_process_that_shuts_down_must_store_its_results() {
    let [asked, exited] = [Event::AskedToStop { run: "a".to_owned() }, Event::Exited { run: "a".to_owned() }];
    let run = || Run::resumes().created().begin(1, "a").produced(1, "a").with(asked.clone());
    let replaced = |run: Run| run.begin(2, "b").produced(2, "b").completes(2);
    replaced(run().with(exited.clone())).breaks(&[Rule::ResultsAreNotReplaced]);
    let away = run().with(Event::ServerKilled).with(exited.clone()).with(Event::ServerUp);
    replaced(away).breaks(&[]);
}

#[test]
fn an_attempt_that_begins_after_an_acknowledged_cancel_is_reported() {
    let run = |found| Run::resumes().created().begin(1, "a").killed("a").cancelled(found);
    run(held(1)).ends_cancelled().breaks(&[]);
    run(held(1)).begin(2, "b").ends_cancelled().breaks(&[Rule::CancelsAreNotForgotten]);
    let completed = run(held(1)).begin(2, "b").produced(2, "b").completes(2);
    completed.breaks(&[Rule::CancelsAreNotForgotten, Rule::CancelsAreNotForgotten]);
    // The attempt was claimed before the cancel, and its operation begins later.
    run(held(2)).begin(2, "b").produced(2, "b").completes(2).breaks(&[]);
}

#[test]
fn an_acknowledged_cancel_that_has_no_effect_is_reported() {
    let run = |found| Run::resumes().created().begin(1, "a").killed("a").cancelled(found).ends_cancelled();
    run(Found { is_held: false, ..held(1) }).breaks(&[Rule::CancelsAreNotForgotten]);
    run(Found { cancel_requested: false, ..held(1) }).breaks(&[Rule::CancelsAreNotForgotten]);
}

#[test]
fn a_cancelled_task_that_fails_with_its_worker_is_reported() {
    let run = Run::fails().created().begin(1, "a").cancelled(held(1)).killed("a");
    run.fails_with(LOST).breaks(&[Rule::CancelsAreNotForgotten]);
}

#[test]
fn a_task_that_is_cancelled_without_a_request_is_reported() {
    Run::fails().created().begin(1, "a").ends_cancelled().breaks(&[Rule::CancelsAreNotForgotten]);
}

#[test]
fn an_attempt_number_that_runs_twice_is_reported() {
    let run = Run::resumes().created().begin(1, "a").killed("a").begin(2, "b").begin(2, "b");
    run.produced(2, "b").completes(2).breaks(&[Rule::AttemptsRunOnce]);
}

#[test]
fn too_few_resumptions_are_reported() {
    let mut run =
        Run::resumes().created().begin(1, "a").killed("a").begin(2, "b").produced(2, "b").completes(2);
    run.bounds.least_resumptions = 1;
    run.breaks(&[]);
    run.bounds.least_resumptions = 2;
    run.breaks(&[Rule::EnoughResumptions]);
}

#[test]
fn a_worker_that_is_declared_lost_while_it_is_alive_is_reported() {
    let run = || Run::fails().created().begin(1, "a");
    run().killed("a").fails_with(LOST).breaks(&[]);
    run().paused("a", 5).fails_with(LOST).breaks(&[]);
    run().with(Event::AskedToStop { run: "a".to_owned() }).fails_with(LOST).breaks(&[]);
    let late = Run::fails().created().with(Event::AskedToStop { run: "a".to_owned() }).begin(1, "a");
    late.fails_with(LOST).breaks(&[]);
    // The worker was stopped after it had created the task, and before the operation began.
    let between = Run::fails().paused("a", 9).created().begin(1, "a").fails_with(LOST);
    between.breaks(&[]);
    let long_before = Run::fails().paused("a", 9).quiet(5).created().begin(1, "a").fails_with(LOST);
    long_before.breaks(&[Rule::ReasonsAreHonest]);
    run().quiet(9).fails_with(LOST).breaks(&[Rule::ReasonsAreHonest]);
    // Faults of other workers, or of the server, are no reason.
    run().killed("b").fails_with(LOST).breaks(&[Rule::ReasonsAreHonest]);
    run()
        .with(Event::ServerPaused)
        .quiet(9)
        .with(Event::ServerUp)
        .fails_with(LOST)
        .breaks(&[Rule::ReasonsAreHonest]);
    // A task that resumes does not fail with its worker.
    let resumes = Run::resumes().created().begin(1, "a").killed("a").fails_with(LOST);
    resumes.breaks(&[Rule::ReasonsAreHonest]);
}

#[test]
fn a_task_that_fails_after_too_few_or_too_many_attempts_is_reported() {
    let run = || {
        let lost = Run::resumes().created().begin(1, "a").killed("a").begin(2, "b").killed("b");
        lost.with(Event::Started { run: "c".to_owned() }).with(Event::Started { run: "d".to_owned() })
    };
    let lost = || run().begin(3, "c").killed("c");
    lost().fails_with(GAVE_UP).breaks(&[]);
    lost().begin(4, "d").produced(4, "d").completes(4).breaks(&[Rule::ReasonsAreHonest]);
    let early = Run::resumes().created().begin(1, "a").killed("a").fails_with(GAVE_UP);
    early.breaks(&[Rule::ReasonsAreHonest]);
    // A release does not count.
    let released =
        Run::resumes().created().begin(1, "a").with(Event::AskedToStop { run: "a".to_owned() }).killed("a");
    let released = released.begin(2, "b").killed("b").with(Event::Started { run: "c".to_owned() });
    let released = released.begin(3, "c").killed("c").with(Event::Started { run: "d".to_owned() });
    released.begin(4, "d").produced(4, "d").completes(4).breaks(&[]);
}

#[test]
fn violations_that_a_failover_may_have_caused_are_reported_separately() {
    let lost = |writes_lost: Option<Event>| {
        let run = Run::resumes().created().begin(1, "a").with(Event::ServerPaused).produced(1, "a").quiet(5);
        let run = run.with(Event::ServerUp);
        writes_lost.into_iter().fold(run, Run::with).quiet(9).begin(2, "b").produced(2, "b").completes(2)
    };
    let run = lost(Some(Event::WritesLost));
    run.breaks(&[]);
    assert_eq!(run.check().lost_writes.len(), 1);
    lost(None).breaks(&[Rule::ResultsAreNotReplaced]);
    // No write of the task happened during the failover.
    let run = Run::resumes().created().begin(1, "a").produced(1, "a").quiet(5).with(Event::ServerPaused);
    let run = run.with(Event::ServerUp).with(Event::WritesLost).begin(2, "b").produced(2, "b").completes(2);
    run.breaks(&[Rule::ResultsAreNotReplaced]);
}

#[test]
fn a_task_that_fails_before_its_ttl_has_elapsed_or_for_another_reason_is_reported() {
    let brief = Run::new(Plan { brief: true, ..Plan::default() }).created().begin(1, "a");
    brief.fails_with("TTL elapsed").breaks(&[]);
    Run::fails().created().begin(1, "a").fails_with("TTL elapsed").breaks(&[Rule::ReasonsAreHonest]);
    let other = Run::fails().created().begin(1, "a").fails_with("the tasks cannot be reached at the moment");
    other.breaks(&[Rule::ReasonsAreHonest]);
}

#[test]
fn a_terminal_status_that_changes_after_a_client_read_it_is_reported() {
    let run = Run::fails().created().begin(1, "a").killed("a").seen("completed").fails_with(LOST);
    run.breaks(&[Rule::EndsAreFinal]);
    let ended = Found { status: "cancelled".to_owned(), attempt: None, is_held: false, ..held(1) };
    let run = Run::fails().created().begin(1, "a").cancelled(ended).produced(1, "a").completes(1);
    run.breaks(&[Rule::EndsAreFinal]);
}
