//! Measures a million records: spread over 10,000 owners, and of one owner.

use std::time::{Duration, Instant};

use anyhow::Result;
use mcp_task_store::{
    Expiry, OwnerId, PageRequest, PutOptions, RedisBackend, StorageBackend, TaskKey, Version,
};

use crate::contender::HOUR;
use crate::record::{TYPICAL, record};
use crate::report::short;
use crate::rounds::{Numbers, time};
use crate::server::Server;

const RECORDS: usize = 1_000_000;

/// Prints one line for each figure.
pub async fn run(divisor: usize) -> Result<()> {
    for owners in [10_000, 1] {
        let records = RECORDS / divisor;
        let server = Server::start()?;
        let backend = RedisBackend::builder().response_timeout(Duration::from_secs(20));
        let backend = backend.connect(&server.url()).await?;
        println!("{records} records of {TYPICAL} bytes over {owners} owners, 64 calls in flight");
        figures(&server, &backend, records, owners).await?;
        if owners == 1 {
            expiry_of_the_index(&server).await?;
        }
    }
    Ok(())
}

/// Measures how long the expiry of one owner's index blocks the server, without and with `lazyfree-lazy-expire`.
async fn expiry_of_the_index(server: &Server) -> Result<()> {
    // The first call on an expired index removes it. The first measurement uses a copy of the index.
    const INDEX: [&str; 2] = ["pmcp:idx:owner-0", "copy:idx"];
    server.run::<i64>(&["COPY", INDEX[0], INDEX[1]])?;
    for (index, lazily) in [(INDEX[1], "no"), (INDEX[0], "yes")] {
        server.run::<String>(&["CONFIG", "SET", "lazyfree-lazy-expire", lazily])?;
        server.run::<i64>(&["PEXPIRE", index, "50"])?;
        tokio::time::sleep(Duration::from_millis(100)).await;
        let begun = Instant::now();
        server.run::<i64>(&["EXISTS", index])?;
        let text = format!("{} ms", short(begun.elapsed().as_secs_f64() * 1e3));
        say(&format!("the first call after the index expired, lazyfree-lazy-expire {lazily}"), text);
    }
    Ok(())
}

async fn figures(server: &Server, backend: &RedisBackend, records: usize, owners: usize) -> Result<()> {
    let key = move |number: usize| TaskKey::new(&format!("owner-{}", number % owners), &task(number));
    let empty = server.info("memory", "used_memory")?;
    let data = record("owner-0", TYPICAL, HOUR).1;
    let worker = |numbers: Numbers| {
        let (backend, data) = (backend.clone(), data.clone());
        async move {
            for number in numbers {
                backend.put(&key(number)?, data.clone(), PutOptions::new(Expiry::After(HOUR))).await?;
            }
            Ok(())
        }
    };
    say("puts per second", format!("{:.0}", 1e6 / time(records, 64, worker).await?));
    let bytes = (server.info("memory", "used_memory")? - empty) / records as f64;
    say("bytes of Redis memory per record", format!("{bytes:.0}"));

    let calls = (records / 5).min(200_000);
    let spread = move |number: usize| number * 7_919 % records;
    let worker = |numbers: Numbers| {
        let (backend, data) = (backend.clone(), data.clone());
        async move {
            for number in numbers {
                let key = key(spread(number))?;
                backend.put_if_version(&key, data.clone(), Expiry::Keep.into(), Version::FIRST).await?;
            }
            Ok(())
        }
    };
    say("compare-and-swaps per second", format!("{:.0}", 1e6 / time(calls, 64, worker).await?));
    let worker = |numbers: Numbers| {
        let backend = backend.clone();
        async move {
            for number in numbers {
                backend.get(&key(spread(number))?).await?;
            }
            Ok(())
        }
    };
    say("gets per second", format!("{:.0}", 1e6 / time(calls, 64, worker).await?));
    for command in ["eval", "hmget"] {
        let (calls, micros) = server.command_stats(command)?;
        say(&format!("server time per {command}, in microseconds"), short(micros / calls));
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

    // A delete of the longest-lived record adjusts the expiry of the index.
    let begun = Instant::now();
    for number in (records - 100..records).rev() {
        anyhow::ensure!(backend.delete(&key(number)?).await?);
    }
    say("a delete of the longest-lived record", format!("{} µs", short(begun.elapsed().as_secs_f64() * 1e4)));
    Ok(())
}

fn task(number: usize) -> String {
    // The length of a UUID.
    format!("{number:08x}-aaaa-4aaa-8aaa-{number:012x}")
}

fn say(what: &str, figure: String) {
    println!("  {what}: {figure}");
}
