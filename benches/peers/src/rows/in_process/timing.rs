//! Times calls of several Tokio tasks with criterion.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use criterion::Criterion;
use mcp_task_store::{MemoryBackend, StorageBackend, TaskKey};
use tokio::runtime::Runtime;

/// How many records a row creates before it deletes them again.
const BATCH: usize = 50_000;

pub struct InProcess<'a> {
    pub runtime: &'a Runtime,
    pub criterion: &'a mut Criterion,
    pub folder: &'a Path,
    pub measured: usize,
}

impl InProcess<'_> {
    /// Times calls that can be repeated any number of times.
    pub fn calls<F>(&mut self, tasks: usize, worker: impl Fn(Numbers) -> F) -> Result<f64>
    where
        F: Future<Output = Result<()>> + Send + 'static,
    {
        self.time(tasks, |runtime, calls| spread(runtime, tasks, calls, &worker).0)
    }

    /// Times calls that create records. After each batch, the records are deleted while the clock is stopped. `worker` receives the
    /// number of calls of the batch.
    pub fn batches<F, W>(
        &mut self,
        tasks: usize,
        backend: Arc<MemoryBackend>,
        worker: impl Fn(usize) -> W,
    ) -> Result<f64>
    where
        W: Fn(Numbers) -> F,
        F: Future<Output = Result<Vec<TaskKey>>> + Send + 'static,
    {
        self.time(tasks, |runtime, calls| {
            let mut all = Duration::ZERO;
            for begin in (0..calls).step_by(BATCH) {
                let batch = BATCH.min(calls - begin);
                let (took, made) = spread(runtime, tasks, batch, &worker(batch));
                all += took;
                runtime.block_on(async {
                    for key in made.iter().flatten() {
                        backend.delete(key).await.expect("a delete");
                    }
                });
            }
            all
        })
    }

    fn time(&mut self, tasks: usize, mut run: impl FnMut(&Runtime, usize) -> Duration) -> Result<f64> {
        let runtime = self.runtime;
        self.measured += 1;
        // Criterion would compare runs of the same name, so each run has its own.
        let name = self.measured.to_string();
        self.criterion.bench_function(&name, |bencher| {
            // Each task makes the same number of calls.
            bencher.iter_custom(|calls| run(runtime, usize::try_from(calls).expect("not that many") * tasks));
        });
        let file = self.folder.join(name).join("new/estimates.json");
        let estimates: BTreeMap<String, serde_json::Value> = serde_json::from_slice(&std::fs::read(&file)?)?;
        let median = estimates.get("median").and_then(|median| median["point_estimate"].as_f64());
        Ok(median.with_context(|| format!("no median in {}", file.display()))? / tasks as f64)
    }
}

/// The numbers of the calls of one Tokio task: every n-th number, starting with the number of the task.
pub struct Numbers {
    pub start: usize,
    end: usize,
    pub step: usize,
}

impl Iterator for Numbers {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        let number = self.start;
        self.start += self.step;
        (number < self.end).then_some(number)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.end.saturating_sub(self.start).div_ceil(self.step);
        (left, Some(left))
    }
}

impl ExactSizeIterator for Numbers {}

/// Makes the calls from this many tasks. Returns the time until the last task ends, and the results of all.
fn spread<F, T>(
    runtime: &Runtime,
    tasks: usize,
    calls: usize,
    worker: &impl Fn(Numbers) -> F,
) -> (Duration, Vec<T>)
where
    F: Future<Output = Result<T>> + Send + 'static,
    T: Send + 'static,
{
    runtime.block_on(async {
        let begun = Instant::now();
        let workers: Vec<_> = (0..tasks)
            .map(|start| tokio::spawn(worker(Numbers { start, end: calls, step: tasks })))
            .collect();
        let mut given = Vec::with_capacity(tasks);
        for worker in workers {
            given.push(worker.await.expect("a task that ends").expect("calls that succeed"));
        }
        (begun.elapsed(), given)
    })
}
