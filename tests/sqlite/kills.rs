//! Four processes write to one file and are killed at random moments. Every acknowledged write is there, no write is
//! there by half, and the file is intact.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use mcp_task_store::{SqliteBackend, TaskKey, Version};

use crate::load::{self, write};
use crate::support::sqlite::Folder;
use crate::support::{Random, heavy, key};

/// The environment variable of a process that writes: the number of the process. `WRITER_FILE` names its file.
const WRITER: &str = "SQLITE_WRITER";
const WRITER_FILE: &str = "SQLITE_WRITER_FILE";
/// Precedes an acknowledged write, among the lines that the test harness prints.
const ACKNOWLEDGED: &str = "acknowledged> ";

const PROCESSES: usize = 4;
/// How many writes of one process are in flight.
const IN_FLIGHT: u64 = 8;
fn acknowledged(key: &TaskKey, version: Version) {
    let mut out = std::io::stdout().lock();
    // A parent that has ended reads no more.
    let _ = writeln!(out, "{ACKNOWLEDGED}{} {} {version}", key.owner, key.task).and_then(|()| out.flush());
}

/// The process that writes.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_process_that_writes() {
    let (Ok(process), Ok(file)) = (std::env::var(WRITER), std::env::var(WRITER_FILE)) else { return };
    let store = SqliteBackend::open(file).await.unwrap();
    let writers = (0..IN_FLIGHT)
        .map(|writer| tokio::spawn(write(store.clone(), process.clone(), writer, acknowledged)));
    futures_util::future::join_all(writers).await.into_iter().for_each(|ended| ended.unwrap());
}

/// What a process has acknowledged: which process, the key, and the version; 0 for a delete.
type Acknowledgement = (usize, TaskKey, u64);

struct Process {
    child: Child,
    reader: std::thread::JoinHandle<()>,
}

impl Process {
    fn start(folder: &Folder, number: usize, acknowledgements: Sender<Acknowledgement>) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "kills::a_process_that_writes", "--nocapture", "--test-threads", "1"])
            .env(WRITER, number.to_string())
            .env(WRITER_FILE, folder.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let reader = std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let Some((_, said)) = line.split_once(ACKNOWLEDGED) else { continue };
                // A kill may cut the last line.
                let [owner, task, version] = said.split(' ').collect::<Vec<_>>()[..] else { continue };
                let Ok(version) = version.parse() else { continue };
                if acknowledgements.send((number, key(owner, task), version)).is_err() {
                    return;
                }
            }
        });
        Self { child, reader }
    }

    /// Kills the process, and waits until every acknowledgment of it has been read.
    fn kill(mut self) {
        self.child.kill().unwrap();
        let ended = self.child.wait().unwrap();
        assert!(
            !ended.success() && ended.code().is_none(),
            "the process ended before it was killed: {ended}"
        );
        self.reader.join().unwrap();
    }
}

/// What the processes acknowledged.
#[derive(Default)]
struct Acknowledged {
    versions: HashMap<TaskKey, u64>,
    by_process: [u64; PROCESSES],
}

impl Acknowledged {
    /// Receives until this time.
    fn receive(&mut self, from: &Receiver<Acknowledgement>, until: Instant) {
        loop {
            match from.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok((process, key, version)) => {
                    self.by_process[process] += 1;
                    let known = self.versions.entry(key).or_default();
                    // Acknowledgements of several processes for one record arrive in any order.
                    *known = if version == 0 { 0 } else { version.max(*known) };
                }
                Err(RecvTimeoutError::Timeout) => return,
                Err(RecvTimeoutError::Disconnected) => panic!("the test holds a sender"),
            }
        }
    }
}

async fn survive(kills: usize) {
    let _alone = heavy().await;
    let folder = Folder::roomy();
    let (sender, acknowledgements) = channel();
    let mut random = Random(u64::from(std::process::id()));
    let mut acknowledged = Acknowledged::default();
    let start = |number| Process::start(&folder, number, sender.clone());
    let mut processes: Vec<_> = (0..PROCESSES).map(start).collect();
    for number in 0..kills {
        let moment = Duration::from_micros(20_000 + random.below(150_000));
        acknowledged.receive(&acknowledgements, Instant::now() + moment);
        let killed = random.below(PROCESSES as u64) as usize;
        std::mem::replace(&mut processes[killed], start(killed)).kill();
        if number % 20 == 19 {
            // Between kills, while the other processes write.
            assert_eq!(load::text(&folder, "PRAGMA quick_check"), "ok");
        }
    }
    acknowledged.receive(&acknowledgements, Instant::now() + Duration::from_millis(300));
    processes.into_iter().for_each(Process::kill);
    acknowledged.receive(&acknowledgements, Instant::now());
    let lost = load::lost(&folder, &acknowledged.versions).await;
    assert!(lost.is_empty(), "{lost:?}");
    let [total, least] =
        [acknowledged.by_process.iter().sum::<u64>(), *acknowledged.by_process.iter().min().unwrap()];
    println!(
        "figure | SQLite: {kills} kills among {PROCESSES} processes on one file | {total} acknowledged writes, none lost"
    );
    assert!(least > 20, "each process wrote: {:?}", acknowledged.by_process);
}

#[tokio::test]
async fn processes_that_are_killed_lose_no_acknowledged_write() {
    survive(20).await;
}

#[tokio::test]
#[ignore = "takes a minute"]
async fn long_form_of_processes_that_are_killed() {
    survive(200).await;
}

#[tokio::test]
async fn each_of_four_processes_on_one_file_has_a_fair_share() {
    let _alone = heavy().await;
    let folder = Folder::roomy();
    let (sender, acknowledgements) = channel();
    let processes: Vec<_> =
        (0..PROCESSES).map(|number| Process::start(&folder, number, sender.clone())).collect();
    let mut acknowledged = Acknowledged::default();
    // All processes have started.
    while acknowledged.by_process.contains(&0) {
        acknowledged.receive(&acknowledgements, Instant::now() + Duration::from_millis(10));
    }
    acknowledged.by_process = [0; PROCESSES];
    acknowledged.receive(&acknowledgements, Instant::now() + Duration::from_secs(3));
    processes.into_iter().for_each(Process::kill);
    let mean = acknowledged.by_process.iter().sum::<u64>() as f64 / PROCESSES as f64;
    let least = *acknowledged.by_process.iter().min().unwrap() as f64 / mean;
    println!("figure | SQLite: the slowest of four processes on one file, share of the mean | {least:.2}");
    // With SQLite's own busy handler, one of the four commits almost nothing. Half of the mean is usual.
    assert!(least > 0.2, "{:?}", acknowledged.by_process);
}
