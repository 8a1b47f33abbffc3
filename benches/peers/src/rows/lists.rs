//! Pages of an owner's records, and a create for an owner with many tasks.

use std::time::Instant;

use anyhow::Result;
use mcp_task_store::{Cursor, NewTask, OwnerId, PageRequest, StorageBackend, StoreConfig, TaskStore};
use pmcp_tasks::store::ListTasksOptions;
use pmcp_tasks::store::backend::{StorageBackend as _, make_prefix};
use pmcp_tasks::{GenericTaskStore, TaskSecurityConfig};

use crate::bench::Bench;
use crate::calls::put;
use crate::contender::{Bare, BareRecord, HOUR, Ours, Peer, bare_hash, bare_idx, bare_read};
use crate::format::{micros, short, thousands};
use crate::record::{TYPICAL, records};
use crate::report::Report;
use crate::rounds::alternate;
use crate::row::{Row, Target};

const OWNER: &str = "owner-0";
const PAGE: usize = 20;
const PAGES_A_ROUND: usize = 100;

pub async fn rows(bench: &Bench, report: &mut Report) -> Result<()> {
    bench.step("lists of 10,000");
    let count = bench.form.count(10_000);
    bench.server.clear()?;
    put(&bench.ours, &records::<Ours>(count, 1, TYPICAL, HOUR), 64).await?;
    put(&bench.peer, &records::<Peer>(count, 1, TYPICAL, HOUR), 64).await?;
    put(&bench.bare, &records::<Bare>(count, 1, TYPICAL, HOUR), 64).await?;
    all_records(bench, report, count).await?;
    one_page(bench, report, count).await?;
    creating(bench, report, count).await?;
    flat(bench, report).await
}

const SPEED: &str = "the peer's speed";
const BARE: &str = "the time of one ZRANGE and one pipeline of HMGET";

/// Returns a target that depends on the number of records, which a check divides.
fn at_least(bench: &Bench, ratio: f64) -> Target {
    Target::AtLeast(ratio / bench.form.divisor as f64)
}

async fn all_records(bench: &Bench, report: &mut Report, count: usize) -> Result<()> {
    let [ours, peer, bare] = alternate(bench.form.rounds, async |turn| match turn {
        0 => walk(bench, count).await,
        1 => peer_list(bench, count).await,
        _ => bare_list(bench, 0, count).await,
    })
    .await?;
    let row = Row::new(format!("all {} records of one owner", thousands(count)));
    let row = row.ours(micros(&ours)).peer(micros(&peer)).bare(micros(&bare));
    let row = row.ratio(SPEED, &peer.over(&ours), at_least(bench, 16.0));
    let row = row.reason(
        "the bare commands read all records in one pipeline, and miss the target too; a walk begins each page when it has the last one",
    );
    report.note_noise("a list", &bare);
    report.add(row.ratio(BARE, &ours.over(&bare), None));
    Ok(())
}

async fn one_page(bench: &Bench, report: &mut Report, count: usize) -> Result<()> {
    bench.step("pages out of 10,000");
    let store = GenericTaskStore::new(bench.peer.0.clone());
    let [ours, peer, bare] = alternate(bench.form.rounds, async |turn| match turn {
        0 => pages(bench, None).await,
        1 => peer_page(&store).await,
        _ => {
            let begun = Instant::now();
            for _ in 0..PAGES_A_ROUND {
                bare_list(bench, 0, PAGE).await?;
            }
            Ok(since(begun) / PAGES_A_ROUND as f64)
        }
    })
    .await?;
    let than_peer = peer.over(&ours);
    let row = Row::new(format!("a page of 20 out of {}", thousands(count)));
    let row = row.ours(micros(&ours)).peer(micros(&peer)).bare(micros(&bare)).headline(&than_peer);
    let row = row.ratio(SPEED, &than_peer, at_least(bench, 2_500.0));
    let row = row.reason("a page takes two round trips, as it does with the bare commands");
    report.add(row.ratio(BARE, &ours.over(&bare), None));
    Ok(())
}

async fn peer_page(store: &GenericTaskStore<pmcp_tasks::RedisBackend>) -> Result<f64> {
    let options = ListTasksOptions { owner_id: OWNER.into(), cursor: None, limit: Some(PAGE) };
    let begun = Instant::now();
    anyhow::ensure!(store.list(options).await?.tasks.len() == PAGE);
    Ok(since(begun))
}

/// Creates one more task for an owner with `count` tasks.
async fn creating(bench: &Bench, report: &mut Report, count: usize) -> Result<()> {
    bench.step("create with a quota");
    let config = StoreConfig::new().max_tasks_per_owner(1_000_000);
    let ours = TaskStore::with_config(bench.ours.0.clone(), config);
    let security = TaskSecurityConfig::default().with_max_tasks_per_owner(1_000_000);
    let peer = GenericTaskStore::new(bench.peer.0.clone()).with_security(security);
    let owner = OwnerId::try_from(OWNER)?;
    let new = || NewTask::new("tools/call").ttl(HOUR);
    let [ours, peer] = alternate(bench.form.rounds, async |turn| {
        let begun = Instant::now();
        if turn == 0 {
            for _ in 0..PAGES_A_ROUND {
                ours.create(&owner, new()).await?;
            }
            return Ok(since(begun) / PAGES_A_ROUND as f64);
        }
        peer.create(OWNER, "tools/call", Some(3_600_000)).await?;
        Ok(since(begun))
    })
    .await?;
    let work = format!("`TaskStore::create` with a quota, owner with {} live tasks", thousands(count));
    let row = Row::new(work).ours(micros(&ours)).peer(micros(&peer));
    report.add(row.ratio("the peer's speed", &peer.over(&ours), at_least(bench, 5_000.0)));
    Ok(())
}

/// Shows that a page costs the same for any number of records of the owner, and at any position.
async fn flat(bench: &Bench, report: &mut Report) -> Result<()> {
    let mut at = Vec::new();
    for count in [100, 10_000, 100_000] {
        let count = bench.form.count(count);
        bench.step(&format!("pages out of {count}"));
        bench.server.clear()?;
        put(&bench.ours, &records::<Ours>(count, 1, TYPICAL, HOUR), 64).await?;
        let middle = middle(bench, count).await?;
        let form = alternate(bench.form.few_rounds(), async |turn| match turn {
            0 => pages(bench, None).await,
            _ => pages(bench, Some(&middle)).await,
        });
        let times: [_; 2] = form.await?;
        at.push((count, times));
    }
    for (place, name) in ["first page", "page from the middle"].into_iter().enumerate() {
        let figures: Vec<_> = at
            .iter()
            .map(|(count, times)| format!("{}: {}", thousands(*count), micros(&times[place])))
            .collect();
        let (first, last) = (&at[0].1[place], &at[at.len() - 1].1[place]);
        let row =
            Row::new(format!("{name} of 20, by number of records of the owner")).ours(figures.join(", "));
        let ratio = last.median() / first.median();
        let text = format!("{} x from the fewest records to the most", short(ratio));
        report.add(row.figure(&text, ratio, Target::AtMost(1.5)));
    }
    Ok(())
}

fn since(begun: Instant) -> f64 {
    begun.elapsed().as_secs_f64() * 1e6
}

/// Returns the microseconds for all pages of an owner, at the maximum size.
async fn walk(bench: &Bench, count: usize) -> Result<f64> {
    let (begun, owner) = (Instant::now(), OwnerId::try_from(OWNER)?);
    let (mut seen, mut page) = (0, PageRequest::new(mcp_task_store::MAX_PAGE_LIMIT));
    loop {
        let read = bench.ours.0.list(&owner, page).await?;
        seen += read.records.len();
        let Some(next) = read.next else { break };
        page = PageRequest::new(mcp_task_store::MAX_PAGE_LIMIT).after(next);
    }
    anyhow::ensure!(seen == count, "{seen} of {count} records were listed");
    Ok(since(begun))
}

async fn peer_list(bench: &Bench, count: usize) -> Result<f64> {
    let begun = Instant::now();
    let read = bench.peer.0.list_by_prefix(&make_prefix(OWNER)).await?;
    anyhow::ensure!(read.len() == count, "{} of {count} records were listed", read.len());
    Ok(since(begun))
}

/// Returns the microseconds for the newest `count` records: their ids, then all hashes in one pipeline.
async fn bare_list(bench: &Bench, from: usize, count: usize) -> Result<f64> {
    let begun = Instant::now();
    let mut connection = bench.bare.0.clone();
    let mut ids = redis::cmd("ZRANGE");
    ids.arg(bare_idx(OWNER)).arg(from).arg(from + count - 1).arg("REV").arg("WITHSCORES");
    let ids: Vec<(String, f64)> = ids.query_async(&mut connection).await?;
    let mut hashes = redis::Pipeline::with_capacity(ids.len());
    for (id, _) in &ids {
        hashes.add_command(bare_read(&bare_hash(OWNER, id)));
    }
    let read: Vec<BareRecord> = hashes.query_async(&mut connection).await?;
    anyhow::ensure!(read.len() == count && read.iter().all(|(version, ..)| version.is_some()));
    Ok(since(begun))
}

/// Returns the microseconds per page of 20, after the cursor `after`.
async fn pages(bench: &Bench, after: Option<&Cursor>) -> Result<f64> {
    let owner = OwnerId::try_from(OWNER)?;
    let begun = Instant::now();
    for _ in 0..PAGES_A_ROUND {
        let page = PageRequest::new(PAGE);
        let page = match after {
            Some(after) => page.after(after.clone()),
            None => page,
        };
        anyhow::ensure!(bench.ours.0.list(&owner, page).await?.records.len() == PAGE);
    }
    Ok(since(begun) / PAGES_A_ROUND as f64)
}

/// Returns the cursor after the record in the middle.
async fn middle(bench: &Bench, count: usize) -> Result<Cursor> {
    let owner = OwnerId::try_from(OWNER)?;
    let rank = (count / 2).to_string();
    let idx = format!("pmcp:idx:{OWNER}");
    let found: Vec<(String, f64)> = bench.server.run(&["ZRANGE", &idx, &rank, &rank, "REV", "WITHSCORES"])?;
    anyhow::ensure!(found.len() == 1, "no record in the middle");
    Ok(mcp_task_store::backend::engine::cursor(&owner, found[0].1 as u64))
}
