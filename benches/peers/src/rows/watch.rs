//! The cost of notifications.

use anyhow::Result;
use mcp_task_store::RedisBackend;

use crate::bench::Bench;
use crate::calls;
use crate::contender::{HOUR, Ours};
use crate::format::micros;
use crate::record::{TYPICAL, records};
use crate::report::Report;
use crate::rounds::alternate;
use crate::row::{Row, Target};

const OWNERS: usize = 64;
const IN_FLIGHT: usize = 64;
/// How often a round replaces each record.
const SWAPS: u64 = 3;

/// Measures the server's time for a compare-and-swap without subscribers, with notifications on and off.
pub async fn rows(bench: &Bench, report: &mut Report) -> Result<()> {
    bench.step("notifications");
    let silent = RedisBackend::builder().notifications(false).connect(&bench.server.url()).await?;
    let silent = Ours(silent);
    let [notifying, silent] = alternate::<2>(bench.form.rounds, async |turn| {
        let contender = if turn == 0 { &bench.ours } else { &silent };
        bench.server.clear()?;
        let records = records::<Ours>(bench.form.count(3_000), OWNERS, TYPICAL, HOUR);
        calls::put(contender, &records, IN_FLIGHT).await?;
        bench.server.run::<String>(&["CONFIG", "RESETSTAT"])?;
        for version in 1..=SWAPS {
            calls::swap(contender, &records, IN_FLIGHT, version).await?;
        }
        let (calls, micros) = bench.server.command_stats("eval")?;
        Ok(micros / calls)
    })
    .await?;
    let work = "server time per `put_if_version` with `Keep`, without subscribers";
    let row = Row::new(work).ours(micros(&notifying));
    report.add(row.ratio("the time with notifications off", &notifying.over(&silent), Target::AtMost(1.25)));
    Ok(())
}
