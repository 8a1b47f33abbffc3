//! The events of a run, by task and by worker process.

use std::collections::BTreeMap;

use super::log::{Event, Found, Line};
use super::operation::Plan;

/// A span of time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Span {
    pub from: u64,
    pub to: u64,
}

impl Span {
    fn since(from: u64) -> Self {
        Self { from, to: u64::MAX }
    }

    pub fn overlaps(&self, other: Span) -> bool {
        self.from <= other.to && other.from <= self.to
    }

    fn lasts(&self) -> u64 {
        self.to - self.from
    }
}

/// The life of a worker process.
#[derive(Debug, Default)]
pub struct Life {
    pub killed: Option<u64>,
    pub asked_to_stop: Option<u64>,
    pub exited: Option<u64>,
    /// When it was stopped, or could not reach the server.
    pub disturbed: Vec<Span>,
}

impl Life {
    /// Returns whether a disturbance of at least `silence` overlaps this span.
    pub fn was_silent(&self, at: Span, silence: u64) -> bool {
        self.disturbed.iter().any(|span| span.lasts() >= silence && span.overlaps(at))
    }

    /// Returns whether its lease can have been lost or released in this span.
    pub fn may_have_lost(&self, at: Span, silence: u64) -> bool {
        // A process that shuts down may begin a task that it had accepted, and releases it at once.
        let is_before = |moment: Option<u64>| moment.is_some_and(|moment| moment <= at.to);
        is_before(self.killed) || is_before(self.asked_to_stop) || self.was_silent(at, silence)
    }
}

/// The start of an operation.
#[derive(Clone, Copy, Debug)]
pub struct Begun<'a> {
    pub line: usize,
    pub at: u64,
    pub attempt: u32,
    pub run: &'a str,
}

/// A result that an operation returned.
#[derive(Clone, Copy, Debug)]
pub struct Produced<'a> {
    pub line: usize,
    pub at: u64,
    pub attempt: u32,
    pub run: &'a str,
    pub nonce: &'a str,
}

/// The events of one task.
#[derive(Debug, Default)]
pub struct Story<'a> {
    pub plan: Option<&'a Plan>,
    /// The process that acknowledged its creation, and when.
    pub created: Option<(&'a str, u64)>,
    pub begun: Vec<Begun<'a>>,
    pub produced: Vec<Produced<'a>>,
    pub answers: Vec<&'a str>,
    pub is_cancel_sent: bool,
    pub cancelled: Vec<(usize, &'a Found)>,
    pub ended: Vec<(&'a str, u64)>,
}

#[derive(Debug)]
pub struct History<'a> {
    pub lines: &'a [Line],
    pub stories: BTreeMap<&'a str, Story<'a>>,
    pub lives: BTreeMap<&'a str, Life>,
    /// When the server was down or stopped.
    outages: Vec<Span>,
    /// When a failover may have lost writes.
    losses: Vec<Span>,
    /// When the last line was written.
    pub ends: u64,
}

impl<'a> History<'a> {
    pub fn of(lines: &'a [Line]) -> Self {
        let mut history = Self {
            lines,
            stories: BTreeMap::new(),
            lives: BTreeMap::new(),
            outages: Vec::new(),
            losses: Vec::new(),
            ends: lines.iter().map(|line| line.at).max().unwrap_or_default(),
        };
        for (number, line) in lines.iter().enumerate() {
            history.add(number, line);
        }
        history
    }

    fn add(&mut self, number: usize, Line { at, event }: &'a Line) {
        let at = *at;
        if let Some(task) = event.task() {
            self.stories.entry(task).or_default().add(number, at, event);
            return;
        }
        match event {
            Event::Killed { run } => self.life_of(run).killed = Some(at),
            Event::AskedToStop { run } => self.life_of(run).asked_to_stop = Some(at),
            Event::Exited { run } => self.life_of(run).exited = Some(at),
            Event::Paused { run } | Event::CutOff { run } => {
                self.life_of(run).disturbed.push(Span::since(at));
            }
            Event::Continued { run } | Event::Joined { run } => {
                end_last(&mut self.life_of(run).disturbed, at)
            }
            Event::Started { run } => {
                self.life_of(run);
            }
            Event::ServerKilled | Event::ServerPaused => self.outages.push(Span::since(at)),
            Event::ServerUp => end_last(&mut self.outages, at),
            Event::WritesLost => self.losses.extend(self.outages.last()),
            _ => {}
        }
    }

    fn life_of(&mut self, run: &'a str) -> &mut Life {
        self.lives.entry(run).or_default()
    }

    pub fn life(&self, run: &str) -> &Life {
        self.lives.get(run).unwrap_or_else(|| panic!("the process {run} was started"))
    }

    /// Returns the time by which a process must have stored the results that it had at `since`: once it has run and
    /// reached the server without a break for this long. Ignores whether the process was killed before.
    pub fn stored_by(&self, run: &str, since: u64, takes: u64) -> u64 {
        let disturbed = self.life(run).disturbed.iter().chain(&self.outages);
        let mut disturbed: Vec<Span> = disturbed.copied().collect();
        disturbed.sort_by_key(|span| span.from);
        let mut since = since;
        for span in disturbed {
            if span.overlaps(Span { from: since, to: since.saturating_add(takes) }) {
                since = since.max(span.to);
            }
        }
        since.saturating_add(takes)
    }

    /// Returns whether the process could not reach the server at some time of this span.
    pub fn is_disturbed(&self, run: &str, at: Span) -> bool {
        self.life(run).disturbed.iter().chain(&self.outages).any(|span| span.overlaps(at))
    }

    /// Returns whether a failover may have lost writes of this task.
    pub fn may_be_lost(&self, task: &str) -> bool {
        let is_of_it = |line: &&Line| line.event.task() == Some(task);
        self.lines.iter().filter(is_of_it).any(|line| {
            let at = Span { from: line.at, to: line.at };
            self.losses.iter().any(|loss| loss.overlaps(at))
        })
    }

    /// Returns the lines about a task and about the processes that worked on it.
    pub fn about(&self, task: &str) -> Vec<&'a Line> {
        let runs: Vec<&str> = self.stories.get(task).map_or_else(Vec::new, |story| {
            story.begun.iter().map(|begun| begun.run).chain(story.created.map(|(run, _)| run)).collect()
        });
        let is_about = |event: &Event| match event {
            Event::Started { run }
            | Event::Killed { run }
            | Event::AskedToStop { run }
            | Event::Exited { run }
            | Event::Paused { run }
            | Event::Continued { run }
            | Event::CutOff { run }
            | Event::Joined { run } => runs.contains(&run.as_str()),
            other => other.task().is_none_or(|about| about == task),
        };
        self.lines.iter().filter(|line| is_about(&line.event)).collect()
    }
}

fn end_last(spans: &mut [Span], at: u64) {
    spans.last_mut().expect("what ends has begun").to = at;
}

impl<'a> Story<'a> {
    fn add(&mut self, line: usize, at: u64, event: &'a Event) {
        match event {
            Event::Begin { attempt, run, plan, .. } => {
                self.plan = Some(plan);
                self.begun.push(Begun { line, at, attempt: *attempt, run });
            }
            Event::Produced { attempt, run, nonce, .. } => {
                self.produced.push(Produced { line, at, attempt: *attempt, run, nonce });
            }
            Event::GotAnswer { answer, .. } => self.answers.push(answer),
            Event::Created { run, plan, .. } => {
                self.plan = Some(plan);
                self.created = Some((run, at));
            }
            Event::CancelSent { .. } => self.is_cancel_sent = true,
            Event::Cancelled { found, .. } => self.cancelled.push((line, found)),
            Event::Ended { status, .. } => self.ended.push((status, at)),
            _ => {}
        }
    }

    /// Returns when a client read that it had ended, or `last`.
    pub fn seen_ended(&self, last: u64) -> u64 {
        self.ended.iter().map(|(_, at)| *at).min().unwrap_or(last)
    }
}
