//! The same work on `MemoryBackend`, without a network. Criterion measures it.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use criterion::Criterion;
use mcp_task_store::{
    Expiry, MemoryBackend, NewTask, OwnerId, PageRequest, PutOptions, StorageBackend, StoreConfig, TaskKey,
    TaskStore, Version,
};
use tokio::runtime::Runtime;

use crate::bench::Form;
use crate::contender::HOUR;
use crate::record::TYPICAL;
use crate::report::{Report, Row, Target, short};

const TASKS: [usize; 3] = [1, 2, 8];
const RECORDS: usize = 10_000;
const OWNERS: usize = 64;
/// How many records a row creates before it deletes them again.
const BATCH: usize = 50_000;

/// Measures the rows in another process, because criterion writes to the terminal.
pub fn rows(form: Form, report: &mut Report) -> Result<()> {
    let results = tempfile::NamedTempFile::new()?;
    let output = Command::new(std::env::current_exe()?)
        .arg("in-process")
        .arg(results.path())
        .arg(form.divisor.to_string())
        .stdin(Stdio::null())
        .output()?;
    anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    report.extend(serde_json::from_slice(&std::fs::read(results.path())?)?);
    Ok(())
}

/// Measures the rows, and writes them as JSON.
pub fn measure(runtime: &Runtime, results: &Path, divisor: usize) -> Result<()> {
    let mut report = Report::default();
    let folder = tempfile::tempdir()?;
    let mut criterion = Criterion::default()
        .output_directory(folder.path())
        .without_plots()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(1_000 / divisor as u64));
    let mut bench = InProcess { runtime, criterion: &mut criterion, folder: folder.path(), measured: 0 };

    for work in
        [Work::Put, Work::Swap, Work::Get, Work::Page, Work::Create, Work::UpdateByKey, Work::UpdateByCopy]
    {
        let mut figures = Vec::new();
        for tasks in TASKS {
            let time = bench.measure(work, tasks, Store::of(RECORDS, OWNERS))?;
            figures.push(format!("{tasks}: {} ns", short(time)));
        }
        report.add(
            Row::new(format!("`MemoryBackend`, {}, by number of Tokio tasks", work.name()))
                .ours(figures.join(", ")),
        );
    }
    for work in [Work::Put, Work::Swap, Work::Get, Work::Page] {
        let (few, many) = (Store::of(100, 1), Store { own: 100, owners: 1, others: 200_000 });
        let (few, many) = (bench.measure(work, 1, few)?, bench.measure(work, 1, many)?);
        let row =
            Row::new(format!("`MemoryBackend`, {}, with 0 and 200,000 records of other owners", work.name()));
        let row = row.ours(format!("{} ns, {} ns", short(few), short(many)));
        let ratio = many / few;
        // Cache misses can double the time. A walk over the records of others would cost far more.
        report.add(row.figure(&format!("{} x", short(ratio)), ratio, Some(Target::AtMost(2.0))));
    }
    for work in [Work::Put, Work::Swap, Work::Get, Work::Page, Work::Create] {
        let (few, many) = (Store::of(100, 1), Store::of(100_000, 1));
        let (few, many) = (bench.measure(work, 1, few)?, bench.measure(work, 1, many)?);
        let row = Row::new(format!("`MemoryBackend`, {}, owner with 100 and 100,000 records", work.name()));
        let row = row.ours(format!("{} ns, {} ns", short(few), short(many)));
        report.add(row.remark(format!("{} x", short(many / few))));
    }
    std::fs::write(results, serde_json::to_vec(&report)?)?;
    Ok(())
}

#[derive(Clone, Copy)]
enum Work {
    Put,
    Swap,
    Get,
    Page,
    Create,
    UpdateByKey,
    UpdateByCopy,
}

impl Work {
    fn name(self) -> &'static str {
        match self {
            Self::Put => "`put` of new records",
            Self::Swap => "`put_if_version` with `Keep`",
            Self::Get => "`get`",
            Self::Page => "a page of 20",
            Self::Create => "`TaskStore::create` with a quota",
            Self::UpdateByKey => "a status update by key",
            Self::UpdateByCopy => "a status update by `StoredTask`",
        }
    }
}

/// The content of a store: records of the measured owners, and of other owners.
#[derive(Clone, Copy)]
struct Store {
    own: usize,
    owners: usize,
    others: usize,
}

impl Store {
    const fn of(own: usize, owners: usize) -> Self {
        Self { own, owners, others: 0 }
    }

    async fn fill(self) -> Result<(Arc<MemoryBackend>, Vec<TaskKey>)> {
        let backend = Arc::new(MemoryBackend::new());
        let mut keys = Vec::with_capacity(self.own);
        for number in 0..self.own {
            let key = TaskKey::new(&format!("owner-{}", number % self.owners), &format!("task-{number}"))?;
            backend.put(&key, data(), options()).await?;
            keys.push(key);
        }
        for number in 0..self.others {
            let key = TaskKey::new(&format!("other-{}", number % 2_000), &format!("task-{number}"))?;
            backend.put(&key, data(), options()).await?;
        }
        Ok((backend, keys))
    }
}

fn data() -> Bytes {
    Bytes::from_static(&[b'x'; TYPICAL])
}

fn options() -> PutOptions {
    PutOptions::new(Expiry::After(HOUR))
}

struct InProcess<'a> {
    runtime: &'a Runtime,
    criterion: &'a mut Criterion,
    folder: &'a Path,
    measured: usize,
}

impl InProcess<'_> {
    /// Returns the median time of one call in nanoseconds, with this many tasks.
    fn measure(&mut self, work: Work, tasks: usize, store: Store) -> Result<f64> {
        let (backend, keys) = self.runtime.block_on(store.fill())?;
        let keys = Arc::new(keys);
        let config = StoreConfig::new().max_tasks_per_owner(1_000_000_000);
        match work {
            Work::Put => self.batches(tasks, Arc::clone(&backend), move |batch| {
                let new = |number: usize| {
                    TaskKey::new(&format!("owner-{}", number % store.owners), &format!("new-{number}"))
                };
                let keys: Arc<Vec<TaskKey>> =
                    Arc::new((0..batch).map(|number| new(number).expect("legal ids")).collect());
                let of = Arc::clone(&backend);
                move |numbers: Numbers| {
                    let (of, keys) = (Arc::clone(&of), Arc::clone(&keys));
                    async move {
                        let mut made = Vec::with_capacity(numbers.len());
                        for number in numbers {
                            of.put(&keys[number], data(), options()).await?;
                            made.push(keys[number].clone());
                        }
                        Ok(made)
                    }
                }
            }),
            Work::Create => {
                let of = TaskStore::with_config(Arc::clone(&backend), config);
                let owners: Arc<Vec<OwnerId>> =
                    Arc::new((0..store.owners).map(|of| keys[of].owner.clone()).collect());
                self.batches(tasks, backend, move |_| {
                    let (of, owners) = (of.clone(), Arc::clone(&owners));
                    move |numbers: Numbers| {
                        let (of, owners) = (of.clone(), Arc::clone(&owners));
                        async move {
                            let mut made = Vec::with_capacity(numbers.len());
                            for number in numbers {
                                let owner = &owners[number % owners.len()];
                                made.push(of.create(owner, NewTask::new("tools/call")).await?.key);
                            }
                            Ok(made)
                        }
                    }
                })
            }
            Work::Swap => {
                let versions: Arc<Vec<_>> = Arc::new((0..keys.len()).map(|_| AtomicU64::new(1)).collect());
                self.calls(tasks, move |numbers| {
                    let (of, keys, versions) =
                        (Arc::clone(&backend), Arc::clone(&keys), Arc::clone(&versions));
                    async move {
                        for number in numbers {
                            let at = number % keys.len();
                            let expected = Version::from(versions[at].fetch_add(1, Ordering::Relaxed));
                            of.put_if_version(&keys[at], data(), Expiry::Keep.into(), expected).await?;
                        }
                        Ok(())
                    }
                })
            }
            Work::Get => self.calls(tasks, move |numbers| {
                let (of, keys) = (Arc::clone(&backend), Arc::clone(&keys));
                async move {
                    for number in numbers {
                        of.get(&keys[number * 7_919 % keys.len()]).await?;
                    }
                    Ok(())
                }
            }),
            Work::Page => self.calls(tasks, move |numbers| {
                let (of, keys) = (Arc::clone(&backend), Arc::clone(&keys));
                async move {
                    for number in numbers {
                        of.list(&keys[number % keys.len()].owner, PageRequest::new(20)).await?;
                    }
                    Ok(())
                }
            }),
            Work::UpdateByKey | Work::UpdateByCopy => {
                let store = TaskStore::with_config(Arc::new(MemoryBackend::new()), config);
                // So many that no two Tokio tasks use the same record at the same time.
                let mut created = Vec::new();
                for number in 0..512 {
                    let owner = OwnerId::try_from(format!("owner-{number}"))?;
                    created.push(self.runtime.block_on(store.create(&owner, NewTask::new("tools/call")))?);
                }
                let created = Arc::new(created);
                let by_copy = matches!(work, Work::UpdateByCopy);
                self.calls(tasks, move |numbers: Numbers| {
                    let (store, created) = (store.clone(), Arc::clone(&created));
                    async move {
                        let mut held: Vec<_> = Vec::new();
                        for at in (numbers.start..created.len()).step_by(numbers.step) {
                            held.push(store.get(&created[at].key).await?);
                        }
                        for number in 0..numbers.len() {
                            let at = number % held.len();
                            held[at] = match by_copy {
                                true => store.set_status_message(&held[at], "frame 7 of 240").await?,
                                false => store.set_status_message(&held[at].key, "frame 7 of 240").await?,
                            };
                        }
                        Ok(())
                    }
                })
            }
        }
    }

    /// Times calls that can be repeated any number of times.
    fn calls<F>(&mut self, tasks: usize, worker: impl Fn(Numbers) -> F) -> Result<f64>
    where
        F: Future<Output = Result<()>> + Send + 'static,
    {
        self.time(tasks, |runtime, calls| spread(runtime, tasks, calls, &worker).0)
    }

    /// Times calls that create records. After each batch, the records are deleted while the clock is stopped. `worker` receives the
    /// number of calls of the batch.
    fn batches<F, W>(
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
struct Numbers {
    start: usize,
    end: usize,
    step: usize,
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
