//! The Redis memory that records take, and the keys and bytes that remain after they have expired.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::bench::Bench;
use crate::contender::{Contender, HOUR};
use crate::format::thousands;
use crate::record::{TYPICAL, record};
use crate::report::Report;
use crate::rounds::{Numbers, time};
use crate::row::{Row, Target};

/// How long the server may take to remove expired records.
const PATIENCE: Duration = Duration::from_secs(60);

/// Records per owner, how many bytes a record may take more than the peer's, and whether a row says what is left after all
/// have expired.
const SIZES: [(usize, f64, bool); 4] =
    [(10, 60.0, false), (60, 60.0, false), (100, 260.0, true), (10_000, 180.0, true)];

const COMPACT: &str = "from 65 records on, Redis no longer stores the index of an owner in its compact encoding, because it has two members a record; \
                       the set of the peer has one";

pub async fn rows(bench: &Bench, report: &mut Report) -> Result<()> {
    for (an_owner, most, has_left) in SIZES {
        bench.step(&format!("memory at {an_owner} records per owner"));
        let count = bench.form.count(20_000);
        let an_owner = an_owner.min(count);
        let place = format!("{} records per owner", thousands(an_owner));
        // A check waits once.
        let has_left = has_left && (!bench.form.is_check() || an_owner == 100);
        let (ours, ours_left) = cost(bench, &bench.ours, count, an_owner, has_left).await?;
        let (peer, peer_left) = cost(bench, &bench.peer, count, an_owner, has_left).await?;
        let row = Row::new(format!("Redis memory per record, {place}"));
        let row = row.ours(format!("{ours:.0} B")).peer(format!("{peer:.0} B"));
        let row = row.figure(&format!("{:+.0} B", ours - peer), ours - peer, Target::AtMost(most));
        report.add(if an_owner == 100 { row.reason(COMPACT) } else { row });
        if let Some((ours, peer)) = ours_left.zip(peer_left) {
            let row = Row::new(format!("left after all records have expired, {place}"));
            let row = row.ours(&ours).peer(&peer);
            report.add(row.figure(&format!("{} keys", ours.keys), ours.keys, Target::AtMost(0.0)));
        }
    }
    Ok(())
}

/// What remains after all records have expired.
struct Left {
    keys: f64,
    bytes: f64,
}

impl std::fmt::Display for Left {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} keys, {} B", self.keys, thousands(self.bytes.max(0.0) as usize))
    }
}

/// Returns the bytes per record, and what is left after all have expired.
async fn cost<C: Contender>(
    bench: &Bench,
    contender: &C,
    count: usize,
    an_owner: usize,
    has_left: bool,
) -> Result<(f64, Option<Left>)> {
    // Long enough to write all records and read the memory before the first record expires.
    let ttl = match (has_left, bench.form.is_check()) {
        (false, _) => HOUR,
        (true, true) => Duration::from_secs(4),
        (true, false) => Duration::from_secs(8),
    };
    bench.server.clear()?;
    // The server stores the script at the first write, which is not a cost of the records.
    write(contender, 1, 1, ttl).await?;
    bench.server.clear()?;
    let (keys, before) = (bench.server.run::<f64>(&["DBSIZE"])?, used(bench)?);
    let written = Instant::now();
    write(contender, count, count / an_owner, ttl).await?;
    // The expiry of the peer has whole seconds.
    let limit = ttl - Duration::from_secs(1);
    anyhow::ensure!(
        written.elapsed() < limit,
        "writing took so long that records may have expired meanwhile"
    );
    let bytes = (used(bench)? - before) / count as f64;
    if !has_left {
        return Ok((bytes, None));
    }
    wait_for_expiry(bench).await?;
    let keys = bench.server.run::<f64>(&["DBSIZE"])? - keys;
    Ok((bytes, Some(Left { keys, bytes: if keys > 0.0 { used(bench)? - before } else { 0.0 } })))
}

/// The server removes expired records over time. The index of the peer stays.
async fn wait_for_expiry(bench: &Bench) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let is_expiring = |keyspace: &str| keyspace.contains("db0:") && !keyspace.contains("expires=0,");
    while is_expiring(&bench.server.run::<String>(&["INFO", "keyspace"])?) {
        anyhow::ensure!(Instant::now() < deadline, "the server still holds expired records after 60 s");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Ok(())
}

fn used(bench: &Bench) -> Result<f64> {
    bench.server.info("memory", "used_memory")
}

async fn write<C: Contender>(contender: &C, count: usize, owners: usize, ttl: Duration) -> Result<()> {
    let worker = |numbers: Numbers| {
        let contender = contender.clone();
        async move {
            for number in numbers {
                let owner = format!("owner-{}", number % owners);
                let (task, data) = record(&owner, TYPICAL, ttl);
                contender.create(&C::key(&owner, &task), data, ttl).await?;
            }
            Ok(())
        }
    };
    time(count, 64, worker).await.map(drop)
}
