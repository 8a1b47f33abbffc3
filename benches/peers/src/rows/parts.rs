//! Large payloads: as parts of the record, compared with payloads in its data.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use mcp_task_store::{
    Expiry, NewTask, OwnerId, PartName, PutOptions, RedisBackend, StorageBackend, StoreConfig, TaskKey,
    TaskStore, Version,
};
use serde_json::{Value, json};

use crate::bench::Bench;
use crate::format::{micros, short};
use crate::report::Report;
use crate::rounds::{Samples, alternate_all};
use crate::row::{Row, Target};

/// The sizes of payloads: name, bytes, and number of tasks with such a payload in a round.
const SIZES: [(&str, usize, usize); 3] =
    [("1 kB", 1_000, 100), ("100 kB", 100_000, 40), ("4 MB", 4_000_000, 4)];
/// How many status messages all tasks of a round receive.
const MESSAGES: usize = 400;

pub async fn rows(bench: &Bench, report: &mut Report) -> Result<()> {
    let mut updates = Vec::new();
    for (name, size, tasks) in SIZES {
        bench.step(&format!("payloads of {name}"));
        let tasks = (tasks / bench.form.divisor).max(2);
        let [create, update, complete] = alternate_all::<2, 3>(bench.form.few_rounds(), async |turn| {
            bench.server.clear()?;
            if turn == 0 { with_parts(bench, size, tasks).await } else { in_data(bench, size, tasks).await }
        })
        .await?;
        let work = [
            (format!("`create` with {name} of arguments, one at a time"), &create),
            (format!("a status update by key with {name} of arguments, one at a time"), &update),
            (format!("`complete` with a result of {name} and arguments of {name}, one at a time"), &complete),
        ];
        for (work, [parts, data]) in work {
            let row = Row::new(work).ours(micros(parts));
            let whole = micros(data);
            report.add(row.ratio(
                &format!("the time with the payloads in the data ({whole})"),
                &parts.over(data),
                None,
            ));
        }
        let [parts, _] = update;
        updates.push((name, parts));
    }
    flat(&updates, report);
    held(bench, report).await
}

/// Shows that a status update costs the same for every size of payload.
fn flat(updates: &[(&str, Samples)], report: &mut Report) {
    let by_size: Vec<String> =
        updates.iter().map(|(name, times)| format!("{name}: {}", micros(times))).collect();
    let medians = updates.iter().map(|(_, times)| times.median());
    let (least, most) = (medians.clone().fold(f64::INFINITY, f64::min), medians.fold(0.0, f64::max));
    let row = Row::new("a status update by key, by the size of the arguments").ours(by_size.join(", "));
    let flat = format!("{} x from the fastest to the slowest", short(most / least));
    report.add(row.figure(&flat, most / least, Target::AtMost(1.2)));
}

fn payload(size: usize) -> Value {
    json!({ "pad": "x".repeat(size) })
}

fn a_call(since: Instant, calls: usize) -> f64 {
    since.elapsed().as_secs_f64() * 1e6 / calls as f64
}

/// Returns the microseconds of a create, a status update and a completion.
async fn with_parts(bench: &Bench, size: usize, tasks: usize) -> Result<[f64; 3]> {
    let store = TaskStore::with_config(bench.ours.0.clone(), StoreConfig::new().max_tasks_per_owner(None));
    let owner = OwnerId::try_from("alice")?;
    let arguments: Vec<_> = (0..tasks).map(|_| payload(size)).collect();
    let results = arguments.clone();
    let (since, mut created) = (Instant::now(), Vec::new());
    for arguments in arguments {
        created.push(store.create(&owner, NewTask::new("tools/call").arguments(arguments)).await?.key);
    }
    let create = a_call(since, tasks);
    let since = Instant::now();
    for number in 0..MESSAGES {
        store.set_status_message(&created[number % tasks], format!("frame {number}")).await?;
    }
    let update = a_call(since, MESSAGES);
    let since = Instant::now();
    for (key, result) in created.iter().zip(results) {
        store.complete(key, result).await?;
    }
    Ok([create, update, a_call(since, tasks)])
}

/// Does the same with the whole task in the data of the record.
async fn in_data(bench: &Bench, size: usize, tasks: usize) -> Result<[f64; 3]> {
    let builder = RedisBackend::builder().max_value_bytes(16 << 20).response_timeout(Duration::from_secs(10));
    let engine = builder.connect(&bench.server.url()).await?;
    let arguments: Vec<_> = (0..tasks).map(|_| payload(size)).collect();
    let results = arguments.clone();
    let key = |task: usize| TaskKey::new("alice", &task.to_string());
    let since = Instant::now();
    for (task, arguments) in arguments.into_iter().enumerate() {
        let record = json!({ "status": "working", "method": "tools/call", "arguments": arguments });
        let options = PutOptions::new(Expiry::After(Duration::from_secs(3600)));
        engine
            .put_if_version(&key(task)?, serde_json::to_vec(&record)?.into(), options, Version::ABSENT)
            .await?;
    }
    let create = a_call(since, tasks);
    let since = Instant::now();
    // Each call sends the whole record, so fewer calls are enough.
    for number in 0..tasks {
        change(&engine, &key(number)?, "statusMessage", format!("frame {number}").into()).await?;
    }
    let update = a_call(since, tasks);
    let since = Instant::now();
    for (task, result) in results.into_iter().enumerate() {
        change(&engine, &key(task)?, "result", result).await?;
    }
    Ok([create, update, a_call(since, tasks)])
}

async fn change(engine: &RedisBackend, key: &TaskKey, field: &str, value: Value) -> Result<()> {
    let read = engine.get(key).await?;
    let mut record: Value = serde_json::from_slice(&read.data)?;
    record.as_object_mut().context("an object")?.insert(field.to_owned(), value);
    let options = PutOptions::new(Expiry::Keep);
    engine.put_if_version(key, serde_json::to_vec(&record)?.into(), options, read.version).await?;
    Ok(())
}

/// Measures how long a part occupies the server.
async fn held(bench: &Bench, report: &mut Report) -> Result<()> {
    bench.step("server time per part");
    bench.server.clear()?;
    let (key, part) = (TaskKey::new("alice", "t1")?, PartName::from_static("output"));
    let mut figures = Vec::new();
    for mebibytes in [1, 4] {
        let bytes = Bytes::from(vec![b'x'; mebibytes << 20]);
        bench.server.run::<String>(&["CONFIG", "RESETSTAT"])?;
        for _ in 0..20 {
            let options = PutOptions::new(Expiry::Keep).set_part(part.clone(), bytes.clone());
            bench.ours.0.put(&key, "data".into(), options).await?;
            bench.ours.0.part(&key, &part).await?;
        }
        for (what, command) in [("written", "eval"), ("read", "hmget")] {
            let (calls, micros) = bench.server.command_stats(command)?;
            figures.push(format!("{mebibytes} MiB {what}: {} ms", short(micros / calls / 1e3)));
        }
    }
    report.add(Row::new("server time per part").ours(figures.join(", ")));
    Ok(())
}
