//! Many tasks: each comes through two engines as it was.

use std::collections::HashMap;
use std::time::Instant;

use futures_util::{StreamExt, stream};
use mcp_task_store::{PartName, PutOptions, StorageBackend, TaskKey};
use rstest_reuse::apply;
use serde_json::{Value, json};

use super::File;
use crate::support::{Engine, Store, in_every_direction};

/// Stores this many ended tasks, in turns for these owners. Every tenth has a part.
pub async fn fill(store: &Store, owners: &[&str], tasks: usize) {
    let creating = stream::iter(0..tasks).map(|number| async move {
        let key = TaskKey::new(owners[number % owners.len()], &format!("t{number}")).unwrap();
        let record = json!({
            "taskId": key.task, "status": "completed", "createdAt": "2026-01-31T12:00:00.000Z",
            "lastUpdatedAt": "2026-01-31T12:00:01.250Z", "ttlMs": null, "method": "tools/call",
            "arguments": { "name": "print", "arguments": { "number": number, "text": "abcdefghij".repeat(30) } },
        });
        let mut options = PutOptions::default();
        if number % 10 == 0 {
            options = options.set_part(PartName::from_static("output"), vec![number as u8; 500]);
        }
        store.tasks.backend().put(&key, record.to_string().into(), options).await.unwrap();
    });
    creating.buffer_unordered(256).for_each(|()| std::future::ready(())).await;
}

/// Returns a number for the content of each owner: of its tasks in their order, without the times of their creation by the engine.
fn contents(file: &File) -> HashMap<String, u64> {
    use std::hash::{DefaultHasher, Hash, Hasher};
    use std::io::BufRead;
    let mut hashes: HashMap<String, DefaultHasher> = HashMap::new();
    let lines = std::io::BufReader::new(std::fs::File::open(&file.path).unwrap()).lines();
    for line in lines.map(Result::unwrap) {
        let mut line: Value = serde_json::from_str(&line).unwrap();
        let Some(owner) = line["owner"].as_str().map(str::to_owned) else { continue };
        line.as_object_mut().unwrap().remove("createdAt");
        line.to_string().hash(hashes.entry(owner).or_default());
    }
    hashes.into_iter().map(|(owner, hash)| (owner, hash.finish())).collect()
}

async fn round_trip(from: Engine, to: Engine, tasks: usize) {
    let owners: Vec<String> = (0..tasks.div_ceil(500)).map(|number| format!("owner {number}")).collect();
    let owners: Vec<&str> = owners.iter().map(String::as_str).collect();
    let (source, target) = (from.open().await, to.open().await);
    fill(&source, &owners, tasks).await;
    let (first, second) = (File::new(), File::new());
    let timed = |what: &str, store: &Store, args: &[&str]| {
        let begun = Instant::now();
        store.run(args).ok();
        eprintln!("{what}: {:.0} tasks per second", tasks as f64 / begun.elapsed().as_secs_f64());
    };
    let export = |file: &File| ["export", "--rate", "1000000", "--output", file.path()].map(str::to_owned);
    timed("export", &source, &export(&first).each_ref().map(String::as_str));
    timed("import", &target, &["import", first.path()]);
    timed("export", &target, &export(&second).each_ref().map(String::as_str));
    let (before, after) = (contents(&first), contents(&second));
    assert_eq!((before.len(), before == after), (owners.len(), true));
    let lines = std::io::BufRead::lines(std::io::BufReader::new(std::fs::File::open(&second.path).unwrap()));
    assert_eq!(lines.count(), tasks + 2);
}

#[apply(in_every_direction)]
#[tokio::test(flavor = "multi_thread")]
async fn twenty_thousand_tasks_are_equal_after_a_round_trip(#[case] from: Engine, #[case] to: Engine) {
    round_trip(from, to, 20_000).await;
}

#[apply(in_every_direction)]
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes"]
async fn a_million_tasks_are_equal_after_a_round_trip(#[case] from: Engine, #[case] to: Engine) {
    round_trip(from, to, 1_000_000).await;
}
