//! Clients of the server: each has one task created, polls it, answers it, cancels it, through any instance.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mcp_task_store::{Record, RedisBackend, StorageBackend, StorageError};
use serde_json::Value;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::faults::Place;
use super::log::{Event, Found, Log};
use super::operation::Plan;
use super::worker::{Order, Worker};
use crate::support::deployment::Way;
use crate::support::{Random, key};

/// How long a client waits between two polls of its task, on average.
const POLL_MS: u64 = 400;

/// How the test itself looks at records.
#[derive(Clone)]
pub enum Straight {
    Kept(RedisBackend),
    /// Where a connection may lead to a server that was deposed, a new one is made each time.
    Anew(Way),
}

impl Straight {
    pub async fn connect(&self) -> Result<RedisBackend, StorageError> {
        match self {
            Self::Kept(backend) => Ok(backend.clone()),
            Self::Anew(way) => way.connect(RedisBackend::builder().notifications(false)).await,
        }
    }
}

#[derive(Clone)]
pub struct Clients {
    pub places: Arc<Vec<Place>>,
    pub log: Arc<Log>,
    /// To the server itself, without a network in between.
    pub straight: Straight,
    pub seed: u64,
    /// Set when the clients must give up.
    pub give_up: watch::Receiver<bool>,
}

impl Clients {
    /// Lets so many clients have a task each, one after the other at this pace, `at_once` at the same time. Returns when all tasks are created and the clients have
    /// seen them end, or gave up.
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

    /// An instance that takes calls.
    async fn any(&self, random: &mut Random) -> Arc<Worker> {
        loop {
            let worker = self.places[random.below(self.places.len() as u64) as usize].worker();
            if worker.is_ready() {
                return worker;
            }
            sleep(Duration::from_millis(5)).await;
        }
    }

    async fn client(&self, plan: Plan) {
        let mut random = Random(self.seed ^ (plan.number << 20));
        let task = loop {
            let worker = self.any(&mut random).await;
            if let Ok(task) = worker.order(Order::Spawn { plan: plan.clone() }).await {
                let task = task.as_str().unwrap().to_owned();
                self.log.append(Event::Created {
                    task: task.clone(),
                    run: worker.run.clone(),
                    plan: plan.clone(),
                });
                break task;
            }
            if *self.give_up.borrow() {
                return;
            }
            sleep(Duration::from_millis(50)).await;
        };
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
            let poll = Order::Status { owner: plan.owner.clone(), task: task.clone() };
            let Ok(status) = self.any(&mut random).await.order(poll).await else { continue };
            match status.as_str().unwrap() {
                "completed" | "failed" | "cancelled" => {
                    let status = status.as_str().unwrap().to_owned();
                    return self.log.append(Event::Ended { task, status });
                }
                "input_required" => {
                    let (owner, answer) = (plan.owner.clone(), Value::from(plan.answer()));
                    let order = Order::Answer { owner, task: task.clone(), answer };
                    if self.any(&mut random).await.order(order).await.is_ok() {
                        self.log.append(Event::Answered { task: task.clone() });
                    }
                }
                _ => {}
            }
        }
    }

    /// Asks to cancel the task. Returns whether that was acknowledged.
    async fn cancel(&self, plan: &Plan, task: &str, random: &mut Random) -> bool {
        self.log.append(Event::CancelSent { task: task.to_owned() });
        let order = Order::Cancel { owner: plan.owner.clone(), task: task.to_owned() };
        if self.any(random).await.order(order).await.is_err() {
            sleep(Duration::from_millis(50)).await;
            return false;
        }
        while !*self.give_up.borrow() {
            // The server may be down.
            if let Ok(backend) = self.straight.connect().await
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
