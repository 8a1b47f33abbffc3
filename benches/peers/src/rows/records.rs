//! Calls on one record.

use anyhow::Result;

use crate::bench::Bench;
use crate::contender::{Contender, HOUR};
use crate::record::{Records, TYPICAL, records};
use crate::report::{Report, Row, Target, micros};
use crate::rounds::{Numbers, Samples, alternate_all, time};

const OWNERS: usize = 64;
const IN_FLIGHT: usize = 64;
/// How often a round replaces each record.
const SWAPS: u64 = 3;

pub async fn rows(bench: &Bench, report: &mut Report) -> Result<()> {
    bench.step("calls on one record");
    let [puts, swaps, gets, alone] = alternate_all::<3, 4>(bench.form.rounds, async |turn| match turn {
        0 => round(bench, &bench.ours).await,
        1 => round(bench, &bench.peer).await,
        _ => round(bench, &bench.bare).await,
    })
    .await?;

    let row = |work: &str, [ours, peer, bare]: &[Samples; 3]| {
        let row = Row::new(work).ours(micros(ours)).peer(micros(peer)).bare(micros(bare));
        (row, peer.over(ours), ours.over(bare))
    };
    let faster = "the peer's throughput";
    let (line, than_peer, than_bare) = row("`put` of new records, 64 in flight", &puts);
    let line = line.headline(&than_peer).ratio(faster, &than_peer, Some(Target::AtLeast(1.0)));
    report.add(line.ratio("the time of one MULTI/EXEC pipeline", &than_bare, Some(Target::AtMost(1.8))));
    let (line, than_peer, than_bare) = row("`put_if_version` with `Keep`, 64 in flight", &swaps);
    let line = line.headline(&than_peer).ratio(faster, &than_peer, Some(Target::AtLeast(1.6)));
    report.add(line.ratio("the time of a bare HSET", &than_bare, None));
    let (line, than_peer, than_bare) = row("`get`, 64 in flight", &gets);
    let line = line.ratio(faster, &than_peer, Some(Target::AtLeast(1.05)));
    report.add(line.ratio("the time of a bare HMGET", &than_bare, Some(Target::AtMost(1.1))));
    let (line, than_peer, than_bare) = row("`get`, one at a time", &alone);
    let line = line.ratio("the time of a bare HMGET", &than_bare, Some(Target::AtMost(1.15)));
    report.add(line.ratio(faster, &than_peer, None));
    Ok(())
}

/// Times puts, swaps and gets with many in flight, and gets one at a time. The store is empty at first.
async fn round<C: Contender>(bench: &Bench, contender: &C) -> Result<[f64; 4]> {
    bench.server.clear()?;
    let records = records::<C>(bench.form.count(20_000), OWNERS, TYPICAL, HOUR);
    let put = put(contender, &records, IN_FLIGHT).await?;
    let mut swaps = 0.0;
    for version in 1..=SWAPS {
        swaps += swap(contender, &records, IN_FLIGHT, version).await?;
    }
    Ok([
        put,
        swaps / SWAPS as f64,
        get(contender, &records, IN_FLIGHT, 3 * records.len()).await?,
        get(contender, &records, 1, bench.form.count(4_000)).await?,
    ])
}

/// Returns the microseconds per put.
pub async fn put<C: Contender>(contender: &C, records: &Records<C>, in_flight: usize) -> Result<f64> {
    write(contender, records, in_flight, None).await
}

/// Returns the microseconds per compare-and-swap. All records have this version.
pub async fn swap<C: Contender>(
    contender: &C,
    records: &Records<C>,
    in_flight: usize,
    version: u64,
) -> Result<f64> {
    write(contender, records, in_flight, Some(version)).await
}

async fn write<C: Contender>(
    contender: &C,
    records: &Records<C>,
    in_flight: usize,
    over: Option<u64>,
) -> Result<f64> {
    let worker = |numbers: Numbers| {
        let (contender, records) = (contender.clone(), records.clone());
        async move {
            for number in numbers {
                let (key, data) = &records[number];
                match over {
                    None => contender.put(key, data.clone(), HOUR).await?,
                    Some(version) => contender.swap(key, data.clone(), version).await?,
                }
            }
            Ok(())
        }
    };
    time(records.len(), in_flight, worker).await
}

/// Returns the microseconds per get.
pub async fn get<C: Contender>(
    contender: &C,
    records: &Records<C>,
    in_flight: usize,
    calls: usize,
) -> Result<f64> {
    let worker = |numbers: Numbers| {
        let (contender, records) = (contender.clone(), records.clone());
        async move {
            for number in numbers {
                let (key, data) = &records[number % records.len()];
                let length = contender.get(key).await?;
                anyhow::ensure!(length == data.len(), "another record was read");
            }
            Ok(())
        }
    };
    time(calls, in_flight, worker).await
}
