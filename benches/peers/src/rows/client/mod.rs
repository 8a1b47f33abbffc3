//! The cost of a call in the client: allocations, and instructions.

pub mod allocations;
pub mod callgrind;

use anyhow::Result;
use clap::ValueEnum;

use crate::bench::Bench;
use crate::calls::{create, get, swap};
use crate::contender::{Contender, HOUR};
use crate::record::{Records, records};
use crate::report::Report;
use crate::row::Row;

/// The calls whose cost is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Work {
    Create,
    Swap,
    Get,
    /// A page of 20. Only this crate has it.
    Page,
    /// A status update through the store, by key. The bare commands have no store.
    StatusByKey,
    /// A status update of the copy that the previous update returned. Only this crate has it.
    StatusOfCopy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Who {
    Ours,
    Peer,
    Bare,
}

const ALL: [Who; 3] = [Who::Ours, Who::Peer, Who::Bare];

pub async fn rows(bench: &Bench, report: &mut Report) -> Result<()> {
    allocations::rows(bench, report).await?;
    callgrind::rows(bench, report)
}

/// A row of the table.
struct Counted {
    work: Work,
    name: &'static str,
    in_flight: usize,
    /// What a call of this crate cost before group commit, counted by this program. Such a row has the target not to cost more.
    /// The counts vary a little, so more is what differs by a tenth of an allocation, or by 1 % of the instructions.
    before_group_commit: Option<Before>,
}

struct Before {
    allocations: f64,
    instructions: f64,
}

const COUNTED: [Counted; 5] = [
    Counted {
        work: Work::Create,
        name: "create, one at a time",
        in_flight: 1,
        before_group_commit: Some(Before { allocations: 15.2, instructions: 22_690.0 }),
    },
    Counted {
        work: Work::Create,
        name: "create, 64 in flight",
        in_flight: 64,
        before_group_commit: Some(Before { allocations: 14.2, instructions: 18_597.0 }),
    },
    Counted {
        work: Work::Swap,
        name: "`put_if_version` with `Keep`, one at a time",
        in_flight: 1,
        before_group_commit: Some(Before { allocations: 14.2, instructions: 20_005.0 }),
    },
    Counted {
        work: Work::Swap,
        name: "`put_if_version` with `Keep`, 64 in flight",
        in_flight: 64,
        before_group_commit: Some(Before { allocations: 13.1, instructions: 15_866.0 }),
    },
    Counted { work: Work::Get, name: "`get`, one at a time", in_flight: 1, before_group_commit: None },
];

/// Puts the figure into the column of the contender.
fn cell(row: Row, who: Who, text: String) -> Row {
    match who {
        Who::Ours => row.ours(text),
        Who::Peer => row.peer(text),
        Who::Bare => row.bare(text),
    }
}

/// Creates records. Each call clones the data; the first clone of all allocates, so it is made here.
fn prepare<C: Contender>(count: usize, size: usize) -> Records<C> {
    let records = records::<C>(count, 4, size, HOUR);
    for (_, data) in records.iter() {
        drop(data.clone());
    }
    records
}

/// Makes one call for each record.
async fn run<C: Contender>(contender: &C, records: &Records<C>, work: Work, in_flight: usize) -> Result<()> {
    match work {
        Work::Create => create(contender, records, in_flight).await?,
        Work::Swap => swap(contender, records, in_flight, 1).await?,
        _ => get(contender, records, in_flight, records.len()).await?,
    };
    Ok(())
}
