//! A load of calls through servers that only enqueue and workers in processes of their own, on one Redis. Each call receives its own
//! result, each operation runs once, and afterwards nothing is left in Redis or in the memory of the processes.
//!
//! The long form: `cargo test --release --features redis-tests --test faults -- --ignored --nocapture load::long`.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use tempfile::NamedTempFile;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep, timeout};

use crate::fleet::client::{Client, Kind, RoundRobin, Way};
use crate::fleet::instance::{Instance, Role};
use crate::support::heavy;
use crate::support::redis::Server;

/// How long a call may take in all, and how long it may take until nothing is left.
const PATIENCE: Duration = Duration::from_secs(120);
/// How many owners the clients have.
const OWNERS: usize = 64;
/// How long the record of a call lives after its end.
const RETENTION: Duration = Duration::from_secs(4);
/// By which part the memory of the processes may grow from the first tenth of the calls to the time when nothing is left.
const MAX_GROWTH: f64 = 0.2;
/// By how many bytes the memory of Redis may differ before and after: its buffers, and its connections.
const REDIS_SLACK: u64 = 4 << 20;

/// The size of a run.
struct Form {
    calls: usize,
    servers: usize,
    workers: usize,
    /// How many calls each worker runs at once.
    concurrency: usize,
    /// How many calls there are at once.
    clients: usize,
    /// Whether the run is long enough to tell how the memory of the processes grows.
    measures_growth: bool,
}

/// What the processes and Redis hold at some time.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    servers: u64,
    workers: u64,
    redis: u64,
    keys: u64,
}

struct Fleet {
    redis: Server,
    servers: Vec<Instance>,
    workers: Vec<Instance>,
}

impl Fleet {
    async fn start(form: &Form, log: &Path) -> Self {
        let redis = Server::start(&[]);
        let url = redis.url();
        let start = |role, number: usize| {
            let url = url.clone();
            async move { join_all((0..number).map(|_| Instance::start(&url, log, role))).await }
        };
        let servers = start(Role::Enqueuer { retention: RETENTION }, form.servers).await;
        let workers = start(Role::Worker { concurrency: form.concurrency }, form.workers).await;
        Self { redis, servers, workers }
    }

    fn held(&self) -> Held {
        let mut connection = self.redis.connection();
        let memory: String = redis::cmd("INFO").arg("memory").query(&mut connection).unwrap();
        let used = memory.lines().find_map(|line| line.strip_prefix("used_memory:")).unwrap();
        // The index has two members for each worker that has announced itself.
        let members: u64 = redis::cmd("ZCARD").arg("pmcp:idx:%00mcp/workers").query(&mut connection).unwrap();
        let of_workers = members / 2 + u64::from(members > 0);
        let all: u64 = redis::cmd("DBSIZE").query(&mut connection).unwrap();
        let sum = |processes: &[Instance]| processes.iter().map(Instance::resident_bytes).sum();
        Held {
            servers: sum(&self.servers),
            workers: sum(&self.workers),
            redis: used.trim().parse().unwrap(),
            keys: all.saturating_sub(of_workers),
        }
    }

    /// Waits until Redis has no key but the records of the workers: no other record, no index and no timer.
    async fn until_empty(&self) -> Held {
        let empty = async {
            loop {
                let held = self.held();
                if held.keys == 0 {
                    return held;
                }
                sleep(Duration::from_millis(200)).await;
            }
        };
        match timeout(PATIENCE, empty).await {
            Ok(held) => held,
            Err(_) => {
                let keys: Vec<String> =
                    redis::cmd("KEYS").arg("*").query(&mut self.redis.connection()).unwrap();
                panic!("{} keys are left: {:?}", keys.len(), &keys[..keys.len().min(10)]);
            }
        }
    }

    async fn stop(self) {
        join_all(self.servers.into_iter().chain(self.workers).map(Instance::stop)).await;
    }
}

/// The name of a call. Its result has the same name.
fn name(call: usize) -> String {
    format!("call {call}")
}

/// Makes calls, one after the other, until all have been made. Returns how long each took.
async fn make_calls(
    client: usize,
    calls: usize,
    next: Arc<AtomicUsize>,
    fleet: Arc<RoundRobin>,
) -> Vec<Duration> {
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let mut client = Client::new(http, fleet, format!("owner-{}", client % OWNERS), Kind::Tasks);
    let mut times = Vec::new();
    loop {
        let call = next.fetch_add(1, Ordering::Relaxed);
        if call >= calls {
            return times;
        }
        let begun = Instant::now();
        let way = timeout(PATIENCE, client.work(&name(call), Duration::ZERO)).await;
        let way = way.unwrap_or_else(|_| panic!("{call} has no answer; last: {}", client.last_request));
        assert_eq!(way.unwrap(), Way::Polled);
        times.push(begun.elapsed());
    }
}

/// What a run has shown.
struct Shown {
    elapsed: Duration,
    times: Vec<Duration>,
    /// Before the first call, after a tenth of the calls, at most, and when nothing was left.
    before: Held,
    warm: Held,
    most: Held,
    after: Held,
}

async fn run(form: &Form, fleet: &Fleet) -> Shown {
    let before = fleet.held();
    let addresses = fleet.servers.iter().map(|server| server.address.clone()).collect();
    let (next, round) = (Arc::new(AtomicUsize::new(0)), Arc::new(RoundRobin::new(addresses)));
    let begun = Instant::now();
    let mut clients = JoinSet::new();
    for client in 0..form.clients {
        clients.spawn(make_calls(client, form.calls, Arc::clone(&next), Arc::clone(&round)));
    }
    let (mut times, mut seconds) = (Vec::new(), interval(Duration::from_secs(1)));
    let (mut warm, mut most) = (None, Held::default());
    loop {
        tokio::select! {
            ended = clients.join_next() => match ended {
                Some(ended) => times.extend(ended.unwrap()),
                None => break,
            },
            _ = seconds.tick() => {
                let held = fleet.held();
                if warm.is_none() && next.load(Ordering::Relaxed) > form.calls / 10 {
                    warm = Some(held);
                }
                most = Held {
                    servers: most.servers.max(held.servers),
                    workers: most.workers.max(held.workers),
                    redis: most.redis.max(held.redis),
                    keys: most.keys.max(held.keys),
                };
            }
        }
    }
    let elapsed = begun.elapsed();
    let after = fleet.until_empty().await;
    times.sort_unstable();
    Shown { elapsed, times, before, warm: warm.unwrap_or(most), most, after }
}

/// Asserts that each call has run once.
fn assert_ran_once(log: &Path, calls: usize) {
    let log = std::fs::read_to_string(log).unwrap();
    let mut ran: Vec<&str> = log.lines().collect();
    ran.sort_unstable();
    let mut called: Vec<String> = (0..calls).map(name).collect();
    called.sort_unstable();
    assert!(ran == called, "{calls} calls, and {} runs", ran.len());
}

fn print_figures(form: &Form, shown: &Shown) {
    let Form { calls, servers, workers, concurrency, clients, .. } = form;
    let load = format!(
        "figure | {calls} calls, {servers} servers, {workers} workers with {concurrency} at once, {clients} clients"
    );
    let mebibytes = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
    let rate = *calls as f64 / shown.elapsed.as_secs_f64();
    println!("{load}: each run once, calls a second | {rate:.0} in {:.1?}", shown.elapsed);
    let (median, p99) = (shown.times[calls / 2], shown.times[calls * 99 / 100]);
    println!(
        "{load}: from the call to its result, polled each 100 ms | median {median:.0?}, 99th percentile {p99:.0?}"
    );
    for (what, of) in [
        ("memory of the servers", (|held: &Held| held.servers) as fn(&Held) -> u64),
        ("memory of the workers", |held| held.workers),
        ("memory of Redis", |held| held.redis),
    ] {
        let Shown { before, warm, most, after, .. } = shown;
        let [before, warm, most, after] = [before, warm, most, after].map(|held| mebibytes(of(held)));
        println!(
            "{load}: {what} before, after a tenth, at most, afterwards | {before}, {warm}, {most}, {after}"
        );
    }
    println!("{load}: keys of Redis at most, afterwards | {}, {}", shown.most.keys, shown.after.keys);
}

async fn runs_each_call_once_and_leaves_nothing(form: Form) {
    let _heavy = heavy().await;
    let log = NamedTempFile::new().unwrap();
    let fleet = Fleet::start(&form, log.path()).await;
    let shown = run(&form, &fleet).await;
    fleet.stop().await;
    print_figures(&form, &shown);
    assert_ran_once(log.path(), form.calls);
    let Shown { before, warm, most, after, .. } = shown;
    assert!(most.keys > 0 && after.keys == 0);
    assert!(after.redis <= before.redis + REDIS_SLACK, "{before:?} before, {after:?} afterwards");
    if form.measures_growth {
        for (warm, after) in [(warm.servers, after.servers), (warm.workers, after.workers)] {
            let limit = warm as f64 * (1.0 + MAX_GROWTH);
            assert!(after as f64 <= limit, "{warm} bytes after a tenth of the calls, {after} afterwards");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_call_that_servers_enqueue_runs_once_on_a_worker_and_nothing_is_left() {
    let (calls, servers, workers) = (600, 2, 3);
    let form = Form { calls, servers, workers, concurrency: 16, clients: 64, measures_growth: false };
    runs_each_call_once_and_leaves_nothing(form).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes some minutes"]
async fn long_form_of_a_load_on_servers_and_workers() {
    let (calls, servers, workers) = (100_000, 4, 8);
    let form = Form { calls, servers, workers, concurrency: 16, clients: 512, measures_growth: true };
    runs_each_call_once_and_leaves_nothing(form).await;
}
