//! Sixteen instances that share a Redis, and hundreds of clients whose requests go to the instances in turn. Every call
//! receives its own result once, no operation runs twice, the memory of the instances stays the same, and nothing is left running.
//!
//! The long form: `cargo test --features redis-tests --test faults -- --ignored --nocapture fleet::long`.

pub mod client;
pub mod instance;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use mcp_task_store::{MAX_PAGE_LIMIT, OwnerId, PageRequest, RedisBackend, TaskStore};
use tempfile::NamedTempFile;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep, timeout};

use crate::support::redis::Server;
use crate::support::{heavy, owner};
use client::{Client, KINDS, Kind, RoundRobin, Way};
use instance::{Instance, Role};

const INSTANCES: usize = 16;
/// How long a call may take in all.
const PATIENCE: Duration = Duration::from_secs(120);
/// By which part the memory of all instances may grow in the time after the warm-up.
const MAX_GROWTH: f64 = 0.1;

/// The size of a run.
struct Form {
    clients: usize,
    /// How long the clients make calls until the memory of the instances is measured, and from there on.
    warm_up: Duration,
    duration: Duration,
    /// How long an instance holds a call of a client without tasks.
    hold_for: Duration,
    /// By which part the memory of all instances may grow after the warm-up. `None` for a run that is too short to tell.
    max_growth: Option<f64>,
}

impl Form {
    /// Returns how long the operation of a call takes. Some end before their task is stored, some after the call was held.
    fn duration_of(&self, client: usize, call: usize) -> Duration {
        match (client * 7 + call * 3) % 10 {
            0 | 1 => Duration::ZERO,
            spread @ 2..=7 => self.hold_for.mul_f64(spread as f64 / 10.0),
            spread => self.hold_for.mul_f64(spread as f64 / 7.0),
        }
    }

    /// Returns when a client begins. The clients of a real fleet do not all begin at once.
    fn begin_of(&self, client: usize) -> Duration {
        self.warm_up.mul_f64(client as f64 / self.clients as f64 / 6.0)
    }
}

/// What the clients of one kind have received.
#[derive(Default)]
struct Received {
    calls: BTreeMap<(Kind, Way), u64>,
    notifications: BTreeMap<Kind, u64>,
    /// How much longer than its operation each call has taken.
    delays: BTreeMap<Way, Vec<Duration>>,
    /// The names of all calls.
    names: Vec<String>,
}

impl Received {
    fn add(&mut self, other: Self) {
        other.calls.into_iter().for_each(|(key, calls)| *self.calls.entry(key).or_default() += calls);
        other
            .notifications
            .into_iter()
            .for_each(|(kind, sent)| *self.notifications.entry(kind).or_default() += sent);
        other.delays.into_iter().for_each(|(way, delays)| self.delays.entry(way).or_default().extend(delays));
        self.names.extend(other.names);
    }

    fn calls(&self, kind: Kind, way: Way) -> u64 {
        self.calls.get(&(kind, way)).copied().unwrap_or_default()
    }
}

fn owner_of(client: usize) -> OwnerId {
    owner(&format!("client-{client}"))
}

/// Makes calls until the time is over, one after the other.
async fn make_calls(
    form: Arc<Form>,
    number: usize,
    http: reqwest::Client,
    fleet: Arc<RoundRobin>,
) -> Received {
    let until = Instant::now() + form.warm_up + form.duration;
    sleep(form.begin_of(number)).await;
    let kind = KINDS[number % KINDS.len()];
    let mut client = Client::new(http, fleet, owner_of(number).to_string(), kind);
    let mut received = Received::default();
    while Instant::now() < until {
        let call = received.names.len();
        let name = format!("{number}-{call}");
        let (begun, duration) = (Instant::now(), form.duration_of(number, call));
        let worked = timeout(PATIENCE, client.work(&name, duration)).await;
        let way = match worked {
            Ok(way) => way.unwrap(),
            Err(_) => {
                panic!("the call {name} of {kind:?} has no answer; last, it sent {}", client.last_request)
            }
        };
        *received.calls.entry((kind, way)).or_default() += 1;
        received.delays.entry(way).or_default().push(begun.elapsed().saturating_sub(duration));
        received.names.push(name);
    }
    received.notifications.insert(kind, client.notifications);
    received
}

/// Runs all clients to their end. Returns what they have received, and the memory of all instances once a second.
async fn run_clients(form: &Arc<Form>, instances: &[Instance]) -> (Received, Vec<u64>) {
    let addresses = instances.iter().map(|instance| instance.address.clone()).collect();
    let fleet = Arc::new(RoundRobin::new(addresses));
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let mut clients = JoinSet::new();
    for number in 0..form.clients {
        clients.spawn(make_calls(Arc::clone(form), number, http.clone(), Arc::clone(&fleet)));
    }
    let (mut received, mut memory, mut seconds) =
        (Received::default(), Vec::new(), interval(Duration::from_secs(1)));
    loop {
        tokio::select! {
            ended = clients.join_next() => match ended {
                Some(ended) => received.add(ended.unwrap()),
                None => return (received, memory),
            },
            _ = seconds.tick() => memory.push(instances.iter().map(Instance::resident_bytes).sum()),
        }
    }
}

/// Waits until no instance runs an operation.
async fn until_idle(instances: &[Instance]) {
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    for instance in instances {
        let idle = async {
            let running = format!("http://{}/running", instance.address);
            while http.get(&running).send().await.unwrap().text().await.unwrap() != "0" {
                sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(PATIENCE, idle).await.expect("no operation is left running");
    }
}

/// Returns the number of tasks of all clients. Fails if one is open.
async fn ended_tasks(url: &str, clients: usize) -> usize {
    let store = TaskStore::new(RedisBackend::connect(url).await.unwrap());
    let mut ended = 0;
    for client in 0..clients {
        let mut page = PageRequest::new(MAX_PAGE_LIMIT);
        loop {
            let listed = store.list(&owner_of(client), page).await.unwrap();
            for stored in &listed.tasks {
                assert!(stored.task.status.is_terminal(), "a task is left open: {stored:?}");
            }
            ended += listed.tasks.len();
            let Some(next) = listed.next else { break };
            page = PageRequest::new(MAX_PAGE_LIMIT).after(next);
        }
    }
    ended
}

/// Asserts that each call has run once.
fn assert_ran_once(log: &Path, received: &Received) {
    let log = std::fs::read_to_string(log).unwrap();
    let mut ran: Vec<&str> = log.lines().collect();
    let mut called: Vec<&str> = received.names.iter().map(String::as_str).collect();
    ran.sort_unstable();
    called.sort_unstable();
    assert!(ran == called, "{} calls, and {} runs", called.len(), ran.len());
}

/// Returns the median memory of the instances for some seconds after the warm-up, and for the last seconds.
fn settled_memory(form: &Form, samples: &[u64]) -> (u64, u64) {
    let median = |samples: &[u64]| {
        let mut sorted = samples.to_vec();
        sorted.sort_unstable();
        sorted[sorted.len() / 2]
    };
    let (begin, end) = (form.warm_up.as_secs() as usize, (form.warm_up + form.duration).as_secs() as usize);
    let seconds = (end - begin) / 6;
    (median(&samples[begin..=begin + seconds]), median(&samples[end - seconds..]))
}

async fn serves_every_call_once(form: Form) {
    let _heavy = heavy().await;
    let form = Arc::new(form);
    let redis = Server::start(&[]);
    let url = format!("redis://127.0.0.1:{}", redis.port);
    let log = NamedTempFile::new().unwrap();
    let role = Role::Server { hold_for: form.hold_for };
    let instances = join_all((0..INSTANCES).map(|_| Instance::start(&url, log.path(), role))).await;

    let (received, memory) = run_clients(&form, &instances).await;
    until_idle(&instances).await;
    let ended = ended_tasks(&url, form.clients).await;
    join_all(instances.into_iter().map(Instance::stop)).await;

    let (warm, last) = settled_memory(&form, &memory);
    print_figures(&form, &received, ended, (warm, last));
    assert_ran_once(log.path(), &received);
    for (kind, way) in [
        (Kind::Tasks, Way::Held),
        (Kind::Tasks, Way::Polled),
        (Kind::Progress, Way::Held),
        (Kind::Plain, Way::Held),
        (Kind::Plain, Way::Fetched),
        (Kind::Old, Way::Held),
        (Kind::Old, Way::Fetched),
    ] {
        assert!(received.calls(kind, way) > 0, "no call of {kind:?} was {way:?}");
    }
    assert!(received.notifications[&Kind::Progress] > 0);
    if let Some(growth) = form.max_growth {
        assert!(
            last as f64 <= warm as f64 * (1.0 + growth),
            "{warm} bytes after the warm-up, {last} at the end"
        );
    }
}

fn print_figures(form: &Form, received: &Received, ended: usize, (warm, last): (u64, u64)) {
    let fleet = format!(
        "figure | {INSTANCES} instances, {} clients, {:?}",
        form.clients,
        form.duration + form.warm_up
    );
    let (calls, mebibytes) = (received.names.len(), |bytes: u64| bytes as f64 / 1024.0 / 1024.0);
    println!("{fleet}: calls, each answered once | {calls}, {ended} of them stored as tasks");
    for kind in KINDS {
        let [held, polled, fetched] =
            [Way::Held, Way::Polled, Way::Fetched].map(|way| received.calls(kind, way));
        println!("{fleet}: answers of {kind:?}: held, polled, fetched | {held}, {polled}, {fetched}");
    }
    for (way, delays) in &received.delays {
        let mut sorted = delays.clone();
        sorted.sort_unstable();
        let (median, p99) = (sorted[sorted.len() / 2], sorted[sorted.len() * 99 / 100]);
        println!(
            "{fleet}: longer than the operation, {way:?}: median, 99th percentile | {median:.0?}, {p99:.0?}"
        );
    }
    println!("{fleet}: notifications about progress | {}", received.notifications[&Kind::Progress]);
    println!(
        "{fleet}: memory of all instances after the warm-up, at the end | {:.1} MiB, {:.1} MiB",
        mebibytes(warm),
        mebibytes(last)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_call_to_a_fleet_is_answered_once_and_nothing_is_left_running() {
    let (warm_up, duration, hold_for) =
        (Duration::from_secs(2), Duration::from_secs(6), Duration::from_secs(4));
    serves_every_call_once(Form { clients: 48, warm_up, duration, hold_for, max_growth: None }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes some minutes"]
async fn long_form_of_calls_to_a_fleet() {
    let (warm_up, duration, hold_for) =
        (Duration::from_secs(60), Duration::from_secs(60), Duration::from_secs(12));
    let max_growth = Some(MAX_GROWTH);
    serves_every_call_once(Form { clients: 500, warm_up, duration, hold_for, max_growth }).await;
}
