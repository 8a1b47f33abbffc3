//! Pages, and the index members that they find without a record.

use std::sync::atomic::Ordering;

use redis::{Pipeline, Value};

use super::error::Context;
use super::reply::CommandError;
use super::schema::Stored;
use super::{RedisBackend, hmget};
use crate::backend::engine::{PageBounds, cursor, from_micros};
use crate::backend::{
    CorruptRecord, ListedRecord, MAX_PAGE_LIMIT, OwnerId, Page, Record, StorageError, TaskId, TaskKey,
};
use crate::printable::Chain;
use crate::scripts::{LIST, List, Listed, REAP, Reap, UnexpectedReply, integer};

/// How many index members one `reap.lua` looks at, so that no script holds the server long.
const REAPED_AT_ONCE: usize = 64;

/// An index member, and where its record is.
struct Member {
    task: TaskKey,
    key: String,
    created_at: u64,
}

/// A page while it is read.
#[derive(Default)]
struct Listing {
    page: Page,
    /// Members without a record.
    gone: Vec<(TaskId, String)>,
    /// How many members it has taken in.
    listed: usize,
    /// For how many bytes of data there is room.
    room: usize,
    is_full: bool,
}

impl Listing {
    /// The room that a record leaves, `None` if there is none for it. The first record always has room.
    fn room_behind(&self, size: usize) -> Option<usize> {
        match self.room.checked_sub(size) {
            None if self.page.records.is_empty() => Some(0),
            room => room,
        }
    }

    /// How many records of these sizes have room.
    fn fitting(&self, sizes: &[usize]) -> usize {
        let mut room = self.room;
        let fits = |size: &&usize| {
            let left = room.checked_sub(**size);
            room = left.unwrap_or(room);
            left.is_some() && !self.is_full
        };
        sizes.iter().take_while(fits).count()
    }
}

impl RedisBackend {
    /// The page that these index members make, newest first: as many of their records as it may have bytes.
    ///
    /// As many records as have room by the sizes of the pages before are read in one round trip, with the sizes of all
    /// others. So a page takes two round trips, with that for the ids, and three where records are large.
    pub(super) async fn read_members(
        &self,
        owner: &OwnerId,
        members: Vec<(Vec<u8>, u64)>,
        bounds: PageBounds,
        context: &Context<'_>,
    ) -> Result<Page, StorageError> {
        // A page that is not full is the last one.
        let oldest = members.last().map(|(_, created_at)| *created_at);
        let oldest = oldest.filter(|_| members.len() == bounds.limit);
        let members = self.members(owner, members);
        let largest = self.0.largest_listed.load(Ordering::Relaxed).max(1);
        let at_once = (bounds.max_bytes / largest).max(1);
        let (first, others) = members.split_at(members.len().min(at_once));
        let mut listing = Listing { room: bounds.max_bytes, ..Listing::default() };
        if !first.is_empty() {
            // In the same round trip, how large the others are.
            let mut reads = Pipeline::with_capacity(members.len());
            for member in first {
                reads.add_command(hmget(&member.key));
            }
            for member in others {
                reads.cmd("HSTRLEN").arg(&member.key).arg("data");
            }
            let mut replies = self.read_all(&reads, context).await?;
            let sizes = replies.split_off(first.len());
            let sizes: Result<Vec<usize>, StorageError> =
                others.iter().zip(sizes).map(|(member, size)| self.size(member, size)).collect();
            self.read_hashes(first, replies, &mut listing).await?;
            let fitting = listing.fitting(&sizes?);
            if fitting > 0 {
                let mut reads = Pipeline::with_capacity(fitting);
                for member in &others[..fitting] {
                    reads.add_command(hmget(&member.key));
                }
                let replies = self.read_all(&reads, context).await?;
                self.read_hashes(&others[..fitting], replies, &mut listing).await?;
            }
        }
        let Listing { mut page, gone, listed, .. } = listing;
        if let Some(found) = page.records.iter().map(|record| record.data.len()).max() {
            self.0.largest_listed.store(found.max(largest / 2), Ordering::Relaxed);
        }
        let ends_at = if listed == members.len() { oldest } else { Some(members[listed - 1].created_at) };
        page.next = ends_at.map(|position| cursor(owner, position));
        // The page stands whether or not the index can be tidied: the caller may be one that only reads.
        if !gone.is_empty()
            && let Err(error) = self.reap(owner, gone, context).await
        {
            tracing::warn!(error = %Chain(&error), "index members without a record were not removed");
        }
        Ok(page)
    }

    /// Sends reads in one go, and gives as many replies.
    async fn read_all(
        &self,
        reads: &Pipeline,
        context: &Context<'_>,
    ) -> Result<Vec<Result<Value, CommandError>>, StorageError> {
        context.in_flight.set();
        let replies = self.connection(context).read_all(reads, context.key).await;
        context.in_flight.clear();
        let replies = replies.map_err(|failure| context.storage_error(failure))?;
        if replies.len() != reads.len() {
            return Err(context.unexpected(UnexpectedReply));
        }
        Ok(replies)
    }

    /// The size of a record's data by the reply to `HSTRLEN`. What cannot be read has no bytes to read.
    fn size(&self, member: &Member, reply: Result<Value, CommandError>) -> Result<usize, StorageError> {
        let context = self.reads(&member.key).of(&member.task);
        match reply.map_err(|failure| context.storage_error(failure)) {
            Ok(size) => {
                let size = integer(&size).and_then(|size| usize::try_from(size).ok());
                size.ok_or_else(|| context.unexpected(UnexpectedReply))
            }
            Err(StorageError::Corrupt { .. }) => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// Adds what the hashes of these members hold, until the page is full.
    async fn read_hashes(
        &self,
        members: &[Member],
        replies: Vec<Result<Value, CommandError>>,
        listing: &mut Listing,
    ) -> Result<(), StorageError> {
        for (member, reply) in members.iter().zip(replies) {
            let Member { task, key, created_at } = member;
            let context = self.reads(key).of(task);
            let stored = match reply {
                Ok(reply) => Stored::read(reply).ok_or_else(|| context.unexpected(UnexpectedReply))?,
                Err(failure) => match context.storage_error(failure) {
                    StorageError::Corrupt { reason, .. } => {
                        listing.page.corrupt.push(CorruptRecord::new(task.task.clone(), reason));
                        listing.listed += 1;
                        continue;
                    }
                    other => return Err(other),
                },
            };
            match stored {
                Stored::Nothing => listing.gone.push((task.task.clone(), key.clone())),
                Stored::Record(Record { expires_at, .. }) | Stored::Corrupt { expires_at, .. }
                    if self.has_expired(key, expires_at).await? => {}
                Stored::Record(record) => {
                    let Some(room) = listing.room_behind(record.data.len()) else {
                        listing.is_full = true;
                        return Ok(());
                    };
                    listing.room = room;
                    let created_at = from_micros(*created_at);
                    listing.page.records.push(ListedRecord::new(task.task.clone(), record, created_at));
                }
                Stored::Corrupt { reason, .. } => {
                    listing.page.corrupt.push(CorruptRecord::new(task.task.clone(), reason.to_owned()));
                }
            }
            listing.listed += 1;
        }
        Ok(())
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
            let tasks = self.members(owner, members);
            let tasks: Vec<_> = tasks.into_iter().map(|member| (member.task.task, member.key)).collect();
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
            let arguments = Reap { idx, tasks: tasks.to_vec() };
            removed += self.run(&REAP, &arguments, context).await?.0;
        }
        Ok(removed)
    }

    /// Where the records of these index members are. A member that is no task id was not written by this crate, and
    /// leads nowhere.
    fn members(&self, owner: &OwnerId, members: Vec<(Vec<u8>, u64)>) -> Vec<Member> {
        let member = |(id, created_at)| {
            let task = TaskKey { owner: owner.clone(), task: task_id(id)? };
            let key = self.0.schema.task(owner, &task.task);
            Some(Member { task, key, created_at })
        };
        members.into_iter().filter_map(member).collect()
    }
}

fn task_id(member: Vec<u8>) -> Option<TaskId> {
    let id = String::from_utf8(member).ok().and_then(|id| TaskId::try_from(id).ok());
    if id.is_none() {
        tracing::warn!("an index holds a member that is no task id");
    }
    id
}
