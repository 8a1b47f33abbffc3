//! The events of a run in their order, with one line of JSON for each.
//!
//! The operations of all worker processes, the clients and the faults append to one file. An append is one system call, so lines do
//! not mix. An event has happened before the next line is written.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::operation::Plan;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// In microseconds since the epoch. All processes run on one machine, whose own clock is not stepped.
    pub at: u64,
    #[serde(flatten)]
    pub event: Event,
}

/// A `run` is the life of one worker process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    // Events of an operation.
    Begin {
        task: String,
        attempt: u32,
        run: String,
        plan: Plan,
    },
    /// The operation received an answer.
    GotAnswer {
        task: String,
        attempt: u32,
        answer: String,
    },
    /// The operation detected its cancellation, and ends as cancelled.
    SawCancel {
        task: String,
        attempt: u32,
    },
    /// The operation ends with the result of this name.
    Produced {
        task: String,
        attempt: u32,
        run: String,
        nonce: String,
    },

    // Events of a client.
    Created {
        task: String,
        run: String,
        plan: Plan,
    },
    Answered {
        task: String,
    },
    CancelSent {
        task: String,
    },
    /// The cancel was acknowledged. `found` is the record right afterwards.
    Cancelled {
        task: String,
        found: Found,
    },
    /// A client read this terminal status.
    Ended {
        task: String,
        status: String,
    },

    // Faults. The line precedes the fault. A line that ends a fault follows that end.
    Started {
        run: String,
    },
    Killed {
        run: String,
    },
    /// The process was asked to shut down.
    AskedToStop {
        run: String,
    },
    /// The process exited by itself.
    Exited {
        run: String,
    },
    Paused {
        run: String,
    },
    Continued {
        run: String,
    },
    /// Nothing passes between the process and the server.
    CutOff {
        run: String,
    },
    Joined {
        run: String,
    },
    ServerKilled,
    /// The server is stopped. For a file: nothing can be written to it, because it is locked or full.
    ServerPaused,
    ServerUp,
    /// After the server was paused, it may have acknowledged writes that the server that took over does not have.
    WritesLost,
    /// The server's clock was set to this many seconds ahead of the real time.
    Clock {
        ahead_s: i64,
    },
    FaultsEnd,
}

/// The record of a task whose cancel was acknowledged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Found {
    pub status: String,
    pub cancel_requested: bool,
    /// The attempt of its lease, and whether a worker held it.
    pub attempt: Option<u32>,
    pub is_held: bool,
}

impl Event {
    /// Returns the task that the event concerns.
    pub fn task(&self) -> Option<&str> {
        match self {
            Self::Begin { task, .. }
            | Self::GotAnswer { task, .. }
            | Self::SawCancel { task, .. }
            | Self::Produced { task, .. }
            | Self::Created { task, .. }
            | Self::Answered { task }
            | Self::CancelSent { task }
            | Self::Cancelled { task, .. }
            | Self::Ended { task, .. } => Some(task),
            _ => None,
        }
    }
}

pub fn now_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as u64
}

/// Appends to the file of a run.
pub struct Log(File);

impl Log {
    pub fn open(path: &Path) -> Self {
        Self(OpenOptions::new().create(true).append(true).open(path).unwrap())
    }

    pub fn append(&self, event: Event) {
        let mut line = serde_json::to_vec(&Line { at: now_us(), event }).unwrap();
        line.push(b'\n');
        assert_eq!((&self.0).write(&line).unwrap(), line.len(), "a line is appended in one call");
    }
}

pub fn read(path: &Path) -> Vec<Line> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}")))
        .collect()
}
