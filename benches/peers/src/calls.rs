//! Times the calls on one record, for any contender.

use anyhow::Result;

use crate::bench::Bench;
use crate::contender::{Bare, Contender, HOUR, Ours, Peer};
use crate::record::{Records, TYPICAL, records};
use crate::rounds::{Numbers, Samples, alternate_all, time};

/// A write of each record.
#[derive(Clone, Copy)]
enum Write {
    Create,
    Put,
    /// A compare-and-swap. All records have this version.
    Swap(u64),
}

/// Returns the microseconds per record that is created. No record exists.
pub async fn create<C: Contender>(contender: &C, records: &Records<C>, in_flight: usize) -> Result<f64> {
    write(contender, records, in_flight, Write::Create).await
}

/// Returns the microseconds per put.
pub async fn put<C: Contender>(contender: &C, records: &Records<C>, in_flight: usize) -> Result<f64> {
    write(contender, records, in_flight, Write::Put).await
}

/// Returns the microseconds per compare-and-swap. All records have this version.
pub async fn swap<C: Contender>(
    contender: &C,
    records: &Records<C>,
    in_flight: usize,
    version: u64,
) -> Result<f64> {
    write(contender, records, in_flight, Write::Swap(version)).await
}

async fn write<C: Contender>(
    contender: &C,
    records: &Records<C>,
    in_flight: usize,
    how: Write,
) -> Result<f64> {
    let worker = |numbers: Numbers| {
        let (contender, records) = (contender.clone(), records.clone());
        async move {
            for number in numbers {
                let (key, data) = &records[number];
                match how {
                    Write::Create => contender.create(key, data.clone(), HOUR).await?,
                    Write::Put => contender.put(key, data.clone(), HOUR).await?,
                    Write::Swap(version) => contender.swap(key, data.clone(), version).await?,
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

/// The same records, with the keys of each contender.
pub struct Sets {
    pub ours: Records<Ours>,
    pub peer: Records<Peer>,
    pub bare: Records<Bare>,
}

impl Sets {
    pub fn new(count: usize, owners: usize) -> Self {
        Self {
            ours: records::<Ours>(count, owners, TYPICAL, HOUR),
            peer: records::<Peer>(count, owners, TYPICAL, HOUR),
            bare: records::<Bare>(count, owners, TYPICAL, HOUR),
        }
    }
}

/// Measures the work of one contender, with its own records.
pub trait Round<const M: usize> {
    async fn run<C: Contender>(&self, contender: &C, records: &Records<C>) -> Result<[f64; M]>;
}

/// Runs the work in rounds in an empty store: this crate, the peer, the bare commands.
pub async fn all_three<const M: usize>(
    bench: &Bench,
    sets: &Sets,
    work: impl Round<M>,
) -> Result<[[Samples; 3]; M]> {
    alternate_all(bench.form.rounds, async |turn| {
        bench.server.clear()?;
        match turn {
            0 => work.run(&bench.ours, &sets.ours).await,
            1 => work.run(&bench.peer, &sets.peer).await,
            _ => work.run(&bench.bare, &sets.bare).await,
        }
    })
    .await
}
