//! The whole life of a task, as a server and its client make it: through the manager of this crate, and through `pmcp-tasks`.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use mcp_task_store::{DurableTaskManager, OwnerId, RedisBackend, TaskStore};
use pmcp_tasks::{GenericTaskStore, TaskStatus};
use rmcp::model::{CallToolResult, ContentBlock};
use rmcp::task_manager::TaskOptions;
use rustix::time::{ClockId, clock_gettime};
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;

use super::tasks::Theirs;
use crate::bench::Bench;
use crate::format::micros;
use crate::report::Report;
use crate::rounds::{Numbers, alternate_all, time};
use crate::row::{Row, Target};

/// All at once, each of another owner.
const TASKS: usize = 256;
const MESSAGES: usize = 10;
/// The manager writes at most four messages a second, so it writes each message of such a task.
const EACH_IS_WRITTEN: Duration = Duration::from_millis(260);

pub async fn rows(bench: &Bench, report: &mut Report) -> Result<()> {
    measure(bench, report, "one after the other", Duration::ZERO, bench.form.rounds).await?;
    // A check does not wait for this.
    if !bench.form.is_check() {
        measure(bench, report, "260 ms apart", EACH_IS_WRITTEN, bench.form.few_rounds()).await?;
    }
    Ok(())
}

async fn measure(bench: &Bench, report: &mut Report, how: &str, gap: Duration, rounds: usize) -> Result<()> {
    bench.step(&format!("whole tasks, messages {how}"));
    let tasks = bench.form.count(TASKS);
    let costs = alternate_all::<2, 3>(rounds, async |turn| {
        bench.server.clear()?;
        match turn {
            0 => ours(bench, tasks, gap).await,
            _ => theirs(bench, tasks, gap).await,
        }
    })
    .await?;
    let [server, client, writes] = &costs;
    for (whose, [ours, peer]) in [("server", server), ("client", client)] {
        let work = format!(
            "{whose} processor time per task through the manager: create, start, {MESSAGES} messages {how}, complete, two polls"
        );
        let row = Row::new(work).ours(micros(ours)).peer(micros(peer));
        let row = row.ratio("the peer's time", &ours.over(peer), Target::AtMost(1.0));
        let row = row.reason("a run reads its task after each notification, also of its own writes, because a message carries no version");
        let scripts = writes.each_ref().map(|writes| writes.median());
        report.add(row.remark(format!("{:.1} scripts per task, the peer {:.1}", scripts[0], scripts[1])));
    }
    Ok(())
}

/// Returns the processor microseconds of the server and of this process, and the number of scripts, per task.
async fn cost(bench: &Bench, tasks: usize, lives: impl Future<Output = Result<()>>) -> Result<[f64; 3]> {
    let scripts = || -> Result<f64> {
        Ok(bench.server.command_stats("eval")?.0 + bench.server.command_stats("evalsha")?.0)
    };
    let before = [bench.server.processor_micros()?, process_micros(), scripts()?];
    lives.await?;
    let after = [bench.server.processor_micros()?, process_micros(), scripts()?];
    Ok(std::array::from_fn(|at| (after[at] - before[at]) / tasks as f64))
}

fn process_micros() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 * 1e6 + time.tv_nsec as f64 / 1e3
}

fn result() -> String {
    "x".repeat(300)
}

type Manager = DurableTaskManager<RedisBackend>;

async fn ours(bench: &Bench, tasks: usize, gap: Duration) -> Result<[f64; 3]> {
    let manager = DurableTaskManager::new(TaskStore::new(bench.ours.0.clone()));
    cost(bench, tasks, live(manager, tasks, gap)).await
}

/// Starts and polls all tasks, lets their operations run, and polls all tasks again when they have ended.
async fn live(manager: Manager, tasks: usize, gap: Duration) -> Result<()> {
    let (run, runs) = watch::channel(false);
    let (running, mut ended) = mpsc::channel(1);
    let ids = Arc::new(std::sync::Mutex::new(Vec::with_capacity(tasks)));
    let worker = |numbers: Numbers| {
        let (manager, signals, ids) = (manager.clone(), (runs.clone(), running.clone()), Arc::clone(&ids));
        async move {
            for number in numbers {
                let owner = OwnerId::try_from(format!("owner-{number}"))?;
                let task = start(&manager, &owner, signals.clone(), gap).await?;
                manager.get_task(&owner, &task).await?;
                ids.lock().expect("no holder panics").push((owner, task));
            }
            Ok(())
        }
    };
    time(tasks, tasks, worker).await?;
    run.send(true)?;
    // The operations end first, so that no time of the process is spent on looking for their end meanwhile.
    drop(running);
    anyhow::ensure!(ended.recv().await.is_none(), "no operation sends a message");
    while manager.running_task_count() > 0 {
        sleep(Duration::from_millis(5)).await;
    }
    let ids = Arc::new(std::mem::take(&mut *ids.lock().expect("no holder panics")));
    let worker = |numbers: Numbers| {
        let (manager, ids) = (manager.clone(), Arc::clone(&ids));
        async move {
            for number in numbers {
                let (owner, task) = &ids[number];
                let polled = manager.get_task(owner, task).await?;
                anyhow::ensure!(
                    polled.task.status == rmcp::model::TaskStatus::Completed,
                    "a task has not completed"
                );
            }
            Ok(())
        }
    };
    time(tasks, tasks, worker).await.map(drop)
}

/// What an operation waits for, and what it drops at its end.
type Signals = (watch::Receiver<bool>, mpsc::Sender<()>);

/// Starts a task, and returns its id. Its operation waits until it may run.
async fn start(
    manager: &Manager,
    owner: &OwnerId,
    (mut runs, running): Signals,
    gap: Duration,
) -> Result<String> {
    let options = TaskOptions::new().with_ttl_ms(3_600_000);
    let task = manager.spawn(owner, "render", options, move |task| {
        Box::pin(async move {
            // The sender lives as long as the tasks run.
            let _ = runs.wait_for(|may_run| *may_run).await;
            for message in 0..MESSAGES {
                task.set_status_message(format!("frame {message} of {MESSAGES}"));
                match gap {
                    Duration::ZERO => tokio::task::yield_now().await,
                    gap => sleep(gap).await,
                }
            }
            drop(running);
            Ok(CallToolResult::success(vec![ContentBlock::text(result())]))
        })
    });
    Ok(task.await?.task_id.to_string())
}

async fn theirs(bench: &Bench, tasks: usize, gap: Duration) -> Result<[f64; 3]> {
    let store: Theirs = Arc::new(GenericTaskStore::new(bench.peer.0.clone()));
    let worker = |numbers: Numbers| {
        let store = Arc::clone(&store);
        async move {
            for number in numbers {
                live_there(&store, &format!("owner-{number}"), gap).await?;
            }
            Ok(())
        }
    };
    cost(bench, tasks, async { time(tasks, tasks, worker).await.map(drop) }).await
}

async fn live_there(store: &Theirs, owner: &str, gap: Duration) -> Result<()> {
    let task = store.create(owner, "tools/call", Some(3_600_000)).await?.task.task_id;
    store.get(&task, owner).await?;
    for message in 0..MESSAGES {
        store.set_status_message(&task, owner, Some(format!("frame {message} of {MESSAGES}"))).await?;
        // The peer awaits each write, so it needs no yield.
        if !gap.is_zero() {
            sleep(gap).await;
        }
    }
    let result = json!({ "content": [{ "type": "text", "text": result() }], "isError": false });
    store.complete_with_result(&task, owner, TaskStatus::Completed, None, result).await?;
    let polled = store.get(&task, owner).await?;
    anyhow::ensure!(polled.task.status == TaskStatus::Completed, "a task has not completed");
    Ok(())
}
