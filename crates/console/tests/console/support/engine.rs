//! An engine that answers calls as a test says.

use std::sync::Arc;

use async_trait::async_trait;
use mcp_task_store::{Agenda, StorageError};
use tokio::sync::watch;

use self::intercept::{Call, Hooks, Intercept, Reply, unavailable};

#[allow(dead_code)]
#[path = "../../../../../tests/support/intercept.rs"]
mod intercept;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    Answers,
    Fails,
    /// Calls wait until this changes.
    Hangs,
    /// Applies writes, and then fails.
    LosesAnswers,
}

pub struct Settable {
    engine: Arc<dyn Agenda>,
    how: watch::Sender<How>,
}

impl Settable {
    pub fn new(engine: Arc<dyn Agenda>) -> Arc<Intercept<Self>> {
        Intercept::new(Self { engine, how: watch::Sender::new(How::Answers) })
    }

    pub fn set(&self, how: How) {
        self.how.send_replace(how);
    }
}

#[async_trait]
impl Hooks for Settable {
    fn engine(&self) -> Arc<dyn Agenda> {
        Arc::clone(&self.engine)
    }

    async fn call(&self, call: Call) -> Result<Reply, StorageError> {
        let mut how = self.how.subscribe();
        let how = *how.wait_for(|how| *how != How::Hangs).await.unwrap();
        match how {
            How::LosesAnswers if call.is_write() => {
                call.send(&*self.engine).await?;
                Err(unavailable("the connection was reset", true))
            }
            How::Fails => Err(unavailable("connection refused by 10.0.0.5", false)),
            _ => call.send(&*self.engine).await,
        }
    }
}
