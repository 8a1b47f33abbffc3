//! Faults at random on many tasks at once.
//!
//! The long form: `cargo test --features redis-tests --test faults -- --ignored --nocapture tasks::`.

use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::fmt::Display;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use mcp_task_store::{StoreConfig, TaskStore};
use serde_json::Value;

use super::life::{CALLS, Outcomes, Worked, check_task, work};
use super::{BEHIND_THE_READ, backend, is_conflict};
use crate::support::Random;
use crate::support::proxy::Fault::{Late, LoseReply, LoseWrite, Pass};
use crate::support::proxy::{Delivery, Fault, Proxy};
use crate::support::redis::{Server, command};

/// The size of a run.
struct Form {
    tasks: usize,
    /// How many tasks run at once, on how many instances of the server.
    at_once: usize,
    instances: usize,
}

const SHORT: Form = Form { tasks: 30, at_once: 12, instances: 6 };
const LONG: Form = Form { tasks: 2000, at_once: 48, instances: 24 };
const SEED: u64 = 20_251_123;

/// Returns random faults. Most writes pass. Late writes arrive at once, a little later, much later, or after the last
/// call.
fn at_random(mut random: Random) -> impl FnMut() -> Fault {
    move || match random.below(100) {
        0..6 => LoseWrite,
        6..12 => LoseReply,
        12..14 => BEHIND_THE_READ,
        14..16 => Late { after: random.below(10) },
        16..18 => Late { after: random.below(1000) },
        18..20 => Fault::HELD_BACK,
        _ => Pass,
    }
}

/// Returns the stored versions and data, by the server's key.
fn stored<'a>(
    server: &Server,
    keys: impl IntoIterator<Item = &'a String>,
) -> HashMap<String, (u64, Vec<u8>)> {
    let mut connection = server.connection();
    let read = |key: &String| {
        let (version, data): (Option<u64>, Option<Vec<u8>>) =
            command(&mut connection, ["HMGET", key, "version", "data"]);
        (key.clone(), (version.unwrap_or(0), data.unwrap_or_default()))
    };
    keys.into_iter().map(read).collect()
}

/// Returns the writes of each record that the server applied, in the order of their versions.
fn applied(deliveries: &[Delivery]) -> HashMap<String, Vec<(u64, Value)>> {
    let mut applied: HashMap<String, Vec<(u64, Value)>> = HashMap::new();
    for delivery in deliveries {
        let writes = applied.entry(delivery.key.clone()).or_default();
        if let Some(version) = delivery.version {
            writes.push((version, serde_json::from_slice(&delivery.data).unwrap()));
        }
    }
    applied.values_mut().for_each(|writes| writes.sort_by_key(|(version, _)| *version));
    applied
}

/// Returns a task without the fields that every write changes.
fn content(task: &Value) -> Value {
    let mut task = task.clone();
    task.as_object_mut().unwrap().retain(|field, _| field != "writeIds" && field != "lastUpdatedAt");
    task
}

fn figure(what: &str, value: impl Display) {
    println!("figure | {what} | {value}");
}

/// Asserts that each applied write has a version and an id of its own and changes the task. So no update is applied twice,
/// neither by a copy of its write nor by another write with the same content.
fn check_writes(key: &str, writes: &[(u64, Value)]) {
    let versions: Vec<u64> = writes.iter().map(|(version, _)| *version).collect();
    assert_eq!(versions, (1..=writes.len() as u64).collect::<Vec<_>>(), "{key}");
    assert!(writes.len() as u64 <= CALLS, "{key}");
    let last_id = |task: &Value| task["writeIds"].as_array().unwrap().last().unwrap().to_string();
    let ids: HashSet<String> = writes.iter().map(|(_, task)| last_id(task)).collect();
    assert_eq!(ids.len(), writes.len(), "{key}");
    for two in writes.windows(2) {
        assert_ne!(content(&two[0].1), content(&two[1].1), "{key}");
    }
}

/// A run that has ended.
struct Run {
    form: Form,
    server: Server,
    worked: Vec<Worked>,
    took: Duration,
    /// The faults of all writes.
    faults: Vec<Fault>,
    deliveries: Vec<Delivery>,
    /// How many writes arrived after the last call.
    arrived_last: usize,
    /// What was stored before and after those arrived.
    before: HashMap<String, (u64, Vec<u8>)>,
    after: HashMap<String, (u64, Vec<u8>)>,
    applied: HashMap<String, Vec<(u64, Value)>>,
}

/// Returns whether every call on the task was acknowledged.
fn is_certain(worked: &&Worked) -> bool {
    worked.outcomes.unknown.get() == 0
}

impl Run {
    async fn perform(form: Form) -> Self {
        let server = Server::start(&[]);
        let proxy = Proxy::start(server.port, at_random(Random(SEED))).await;
        let mut instances = Vec::new();
        for _ in 0..form.instances {
            let config = StoreConfig::new().max_tasks_per_owner(None);
            instances.push(TaskStore::with_config(backend(&proxy.url()).await, config));
        }
        let started = Instant::now();
        let working = (0..form.tasks).map(|number| work(number, &instances));
        let worked = futures_util::stream::iter(working).buffer_unordered(form.at_once).collect().await;
        let took = started.elapsed();

        let keys: HashSet<String> = proxy.deliveries().into_iter().map(|write| write.key).collect();
        let before = stored(&server, &keys);
        let arrived_last = proxy.deliver_late().await.len();
        let deliveries = proxy.deliveries();
        let applied = applied(&deliveries);
        let after = stored(&server, applied.keys());
        let faults = proxy.faults();
        Self { form, server, worked, took, faults, deliveries, arrived_last, before, after, applied }
    }

    fn late(&self) -> impl Iterator<Item = &Delivery> {
        self.deliveries.iter().filter(|delivery| delivery.is_late)
    }

    /// Returns how many late writes the server refused.
    fn conflicts(&self) -> usize {
        self.late().filter(|delivery| is_conflict(delivery)).count()
    }

    fn certain(&self) -> usize {
        self.worked.iter().filter(is_certain).count()
    }

    fn completed(&self) -> usize {
        self.worked.iter().filter(|task| task.result.is_some()).count()
    }

    fn print_figures(&self) {
        let faults = |kind: Fault| self.faults.iter().filter(|fault| **fault == kind).count();
        let calls = |kind: fn(&Outcomes) -> &Cell<u64>| {
            self.worked.iter().map(|task| kind(&task.outcomes).get()).sum::<u64>()
        };
        figure("tasks driven through faults", self.form.tasks);
        figure("tasks whose completion was acknowledged", self.completed());
        figure("tasks of which every call was acknowledged", self.certain());
        figure("calls acknowledged", calls(|outcomes| &outcomes.acknowledged));
        figure("calls with an unknown outcome", calls(|outcomes| &outcomes.unknown));
        figure("calls refused and repeated", calls(|outcomes| &outcomes.refused));
        figure("writes sent", self.faults.len());
        figure("writes lost", faults(LoseWrite));
        figure("replies lost", faults(LoseReply));
        figure("writes delivered late", self.late().count());
        figure("late writes that the server refused as conflicts", self.conflicts());
        figure("late writes that the server applied, each once", self.late().count() - self.conflicts());
        figure("writes delivered after the last call", self.arrived_last);
        figure("time under load", format!("{:.1} s", self.took.as_secs_f64()));
    }

    fn check_writes(&self) {
        for (key, writes) in &self.applied {
            check_writes(key, writes);
            assert_eq!(self.after[key].0, writes.len() as u64, "the version of {key} counts its writes");
        }
    }

    async fn check_tasks(&self) {
        let direct = TaskStore::new(backend(&self.server.url()).await);
        for worked in &self.worked {
            let Some(key) = &worked.key else { continue };
            check_task(worked, &direct.get(key).await.unwrap().task);
            let at = format!("pmcp:tasks:{}:{}", key.owner, key.task);
            if is_certain(&worked) {
                assert_eq!(self.after[&at].0, CALLS, "each call was one write: {at}");
                assert_eq!(self.before[&at], self.after[&at], "the last late copies change nothing: {at}");
            }
        }
    }

    /// Asserts that the run had enough of everything to prove something.
    fn check_load(&self) {
        for kind in [LoseWrite, LoseReply, BEHIND_THE_READ, Fault::HELD_BACK] {
            assert!(self.faults.contains(&kind), "{kind:?}");
        }
        assert!(self.conflicts() > 0);
        assert!(self.certain() > self.form.tasks / 5 && self.completed() > self.form.tasks / 2);
    }
}

async fn holds(form: Form) {
    let run = Run::perform(form).await;
    run.print_figures();
    run.check_writes();
    run.check_tasks().await;
    run.check_load();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn after_lost_and_late_writes_tasks_hold_every_acknowledged_change() {
    holds(SHORT).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "takes a while"]
async fn long_form_of_tasks_driven_through_lost_and_late_writes() {
    holds(LONG).await;
}
