//! The cost of timers on the server: for single calls, and over the whole life of a task.

use std::time::{Duration, Instant};

use anyhow::Result;
use mcp_task_store::{
    Agenda, Due, LocalAgenda, NewTask, Next, OwnerId, Queue, RedisBackend, StoreConfig, TaskKey, TaskStore,
};
use serde_json::json;

use crate::bench::Bench;
use crate::format::{micros, thousands};
use crate::report::Report;
use crate::rounds::{Numbers, Samples, alternate, time};
use crate::row::{Row, Target};

const IN_FLIGHT: usize = 64;
/// How many timers one call takes.
const TAKEN: usize = 64;
const HOUR: Duration = Duration::from_secs(3600);

pub async fn rows(bench: &Bench, report: &mut Report) -> Result<()> {
    calls(bench, report).await?;
    many(bench, report).await?;
    lives(bench, report).await
}

fn key(number: usize) -> Result<TaskKey> {
    Ok(TaskKey::new(&format!("owner-{}", number % 64), &number.to_string())?)
}

/// Schedules timers, 64 in flight.
async fn schedule(engine: &RedisBackend, count: usize, after: Duration) -> Result<f64> {
    let queue = Queue::try_from("leases")?;
    let worker = |numbers: Numbers| {
        let (engine, queue) = (engine.clone(), queue.clone());
        async move {
            for number in numbers {
                engine.schedule(&queue, &key(number)?, after).await?;
            }
            Ok(())
        }
    };
    time(count, IN_FLIGHT, worker).await
}

/// Returns the server's time for `call`, in microseconds per timer.
async fn server_time(bench: &Bench, timers: usize, call: impl Future<Output = Result<()>>) -> Result<f64> {
    bench.server.run::<String>(&["CONFIG", "RESETSTAT"])?;
    call.await?;
    Ok(bench.server.command_stats("eval")?.1 / timers as f64)
}

async fn calls(bench: &Bench, report: &mut Report) -> Result<()> {
    bench.step("timers");
    let (engine, queues) = (&bench.ours.0, [Queue::try_from("leases")?]);
    let count = bench.form.count(6_400);
    let [mut schedules, mut takes, mut resolves] = [const { Samples(Vec::new()) }; 3];
    for _ in 0..bench.form.few_rounds() {
        bench.server.clear()?;
        let scheduling = async { schedule(engine, count, Duration::ZERO).await.map(drop) };
        schedules.0.push(server_time(bench, count, scheduling).await?);
        let mut taken: Vec<Due> = Vec::new();
        let taking = async {
            while taken.len() < count {
                taken.extend(engine.take_due(&queues, TAKEN, HOUR).await?.due);
            }
            Ok(())
        };
        takes.0.push(server_time(bench, count, taking).await?);
        let resolving = async {
            for due in &taken {
                engine.resolve(due, Next::Remove).await?;
            }
            Ok(())
        };
        resolves.0.push(server_time(bench, count, resolving).await?);
    }
    for (call, samples) in
        [("`schedule`", schedules), ("`take_due`, 64 per call", takes), ("`resolve`", resolves)]
    {
        report.add(Row::new(format!("server time per timer, {call}")).ours(micros(&samples)));
    }
    Ok(())
}

/// Measures `take_due` with few timers and with many, none of which is due.
async fn many(bench: &Bench, report: &mut Report) -> Result<()> {
    let (few, many) = (1_000, bench.form.count(200_000));
    bench.step(&format!("{} timers", thousands(many)));
    let engine = &bench.ours.0;
    let mut times = Vec::new();
    for count in [few, many] {
        bench.server.clear()?;
        schedule(engine, count, HOUR).await?;
        let queues = [Queue::try_from("leases")?];
        let mut samples = Samples::default();
        for _ in 0..bench.form.few_rounds() {
            let calls = bench.form.count(1_000);
            let since = Instant::now();
            for _ in 0..calls {
                engine.take_due(&queues, TAKEN, HOUR).await?;
            }
            samples.0.push(since.elapsed().as_secs_f64() * 1e6 / calls as f64);
        }
        times.push(samples);
    }
    bench.server.clear()?;
    let counts = [few, many];
    let by_count = counts.iter().zip(&times);
    let figures: Vec<_> =
        by_count.map(|(count, time)| format!("{}: {}", thousands(*count), micros(time))).collect();
    let row = Row::new("`take_due` with nothing due, by the number of timers");
    let row = row.ours(figures.join(", "));
    report.add(row.ratio("from few to many", &times[1].over(&times[0]), Target::AtMost(1.5)));
    Ok(())
}

/// Measures the server's time for the whole life of a task, including the last read that its timer causes: with timers on the
/// server, and with timers in the process.
async fn lives(bench: &Bench, report: &mut Report) -> Result<()> {
    bench.step("the whole life of a task");
    let tasks = bench.form.count(300);
    let [with, without] = alternate::<2>(bench.form.few_rounds(), async |turn| {
        bench.server.clear()?;
        bench.server.run::<String>(&["CONFIG", "RESETSTAT"])?;
        let engine = bench.ours.0.clone();
        if turn == 0 {
            live(engine, tasks).await?
        } else {
            live(LocalAgenda::new(engine), tasks).await?
        }
        let mut micros = 0.0;
        for command in ["eval", "hmget", "time"] {
            micros += bench.server.command_stats(command)?.1;
        }
        Ok(micros / tasks as f64)
    })
    .await?;
    let work = "server time per task, from start to end: 2 status messages, 2 renewals, its timer";
    let row = Row::new(work).ours(micros(&with));
    let what = format!("the time with timers in the process ({})", micros(&without));
    report.add(row.ratio(&what, &with.over(&without), None));
    Ok(())
}

async fn live<A: Agenda>(engine: A, tasks: usize) -> Result<()> {
    let margin = Duration::from_millis(500);
    let config = StoreConfig::new().max_tasks_per_owner(None).lease(margin).call_timeout(margin);
    let store = TaskStore::with_config(engine, config);
    for number in 0..tasks {
        let new = NewTask::new("tools/call").arguments(json!({ "name": "render", "pad": "x".repeat(390) }));
        let (_, attempt) = store.start(&OwnerId::try_from(format!("owner-{}", number % 64))?, new).await?;
        attempt.set_status_message("frame 1 of 2").await?;
        attempt.renew().await?;
        attempt.renew().await?;
        attempt.set_status_message("frame 2 of 2").await?;
        attempt.complete(json!({ "content": [{ "type": "text", "text": "x".repeat(300) }] })).await?;
    }
    // When a timer fires, the store reads that the task has ended, and removes the timer.
    let queue = Queue::try_from("leases")?;
    while store.backend().timers(&queue, None).await?.total > 0 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}
