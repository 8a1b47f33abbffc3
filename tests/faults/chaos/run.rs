//! One run: the servers, the worker processes and the clients, while faults happen and after they have ended.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mcp_task_store::{Agenda, RedisBackend};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::checker::{self, Bounds, Report};
use super::clients::{Clients, Direct};
use super::ends::{self, End};
use super::faults::{self, Counts, Single, Storage, Supervisor, WORKERS};
use super::file::File;
use super::log::{self, Event, Line, Log};
use super::network::Network;
use super::operation::{MAX_ATTEMPTS, Plan};
use super::replicated::Replicated;
use super::worker::{Role, log_of};
use super::{Form, Store};
use crate::support::deployment::Endpoints;
use crate::support::place::Place;

pub struct Run {
    pub form: Form,
    pub seed: u64,
    pub folder: TempDir,
    log: Arc<Log>,
    storage: Arc<Storage>,
    direct: Direct,
    supervisors: Arc<Vec<Supervisor>>,
}

/// What happened in a run.
pub struct Ended {
    pub counts: Counts,
    pub time_under_faults: Duration,
    pub time_after_faults: Duration,
}

/// The log and the records of a run, and the report about them.
pub struct Checked {
    pub report: Report,
    pub lines: Vec<Line>,
    pub ends: BTreeMap<String, End>,
}

impl Run {
    pub async fn start(form: Form, seed: u64) -> Self {
        let folder = TempDir::new().unwrap();
        let log = Arc::new(Log::open(&log_of(folder.path())));
        let storage = Arc::new(start_storage(form.store, folder.path(), &log).await);
        let direct = match &*storage {
            Storage::Single(server) => Direct::Open(connect_to(server).await),
            Storage::Replicated(servers) => Direct::Reconnect(servers.endpoints()),
            Storage::File(file) => Direct::Open(file.place().open().await.unwrap()),
        };
        let supervisor = |number| {
            let (place, network) = match &*storage {
                Storage::Single(server) => {
                    let network = Network::start(server.port(), seed ^ number as u64, form.most_bytes);
                    (Place::Servers(Endpoints::single(network.url())), Some(network))
                }
                Storage::Replicated(servers) => (Place::Servers(servers.endpoints()), None),
                Storage::File(file) => (file.place(), None),
            };
            let role = match (form.separates_workers, number) {
                (false, _) => Role::Instance,
                (true, 0) => Role::Server,
                (true, _) => Role::Worker,
            };
            Supervisor::new(number, role, place, network, folder.path(), Arc::clone(&log))
        };
        let supervisors = Arc::new((0..WORKERS).map(supervisor).collect());
        Self { form, seed, folder, log, storage, direct, supervisors }
    }

    /// Creates tasks while faults happen, and waits until the tasks have ended after the last fault.
    pub async fn perform(&self) -> Ended {
        let started = Instant::now();
        let (all_created, mut created) = watch::channel(false);
        let (give_up, gives_up) = watch::channel(false);
        let clients = self.start_clients(all_created, gives_up);
        let (stop, stops) = watch::channel(false);
        let faults = self.start_faults(stops);
        // Clients that panic have ended too.
        let _ = timeout(self.form.rages, created.wait_for(|created| *created)).await;
        stop.send_replace(true);
        let counts = faults.await.unwrap();
        self.log.append(Event::FaultsEnd);
        let (time_under_faults, ending) = (started.elapsed(), Instant::now());
        self.wait_for(clients, give_up).await;
        Ended { counts, time_under_faults, time_after_faults: ending.elapsed() }
    }

    fn start_clients(
        &self,
        all_created: watch::Sender<bool>,
        give_up: watch::Receiver<bool>,
    ) -> JoinHandle<()> {
        let clients = Clients {
            supervisors: Arc::clone(&self.supervisors),
            log: Arc::clone(&self.log),
            direct: self.direct.clone(),
            seed: self.seed,
            give_up,
        };
        tokio::spawn(clients.run(self.form.tasks, self.form.pace, self.form.at_once, all_created))
    }

    fn start_faults(&self, stops: watch::Receiver<bool>) -> JoinHandle<Counts> {
        let (supervisors, storage) = (Arc::clone(&self.supervisors), Arc::clone(&self.storage));
        let (seed, gap) = (self.seed, self.form.gap);
        tokio::spawn(async move { faults::inject(&supervisors, &storage, seed, gap, stops).await })
    }

    async fn wait_for(&self, mut clients: JoinHandle<()>, give_up: watch::Sender<bool>) {
        if let Ok(ended) = timeout(self.form.patience, &mut clients).await {
            return ended.unwrap();
        }
        // The rules report the tasks that have not ended.
        give_up.send_replace(true);
        clients.await.unwrap();
    }

    /// Compares the log with the records, which a new connection reads.
    pub async fn check(&self) -> Checked {
        let lines = log::read(&log_of(self.folder.path()));
        let backend = match &*self.storage {
            Storage::Single(server) => connect_to(server).await,
            Storage::Replicated(_) => self.direct.connect().await.unwrap(),
            Storage::File(file) => file.place().open().await.unwrap(),
        };
        let ends = ends::read(&*backend, &owners(&lines)).await;
        let bounds = Bounds {
            silence: 1_000_000,
            storing: 3_000_000,
            max_attempts: MAX_ATTEMPTS,
            begins_where_created: !self.form.separates_workers,
            least_resumptions: self.form.least_resumptions,
        };
        Checked { report: checker::check(&lines, &ends, bounds), lines, ends }
    }

    /// Returns how many connections the networks reset and closed, and how many times they stalled.
    pub fn network_counts(&self) -> (u64, u64, u64) {
        let counts = self.supervisors.iter().filter_map(|supervisor| supervisor.network.as_ref());
        let counts = counts.map(Network::counts);
        counts.fold((0, 0, 0), |sum, counts| (sum.0 + counts.0, sum.1 + counts.1, sum.2 + counts.2))
    }
}

async fn start_storage(store: Store, folder: &Path, log: &Arc<Log>) -> Storage {
    let log = Arc::clone(log);
    match store {
        Store::Server => Storage::Single(Single::start(log)),
        Store::File => Storage::File(File::new(folder.join("tasks.db"), log)),
        Store::Servers(topology) => {
            let started = tokio::task::spawn_blocking(move || Replicated::start(topology, log));
            Storage::Replicated(started.await.unwrap())
        }
    }
}

async fn connect_to(server: &Single) -> Arc<dyn Agenda> {
    Arc::new(RedisBackend::connect(&format!("redis://127.0.0.1:{}", server.port())).await.unwrap())
}

/// Returns the owners of all tasks in a log.
fn owners(lines: &[Line]) -> BTreeSet<String> {
    let owner = |line: &Line| match &line.event {
        Event::Created { plan: Plan { owner, .. }, .. } | Event::Begin { plan: Plan { owner, .. }, .. } => {
            Some(owner.clone())
        }
        _ => None,
    };
    lines.iter().filter_map(owner).collect()
}
