//! The server's processor time of writes that are in flight together.

use std::thread;

use anyhow::{Result, anyhow};
use bytes::Bytes;
use futures_util::future::try_join_all;
use tokio::runtime::Builder;

use crate::bench::{Bench, Contenders};
use crate::contender::{Bare, BareKey, Contender, HOUR, Ours};
use crate::format::{micros, short};
use crate::record::{Records, TYPICAL, records};
use crate::report::Report;
use crate::rounds::{Samples, alternate_all};
use crate::row::{Row, Target};

/// How many calls are in flight, and the target of each.
const BATCHES: [(usize, f64); 2] = [(8, 1.3), (32, 1.1)];

/// Measures on one thread, so that all calls of a batch are made in one turn of the scheduler.
pub async fn rows(bench: &Bench, report: &mut Report) -> Result<()> {
    let measured = thread::scope(|scope| {
        let measuring =
            || Builder::new_current_thread().enable_all().build()?.block_on(measure(bench, report));
        scope.spawn(measuring).join()
    });
    measured.map_err(|_| anyhow!("the thread that measures the processor time panicked"))?
}

async fn measure(bench: &Bench, report: &mut Report) -> Result<()> {
    // Connections of this runtime.
    let contenders = Contenders::connect(&bench.server.url()).await?;
    let count = bench.form.count(3_200);
    let sets = (records::<Ours>(count, 1, TYPICAL, HOUR), records::<Bare>(count, 1, TYPICAL, HOUR));
    for (size, most) in BATCHES {
        bench.step(&format!("server time with {size} in flight"));
        let meter = Meter { bench, contenders: &contenders, ours: &sets.0, bare: &sets.1, size };
        report.add(meter.creates(most).await?);
        report.add(meter.swaps(most).await?);
    }
    Ok(())
}

struct Meter<'a> {
    bench: &'a Bench,
    contenders: &'a Contenders,
    ours: &'a Records<Ours>,
    bare: &'a Records<Bare>,
    /// How many calls are in flight.
    size: usize,
}

impl Meter<'_> {
    async fn creates(&self, most: f64) -> Result<Row> {
        let Contenders { ours, bare, .. } = self.contenders;
        let [[ours, bare], [evals, _]] =
            alternate_all(self.bench.form.rounds, async |turn| {
                self.bench.server.clear()?;
                match turn {
                    0 => {
                        self.cost(self.in_batches::<Ours>(self.ours, async |key, data| {
                            ours.create(key, data, HOUR).await
                        }))
                        .await
                    }
                    _ => {
                        self.cost(self.in_batches::<Bare>(self.bare, async |key, data| {
                            bare.create(key, data, HOUR).await
                        }))
                        .await
                    }
                }
            })
            .await?;
        let row = self.row("create", &ours, &evals).bare(micros(&bare));
        let row = row.reason("an `EVAL` copies each argument and each reply between Redis and Lua");
        Ok(row.ratio("that of one MULTI/EXEC pipeline", &ours.over(&bare), Target::AtMost(most)))
    }

    async fn swaps(&self, most: f64) -> Result<Row> {
        let Contenders { ours, bare, .. } = self.contenders;
        let [[ours, checked, bare], [evals, ..]] = alternate_all(self.bench.form.rounds, async |turn| {
            self.bench.server.clear()?;
            self.in_batches::<Ours>(self.ours, async |key, data| ours.create(key, data, HOUR).await).await?;
            self.in_batches::<Bare>(self.bare, async |key, data| bare.create(key, data, HOUR).await).await?;
            match turn {
                0 => {
                    self.cost(
                        self.in_batches::<Ours>(self.ours, async |key, data| ours.swap(key, data, 1).await),
                    )
                    .await
                }
                1 => {
                    self.cost(self.in_batches::<Bare>(self.bare, async |key, data| {
                        read_and_write(bare, key, data).await
                    }))
                    .await
                }
                _ => {
                    self.cost(
                        self.in_batches::<Bare>(self.bare, async |key, data| bare.swap(key, data, 1).await),
                    )
                    .await
                }
            }
        })
        .await?;
        let row = self.row("compare-and-swap", &ours, &evals).bare(micros(&checked));
        let row = row.ratio(
            "that of one HMGET and one HSET as MULTI/EXEC",
            &ours.over(&checked),
            Target::AtMost(most),
        );
        let row = row.reason(
            "the script also checks the version, the expiry and the parts, and has a reply for each record",
        );
        Ok(row.ratio(&format!("that of one HSET ({})", micros(&bare)), &ours.over(&bare), None))
    }

    fn row(&self, work: &str, ours: &Samples, evals: &Samples) -> Row {
        let (size, evals) = (self.size, short(evals.median() * self.ours.len() as f64));
        let row =
            Row::new(format!("server processor time per {work} (`INFO cpu`), {size} in flight, one owner"));
        row.ours(micros(ours)).remark(format!("{evals} EVALs for {} calls", self.ours.len()))
    }

    /// Makes the calls, a batch at a time.
    async fn in_batches<C: Contender>(
        &self,
        records: &Records<C>,
        call: impl AsyncFn(&C::Key, Bytes) -> Result<()>,
    ) -> Result<()> {
        for batch in records.chunks(self.size) {
            try_join_all(batch.iter().map(|(key, data)| call(key, data.clone()))).await?;
        }
        Ok(())
    }

    /// Returns the server's processor microseconds and the number of EVALs per call.
    async fn cost(&self, calls: impl Future<Output = Result<()>>) -> Result<[f64; 2]> {
        let server = &self.bench.server;
        let before = (server.processor_micros()?, server.command_stats("eval")?.0);
        calls.await?;
        let after = (server.processor_micros()?, server.command_stats("eval")?.0);
        let count = self.ours.len() as f64;
        Ok([(after.0 - before.0) / count, (after.1 - before.1) / count])
    }
}

/// What a compare-and-swap reads and writes, without its checks.
async fn read_and_write(bare: &Bare, key: &BareKey, data: Bytes) -> Result<()> {
    let mut commands = redis::pipe();
    commands.atomic();
    commands.cmd("HMGET").arg(&key.hash).arg("version").arg("expires_at").arg("parts");
    commands.cmd("HSET").arg(&key.hash).arg("version").arg(2).arg("data").arg(&data[..]);
    let _: redis::Value = commands.query_async(&mut bare.0.clone()).await?;
    Ok(())
}
