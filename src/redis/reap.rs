//! Removes index members whose hash was evicted, or deleted by hand.

use redis::Value;

use super::RedisBackend;
use super::error::Context;
use crate::backend::{MAX_PAGE_LIMIT, OwnerId, StorageError, TaskId};
use crate::scripts::{LIST, List, Listed, REAP, Reap};

/// How many index members one `reap.lua` checks, so that no script occupies the server for long.
const MAX_REAPED: usize = 64;

impl RedisBackend {
    /// Removes all index members of the owner whose hash no longer exists. Returns whether it removed any.
    pub(super) async fn reap_all(
        &self,
        owner: &OwnerId,
        context: &Context<'_>,
    ) -> Result<bool, StorageError> {
        let (mut below, mut removed) = (None, 0);
        loop {
            let page = List { idx: self.0.schema.idx(owner), below, limit: MAX_PAGE_LIMIT };
            let Listed(members) = self.run(&LIST, &page, context).await?;
            below = members.last().map(|(_, oldest)| *oldest);
            let is_last = members.len() < MAX_PAGE_LIMIT;
            let members = self.members(owner, members).into_iter();
            let tasks: Vec<_> = members.map(|member| (member.task.task, member.key)).collect();
            if !self.all_exist(&tasks, context).await? {
                removed += self.reap(owner, tasks, context).await?;
            }
            if is_last {
                return Ok(removed > 0);
            }
        }
    }

    async fn all_exist(
        &self,
        tasks: &[(TaskId, String)],
        context: &Context<'_>,
    ) -> Result<bool, StorageError> {
        if tasks.is_empty() {
            return Ok(true);
        }
        let mut exists = redis::cmd("EXISTS");
        for (_, key) in tasks {
            exists.arg(key);
        }
        Ok(self.send(&exists, context).await? == Value::Int(tasks.len() as i64))
    }

    /// Removes the index members in this list whose hash no longer exists. Returns how many it removed.
    pub(super) async fn reap(
        &self,
        owner: &OwnerId,
        tasks: Vec<(TaskId, String)>,
        context: &Context<'_>,
    ) -> Result<u64, StorageError> {
        let mut removed = 0;
        for tasks in tasks.chunks(MAX_REAPED) {
            let idx = self.0.schema.idx(owner);
            let arguments = Reap { idx, tasks: tasks.to_vec() };
            removed += self.run(&REAP, &arguments, context).await?.0;
        }
        Ok(removed)
    }
}
