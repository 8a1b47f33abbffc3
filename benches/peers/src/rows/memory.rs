//! The Redis memory that records take, and the keys and bytes that remain after they have expired.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::bench::Bench;
use crate::contender::Contender;
use crate::record::{TYPICAL, record};
use crate::report::{Report, Row, Target, thousands};
use crate::rounds::{Numbers, time};

/// Long enough to write all records and read the memory before the first record expires.
const TTL: Duration = Duration::from_secs(8);
/// How long the server may take to remove expired records.
const PATIENCE: Duration = Duration::from_secs(60);

/// The cost of the records of one contender.
struct Cost {
    bytes: f64,
    keys_left: f64,
    bytes_left: f64,
}

pub async fn rows(bench: &Bench, report: &mut Report) -> Result<()> {
    for (an_owner, most) in [(100, 80.0), (10_000, 180.0)] {
        bench.step(&format!("memory at {an_owner} records per owner, and after all have expired"));
        let an_owner = bench.form.count(an_owner);
        let count = bench.form.count(20_000).max(an_owner);
        let ours = cost(bench, &bench.ours, count, an_owner).await?;
        let peer = cost(bench, &bench.peer, count, an_owner).await?;
        let row = Row::new(format!("Redis memory per record, {} records per owner", thousands(an_owner)));
        let row = row.ours(format!("{:.0} B", ours.bytes)).peer(format!("{:.0} B", peer.bytes));
        let more = ours.bytes - peer.bytes;
        report.add(row.figure(&format!("{more:+.0} B"), more, Some(Target::AtMost(most))));
        let left = |cost: &Cost| {
            format!("{} keys, {} B", cost.keys_left, thousands(cost.bytes_left.max(0.0) as usize))
        };
        let row = Row::new(format!(
            "left after all records have expired, {} records per owner",
            thousands(an_owner)
        ));
        let row = row.ours(left(&ours)).peer(left(&peer));
        report.add(row.figure(
            &format!("{} keys", ours.keys_left),
            ours.keys_left,
            Some(Target::AtMost(0.0)),
        ));
    }
    Ok(())
}

async fn cost<C: Contender>(bench: &Bench, contender: &C, count: usize, an_owner: usize) -> Result<Cost> {
    bench.server.clear()?;
    // The server stores the script at the first write, which is not a cost of the records.
    write(contender, 1, 1).await?;
    bench.server.clear()?;
    let (keys, before) = (bench.server.run::<f64>(&["DBSIZE"])?, used(bench)?);
    let written = Instant::now();
    write(contender, count, count / an_owner).await?;
    anyhow::ensure!(
        written.elapsed() < TTL / 2,
        "writing took so long that records may have expired meanwhile"
    );
    let bytes = (used(bench)? - before) / count as f64;
    let deadline = Instant::now() + PATIENCE;
    // The server removes expired records over time. The index of the peer stays.
    let is_expiring = |keyspace: &str| keyspace.contains("db0:") && !keyspace.contains("expires=0,");
    while is_expiring(&bench.server.run::<String>(&["INFO", "keyspace"])?) {
        anyhow::ensure!(Instant::now() < deadline, "the server still holds expired records after 60 s");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let keys_left = bench.server.run::<f64>(&["DBSIZE"])? - keys;
    Ok(Cost { bytes, keys_left, bytes_left: if keys_left > 0.0 { used(bench)? - before } else { 0.0 } })
}

fn used(bench: &Bench) -> Result<f64> {
    bench.server.info("memory", "used_memory")
}

async fn write<C: Contender>(contender: &C, count: usize, owners: usize) -> Result<()> {
    let worker = |numbers: Numbers| {
        let contender = contender.clone();
        async move {
            for number in numbers {
                let owner = format!("owner-{}", number % owners);
                let (task, data) = record(&owner, TYPICAL, TTL);
                contender.put(&C::key(&owner, &task), data, TTL).await?;
            }
            Ok(())
        }
    };
    time(count, 64, worker).await.map(drop)
}
