//! An acknowledged task ends with exactly one outcome, which its operation produced, or with the true reason why there
//! is none. Three worker processes, a network and a server fail, or a SQLite file that they share, and a checker compares the log of the events with the
//! records.
//!
//! The long form: `cargo test --features redis-tests --test faults -- --ignored --nocapture chaos::long`. `CHAOS_SEED` repeats the
//! plans and faults of a run, except those that depend on timing. `CHAOS_KEEP` names a folder for its logs.

mod checker;
mod clients;
mod ends;
mod faults;
mod file;
mod history;
mod log;
mod network;
mod operation;
mod output;
mod replicated;
mod rules;
mod run;
mod worker;

use std::time::Duration;

use crate::support::deployment::Topology;
use crate::support::heavy;
use run::Run;

/// The size of a run.
struct Form {
    tasks: u64,
    /// The time between two creates.
    pace: Duration,
    at_once: usize,
    /// The average time between two faults of one target.
    gap: Duration,
    /// How many bytes more than the first few a connection passes before it is cut.
    most_bytes: u64,
    /// Faults end when all tasks are created, and after this time at the latest.
    rages: Duration,
    least_resumptions: usize,
    /// The minimum number of results that must not be replaced. A run with fewer results proves little.
    least_kept: usize,
    /// How long tasks may take to end after the last fault.
    patience: Duration,
    store: Store,
    /// Whether one process only enqueues tasks, and the others claim them.
    separates_workers: bool,
}

/// What stores the tasks.
#[derive(Clone, Copy)]
enum Store {
    /// A single Redis, behind a network that fails.
    Server,
    Servers(Topology),
    /// A SQLite file that all processes share.
    File,
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
    store: Store::Server,
    separates_workers: false,
};
const SHORT_OF_SEPARATE_WORKERS: Form =
    Form { tasks: 200, rages: Duration::from_secs(9), separates_workers: true, ..SHORT };
const SHORT_IN_A_FILE: Form = Form { tasks: 200, rages: Duration::from_secs(9), store: Store::File, ..SHORT };
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
    store: Store::Server,
    separates_workers: false,
};
const CLUSTER: Store = Store::Servers(Topology::Cluster);
const BEHIND_SENTINELS: Store = Store::Servers(Topology::Sentinels { replicas: 2 });
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
    store: CLUSTER,
    separates_workers: false,
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
    store: CLUSTER,
    separates_workers: false,
};

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

/// Performs a run, prints its figures, and fails if a rule is broken.
async fn survives(form: Form) {
    let _heavy = heavy().await;
    let seed = seed();
    println!("chaos: CHAOS_SEED={seed}");
    let run = Run::start(form, seed).await;
    let ended = run.perform().await;
    let checked = run.check().await;
    output::print_figures(&run, &ended, &checked.report);
    output::keep_logs(&run);
    let (form, report) = (&run.form, &checked.report);
    if let Some(first) = report.violations.first() {
        output::explain(&run, &checked);
        panic!("{} violations, CHAOS_SEED={seed}; the first: {first}", report.violations.len());
    }
    assert!(report.acknowledged as u64 >= form.tasks, "{report:?}");
    assert!(report.kept_results >= form.least_kept, "{report:?}");
    if !matches!(form.store, Store::Servers(_)) {
        assert!(report.cancels_of_running > 0, "{report:?}");
    }
    match form.store {
        Store::Server => {
            let (resets, closes, _) = run.network_counts();
            assert!(resets > 0 && closes > 0, "{resets} resets, {closes} closes");
        }
        Store::Servers(_) => {}
        Store::File => {
            assert!(ended.counts.files_locked + ended.counts.files_filled > 0, "{:?}", ended.counts);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_of_workers_that_fail_end_with_their_result_or_with_the_true_reason() {
    survives(SHORT).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn enqueued_tasks_of_separate_workers_that_fail_end_with_their_result_or_with_the_true_reason() {
    survives(SHORT_OF_SEPARATE_WORKERS).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_in_a_file_of_workers_that_fail_end_with_their_result_or_with_the_true_reason() {
    survives(SHORT_IN_A_FILE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_on_a_cluster_that_fails_end_with_their_result_or_with_the_true_reason() {
    survives(Form { store: CLUSTER, ..SHORT_ON_SEVERAL }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_behind_sentinels_of_a_master_that_fails_end_with_their_result_or_with_the_true_reason() {
    survives(Form { store: BEHIND_SENTINELS, ..SHORT_ON_SEVERAL }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes some minutes"]
async fn long_form_of_tasks_on_a_cluster_that_fails() {
    survives(Form { store: CLUSTER, ..LONG_ON_SEVERAL }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes some minutes"]
async fn long_form_of_tasks_behind_sentinels_of_a_master_that_fails() {
    survives(Form { store: BEHIND_SENTINELS, ..LONG_ON_SEVERAL }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes some minutes"]
async fn long_form_of_tasks_in_a_file_of_workers_that_fail() {
    survives(Form { store: Store::File, ..LONG }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes some minutes"]
async fn long_form_of_enqueued_tasks_of_separate_workers_that_fail() {
    survives(Form { separates_workers: true, ..LONG }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes some minutes"]
async fn long_form_of_enqueued_tasks_in_a_file_of_separate_workers_that_fail() {
    survives(Form { separates_workers: true, store: Store::File, ..LONG }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes some minutes"]
async fn long_form_of_tasks_of_workers_that_fail() {
    survives(LONG).await;
}
