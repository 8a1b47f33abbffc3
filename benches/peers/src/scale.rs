//! A million records: over 10,000 owners, and of one.

use std::time::{Duration, Instant};

use anyhow::Result;
use mcp_task_store::{
    Expiry, OwnerId, PageRequest, PutOptions, RedisBackend, StorageBackend, TaskKey, Version,
};

use crate::contender::HOUR;
use crate::record::{TYPICAL, record};
use crate::report::short;
use crate::rounds::time;
use crate::server::Server;

const RECORDS: usize = 1_000_000;

/// Prints one line a figure.
pub async fn run(divisor: usize) -> Result<()> {
    for owners in [10_000, 1] {
        let records = RECORDS / divisor;
        let server = Server::start()?;
        let backend = RedisBackend::builder().response_timeout(Duration::from_secs(20));
        let backend = backend.connect(&server.url()).await?;
        println!("{records} records of {TYPICAL} bytes over {owners} owners, 64 calls in flight");
        figures(&server, &backend, records, owners).await?;
    }
    Ok(())
}

async fn figures(server: &Server, backend: &RedisBackend, records: usize, owners: usize) -> Result<()> {
    let key = move |number: usize| TaskKey::new(&format!("owner-{}", number % owners), &task(number));
    let empty = server.info("memory", "used_memory")?;
    let of = backend.clone();
    // The records of one owner that follow each other expire one after the other.
    let data = record("owner-0", TYPICAL, HOUR).1;
    let per_call = time(records, 64, move |number| {
        let (of, data) = (of.clone(), data.clone());
        async move {
            of.put(&key(number)?, data, PutOptions::new(Expiry::After(HOUR))).await?;
            Ok(())
        }
    });
    let per_call = per_call.await?;
    say("puts a second", format!("{:.0}", 1e6 / per_call));
    let bytes = (server.info("memory", "used_memory")? - empty) / records as f64;
    say("bytes of Redis's memory a record", format!("{bytes:.0}"));

    let calls = (records / 5).min(200_000);
    let (of, reads) = (backend.clone(), backend.clone());
    let spread = move |number: usize| number * 7_919 % records;
    let swap = time(calls, 64, move |number| {
        let of = of.clone();
        async move {
            let (key, data) = (key(spread(number))?, record("owner-0", TYPICAL, HOUR).1);
            of.put_if_version(&key, data, Expiry::Keep.into(), Version::FIRST).await?;
            Ok(())
        }
    });
    say("compare-and-swaps a second", format!("{:.0}", 1e6 / swap.await?));
    let get = time(calls, 64, move |number| {
        let reads = reads.clone();
        async move {
            reads.get(&key(spread(number))?).await?;
            Ok(())
        }
    });
    say("gets a second", format!("{:.0}", 1e6 / get.await?));
    for command in ["eval", "hmget"] {
        let (calls, micros) = server.command_stats(command)?;
        say(&format!("microseconds of the server an {command}"), short(micros / calls));
    }

    let owner = OwnerId::try_from("owner-0")?;
    let mut times = Vec::new();
    let mut page = PageRequest::new(20);
    for _ in 0..200 {
        let begun = Instant::now();
        let read = backend.list(&owner, page).await?;
        times.push(begun.elapsed().as_secs_f64() * 1e6);
        page = match read.next {
            Some(next) => PageRequest::new(20).after(next),
            None => PageRequest::new(20),
        };
    }
    times.sort_by(f64::total_cmp);
    say("a page of 20, median and slowest", format!("{} µs, {} µs", short(times[100]), short(times[199])));

    // Deleting the longest-lived record settles the expiry of the index anew.
    let begun = Instant::now();
    for number in records - 100..records {
        anyhow::ensure!(backend.delete(&key(number)?).await?);
    }
    say("a delete of the longest-lived record", format!("{} µs", short(begun.elapsed().as_secs_f64() * 1e4)));
    Ok(())
}

fn task(number: usize) -> String {
    // As long as a UUID.
    format!("{number:08x}-aaaa-4aaa-8aaa-{number:012x}")
}

fn say(what: &str, figure: String) {
    println!("  {what}: {figure}");
}
