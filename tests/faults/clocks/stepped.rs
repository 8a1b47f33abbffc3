//! A server whose clock a test sets.

use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::TimeDelta;
use mcp_task_store::{Agenda, RedisBackend};
use tempfile::TempDir;

use super::time_of;
use crate::support::clock::{set_clock, start_server};
use crate::support::redis::Server;

const PATIENCE: Duration = Duration::from_secs(60);

pub struct Stepped {
    pub server: Server,
    clock: TempDir,
}

impl Stepped {
    pub fn start(offset: &str) -> Self {
        let clock = TempDir::new().unwrap();
        set_clock(clock.path(), offset);
        Self { server: start_server(&[], clock.path()), clock }
    }

    /// Sets the clock, waits until it has stepped, and returns by how much.
    pub fn step(&self, offset: &str) -> TimeDelta {
        let (before, since) = (time_of(&self.server), Instant::now());
        set_clock(self.clock.path(), offset);
        loop {
            let passed = TimeDelta::from_std(since.elapsed()).unwrap();
            let stepped = time_of(&self.server) - before - passed;
            if stepped.abs() > TimeDelta::seconds(30) {
                return stepped;
            }
            assert!(since.elapsed() < PATIENCE, "the clock does not step");
        }
    }

    pub async fn agenda(&self) -> Arc<dyn Agenda> {
        Arc::new(RedisBackend::connect(&self.server.url()).await.unwrap())
    }
}

impl Drop for Stepped {
    fn drop(&mut self) {
        // A server that is killed leaves the shared memory of `faketime` behind.
        self.server.shut_down();
    }
}
