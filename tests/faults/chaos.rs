//! An acknowledged task ends with the outcome that its operation produced, exactly one of it, or with an honest reason why
//! there is none: three worker processes, a network and a server that all fail, and a log that is held against the records.
//!
//! The long form: `cargo test --features redis-tests --test faults -- --ignored --nocapture chaos::long`. `CHAOS_SEED` repeats the
//! plans and faults of a run, as far as they do not depend on timing. `CHAOS_KEEP` names a folder for its logs.

mod checker;
mod clients;
mod ends;
mod faults;
mod history;
mod log;
mod operation;
mod rules;
mod several;
mod wire;
mod worker;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::support::deployment::{Topology, Way};
use checker::{Bounds, Report};
use clients::{Clients, Straight};
use faults::{Alone, Done, Place, Victim, WORKERS};
use history::History;
use log::{Event, Line, Log};
use mcp_task_store::RedisBackend;
use operation::{LEASE, MAX_ATTEMPTS, Plan};
use several::Several;
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::time::timeout;
use wire::Wire;
use worker::log_of;

/// How much is done.
struct Form {
    tasks: u64,
    /// Between two creations.
    pace: Duration,
    at_once: usize,
    /// Between two faults of one process, on average.
    gap: Duration,
    /// How many bytes a connection passes before it is cut, beyond the first few.
    most_bytes: u64,
    /// Faults end when all tasks are created, and after this time at the latest.
    rages: Duration,
    least_resumptions: usize,
    /// How many results may not be replaced at least: a run with fewer would prove less than it seems to.
    least_kept: usize,
    /// How long tasks may take to end when there are no more faults.
    patience: Duration,
    /// What stores the tasks, if it is not one server.
    topology: Option<Topology>,
}

const SHORT: Form = Form {
    tasks: 300,
    pace: Duration::from_millis(40),
    at_once: 150,
    gap: Duration::from_millis(2_000),
    most_bytes: 150_000,
    rages: Duration::from_secs(13),
    least_resumptions: 1,
    least_kept: 1,
    patience: Duration::from_secs(90),
    topology: None,
};
const LONG: Form = Form {
    tasks: 5_000,
    pace: Duration::from_millis(30),
    at_once: 250,
    gap: Duration::from_millis(4_500),
    most_bytes: 1_500_000,
    rages: Duration::from_secs(900),
    least_resumptions: 500,
    least_kept: 1_000,
    patience: Duration::from_secs(180),
    topology: None,
};
const BEHIND_SENTINELS: Topology = Topology::Sentinels { replicas: 2 };
const SHORT_ON_SEVERAL: Form = Form {
    tasks: 100,
    pace: Duration::from_millis(80),
    at_once: 100,
    gap: Duration::from_millis(3_000),
    most_bytes: 0,
    rages: Duration::from_secs(12),
    least_resumptions: 1,
    least_kept: 1,
    patience: Duration::from_secs(90),
    topology: None,
};
const LONG_ON_SEVERAL: Form = Form {
    tasks: 1_000,
    pace: Duration::from_millis(120),
    at_once: 150,
    gap: Duration::from_millis(4_500),
    most_bytes: 0,
    rages: Duration::from_secs(600),
    least_resumptions: 50,
    least_kept: 200,
    patience: Duration::from_secs(180),
    topology: None,
};

fn figure(place: &str, what: &str, value: impl Display) {
    println!("figure | chaos{place}: {what} | {value}");
}

fn seed() -> u64 {
    match std::env::var("CHAOS_SEED") {
        Ok(seed) => seed.parse().expect("CHAOS_SEED is a number"),
        Err(_) => log::now_us() % 1_000_000_007,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "is a worker process of the tests in this file"]
async fn worker_process() {
    worker::serve().await;
}

/// Creates tasks while everything fails, waits for their ends when nothing does any more, and checks.
async fn survives(form: Form) {
    let seed = seed();
    println!("chaos: CHAOS_SEED={seed}");
    let folder = TempDir::new().unwrap();
    let log = Arc::new(Log::open(&log_of(folder.path())));
    let victim = match form.topology {
        None => Victim::Alone(Alone::start(Arc::clone(&log))),
        Some(topology) => {
            let log = Arc::clone(&log);
            let started = tokio::task::spawn_blocking(move || Several::start(topology, log));
            Victim::Several(started.await.unwrap())
        }
    };
    let victim = Arc::new(victim);
    let straight = match &*victim {
        Victim::Alone(alone) => {
            let url = format!("redis://127.0.0.1:{}", alone.port());
            Straight::Kept(RedisBackend::connect(&url).await.unwrap())
        }
        Victim::Several(several) => Straight::Anew(several.way()),
    };
    let place = |number| {
        let (way, wire) = match &*victim {
            Victim::Alone(alone) => {
                let wire = Wire::start(alone.port(), seed ^ number as u64, form.most_bytes);
                (Way::to(wire.url()), Some(wire))
            }
            Victim::Several(several) => (several.way(), None),
        };
        Place::new(number, way, wire, folder.path(), Arc::clone(&log))
    };
    let places = Arc::new((0..WORKERS).map(place).collect::<Vec<_>>());

    let started = Instant::now();
    let ((stop, stops), (all_created, mut created), (give_up, gives_up)) =
        (watch::channel(false), watch::channel(false), watch::channel(false));
    let clients = Clients {
        places: Arc::clone(&places),
        log: Arc::clone(&log),
        straight: straight.clone(),
        seed,
        give_up: gives_up,
    };
    let mut clients = tokio::spawn(clients.run(form.tasks, form.pace, form.at_once, all_created));
    let raging = {
        let (places, victim) = (Arc::clone(&places), Arc::clone(&victim));
        tokio::spawn(async move { faults::rage(&places, &victim, seed, form.gap, stops).await })
    };
    // The clients may panic, too. Then they have ended.
    let _ = timeout(form.rages, created.wait_for(|created| *created)).await;
    stop.send_replace(true);
    let done = raging.await.unwrap();
    log.append(Event::FaultsEnd);
    let (raged, ending) = (started.elapsed(), Instant::now());
    match timeout(form.patience, &mut clients).await {
        Ok(ended) => ended.unwrap(),
        Err(_) => {
            // The rules say what has not ended.
            give_up.send_replace(true);
            clients.await.unwrap();
        }
    }
    let ended = ending.elapsed();

    let lines = log::read(&log_of(folder.path()));
    let owners: BTreeSet<String> = lines
        .iter()
        .filter_map(|line| match &line.event {
            Event::Created { plan: Plan { owner, .. }, .. }
            | Event::Begin { plan: Plan { owner, .. }, .. } => Some(owner.clone()),
            _ => None,
        })
        .collect();
    // Not the connection that saw it all.
    let fresh = match &*victim {
        Victim::Alone(alone) => RedisBackend::connect(&format!("redis://127.0.0.1:{}", alone.port())).await,
        Victim::Several(_) => straight.connect().await,
    };
    let fresh = fresh.unwrap();
    let ends = ends::read(&fresh, &owners).await;
    let bounds = Bounds {
        silence: 1_000_000,
        storing: 3_000_000,
        max_attempts: MAX_ATTEMPTS,
        least_resumptions: form.least_resumptions,
    };
    let report = checker::check(&lines, &ends, bounds);
    let cuts = places.iter().filter_map(|place| place.wire.as_ref()).map(Wire::counts);
    let cuts = cuts.fold((0, 0, 0), |sum, cuts| (sum.0 + cuts.0, sum.1 + cuts.1, sum.2 + cuts.2));
    show(form.topology, &report, &done, cuts, raged, ended);
    keep(folder.path(), seed);
    if !report.violations.is_empty() {
        explain(&report, &lines, &ends, folder.path());
        panic!(
            "{} violations, CHAOS_SEED={seed}; the first: {}",
            report.violations.len(),
            report.violations[0]
        );
    }
    assert!(report.acknowledged as u64 >= form.tasks, "{report:?}");
    assert!(report.kept_results >= form.least_kept, "{report:?}");
    if form.topology.is_none() {
        assert!(report.cancels_of_running > 0 && cuts.0 > 0 && cuts.1 > 0, "{report:?}");
    }
}

fn show(
    topology: Option<Topology>,
    report: &Report,
    done: &Done,
    (resets, closes, stalls): (u64, u64, u64),
    raged: Duration,
    ended: Duration,
) {
    let place = match topology {
        None => "",
        Some(Topology::Cluster) => " on a cluster",
        Some(_) => " behind sentinels",
    };
    figure(place, "leases of", format!("{LEASE:?}"));
    figure(place, "tasks acknowledged", report.acknowledged);
    figure(place, "records by status", format!("{:?}", report.by_status));
    figure(place, "resumptions", report.resumptions);
    figure(place, "results that might not be replaced", report.kept_results);
    figure(place, "results whose worker was disturbed before it could store them", report.excused_results);
    figure(
        place,
        "cancels acknowledged, of tasks at work",
        format!("{}, {}", report.cancels, report.cancels_of_running),
    );
    figure(
        place,
        "failed: worker lost, gave up, overdue",
        format!("{}, {}, {}", report.lost, report.gave_up, report.overdue),
    );
    figure(place, "workers killed, shut down", format!("{}, {}", done.killed, done.shut_down));
    figure(place, "workers stopped, cut off", format!("{}, {}", done.paused, done.cut_off));
    if topology.is_some() {
        figure(place, "what befell the servers", format!("{:?}", done.of_several));
        figure(place, "violations for want of writes that a failover lost", report.lost_writes.len());
    } else {
        figure(place, "servers killed, stopped", format!("{}, {}", done.servers_killed, done.servers_paused));
        figure(place, "steps of the server's clock", done.clocks_stepped);
        figure(place, "connections reset, closed, stalled", format!("{resets}, {closes}, {stalls}"));
    }
    figure(place, "time under faults", format!("{:.1} s", raged.as_secs_f64()));
    figure(place, "time until the last task had ended", format!("{:.1} s", ended.as_secs_f64()));
    figure(place, "violations", report.violations.len());
}

/// Prints the violations, and for the first of each rule all that is known.
fn explain(report: &Report, lines: &[Line], ends: &BTreeMap<String, ends::End>, folder: &Path) {
    let mut alike = BTreeMap::<(checker::Rule, &str), Vec<&str>>::new();
    for violation in &report.violations {
        alike.entry((violation.rule, &violation.what)).or_default().push(&violation.task);
    }
    for ((rule, what), tasks) in alike {
        println!("violation: {rule:?}: {what}: {} tasks, {:?}", tasks.len(), &tasks[..tasks.len().min(3)]);
    }
    let history = History::of(lines);
    let mut explained = BTreeSet::new();
    for violation in &report.violations {
        if !explained.insert(violation.rule) {
            continue;
        }
        println!("\n{violation}");
        println!("  record: {}", ends.get(&violation.task).map_or("none", |end| &end.record));
        for line in history.about(&violation.task) {
            println!("  {}", serde_json::to_string(line).unwrap());
        }
        for file in std::fs::read_dir(folder).unwrap() {
            let path = file.unwrap().path();
            if path.extension().is_none_or(|extension| extension != "trace") {
                continue;
            }
            let told = std::fs::read_to_string(&path).unwrap_or_default();
            for line in told.lines().filter(|line| line.contains(&violation.task)) {
                println!("  {}: {line}", path.file_stem().unwrap().to_string_lossy());
            }
        }
    }
}

/// Copies the logs to the folder that is to keep them, if there is one.
fn keep(folder: &Path, seed: u64) {
    let Some(kept) = std::env::var_os("CHAOS_KEEP") else { return };
    let kept = Path::new(&kept).join(seed.to_string());
    std::fs::create_dir_all(&kept).unwrap();
    for file in std::fs::read_dir(folder).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), kept.join(file.file_name())).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_of_workers_that_fail_end_with_what_they_produced_or_with_an_honest_reason() {
    survives(SHORT).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_on_a_cluster_that_fails_end_with_what_they_produced_or_with_an_honest_reason() {
    survives(Form { topology: Some(Topology::Cluster), ..SHORT_ON_SEVERAL }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_behind_sentinels_of_a_master_that_fails_end_with_what_they_produced_or_with_an_honest_reason()
{
    survives(Form { topology: Some(BEHIND_SENTINELS), ..SHORT_ON_SEVERAL }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes some minutes"]
async fn long_form_of_tasks_on_a_cluster_that_fails() {
    survives(Form { topology: Some(Topology::Cluster), ..LONG_ON_SEVERAL }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes some minutes"]
async fn long_form_of_tasks_behind_sentinels_of_a_master_that_fails() {
    survives(Form { topology: Some(BEHIND_SENTINELS), ..LONG_ON_SEVERAL }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes some minutes"]
async fn long_form_of_tasks_of_workers_that_fail() {
    survives(LONG).await;
}
