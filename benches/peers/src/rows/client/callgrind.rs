//! How many instructions a call takes, counted by callgrind.

use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use mcp_task_store::{OwnerId, PageRequest, RedisBackend, StorageBackend, TaskStore};
use pmcp_tasks::GenericTaskStore;

use super::{ALL, COUNTED, Counted, Who, Work, cell, prepare, run};
use crate::bench::{Bench, Contenders};
use crate::calls::create;
use crate::contender::{Contender, Ours};
use crate::record::TYPICAL;
use crate::report::Report;
use crate::row::{Row, Target};
use crate::rows::tasks::{new_task, status, their_task};

const FEW: usize = 64;
const MANY: usize = 256;

/// The calls that only callgrind counts.
const OTHERS: [Counted; 3] = [
    one_at_a_time(Work::Page, "a page of 20"),
    one_at_a_time(Work::StatusByKey, "a status update by key"),
    one_at_a_time(Work::StatusOfCopy, "a status update of the copy just returned"),
];

const fn one_at_a_time(work: Work, name: &'static str) -> Counted {
    Counted { work, name, in_flight: 1, before_group_commit: None }
}

pub fn rows(bench: &Bench, report: &mut Report) -> Result<()> {
    bench.step("instructions");
    // Callgrind takes a second for each count, so a check makes one.
    let counted = COUNTED.iter().chain(&OTHERS).take(if bench.form.is_check() { 1 } else { usize::MAX });
    for counted in counted {
        let mut row =
            Row::new(format!("instructions per call in the client, by callgrind: {}", counted.name));
        for who in ALL.into_iter().take(if bench.form.is_check() { 1 } else { contenders(counted) }) {
            let count = instructions(bench, who, counted)?;
            row = cell(row, who, format!("{count:.0}"));
            if let (Who::Ours, Some(before)) = (who, &counted.before_group_commit) {
                let text = format!("{count:.0}, {:.0} before group commit", before.instructions);
                row = row.figure(&text, count, Target::AtMost((before.instructions * 1.01).round()));
            }
        }
        report.add(row);
    }
    Ok(())
}

/// Returns how many of the contenders are counted.
fn contenders(counted: &Counted) -> usize {
    match counted.work {
        Work::Page | Work::StatusOfCopy => 1,
        _ if counted.in_flight > 1 => 1,
        Work::StatusByKey => 2,
        Work::Create | Work::Swap | Work::Get => 3,
    }
}

/// Returns the instructions of one call. Two processes under callgrind make many calls and few calls; the difference is the cost
/// of the additional calls.
fn instructions(bench: &Bench, who: Who, counted: &Counted) -> Result<f64> {
    let count = |calls| count_instructions(bench, who, counted, calls);
    Ok((count(MANY)? - count(FEW)?) / (MANY - FEW) as f64)
}

fn count_instructions(bench: &Bench, who: Who, counted: &Counted, calls: usize) -> Result<f64> {
    bench.server.clear()?;
    let folder = tempfile::tempdir()?;
    let out = folder.path().join("callgrind.out");
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", &format!("--callgrind-out-file={}", out.display())])
        .arg(std::env::current_exe()?)
        .args(["calls", &bench.server.url(), &name(who)?, &name(counted.work)?])
        .args([calls.to_string(), counted.in_flight.to_string()])
        .output()
        .context("cannot start valgrind")?;
    anyhow::ensure!(output.status.success(), "valgrind: {}", String::from_utf8_lossy(&output.stderr));
    let counted = std::fs::read_to_string(&out)?;
    let total =
        counted.lines().find_map(|line| line.strip_prefix("totals: ").or(line.strip_prefix("summary: ")));
    total.and_then(|total| total.trim().parse().ok()).context("the output of callgrind has no total")
}

/// Returns the name of a value on the command line.
fn name(value: impl ValueEnum) -> Result<String> {
    Ok(value.to_possible_value().context("a value with a name")?.get_name().to_owned())
}

/// The calls that a process under callgrind makes.
#[derive(Args)]
pub struct Calls {
    url: String,
    who: Who,
    work: Work,
    calls: usize,
    in_flight: usize,
}

impl Calls {
    pub async fn make(&self) -> Result<()> {
        let contenders = Contenders::connect(&self.url).await?;
        match (self.work, self.who) {
            (Work::Page, _) => self.pages(&contenders.ours.0).await,
            (Work::StatusByKey, Who::Peer) => self.peer_status_updates(contenders.peer.0).await,
            (Work::StatusByKey | Work::StatusOfCopy, _) => self.status_updates(contenders.ours.0).await,
            (_, Who::Ours) => self.make_by(&contenders.ours).await,
            (_, Who::Peer) => self.make_by(&contenders.peer).await,
            (_, Who::Bare) => self.make_by(&contenders.bare).await,
        }
    }

    async fn pages(&self, backend: &RedisBackend) -> Result<()> {
        create(&Ours(backend.clone()), &prepare::<Ours>(100, TYPICAL), 1).await?;
        let owner = OwnerId::try_from("owner-0")?;
        for _ in 0..self.calls {
            anyhow::ensure!(backend.list(&owner, PageRequest::new(20)).await?.records.len() == 20);
        }
        Ok(())
    }

    async fn status_updates(&self, backend: RedisBackend) -> Result<()> {
        let store = TaskStore::new(backend);
        let mut task = store.create(&OwnerId::try_from("owner-0")?, new_task()).await?;
        for number in 0..self.calls {
            task = match self.work {
                Work::StatusOfCopy => store.set_status_message(&task, status(number)).await?,
                _ => store.set_status_message(&task.key, status(number)).await?,
            };
        }
        Ok(())
    }

    async fn peer_status_updates(&self, backend: pmcp_tasks::RedisBackend) -> Result<()> {
        let store = Arc::new(GenericTaskStore::new(backend));
        let task = their_task(&store, "owner-0").await?;
        for number in 0..self.calls {
            store.set_status_message(&task, "owner-0", Some(status(number))).await?;
        }
        Ok(())
    }

    /// Makes the calls on some of the records. The preparation of all does not depend on the number of calls, so the difference of
    /// two runs contains only calls.
    async fn make_by<C: Contender>(&self, contender: &C) -> Result<()> {
        let (called, others) = (prepare::<C>(self.calls, TYPICAL), prepare::<C>(MANY - self.calls, TYPICAL));
        if self.work != Work::Create {
            create(contender, &called, self.in_flight).await?;
            create(contender, &others, self.in_flight).await?;
        }
        run(contender, &called, self.work, self.in_flight).await
    }
}
