//! What befalls the worker processes and the server, decided by the seed.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::block_in_place;
use tokio::time::{sleep, timeout};

use super::log::{Event, Log};
use super::several::{Befallen, OfSeveral, Several};
use super::wire::Wire;
use super::worker::{Order, Worker};
use crate::support::Random;
use crate::support::clock::{libraries, set_clock};
use crate::support::deployment::Way;
use crate::support::redis::Server;

pub const WORKERS: usize = 3;
/// A fault that lasts as long costs a worker its leases: a lease, the observation of it, and some more.
const LONG_MS: u64 = 5_500;
/// One that lasts no longer costs nobody anything.
const SHORT_MS: u64 = 600;
/// How long a worker may take to shut down. Those that take longer are killed.
const SHUTDOWN: Duration = Duration::from_secs(45);

/// Faults of the same kinds in each round, in an order of its own. Before the first round comes the first kind, so that a
/// short run has it, too.
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
enum OfWorker {
    Kill,
    ShutDown,
    Pause,
    CutOff,
}

#[derive(Clone, Copy)]
enum OfServer {
    Kill,
    Pause,
}

const OF_WORKERS: [OfWorker; 8] = {
    use OfWorker::{CutOff, Kill, Pause, ShutDown};
    [Kill, Kill, Kill, ShutDown, ShutDown, Pause, Pause, CutOff]
};
const OF_SERVERS: [OfServer; 2] = [OfServer::Kill, OfServer::Pause];

/// What faults befall.
enum Target {
    Worker(usize, Deck<OfWorker>),
    Server(Deck<OfServer>),
    Clock,
    Several(Deck<OfSeveral>),
}

impl Target {
    fn all(victim: &Victim) -> Vec<Self> {
        let of_workers: &[OfWorker] = match victim {
            Victim::Alone(_) => &OF_WORKERS,
            // There is no wire that cuts them off.
            Victim::Several(_) => &OF_WORKERS[..OF_WORKERS.len() - 1],
        };
        let mut all: Vec<Self> =
            (0..WORKERS).map(|number| Self::Worker(number, Deck::new(of_workers))).collect();
        match victim {
            Victim::Alone(_) => all.extend([Self::Server(Deck::new(&OF_SERVERS)), Self::Clock]),
            Victim::Several(several) => all.push(Self::Several(Deck::new(several.kinds()))),
        }
        all
    }

    /// How long, on average, nothing befalls it. One worker has longer lives, so that it is there when the server fails.
    fn gap(&self, gap: u64) -> u64 {
        if matches!(self, Self::Worker(0, _)) { 4 * gap } else { gap }
    }

    async fn befall(&mut self, places: &[Place], victim: &Victim, random: &mut Random, done: &mut Done) {
        match (self, victim) {
            (Self::Worker(number, deck), _) => {
                places[*number].befall(*deck.draw(random), random, done).await;
            }
            (Self::Server(deck), Victim::Alone(alone)) => {
                alone.befall(*deck.draw(random), random, done).await;
            }
            (Self::Clock, Victim::Alone(alone)) => alone.step_clock(random, done),
            (Self::Several(deck), Victim::Several(several)) => {
                let fault = *deck.draw(random);
                block_in_place(|| several.befall(fault, random));
                *done.of_several.entry(fault).or_default() += 1;
            }
            _ => unreachable!("faults are of the victim"),
        }
    }
}

/// What stores the tasks.
pub enum Victim {
    Alone(Alone),
    Several(Several),
}

/// A server, which keeps what it acknowledged when it is killed, and its clock.
pub struct Alone {
    server: Mutex<Server>,
    clock: TempDir,
    log: Arc<Log>,
}

impl Alone {
    pub fn start(log: Arc<Log>) -> Self {
        let clock = TempDir::new().unwrap();
        set_clock(clock.path(), "+0");
        let file = clock.path().join("offset");
        let server = Server::start_in(
            &["--appendonly", "yes", "--appendfsync", "always", "--auto-aof-rewrite-min-size", "16mb"],
            &[
                ("LD_PRELOAD", &libraries()),
                ("FAKETIME_TIMESTAMP_FILE", file.to_str().unwrap()),
                ("FAKETIME_NO_CACHE", "1"),
                ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
            ],
        );
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

    async fn befall(&self, fault: OfServer, random: &mut Random, done: &mut Done) {
        match fault {
            OfServer::Kill => {
                block_in_place(|| self.kill());
                sleep(Duration::from_millis(random.below(3_000))).await;
                block_in_place(|| self.server.lock().unwrap().start_again());
                self.log.append(Event::ServerUp);
                done.servers_killed += 1;
            }
            OfServer::Pause => {
                self.log.append(Event::ServerPaused);
                self.server.lock().unwrap().signal("STOP");
                // Every other time longer than a lease and its observation.
                let millis =
                    if random.below(2) == 0 { LONG_MS + random.below(2_000) } else { random.below(2_500) };
                sleep(Duration::from_millis(millis)).await;
                self.server.lock().unwrap().signal("CONT");
                self.log.append(Event::ServerUp);
                done.servers_paused += 1;
            }
        }
    }

    fn step_clock(&self, random: &mut Random, done: &mut Done) {
        let ahead_s = i64::try_from(random.below(180)).unwrap() - 40;
        self.log.append(Event::Clock { ahead_s });
        set_clock(self.clock.path(), &format!("{ahead_s:+}"));
        done.clocks_stepped += 1;
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        let mut server = self.server.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        // It may be stopped, or gone.
        server.kill();
        forget_clock_of(server.id());
    }
}

/// A process that is killed leaves the shared memory of `faketime` behind.
fn forget_clock_of(process: u32) {
    for name in ["faketime_shm", "sem.faketime_sem"] {
        // It is not there if the process ended in good order.
        let _ = std::fs::remove_file(Path::new("/dev/shm").join(format!("{name}_{process}")));
    }
}

/// How many faults there were.
#[derive(Clone, Debug, Default)]
pub struct Done {
    pub killed: u32,
    pub shut_down: u32,
    pub paused: u32,
    pub cut_off: u32,
    pub servers_killed: u32,
    pub servers_paused: u32,
    pub clocks_stepped: u32,
    pub of_several: Befallen,
}

/// Where a worker process runs, one after the other, each behind the same wire if there is one.
pub struct Place {
    name: char,
    way: Way,
    pub wire: Option<Wire>,
    worker: Mutex<Arc<Worker>>,
    lives: AtomicU64,
    folder: std::path::PathBuf,
    log: Arc<Log>,
}

impl Place {
    pub fn new(number: usize, way: Way, wire: Option<Wire>, folder: &Path, log: Arc<Log>) -> Self {
        let name = char::from(b'a' + u8::try_from(number).unwrap());
        let worker = Self::launch(&way, name, 1, folder, &log);
        Self {
            name,
            way,
            wire,
            worker: Mutex::new(Arc::new(worker)),
            lives: AtomicU64::new(1),
            folder: folder.to_owned(),
            log,
        }
    }

    fn launch(way: &Way, name: char, life: u64, folder: &Path, log: &Log) -> Worker {
        let run = format!("{name}{life}");
        log.append(Event::Started { run: run.clone() });
        Worker::start(way, run, folder)
    }

    pub fn worker(&self) -> Arc<Worker> {
        Arc::clone(&self.worker.lock().unwrap())
    }

    fn start_again(&self) {
        let life = self.lives.fetch_add(1, SeqCst) + 1;
        *self.worker.lock().unwrap() =
            Arc::new(Self::launch(&self.way, self.name, life, &self.folder, &self.log));
    }

    fn kill(&self, worker: &Worker) {
        self.log.append(Event::Killed { run: worker.run.clone() });
        block_in_place(|| worker.kill());
    }

    async fn befall(&self, fault: OfWorker, random: &mut Random, done: &mut Done) {
        let worker = self.worker();
        let run = worker.run.clone();
        // One in three is short: it may not cost the worker its leases.
        let lasts = if random.below(3) == 0 { random.below(SHORT_MS) } else { LONG_MS + random.below(2_500) };
        let lasts = Duration::from_millis(lasts);
        match fault {
            OfWorker::Kill => {
                self.kill(&worker);
                done.killed += 1;
                sleep(Duration::from_millis(random.below(1_500))).await;
                self.start_again();
            }
            OfWorker::ShutDown => {
                self.log.append(Event::AskedToStop { run: run.clone() });
                // The answer may be lost with the process, which says enough by its exit.
                let asked = tokio::spawn({
                    let worker = Arc::clone(&worker);
                    async move { worker.order(Order::Shutdown).await }
                });
                if worker.exits_within(SHUTDOWN).await {
                    self.log.append(Event::Exited { run });
                    done.shut_down += 1;
                } else {
                    self.kill(&worker);
                }
                asked.abort();
                self.start_again();
            }
            OfWorker::Pause => {
                self.log.append(Event::Paused { run: run.clone() });
                worker.signal("STOP");
                sleep(lasts).await;
                worker.signal("CONT");
                self.log.append(Event::Continued { run });
                done.paused += 1;
            }
            OfWorker::CutOff => {
                self.log.append(Event::CutOff { run: run.clone() });
                let wire = self.wire.as_ref().expect("only a wire cuts off");
                wire.set_cut_off(true);
                sleep(lasts).await;
                wire.set_cut_off(false);
                self.log.append(Event::Joined { run });
                done.cut_off += 1;
            }
        }
    }
}

/// Lets faults befall everything until it is told to stop. Then everything runs, and nothing is disturbed any more.
pub async fn rage(
    places: &Arc<Vec<Place>>,
    victim: &Arc<Victim>,
    seed: u64,
    gap: Duration,
    stop: watch::Receiver<bool>,
) -> Done {
    let gap = u64::try_from(gap.as_millis()).unwrap();
    let mut raging = tokio::task::JoinSet::new();
    for (number, mut target) in Target::all(victim).into_iter().enumerate() {
        let (places, victim, mut stop) = (Arc::clone(places), Arc::clone(victim), stop.clone());
        let mut random = Random(seed.wrapping_add((number as u64 + 1) << 40));
        let gap = target.gap(gap);
        raging.spawn(async move {
            let mut done = Done::default();
            loop {
                let pause = Duration::from_millis(gap / 2 + random.below(gap));
                // The sender outlives the faults.
                if timeout(pause, stop.wait_for(|stop| *stop)).await.is_ok() {
                    return done;
                }
                target.befall(&places, &victim, &mut random, &mut done).await;
            }
        });
    }
    let done = raging.join_all().await.into_iter().fold(Done::default(), |mut sum, done| {
        sum.killed += done.killed;
        sum.shut_down += done.shut_down;
        sum.paused += done.paused;
        sum.cut_off += done.cut_off;
        sum.servers_killed += done.servers_killed;
        sum.servers_paused += done.servers_paused;
        sum.clocks_stepped += done.clocks_stepped;
        sum.of_several.extend(done.of_several);
        sum
    });
    places.iter().filter_map(|place| place.wire.as_ref()).for_each(Wire::calm);
    done
}
