//! Pages, and the index members that they find without a record.

use redis::{Pipeline, Value};

use super::error::Context;
use super::schema::Stored;
use super::{RedisBackend, hmget};
use crate::backend::from_micros;
use crate::page::MAX_PAGE_LIMIT;
use crate::scripts::{LIST, List, Listed, REAP, Reap, UnexpectedReply};
use crate::{CorruptRecord, Cursor, ListedRecord, OwnerId, Page, Record, StorageError, TaskId};

/// How many index members one `reap.lua` looks at, so that no script holds the server long.
const REAPED_AT_ONCE: usize = 64;

impl RedisBackend {
    /// The page that these index members make, newest first.
    pub(super) async fn read_members(
        &self,
        owner: &OwnerId,
        members: Vec<(Vec<u8>, u64)>,
        limit: usize,
        context: &Context<'_>,
    ) -> Result<Page, StorageError> {
        let mut page = Page::default();
        // A page that is not full is the last one.
        if let Some((_, oldest)) = members.last().filter(|_| members.len() == limit) {
            page.next = Some(Cursor::new(owner, *oldest));
        }
        let keyed = |(id, created_at)| {
            let id = task_id(id)?;
            let key = self.0.schema.task(owner, &id);
            Some((id, key, created_at))
        };
        let members: Vec<(TaskId, String, u64)> = members.into_iter().filter_map(keyed).collect();
        if members.is_empty() {
            return Ok(page);
        }
        let mut hashes = Pipeline::with_capacity(members.len());
        for (_, key, _) in &members {
            hashes.add_command(hmget(key));
        }
        let replies = self.0.link.read_all(&hashes, context.key).await;
        let replies = replies.map_err(|failure| context.storage_error(failure))?;
        if replies.len() != members.len() {
            return Err(context.unexpected(UnexpectedReply));
        }
        let mut gone = Vec::new();
        for ((id, key, created_at), reply) in members.into_iter().zip(replies) {
            let stored = match reply {
                Ok(reply) => Stored::read(reply).ok_or_else(|| context.unexpected(UnexpectedReply))?,
                Err(failure) => match self.reads(&key).storage_error(failure) {
                    StorageError::Corrupt { reason, .. } => {
                        page.corrupt.push(CorruptRecord::new(id, reason));
                        continue;
                    }
                    other => return Err(other),
                },
            };
            match stored {
                Stored::Nothing => gone.push((id, key)),
                Stored::Record(Record { expires_at, .. }) | Stored::Corrupt { expires_at, .. }
                    if self.has_expired(&key, expires_at).await? => {}
                Stored::Record(record) => {
                    page.records.push(ListedRecord::new(id, record, from_micros(created_at)));
                }
                Stored::Corrupt { reason, .. } => {
                    page.corrupt.push(CorruptRecord::new(id, reason.to_owned()))
                }
            }
        }
        // The page stands whether or not the index can be tidied: the caller may be one that only reads.
        if !gone.is_empty()
            && let Err(error) = self.reap(owner, gone, context).await
        {
            tracing::warn!(%error, "index members without a record were not removed");
        }
        Ok(page)
    }

    /// Drops all index members of the owner whose hash is gone. Says whether there were some.
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
            let tasks = self.hash_keys(owner, members);
            if !tasks.is_empty() {
                let mut exists = redis::cmd("EXISTS");
                tasks.iter().for_each(|(_, key)| {
                    exists.arg(key);
                });
                if self.send(&exists, context).await? != Value::Int(tasks.len() as i64) {
                    removed += self.reap(owner, tasks, context).await?;
                }
            }
            if is_last {
                return Ok(removed > 0);
            }
        }
    }

    /// Drops those of these index members whose hash is gone. Says how many.
    async fn reap(
        &self,
        owner: &OwnerId,
        tasks: Vec<(TaskId, String)>,
        context: &Context<'_>,
    ) -> Result<u64, StorageError> {
        let mut removed = 0;
        for tasks in tasks.chunks(REAPED_AT_ONCE) {
            let idx = self.0.schema.idx(owner);
            let arguments = Reap { idx, exp: self.0.schema.exp(owner), tasks: tasks.to_vec() };
            removed += self.run(&REAP, &arguments, context).await?.0;
        }
        Ok(removed)
    }

    /// The keys of the hashes behind index members. A member that is no task id was not written by this
    /// crate, and leads nowhere.
    fn hash_keys(&self, owner: &OwnerId, members: Vec<(Vec<u8>, u64)>) -> Vec<(TaskId, String)> {
        let ids = members.into_iter().filter_map(|(id, _)| task_id(id));
        ids.map(|id| (id.clone(), self.0.schema.task(owner, &id))).collect()
    }
}

fn task_id(member: Vec<u8>) -> Option<TaskId> {
    let id = String::from_utf8(member).ok().and_then(|id| TaskId::try_from(id).ok());
    if id.is_none() {
        tracing::warn!("an index holds a member that is no task id");
    }
    id
}
