//! What metrics cost: the same compare-and-swap with and without a recorder.

use std::thread;

use anyhow::{Result, anyhow};
use mcp_task_store::{TaskStore, telemetry};
use metrics_exporter_prometheus::PrometheusBuilder;
use rustix::time::{ClockId, clock_gettime};
use tokio::runtime::Builder;

use super::tasks::Held;
use crate::bench::{Bench, Contenders};
use crate::format::micros;
use crate::report::Report;
use crate::rounds::alternate_all;
use crate::row::{Row, Target};

/// Measures on one thread, which has a recorder for itself.
pub async fn rows(bench: &Bench, report: &mut Report) -> Result<()> {
    let measured = thread::scope(|scope| {
        let measuring =
            || Builder::new_current_thread().enable_all().build()?.block_on(measure(bench, report));
        scope.spawn(measuring).join()
    });
    measured.map_err(|_| anyhow!("the thread that measures metrics panicked"))?
}

async fn measure(bench: &Bench, report: &mut Report) -> Result<()> {
    bench.server.clear()?;
    // Connections of this runtime.
    let store = TaskStore::new(Contenders::connect(&bench.server.url()).await?.ours.0);
    let held = Held::new(&store).await?;
    let recorder = PrometheusBuilder::new().build_recorder();
    telemetry::register_tool("tools/call");
    for (in_flight, name, calls) in [(64, "64 in flight", 6_400), (1, "one at a time", 640)] {
        bench.step(&format!("metrics, {name}"));
        let calls = bench.form.count(calls);
        let [[time, without], [processor, plain]] = alternate_all(bench.form.rounds, async |turn| {
            let _recording = (turn == 0).then(|| metrics::set_default_local_recorder(&recorder));
            let before = thread_micros();
            let time = held.update(&store, calls, in_flight).await?;
            Ok([time, (thread_micros() - before) / calls as f64])
        })
        .await?;
        // The server's time varies more than metrics cost, so only the time of the client's thread is compared.
        let with = without.plus(&processor).minus(&plain);
        let row = Row::new(format!("a status update of the copy just returned, with metrics, {name}"))
            .ours(micros(&time))
            .remark(format!("{} without a recorder", micros(&without)))
            .remark(format!(
                "the client's thread takes {} of it, and {} without",
                micros(&processor),
                micros(&plain)
            ));
        let row = row.ratio(
            "the time without a recorder, if the client's thread accounts for the difference",
            &with.over(&without),
            Target::AtMost(1.02),
        );
        report.add(row.reason(
            "the recorder finds each histogram by its key, and keeps each value until it is scraped",
        ));
    }
    Ok(())
}

/// Returns the processor time of this thread, in microseconds.
fn thread_micros() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e6 + time.tv_nsec as f64 / 1e3
}
