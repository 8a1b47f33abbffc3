//! The contract on the Redis engine.

mod keys;

use std::sync::Arc;

use async_trait::async_trait;
use chrono::{TimeDelta, Utc};
use mcp_task_store::conformance::{Hooks, Subject};
use mcp_task_store::{TaskKey, Version, conformance_tests};

use crate::capabilities;
use crate::support::redis::Namespace;
use crate::support::{Engine, Store};

async fn open() -> Subject {
    subject(Engine::Redis.open().await, Owner::Plain)
}

conformance_tests!(open);

/// The contract with keys as in a cluster: hash-tagged owners, and timers in 16 shards.
mod hash_tagged {
    use super::*;

    async fn open() -> Subject {
        subject(Engine::Sharded.open().await, Owner::HashTagged)
    }

    conformance_tests!(open);
}

pub fn subject(store: Store, owner: Owner) -> Subject {
    let namespace = Arc::new(store.redis.expect("a store in Redis"));
    Subject::new(store.backend).capabilities(capabilities()).hooks(Keys { namespace, owner })
}

/// The form of the owner in a key.
pub enum Owner {
    Plain,
    HashTagged,
}

/// Changes the keys of a store over a connection of its own.
struct Keys {
    namespace: Arc<Namespace>,
    owner: Owner,
}

impl Keys {
    fn owner(&self, key: &TaskKey) -> String {
        match self.owner {
            Owner::Plain => key.owner.to_string(),
            Owner::HashTagged => format!("{{{}}}", key.owner),
        }
    }

    fn record(&self, key: &TaskKey) -> String {
        format!("{{}}:tasks:{}:{}", self.owner(key), key.task)
    }

    fn set_version(&self, key: &TaskKey, version: &str) {
        let _: i64 = self.namespace.run(&["HSET", &self.record(key), "version", version]);
    }
}

#[async_trait]
impl Hooks for Keys {
    async fn damage(&self, key: &TaskKey) -> bool {
        self.set_version(key, "one");
        true
    }

    async fn set_version(&self, key: &TaskKey, version: Version) -> bool {
        Self::set_version(self, key, &version.to_string());
        true
    }

    async fn step_clock_back(&self, key: &TaskKey, by: TimeDelta) -> bool {
        let ahead = (Utc::now() + by).timestamp_micros().to_string();
        let index = format!("{{}}:idx:{}", self.owner(key));
        let _: i64 = self.namespace.run(&["ZADD", &index, &ahead, key.task.as_str()]);
        true
    }

    async fn left_behind(&self) -> Option<Vec<String>> {
        Some(self.namespace.keys())
    }
}
