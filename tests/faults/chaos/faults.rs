//! The faults of the worker processes, and of what stores the tasks. The seed decides which faults happen and when.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::block_in_place;
use tokio::time::{sleep, timeout};

use super::file::{FILE_FAULTS, File, FileFault};
use super::log::{Event, Log};
use super::network::Network;
use super::replicated::{Replicated, ReplicatedCounts, ReplicatedFault};
use super::worker::{Request, Role, Worker};
use crate::support::Random;
use crate::support::clock::{set_clock, start_server};
use crate::support::place::Place;
use crate::support::redis::Server;

pub const WORKERS: usize = 3;
/// A fault of this length costs a worker its leases: a lease, its observation, and a margin.
pub const LONG_MS: u64 = 5_500;
/// A fault of this length costs no worker a lease.
const SHORT_MS: u64 = 600;
/// How long a worker may take to shut down. Those that take longer are killed.
const SHUTDOWN: Duration = Duration::from_secs(45);

/// Draws every kind of fault once in each round, in random order. The first kind comes before the first round, so that a short
/// run has it.
struct Deck<T: 'static> {
    kinds: &'static [T],
    left: Vec<&'static T>,
}

impl<T> Deck<T> {
    fn new(kinds: &'static [T]) -> Self {
        Self { kinds, left: kinds.iter().take(1).collect() }
    }

    fn draw(&mut self, random: &mut Random) -> &'static T {
        if self.left.is_empty() {
            self.left.extend(self.kinds);
        }
        self.left.swap_remove(random.below(self.left.len() as u64) as usize)
    }
}

#[derive(Clone, Copy)]
enum WorkerFault {
    Kill,
    ShutDown,
    Pause,
    CutOff,
}

#[derive(Clone, Copy)]
enum ServerFault {
    Kill,
    Pause,
}

const WORKER_FAULTS: [WorkerFault; 8] = {
    use WorkerFault::{CutOff, Kill, Pause, ShutDown};
    [Kill, Kill, Kill, ShutDown, ShutDown, Pause, Pause, CutOff]
};
const SERVER_FAULTS: [ServerFault; 2] = [ServerFault::Kill, ServerFault::Pause];

/// What a fault affects.
enum Target {
    Worker(usize, Deck<WorkerFault>),
    Server(Deck<ServerFault>),
    Clock,
    Replicated(Deck<ReplicatedFault>),
    File(Deck<FileFault>),
}

impl Target {
    fn all(storage: &Storage) -> Vec<Self> {
        let worker_faults: &[WorkerFault] = match storage {
            Storage::Single(_) => &WORKER_FAULTS,
            // No network cuts these workers off.
            Storage::Replicated(_) | Storage::File(_) => &WORKER_FAULTS[..WORKER_FAULTS.len() - 1],
        };
        let mut all: Vec<Self> =
            (0..WORKERS).map(|number| Self::Worker(number, Deck::new(worker_faults))).collect();
        match storage {
            Storage::Single(_) => all.extend([Self::Server(Deck::new(&SERVER_FAULTS)), Self::Clock]),
            Storage::Replicated(servers) => all.push(Self::Replicated(Deck::new(servers.kinds()))),
            Storage::File(_) => all.push(Self::File(Deck::new(&FILE_FAULTS))),
        }
        all
    }

    /// Returns the average time between two faults. One worker lives longer, so that it runs when the server fails.
    fn gap(&self, gap: u64) -> u64 {
        if matches!(self, Self::Worker(0, _)) { 4 * gap } else { gap }
    }

    async fn inject(
        &mut self,
        supervisors: &[Supervisor],
        storage: &Storage,
        random: &mut Random,
        counts: &mut Counts,
    ) {
        match (self, storage) {
            (Self::Worker(number, deck), _) => {
                supervisors[*number].inject(*deck.draw(random), storage, random, counts).await;
            }
            (Self::Server(deck), Storage::Single(server)) => {
                server.inject(*deck.draw(random), random, counts).await;
            }
            (Self::Clock, Storage::Single(server)) => server.step_clock(random, counts),
            (Self::Replicated(deck), Storage::Replicated(servers)) => {
                let fault = *deck.draw(random);
                block_in_place(|| servers.inject(fault, random));
                *counts.replicated.entry(fault).or_default() += 1;
            }
            (Self::File(deck), Storage::File(file)) => file.inject(*deck.draw(random), random, counts).await,
            _ => unreachable!("the targets are those of this storage"),
        }
    }
}

/// What stores the tasks.
pub enum Storage {
    Single(Single),
    Replicated(Replicated),
    File(File),
}

/// A server that loses no acknowledged write when it is killed, and its clock.
pub struct Single {
    server: Mutex<Server>,
    clock: TempDir,
    log: Arc<Log>,
}

impl Single {
    pub fn start(log: Arc<Log>) -> Self {
        let clock = TempDir::new().unwrap();
        set_clock(clock.path(), "+0");
        let settings =
            ["--appendonly", "yes", "--appendfsync", "always", "--auto-aof-rewrite-min-size", "16mb"];
        let server = start_server(&settings, clock.path());
        Self { server: Mutex::new(server), clock, log }
    }

    pub fn port(&self) -> u16 {
        self.server.lock().unwrap().port
    }

    fn kill(&self) {
        let mut server = self.server.lock().unwrap();
        self.log.append(Event::ServerKilled);
        server.kill();
        forget_clock_of(server.id());
    }

    async fn inject(&self, fault: ServerFault, random: &mut Random, counts: &mut Counts) {
        match fault {
            ServerFault::Kill => {
                block_in_place(|| self.kill());
                sleep(Duration::from_millis(random.below(3_000))).await;
                block_in_place(|| self.server.lock().unwrap().start_again());
                self.log.append(Event::ServerUp);
                counts.servers_killed += 1;
            }
            ServerFault::Pause => {
                self.log.append(Event::ServerPaused);
                self.server.lock().unwrap().signal("STOP");
                // One pause in two is longer than a lease and its observation.
                let millis =
                    if random.below(2) == 0 { LONG_MS + random.below(2_000) } else { random.below(2_500) };
                sleep(Duration::from_millis(millis)).await;
                self.server.lock().unwrap().signal("CONT");
                self.log.append(Event::ServerUp);
                counts.servers_paused += 1;
            }
        }
    }

    fn step_clock(&self, random: &mut Random, counts: &mut Counts) {
        let ahead_s = i64::try_from(random.below(180)).unwrap() - 40;
        self.log.append(Event::Clock { ahead_s });
        set_clock(self.clock.path(), &format!("{ahead_s:+}"));
        counts.clocks_stepped += 1;
    }
}

impl Drop for Single {
    fn drop(&mut self) {
        let mut server = self.server.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        // The server may be stopped, or dead.
        server.kill();
        forget_clock_of(server.id());
    }
}

/// Removes the shared memory of `faketime`, which a killed process leaves behind.
fn forget_clock_of(process: u32) {
    for name in ["faketime_shm", "sem.faketime_sem"] {
        // A process that exits removes it.
        let _ = std::fs::remove_file(Path::new("/dev/shm").join(format!("{name}_{process}")));
    }
}

/// How many faults happened.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    pub killed: u32,
    pub shut_down: u32,
    pub paused: u32,
    pub cut_off: u32,
    pub servers_killed: u32,
    pub servers_paused: u32,
    pub clocks_stepped: u32,
    pub files_locked: u32,
    pub files_filled: u32,
    /// How many of the paused workers held the lock of the file.
    pub paused_with_the_lock: u32,
    pub replicated: ReplicatedCounts,
}

impl Counts {
    fn add(mut self, other: Self) -> Self {
        self.killed += other.killed;
        self.shut_down += other.shut_down;
        self.paused += other.paused;
        self.cut_off += other.cut_off;
        self.servers_killed += other.servers_killed;
        self.servers_paused += other.servers_paused;
        self.clocks_stepped += other.clocks_stepped;
        self.files_locked += other.files_locked;
        self.files_filled += other.files_filled;
        self.paused_with_the_lock += other.paused_with_the_lock;
        self.replicated.extend(other.replicated);
        self
    }
}

/// Runs one worker process after the other, each behind the same network if there is one.
pub struct Supervisor {
    name: char,
    place: Place,
    role: Role,
    pub network: Option<Network>,
    worker: Mutex<Arc<Worker>>,
    lives: AtomicU64,
    folder: std::path::PathBuf,
    log: Arc<Log>,
}

impl Supervisor {
    pub fn new(
        number: usize,
        role: Role,
        place: Place,
        network: Option<Network>,
        folder: &Path,
        log: Arc<Log>,
    ) -> Self {
        let name = char::from(b'a' + u8::try_from(number).unwrap());
        let worker = Self::launch(&place, role, name, 1, folder, &log);
        Self {
            name,
            place,
            role,
            network,
            worker: Mutex::new(Arc::new(worker)),
            lives: AtomicU64::new(1),
            folder: folder.to_owned(),
            log,
        }
    }

    fn launch(place: &Place, role: Role, name: char, life: u64, folder: &Path, log: &Log) -> Worker {
        let run = format!("{name}{life}");
        log.append(Event::Started { run: run.clone() });
        Worker::start(place, run, folder, role)
    }

    pub fn worker(&self) -> Arc<Worker> {
        Arc::clone(&self.worker.lock().unwrap())
    }

    fn start_again(&self) {
        let life = self.lives.fetch_add(1, SeqCst) + 1;
        *self.worker.lock().unwrap() =
            Arc::new(Self::launch(&self.place, self.role, self.name, life, &self.folder, &self.log));
    }

    fn kill(&self, worker: &Worker) {
        self.log.append(Event::Killed { run: worker.run.clone() });
        block_in_place(|| worker.kill());
    }

    async fn inject(&self, fault: WorkerFault, storage: &Storage, random: &mut Random, counts: &mut Counts) {
        let worker = self.worker();
        // One fault in three is so short that the worker must not lose a lease.
        let lasts = if random.below(3) == 0 { random.below(SHORT_MS) } else { LONG_MS + random.below(2_500) };
        let lasts = Duration::from_millis(lasts);
        match fault {
            WorkerFault::Kill => {
                self.kill(&worker);
                counts.killed += 1;
                sleep(Duration::from_millis(random.below(1_500))).await;
                self.start_again();
            }
            WorkerFault::ShutDown => self.shut_down(&worker, counts).await,
            WorkerFault::Pause => self.pause(&worker, storage, lasts, counts).await,
            WorkerFault::CutOff => self.cut_off(&worker, lasts, counts).await,
        }
    }

    async fn shut_down(&self, worker: &Arc<Worker>, counts: &mut Counts) {
        self.log.append(Event::AskedToStop { run: worker.run.clone() });
        // The reply may be lost when the process exits. The exit itself is sufficient.
        let request = tokio::spawn({
            let worker = Arc::clone(worker);
            async move { worker.call(Request::Shutdown).await }
        });
        if worker.exits_within(SHUTDOWN).await {
            self.log.append(Event::Exited { run: worker.run.clone() });
            counts.shut_down += 1;
        } else {
            self.kill(worker);
        }
        request.abort();
        self.start_again();
    }

    async fn pause(&self, worker: &Worker, storage: &Storage, lasts: Duration, counts: &mut Counts) {
        counts.paused += 1;
        if let Storage::File(file) = storage {
            return file.pause(worker, lasts, counts).await;
        }
        self.log.append(Event::Paused { run: worker.run.clone() });
        worker.signal("STOP");
        sleep(lasts).await;
        worker.signal("CONT");
        self.log.append(Event::Continued { run: worker.run.clone() });
    }

    async fn cut_off(&self, worker: &Worker, lasts: Duration, counts: &mut Counts) {
        self.log.append(Event::CutOff { run: worker.run.clone() });
        let network = self.network.as_ref().expect("only a network cuts a worker off");
        network.set_cut_off(true);
        sleep(lasts).await;
        network.set_cut_off(false);
        self.log.append(Event::Joined { run: worker.run.clone() });
        counts.cut_off += 1;
    }
}

/// Injects faults until `stop`. When it returns, every process and server runs, and no fault happens any more.
pub async fn inject(
    supervisors: &Arc<Vec<Supervisor>>,
    storage: &Arc<Storage>,
    seed: u64,
    gap: Duration,
    stop: watch::Receiver<bool>,
) -> Counts {
    let gap = u64::try_from(gap.as_millis()).unwrap();
    let mut injecting = tokio::task::JoinSet::new();
    for (number, mut target) in Target::all(storage).into_iter().enumerate() {
        let (supervisors, storage, mut stop) = (Arc::clone(supervisors), Arc::clone(storage), stop.clone());
        let mut random = Random(seed.wrapping_add((number as u64 + 1) << 40));
        let gap = target.gap(gap);
        injecting.spawn(async move {
            let mut counts = Counts::default();
            loop {
                let pause = Duration::from_millis(gap / 2 + random.below(gap));
                // The sender outlives the faults.
                if timeout(pause, stop.wait_for(|stop| *stop)).await.is_ok() {
                    return counts;
                }
                target.inject(&supervisors, &storage, &mut random, &mut counts).await;
            }
        });
    }
    let counts = injecting.join_all().await.into_iter().fold(Counts::default(), Counts::add);
    supervisors.iter().filter_map(|supervisor| supervisor.network.as_ref()).for_each(Network::stop_faults);
    counts
}
