//! The rules of a run, checked against its log and the records of its tasks.

use std::collections::{BTreeMap, HashSet};
use std::fmt;

use super::ends::End;
use super::history::{Begun, History, Produced, Span, Story};
use super::log::Line;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    AcknowledgedTasksEnd,
    ResultsWereProduced,
    ResultsAreNotReplaced,
    CancelsAreNotForgotten,
    AttemptsRunOnce,
    EnoughResumptions,
    ReasonsAreHonest,
    /// The record of an ended task has the status that a client read.
    EndsAreFinal,
}

/// The limits, with times in microseconds.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// A worker that is silent for a shorter time loses no lease.
    pub silence: u64,
    /// A worker that can reach the server for this long without a break has stored its result.
    pub storing: u64,
    pub max_attempts: u32,
    /// Whether the process that creates a task makes the first attempt.
    pub begins_where_created: bool,
    pub least_resumptions: usize,
}

#[derive(Debug)]
pub struct Violation {
    pub rule: Rule,
    pub task: String,
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: task {}: {}", self.rule, self.task, self.what)
    }
}

/// The violations, and how many cases each rule checked.
#[derive(Debug, Default)]
pub struct Report {
    pub violations: Vec<Violation>,
    /// Violations that concern tasks whose writes a failover may have lost.
    pub lost_writes: Vec<Violation>,
    pub acknowledged: usize,
    pub by_status: BTreeMap<String, usize>,
    pub resumptions: usize,
    /// Results that must not be replaced.
    pub kept_results: usize,
    /// Results whose worker was disturbed before it could store them.
    pub excused_results: usize,
    /// Cancels that were acknowledged while the task had a worker.
    pub cancels_of_running: usize,
    pub cancels: usize,
    pub lost: usize,
    pub gave_up: usize,
    pub overdue: usize,
}

const LOST: &str = "the worker of the task was lost";
const OVERDUE: &str = "TTL elapsed";

pub fn check(lines: &[Line], ends: &BTreeMap<String, End>, bounds: Bounds) -> Report {
    let history = History::of(lines);
    let mut report = Report::default();
    for (&task, story) in &history.stories {
        let case = Case { history: &history, task, story, end: ends.get(task), bounds };
        case.check(&mut report);
    }
    let violations = std::mem::take(&mut report.violations);
    (report.lost_writes, report.violations) =
        violations.into_iter().partition(|violation| history.may_be_lost(&violation.task));
    if report.resumptions < bounds.least_resumptions {
        let what = format!("only {} resumptions", report.resumptions);
        report.violations.push(Violation { rule: Rule::EnoughResumptions, task: "-".to_owned(), what });
    }
    report
}

/// The check of one task.
struct Case<'a> {
    history: &'a History<'a>,
    task: &'a str,
    story: &'a Story<'a>,
    end: Option<&'a End>,
    bounds: Bounds,
}

impl Case<'_> {
    fn check(&self, report: &mut Report) {
        report.resumptions += self.story.begun.iter().filter(|begun| begun.attempt > 1).count();
        self.attempts_run_once(report);
        if self.story.created.is_some() {
            report.acknowledged += 1;
            if self.end.is_none_or(End::is_open) {
                self.violated(report, Rule::AcknowledgedTasksEnd, "the task does not end".to_owned());
            }
        }
        let Some(end) = self.end else { return };
        *report.by_status.entry(end.status.clone()).or_default() += 1;
        for (seen, _) in &self.story.ended {
            if *seen != end.status {
                self.violated(
                    report,
                    Rule::EndsAreFinal,
                    format!("a client saw {seen}, and the record says {}", end.status),
                );
            }
        }
        self.results_were_produced(report, end);
        for produced in &self.story.produced {
            self.results_are_not_replaced(report, end, produced);
        }
        self.cancels_are_not_forgotten(report, end);
        self.reasons_are_true(report, end);
    }

    fn violated(&self, report: &mut Report, rule: Rule, what: String) {
        report.violations.push(Violation { rule, task: self.task.to_owned(), what });
    }

    fn attempts_run_once(&self, report: &mut Report) {
        let mut seen = HashSet::new();
        for begun in &self.story.begun {
            if !seen.insert(begun.attempt) {
                self.violated(
                    report,
                    Rule::AttemptsRunOnce,
                    format!("attempt {} began twice", begun.attempt),
                );
            }
        }
    }

    fn results_were_produced(&self, report: &mut Report, end: &End) {
        let plan = self.story.plan.expect("each line about a new task has its plan");
        let expected = plan.answer();
        if let Some(other) = self.story.answers.iter().find(|answer| **answer != expected) {
            self.violated(
                report,
                Rule::ResultsWereProduced,
                format!("it was answered {expected:?}, and got {other:?}"),
            );
        }
        if end.status != "completed" {
            return;
        }
        let Some(result) = &end.result else {
            return self.violated(report, Rule::ResultsWereProduced, "it has no result".to_owned());
        };
        let is_it =
            |produced: &Produced| produced.nonce == result.nonce && produced.attempt == result.attempt;
        if !self.story.produced.iter().any(is_it) {
            self.violated(report, Rule::ResultsWereProduced, format!("no operation produced {result:?}"));
        }
        if plan.asks && result.answer != Some(expected) {
            self.violated(report, Rule::ResultsWereProduced, format!("it asked, and has {result:?}"));
        }
    }

    /// Checks that no result was replaced that had to stay. A result must not be replaced if no later attempt had begun
    /// when it was produced, and its worker was neither silent for too long nor ended before it could store the result.
    fn results_are_not_replaced(&self, report: &mut Report, end: &End, produced: &Produced) {
        let begun = self.story.begun.iter().find(|begun| begun.attempt == produced.attempt);
        let begun = begun.expect("what produces a result has begun");
        let is_superseded = self
            .story
            .begun
            .iter()
            .any(|other| other.attempt > produced.attempt && other.line < produced.line);
        let is_brief = self.story.plan.is_some_and(|plan| plan.brief);
        if is_superseded || is_brief {
            return;
        }
        let (life, stored_by) = (
            self.history.life(produced.run),
            self.history.stored_by(produced.run, produced.at, self.bounds.storing),
        );
        let is_killed = life.killed.is_some_and(|killed| killed < stored_by);
        // A process that shuts down stores its results, unless it cannot reach the server.
        let is_hindered = life.exited.is_some_and(|exited| {
            exited < stored_by
                && self.history.is_disturbed(produced.run, Span { from: produced.at, to: exited })
        });
        let was_silent =
            life.was_silent(Span { from: self.claimed(begun.at), to: stored_by }, self.bounds.silence);
        if is_killed || is_hindered || was_silent {
            report.excused_results += 1;
            return;
        }
        report.kept_results += 1;
        if end.result.as_ref().is_none_or(|result| result.nonce != produced.nonce) {
            let ended = end.error.as_deref().unwrap_or(&end.status);
            let what = format!("the result of attempt {} is replaced by {ended:?}", produced.attempt);
            self.violated(report, Rule::ResultsAreNotReplaced, what);
        }
    }

    fn cancels_are_not_forgotten(&self, report: &mut Report, end: &End) {
        const RULE: Rule = Rule::CancelsAreNotForgotten;
        if end.status == "cancelled" && !self.story.is_cancel_sent {
            self.violated(report, RULE, "it is cancelled, and no client requested that".to_owned());
        }
        for (line, found) in &self.story.cancelled {
            report.cancels += 1;
            if found.status != "working" && found.status != "input_required" {
                if found.status != end.status {
                    self.violated(report, Rule::EndsAreFinal, format!("it was {}", found.status));
                }
                continue;
            }
            let Some(attempt) = found.attempt.filter(|_| found.is_held && found.cancel_requested) else {
                self.violated(report, RULE, format!("the cancel is forgotten at once: {found:?}"));
                continue;
            };
            report.cancels_of_running += 1;
            let later = |begun: &&Begun| begun.attempt > attempt && begun.line > *line;
            if let Some(begun) = self.story.begun.iter().find(later) {
                self.violated(report, RULE, format!("attempt {} began after it", begun.attempt));
            }
            let is_of_that = end.result.as_ref().is_some_and(|result| result.attempt <= attempt);
            match end.status.as_str() {
                "cancelled" => {}
                "completed" if is_of_that => {}
                other => self.violated(
                    report,
                    RULE,
                    format!("attempt {attempt} ran when it was cancelled: {other}"),
                ),
            }
        }
    }

    fn reasons_are_true(&self, report: &mut Report, end: &End) {
        const RULE: Rule = Rule::ReasonsAreHonest;
        let plan = self.story.plan.expect("each line about a new task has its plan");
        let until = self.story.seen_ended(self.history.ends);
        let certain = |begun: &&Begun| {
            let next =
                self.story.begun.iter().filter(|next| next.attempt > begun.attempt).map(|next| next.at).min();
            let life = self.history.life(begun.run);
            life.asked_to_stop.is_none()
                && next.is_some_and(|next| life.killed.is_some_and(|killed| killed < next))
        };
        let certainly_lost = self.story.begun.iter().filter(certain).count();
        if certainly_lost >= self.bounds.max_attempts as usize {
            self.violated(report, RULE, format!("it lost {certainly_lost} workers and was run again"));
        }
        if end.status != "failed" {
            return;
        }
        let error = end.error.as_deref().unwrap_or_default();
        if error == OVERDUE && plan.brief {
            report.overdue += 1;
        } else if error == LOST && !plan.resume {
            report.lost += 1;
            if !self.may_have_lost(1, until) {
                self.violated(report, RULE, format!("{error:?}, and its worker was alive"));
            }
        } else if error.starts_with(&format!("gave up after {} attempts", self.bounds.max_attempts))
            && plan.resume
        {
            report.gave_up += 1;
            let highest = self.story.begun.iter().map(|begun| begun.attempt).max().unwrap_or_default();
            let lost = (1..=highest).filter(|attempt| self.may_have_lost(*attempt, until)).count();
            // The worker of the last attempt may have been lost before the operation began.
            if lost + 1 < self.bounds.max_attempts as usize {
                self.violated(report, RULE, format!("{error:?}, and {lost} workers can have been lost"));
            }
        } else {
            self.violated(report, RULE, format!("{error:?}"));
        }
    }

    /// Returns the earliest time at which the lease of an attempt may have been written, if its worker acted on it at this moment.
    /// The worker may have been silent in between.
    fn claimed(&self, at: u64) -> u64 {
        at.saturating_sub(self.bounds.storing)
    }

    /// Returns whether the worker of an attempt can have been lost, or can have released it, before a moment.
    fn may_have_lost(&self, attempt: u32, until: u64) -> bool {
        let began = self.story.begun.iter().find(|begun| begun.attempt == attempt);
        let (run, from) = match (began, self.story.created) {
            (Some(begun), _) => (begun.run, self.claimed(begun.at)),
            // The attempt was lost before the operation began. The process is known only for a first attempt.
            (None, Some((run, at))) if attempt == 1 && self.bounds.begins_where_created => {
                (run, self.claimed(at))
            }
            _ => return true,
        };
        self.history.life(run).may_have_lost(Span { from, to: until }, self.bounds.silence)
    }
}
