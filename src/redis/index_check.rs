//! Compares the records with the members of their indexes, in both directions, and repairs the indexes.

use std::collections::BTreeMap;
use std::pin::pin;

use async_trait::async_trait;
use redis::{Pipeline, Value};

use super::RedisBackend;
use super::agenda::listing::{cursor_behind, position};
use super::error::Context;
use crate::backend::engine::MAX_TAKEN;
use crate::backend::{
    CheckedPage, Cursor, Diagnose, Fault, FaultKind, Finding, OwnerId, Queue, QueuePage, StorageError,
    TaskId, TaskKey,
};
use crate::scripts::{AUDIT, Audit, Audited, RecordState};
use crate::spans::engine_span;

/// How many records one `audit.lua` compares, so that no script occupies the server for long.
const MAX_AUDITED: usize = 64;
/// What the index has in front of the id in the member for the expiry.
const MARK: u8 = 0xff;

#[async_trait]
impl Diagnose for RedisBackend {
    async fn diagnose(&self, _is_thorough: bool) -> Result<Vec<Finding>, StorageError> {
        self.findings().await
    }

    async fn check_records(&self, after: Option<&Cursor>, repair: bool) -> Result<CheckedPage, StorageError> {
        let (keys, next) =
            self.scan(engine_span!("check_records"), &self.0.schema.every_task(), "hash", after).await?;
        let mut page = CheckedPage { checked: keys.len(), next, ..CheckedPage::default() };
        let mut by_owner: BTreeMap<OwnerId, Vec<TaskId>> = BTreeMap::new();
        for TaskKey { owner, task } in keys.iter().filter_map(|key| self.0.schema.task_of_key(key)) {
            by_owner.entry(owner).or_default().push(task);
        }
        for (owner, tasks) in by_owner {
            self.audit(&owner, tasks, repair, &mut page).await?;
        }
        Ok(page)
    }

    async fn check_members(
        &self,
        owner: &OwnerId,
        after: Option<&Cursor>,
        repair: bool,
    ) -> Result<CheckedPage, StorageError> {
        let after = after.map(position).transpose()?;
        let idx = self.0.schema.idx(owner);
        let context = self.reads(&idx);
        let read = pin!(self.members_after(&idx, after.as_ref()));
        let (mut members, _) = self.limited(engine_span!("check_members"), &context, read).await?;
        let has_more = members.len() > MAX_TAKEN;
        members.truncate(MAX_TAKEN);
        let next = members.last().filter(|_| has_more).map(cursor_behind);
        let mut page = CheckedPage { checked: members.len(), next, ..CheckedPage::default() };
        let mut tasks: Vec<TaskId> = members
            .into_iter()
            .filter_map(|(_, member)| {
                let id = member.strip_prefix(&[MARK]).unwrap_or(&member);
                TaskId::try_from(String::from_utf8(id.to_vec()).ok()?).ok()
            })
            .collect();
        tasks.sort_unstable();
        tasks.dedup();
        self.audit(owner, tasks, repair, &mut page).await?;
        // The walk through the records finds each record and its faults once.
        page.records.clear();
        page.faults.retain(|fault| fault.kind == FaultKind::MemberWithoutRecord || fault.is_repaired);
        Ok(page)
    }

    async fn queues(&self, after: Option<&Cursor>) -> Result<QueuePage, StorageError> {
        let (keys, next) =
            self.scan(engine_span!("queues"), &self.0.schema.every_due(), "zset", after).await?;
        let mut queues: Vec<Queue> = keys.iter().filter_map(|key| self.0.schema.queue_of_due(key)).collect();
        // A queue has a key for each shard.
        queues.sort();
        queues.dedup();
        Ok(QueuePage::new(queues, next))
    }

    async fn without_timer(&self, queue: &Queue, keys: &[TaskKey]) -> Result<Vec<TaskKey>, StorageError> {
        let mut by_due: BTreeMap<String, Vec<&TaskKey>> = BTreeMap::new();
        for key in keys {
            by_due.entry(self.0.schema.due(self.0.schema.shard(&key.owner), queue)).or_default().push(key);
        }
        let mut without = Vec::new();
        for (due, keys) in by_due {
            for keys in keys.chunks(MAX_TAKEN) {
                let read = pin!(self.scores(&due, keys));
                let context = Context { is_bulk: true, ..self.reads(&due) };
                let scores = self.limited(engine_span!("without_timer"), &context, read).await?;
                let missing = keys.iter().zip(scores).filter(|(_, score)| *score == Value::Nil);
                without.extend(missing.map(|(key, _)| TaskKey::clone(key)));
            }
        }
        Ok(without)
    }
}

impl RedisBackend {
    /// Returns the scores of timers, `Nil` for a task without one.
    async fn scores(&self, due: &str, keys: &[&TaskKey]) -> Result<Vec<Value>, StorageError> {
        let context = Context { is_bulk: true, ..self.reads(due) };
        let mut reads = Pipeline::with_capacity(keys.len());
        for key in keys {
            reads.cmd("ZSCORE").arg(due).arg(key.to_string());
        }
        let replies = self.0.bulk_connection.read_all(&reads, due).await;
        let replies = replies.map_err(|failure| context.storage_error(failure))?;
        replies.into_iter().map(|reply| reply.map_err(|failure| context.storage_error(failure))).collect()
    }

    /// Compares records of one owner with its index, and adds what it finds to the page.
    async fn audit(
        &self,
        owner: &OwnerId,
        tasks: Vec<TaskId>,
        repair: bool,
        page: &mut CheckedPage,
    ) -> Result<(), StorageError> {
        let idx = self.0.schema.idx(owner);
        let context = if repair { self.writes(&idx) } else { self.reads(&idx) };
        for tasks in tasks.chunks(MAX_AUDITED) {
            let with_key = |task: &TaskId| (task.clone(), self.0.schema.task(owner, task));
            let audit = Audit { idx: idx.clone(), repair, tasks: tasks.iter().map(with_key).collect() };
            let call = pin!(self.run(&AUDIT, &audit, &context));
            let Audited(states) = self.limited(engine_span!("audit", repair), &context, call).await?;
            for (task, state) in tasks.iter().zip(states) {
                let key = TaskKey { owner: owner.clone(), task: task.clone() };
                let kind = match state {
                    RecordState::MemberWithoutRecord => Some(FaultKind::MemberWithoutRecord),
                    RecordState::RecordWithoutMember => Some(FaultKind::RecordWithoutMember),
                    RecordState::Agrees | RecordState::Gone | RecordState::Damaged => None,
                };
                page.faults.extend(kind.map(|kind| Fault::new(kind, key.to_string(), repair)));
                if !matches!(state, RecordState::Gone | RecordState::MemberWithoutRecord) {
                    page.records.push(key);
                }
            }
        }
        Ok(())
    }
}
