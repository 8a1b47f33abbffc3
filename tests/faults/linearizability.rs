//! The history of concurrent clients is linearizable, key by key, while their server is killed and restarted.
//!
//! The long form: `cargo test --features redis-tests --test faults -- --ignored --nocapture linearizability::`.

mod checker;
mod load;
mod proxy;
mod record;

use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use crate::support::redis::Server;
use crate::support::sqlite::Folder;
use load::{Load, Recovery};
use mcp_task_store::{Expiry, RedisBackend, StorageBackend};
use proxy::{Falsification, Proxy};
use record::Call::{Delete, Get, Put, PutIfVersion};
use record::Reply::{Deleted, NotFound, Read, VersionConflict, Written};
use record::{Call, Operation, Reply, Segment};
use rstest::rstest;

/// The settings of the server. An acknowledged write is on disk. The server rewrites its log every few thousand writes,
/// so it also starts from rewritten logs, and a kill may interrupt a rewrite.
const DURABLE: [&str; 6] =
    ["--appendonly", "yes", "--appendfsync", "always", "--auto-aof-rewrite-min-size", "256kb"];
/// Records with different expiries, which touch the index differently. None expires while the test runs.
const EXPIRIES: [Expiry; 4] =
    [Expiry::Keep, Expiry::Keep, Expiry::Never, Expiry::After(Duration::from_secs(3600))];
const CLIENTS: u64 = 32;
/// How many times each client is refused before the killed server restarts, in turn. The server is down for some milliseconds, or
/// so long that the backend has failed to reconnect many times.
const REFUSALS: [u32; 3] = [1, 3, 16];

/// The size of a run.
struct Form {
    kills: u64,
    /// How many segments without a kill precede each segment with a kill. The checker's work grows with the square of a
    /// segment's length.
    quiet_segments: u64,
    calls_in_a_segment: u64,
}

const SHORT: Form = Form { kills: 3, quiet_segments: 1, calls_in_a_segment: 600 };
const LONG: Form = Form { kills: 36, quiet_segments: 5, calls_in_a_segment: 1000 };

async fn backend(url: &str) -> RedisBackend {
    RedisBackend::builder().response_timeout(Duration::from_secs(1)).connect(url).await.unwrap()
}

fn figure(what: &str, value: impl Display) {
    println!("figure | {what} | {value}");
}

/// Returns the value that this share of them does not exceed.
fn percentile(values: &mut [Duration], share: f64) -> Duration {
    values.sort();
    values[((values.len() as f64 * share).ceil() as usize).clamp(1, values.len()) - 1]
}

fn millis(duration: Duration) -> String {
    format!("{:.1} ms", duration.as_secs_f64() * 1000.0)
}

/// Returns the segments that are not linearizable.
fn unexplained(history: &[Segment]) -> Vec<&Segment> {
    let next = AtomicUsize::new(0);
    let check = || {
        let mut found = Vec::new();
        while let Some(segment) = history.get(next.fetch_add(1, SeqCst)) {
            if !segment.is_linearizable() {
                found.push(segment);
            }
        }
        found
    };
    std::thread::scope(|scope| {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let checks: Vec<_> = (0..threads).map(|_| scope.spawn(check)).collect();
        checks.into_iter().flat_map(|check| check.join().unwrap()).collect()
    })
}

fn count(history: &[Segment], kind: impl Fn(&Operation) -> bool) -> usize {
    let operations = history.iter().flat_map(|segment| &segment.operations);
    operations.filter(|recorded| kind(&recorded.operation)).count()
}

async fn survives(form: Form) {
    let started = Instant::now();
    let (load, recoveries) = run(&form).await;
    let ran = started.elapsed();
    let started = Instant::now();
    let unexplained = unexplained(&load.history);
    let checked = started.elapsed();
    print_figures(&load, &recoveries, &unexplained);
    figure("time under load", format!("{:.1} s", ran.as_secs_f64()));
    figure("time of the checker", format!("{:.1} s", checked.as_secs_f64()));
    assert!(unexplained.is_empty(), "{}", unexplained[0]);
    assert_eq!(recoveries.len() as u64, form.kills);
    // Ten times the promised second, for busy machines.
    assert!(recoveries.iter().all(|recovery| recovery.first_success < Duration::from_secs(10)));
    check_load(&form, &load);
}

/// Runs the clients while the server is killed and restarted.
async fn run(form: &Form) -> (Load, Vec<Recovery>) {
    let server = Server::start(&DURABLE);
    let backend = backend(&server.url()).await;
    let mut load = Load::new(CLIENTS, backend, server, &EXPIRIES);
    let mut recoveries = Vec::new();
    for (_, refusals) in (0..form.kills).zip(REFUSALS.into_iter().cycle()) {
        for _ in 0..form.quiet_segments {
            load.run(form.calls_in_a_segment).await;
        }
        recoveries.push(load.run_through_a_kill(form.calls_in_a_segment, refusals).await);
    }
    load.clear().await;
    (load, recoveries)
}

fn unknown(history: &[Segment]) -> usize {
    count(history, |operation| matches!(operation, Operation::Unknown(_)))
}

fn print_figures(load: &Load, recoveries: &[Recovery], unexplained: &[&Segment]) {
    let mut first: Vec<Duration> = recoveries.iter().map(|recovery| recovery.first_success).collect();
    let mut all: Vec<Duration> = recoveries.iter().map(|recovery| recovery.all_clients).collect();
    figure("kills survived", recoveries.len());
    figure("concurrent clients", CLIENTS);
    figure("operations in the history", count(&load.history, |_| true));
    figure("writes with an unknown outcome", unknown(&load.history));
    figure("calls refused while the server was down or loading", load.refused);
    let operations = unexplained.iter().map(|segment| segment.operations.len()).sum::<usize>();
    figure("operations in segments that nothing explains", operations);
    figure("segments checked", load.history.len());
    figure("server back to first success, median", millis(percentile(&mut first, 0.5)));
    figure("server back to first success, 99th percentile", millis(percentile(&mut first, 0.99)));
    figure("server back to success of all clients, median", millis(percentile(&mut all, 0.5)));
    figure("server back to success of all clients, 99th percentile", millis(percentile(&mut all, 0.99)));
}

/// Whether a call with this reply is of the kind that is counted.
type IsOfKind = fn(&Call, &Reply) -> bool;

/// The kinds of calls that a load must contain to prove something.
const EXPECTED: [(&str, IsOfKind); 8] = [
    ("a read record", |call, reply| matches!((call, reply), (Get, Read(_)))),
    ("an update by put", |call, reply| matches!((call, reply), (Put { .. }, Written { version: 2.. }))),
    ("a create", |call, reply| matches!((call, reply), (PutIfVersion { expected: 0, .. }, Written { .. }))),
    ("a compare-and-swap", |call, reply| {
        matches!((call, reply), (PutIfVersion { expected: 1.., .. }, Written { .. }))
    }),
    ("a conflict", |call, reply| matches!((call, reply), (PutIfVersion { .. }, VersionConflict { .. }))),
    ("a compare-and-swap of nothing", |call, reply| matches!((call, reply), (PutIfVersion { .. }, NotFound))),
    ("a delete", |call, reply| matches!((call, reply), (Delete, Deleted(true)))),
    ("a delete of nothing", |call, reply| matches!((call, reply), (Delete, Deleted(false)))),
];

fn check_load(form: &Form, load: &Load) {
    let operations = count(&load.history, |_| true) as u64;
    assert!(operations >= form.kills * (form.quiet_segments + 1) * form.calls_in_a_segment);
    assert!(unknown(&load.history) > 0 && load.refused > 0);
    check_kinds(load);
}

fn check_kinds(load: &Load) {
    for (what, is_it) in EXPECTED {
        let is_answered = |operation: &Operation| matches!(operation, Operation::Answered(call, reply) if is_it(call, reply));
        assert!(count(&load.history, is_answered) > 0, "{what}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_server_killed_and_restarted_under_load_loses_no_acknowledged_write() {
    survives(SHORT).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "takes a minute"]
async fn long_form_of_a_server_killed_and_restarted_under_load() {
    survives(LONG).await;
}

/// Runs the clients on four backends of one file, each with connections of its own as in four processes.
async fn explains_a_file(segments: u64, calls_in_a_segment: u64) {
    let folder = Folder::new();
    let mut backends: Vec<Arc<dyn StorageBackend>> = Vec::new();
    for _ in 0..4 {
        backends.push(Arc::new(folder.backend().await));
    }
    let mut load = Load::without_server(CLIENTS, backends, &EXPIRIES);
    for _ in 0..segments {
        load.run(calls_in_a_segment).await;
    }
    load.delete_all().await;
    let unexplained = unexplained(&load.history);
    figure("SQLite: operations of clients of four backends on one file", count(&load.history, |_| true));
    assert!(unexplained.is_empty(), "{}", unexplained[0]);
    assert!(unknown(&load.history) == 0 && load.refused == 0, "no fault was injected");
    check_kinds(&load);
    let rows = "SELECT (SELECT count(*) FROM owners) + (SELECT count(*) FROM records) + (SELECT count(*) FROM parts)";
    let left: i64 = folder.connection().query_row(rows, [], |row| row.get(0)).unwrap();
    assert_eq!(left, 0, "left behind");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_history_of_four_backends_on_one_file_is_linearizable() {
    explains_a_file(4, 600).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "takes a minute"]
async fn long_form_of_the_history_of_four_backends_on_one_file() {
    explains_a_file(60, 1000).await;
}

/// Replaces the version checks in the minified texts of `cas_put.lua` and `cas_put_batch.lua` by checks that every record
/// with a version passes: its version is not a table, and not false.
const SKIPPED_VERSION_CHECKS: [Falsification; 2] = [
    Falsification { find: "=i==e and", replace: "=i~=h and" },
    Falsification { find: "k==ARGV[c+1]and", replace: "k~=false    and" },
];

#[rstest]
#[case::scripts_that_skip_the_check(&SKIPPED_VERSION_CHECKS)]
#[case::the_scripts_as_they_are(&[])]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_checker_finds_lost_updates_only_if_the_scripts_skip_the_version_check(
    #[case] falsifications: &'static [Falsification],
) {
    let server = Server::start(&[]);
    let proxy = Proxy::start(server.port, falsifications).await;
    // With other expiries, a compare-and-swap uses another script.
    let mut load = Load::new(CLIENTS, backend(&proxy.url()).await, server, &[Expiry::Keep]);
    for _ in 0..3 {
        load.run(400).await;
    }
    assert!(proxy.falsified().iter().all(|count| *count > 0), "{:?}", proxy.falsified());
    assert_eq!(unexplained(&load.history).is_empty(), falsifications.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_checker_finds_a_server_that_loses_acknowledged_writes() {
    let server = Server::start(&["--appendonly", "no"]);
    let backend = backend(&server.url()).await;
    let mut load = Load::new(CLIENTS, backend, server, &EXPIRIES);
    // Deletes with an unknown outcome on every key could explain a single loss.
    for _ in 0..3 {
        load.run_through_a_kill(200, 1).await;
    }
    assert!(!unexplained(&load.history).is_empty());
}
