//! The specification of a record, call by call, and the check of histories of concurrent calls against it.

use std::collections::BTreeSet;
use std::fmt;

use todc_utils::{Action, History, Specification, WGLChecker};

/// How many operations a report shows before the unexplained one.
const SHOWN: usize = 60;

/// A live record. Every write stores a number of its own, so a read identifies the write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Live {
    pub version: u64,
    pub data: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    Get,
    Put { data: u64 },
    PutIfVersion { data: u64, expected: u64 },
    Delete,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    Read(Live),
    Written { version: u64 },
    Deleted(bool),
    VersionConflict { actual: u64 },
    NotFound,
}

impl Call {
    /// Returns the reply to this call and the record after it, as the table of the contract says for records that do not expire
    /// during the test.
    pub fn perform(self, record: Option<Live>) -> (Reply, Option<Live>) {
        let version = record.map_or(0, |live| live.version);
        let write = |data| {
            let version = version + 1;
            (Reply::Written { version }, Some(Live { version, data }))
        };
        match (self, record) {
            (Self::Get, None) => (Reply::NotFound, None),
            (Self::Get, Some(live)) => (Reply::Read(live), record),
            (Self::Put { data }, _) => write(data),
            // An absent record has version 0, so a write that expects 0 creates it.
            (Self::PutIfVersion { data, expected }, _) if expected == version => write(data),
            (Self::PutIfVersion { .. }, Some(_)) => (Reply::VersionConflict { actual: version }, record),
            (Self::PutIfVersion { .. }, None) => (Reply::NotFound, None),
            (Self::Delete, _) => (Reply::Deleted(record.is_some()), None),
        }
    }
}

/// What a client knows about its call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// No call: the record when the history begins.
    Begins(Option<Live>),
    Answered(Call, Reply),
    /// A write that failed and may have been applied, at most once.
    Unknown(Call),
}

/// The specification for the checker.
///
/// The checker needs one next state for each operation, but a write with an unknown outcome has two. So a state is the *set* of the
/// possible records. An unknown write keeps every member, and adds the record that the write would make of it. A reply removes the
/// members that would have led to another reply, and is possible if a member is left.
///
/// This is exact. After each operation of an order, the set holds precisely the records to which some choice of "applied" or "not
/// applied" for the unknown writes leads, with every reply as it was. It is empty if and only if every choice contradicts a reply.
/// The checker searches all orders. So it finds one if and only if an order and a choice explain the history. Each write branches
/// once, so none is applied twice.
pub struct PossibleRecords;

impl Specification for PossibleRecords {
    type State = BTreeSet<Option<Live>>;
    type Operation = Operation;

    fn init() -> Self::State {
        BTreeSet::from([None])
    }

    fn apply(operation: &Operation, records: &Self::State) -> (bool, Self::State) {
        let next: Self::State = match *operation {
            Operation::Begins(record) => BTreeSet::from([record]),
            Operation::Answered(call, reply) => {
                let performed = records.iter().map(|&record| call.perform(record));
                performed.filter(|(given, _)| *given == reply).map(|(_, record)| record).collect()
            }
            Operation::Unknown(call) => {
                records.iter().flat_map(|&record| [record, call.perform(record).1]).collect()
            }
        };
        if next.is_empty() { (false, records.clone()) } else { (true, next) }
    }
}

/// An operation on one key between two moments of a counter that all clients share. The call was made after `called`, and its reply
/// arrived before `ended`.
#[derive(Clone, Copy, Debug)]
pub struct Recorded {
    pub called: u64,
    pub ended: u64,
    pub operation: Operation,
}

/// The operations on one key between two reads during which no call was running.
#[derive(Clone, Debug)]
pub struct Segment {
    pub begins: Option<Live>,
    pub operations: Vec<Recorded>,
    pub ends: Option<Live>,
}

impl Segment {
    /// Returns whether some order of the operations explains every reply and leads from the first read to the last.
    pub fn is_linearizable(&self) -> bool {
        let last_read = match self.ends {
            Some(live) => Operation::Answered(Call::Get, Reply::Read(live)),
            None => Operation::Answered(Call::Get, Reply::NotFound),
        };
        self.is_linearizable_until(u64::MAX, Some(last_read))
    }

    /// Returns the same for the calls and replies before a moment.
    fn is_linearizable_until(&self, moment: u64, last_read: Option<Operation>) -> bool {
        let (mut moments, mut open) = (Vec::new(), Vec::new());
        // Each operation is a process for the checker: a client makes further calls while its write with an unknown outcome may
        // still take effect.
        let operations = self.operations.iter().filter(|recorded| recorded.called <= moment);
        for (process, &Recorded { called, ended, operation }) in (1..).zip(operations) {
            let operation = match operation {
                Operation::Answered(call, _) if ended > moment => Operation::Unknown(call),
                known => known,
            };
            moments.push((called, (process, Action::Call(operation))));
            match operation {
                Operation::Unknown(_) => open.push((process, Action::Response(operation))),
                _ => moments.push((ended, (process, Action::Response(operation)))),
            }
        }
        moments.sort_by_key(|(moment, _)| *moment);
        let alone =
            |process, operation| [(process, Action::Call(operation)), (process, Action::Response(operation))];
        let mut actions = Vec::from(alone(0, Operation::Begins(self.begins)));
        actions.extend(moments.into_iter().map(|(_, action)| action));
        actions.extend(open);
        actions.extend(last_read.into_iter().flat_map(|read| alone(self.operations.len() + 1, read)));
        WGLChecker::<PossibleRecords>::is_linearizable(History::from_actions(actions))
    }

    /// Returns the moment of the first reply that nothing explains, or the end if that is the last read.
    fn first_unexplained(&self) -> u64 {
        let mut ends: Vec<u64> = self.operations.iter().map(|recorded| recorded.ended).collect();
        ends.sort_unstable();
        // Later operations cannot explain an earlier reply.
        let explained = ends.partition_point(|&moment| self.is_linearizable_until(moment, None));
        ends.get(explained).copied().unwrap_or(u64::MAX)
    }
}

/// Prints a segment that nothing explains: the first such reply, and the operations before it.
impl fmt::Display for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let moment = self.first_unexplained();
        let mut operations: Vec<_> = self.operations.iter().filter(|o| o.called <= moment).collect();
        operations.sort_by_key(|recorded| (recorded.ended, recorded.called));
        let at = operations.partition_point(|recorded| recorded.ended <= moment);
        writeln!(f, "the record begins as {:?}", self.begins)?;
        for recorded in &operations[at.saturating_sub(SHOWN)..] {
            let mark = if recorded.ended == moment { "  <- nothing explains this" } else { "" };
            writeln!(f, "{:>8} to {:>8}  {:?}{mark}", recorded.called, recorded.ended, recorded.operation)?;
        }
        if moment == u64::MAX {
            writeln!(f, "the record ends as {:?}, which nothing explains", self.ends)?;
        }
        Ok(())
    }
}
