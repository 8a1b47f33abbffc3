//! Clients of the server. Each creates one task, polls it, answers it and cancels it, through any instance.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mcp_task_store::{Agenda, Record, RedisBackend, StorageError};
use serde_json::Value;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::faults::Supervisor;
use super::log::{Event, Found, Log};
use super::operation::Plan;
use super::worker::{Request, Worker};
use crate::support::deployment::Endpoints;
use crate::support::{Random, key};

/// The average time between two polls of a client.
const POLL_MS: u64 = 400;

/// How the test reads records: from the engine, without a network that fails.
#[derive(Clone)]
pub enum Direct {
    Open(Arc<dyn Agenda>),
    /// Connects for each read, because an open connection may lead to a server that was deposed.
    Reconnect(Endpoints),
}

impl Direct {
    pub async fn connect(&self) -> Result<Arc<dyn Agenda>, StorageError> {
        match self {
            Self::Open(backend) => Ok(Arc::clone(backend)),
            Self::Reconnect(endpoints) => {
                Ok(Arc::new(endpoints.connect(RedisBackend::builder().notifications(false)).await?))
            }
        }
    }
}

#[derive(Clone)]
pub struct Clients {
    pub supervisors: Arc<Vec<Supervisor>>,
    pub log: Arc<Log>,
    pub direct: Direct,
    pub seed: u64,
    /// Set when the clients must give up.
    pub give_up: watch::Receiver<bool>,
}

impl Clients {
    /// Starts one client for each task at this pace, at most `at_once` at the same time. Returns when the clients have seen
    /// their tasks end, or gave up.
    pub async fn run(self, tasks: u64, pace: Duration, at_once: usize, all_created: watch::Sender<bool>) {
        let room = Arc::new(Semaphore::new(at_once));
        let mut clients = JoinSet::new();
        for number in (0..tasks).take_while(|_| !*self.give_up.borrow()) {
            sleep(pace).await;
            let permit = Arc::clone(&room).acquire_owned().await.unwrap();
            let this = self.clone();
            clients.spawn(async move {
                let plan = Plan::new(this.seed, number);
                this.client(plan).await;
                drop(permit);
            });
            while let Some(ended) = clients.try_join_next() {
                ended.unwrap();
            }
        }
        all_created.send_replace(true);
        while let Some(ended) = clients.join_next().await {
            ended.unwrap();
        }
    }

    /// Returns a worker process that accepts requests.
    async fn any(&self, random: &mut Random) -> Arc<Worker> {
        loop {
            let worker = self.supervisors[random.below(self.supervisors.len() as u64) as usize].worker();
            if worker.is_ready() {
                return worker;
            }
            sleep(Duration::from_millis(5)).await;
        }
    }

    async fn client(&self, plan: Plan) {
        let mut random = Random(self.seed ^ (plan.number << 20));
        let Some(task) = self.create(&plan, &mut random).await else { return };
        let created = Instant::now();
        let mut cancel_after = plan.cancel_after_ms.map(Duration::from_millis);
        while !*self.give_up.borrow() {
            let mut pause = Duration::from_millis(POLL_MS / 2 + random.below(POLL_MS));
            if let Some(after) = cancel_after {
                pause = pause.min(after.saturating_sub(created.elapsed()));
            }
            sleep(pause).await;
            if cancel_after.is_some_and(|after| created.elapsed() >= after)
                && self.cancel(&plan, &task, &mut random).await
            {
                cancel_after = None;
            }
            if self.poll(&plan, &task, &mut random).await {
                return;
            }
        }
    }

    /// Creates a task and returns its id, or `None` after the client gave up.
    async fn create(&self, plan: &Plan, random: &mut Random) -> Option<String> {
        loop {
            let worker = self.any(random).await;
            if let Ok(task) = worker.call(Request::Spawn { plan: plan.clone() }).await {
                let task = task.as_str().unwrap().to_owned();
                let (run, plan) = (worker.run.clone(), plan.clone());
                self.log.append(Event::Created { task: task.clone(), run, plan });
                return Some(task);
            }
            if *self.give_up.borrow() {
                return None;
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Reads the status of a task, and answers its question. Returns whether the task has ended.
    async fn poll(&self, plan: &Plan, task: &str, random: &mut Random) -> bool {
        let (owner, task) = (plan.owner.clone(), task.to_owned());
        let poll = Request::Status { owner: owner.clone(), task: task.clone() };
        let Ok(status) = self.any(random).await.call(poll).await else { return false };
        match status.as_str().unwrap() {
            "completed" | "failed" | "cancelled" => {
                let status = status.as_str().unwrap().to_owned();
                self.log.append(Event::Ended { task, status });
                true
            }
            "input_required" => {
                let answer = Value::from(plan.answer());
                let request = Request::Answer { owner, task: task.clone(), answer };
                if self.any(random).await.call(request).await.is_ok() {
                    self.log.append(Event::Answered { task });
                }
                false
            }
            _ => false,
        }
    }

    /// Requests the cancel of a task. Returns whether a worker acknowledged it.
    async fn cancel(&self, plan: &Plan, task: &str, random: &mut Random) -> bool {
        self.log.append(Event::CancelSent { task: task.to_owned() });
        let request = Request::Cancel { owner: plan.owner.clone(), task: task.to_owned() };
        if self.any(random).await.call(request).await.is_err() {
            sleep(Duration::from_millis(50)).await;
            return false;
        }
        while !*self.give_up.borrow() {
            // The server may be down.
            if let Ok(backend) = self.direct.connect().await
                && let Ok(record) = backend.get(&key(&plan.owner, task)).await
            {
                self.log.append(Event::Cancelled { task: task.to_owned(), found: found(&record) });
                break;
            }
            sleep(Duration::from_millis(20)).await;
        }
        true
    }
}

fn found(record: &Record) -> Found {
    let task: Value = serde_json::from_slice(&record.data).unwrap();
    let lease = &task["lease"];
    Found {
        status: task["status"].as_str().unwrap().to_owned(),
        cancel_requested: task["cancelRequested"] == true,
        attempt: lease["attempt"].as_u64().map(|attempt| u32::try_from(attempt).unwrap()),
        is_held: lease["holder"].is_string(),
    }
}
