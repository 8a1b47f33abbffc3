//! Pages of one owner's records.

use std::sync::atomic::Ordering;

use redis::{Pipeline, Value};

use super::error::Context;
use super::in_flight::InFlight;
use super::reply::CommandError;
use super::schema::StoredFields;
use super::{RedisBackend, hmget};
use crate::backend::engine::{PageBounds, cursor, from_micros};
use crate::backend::{CorruptRecord, ListedRecord, OwnerId, Page, StorageError, TaskId, TaskKey};
use crate::printable::Chain;
use crate::scripts::{UnexpectedReply, integer};

/// An index member and the key of its record.
pub(super) struct Member {
    pub(super) task: TaskKey,
    pub(super) key: String,
    created_at: u64,
}

/// A page while the backend reads it.
#[derive(Default)]
struct Listing {
    page: Page,
    /// The members that have no record.
    gone: Vec<(TaskId, String)>,
    /// How many members the page covers so far.
    covered: usize,
    /// How many more bytes of data the page may have.
    room: usize,
    is_full: bool,
}

impl Listing {
    /// Adds the record of a member. If the record does not fit, the page is full.
    fn add(&mut self, member: &Member, stored: StoredFields) {
        let id = member.task.task.clone();
        match stored {
            StoredFields::Absent => self.gone.push((id, member.key.clone())),
            StoredFields::Corrupt { reason, .. } => {
                self.page.corrupt.push(CorruptRecord::new(id, reason.into_owned()));
            }
            StoredFields::Record(record) => {
                let Some(room) = self.room_after(record.data.len()) else {
                    self.is_full = true;
                    return;
                };
                self.room = room;
                let created_at = from_micros(member.created_at);
                self.page.records.push(ListedRecord::new(id, record, created_at));
            }
        }
        self.covered += 1;
    }

    /// Returns the bytes that remain after a record of this size; `None` if it does not fit. The first record always
    /// fits.
    fn room_after(&self, size: usize) -> Option<usize> {
        match self.room.checked_sub(size) {
            None if self.page.records.is_empty() => Some(0),
            room => room,
        }
    }

    /// Returns how many of the records with these sizes fit into the page.
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
    /// Reads the page of these index members, newest first: as many records as the limit of bytes allows.
    ///
    /// One round trip reads as many records as should fit by the record sizes of earlier pages, and only the sizes of
    /// the other records. If more records fit by these sizes, another round trip reads them. With the one for the ids,
    /// a page takes two or three round trips.
    pub(super) async fn read_members(
        &self,
        owner: &OwnerId,
        members: Vec<(Vec<u8>, u64)>,
        bounds: PageBounds,
        context: &Context<'_>,
    ) -> Result<Page, StorageError> {
        // A page that has fewer members than the limit is the last one.
        let oldest = members.last().map(|(_, created_at)| *created_at);
        let oldest = oldest.filter(|_| members.len() == bounds.limit);
        let members = self.members(owner, members);
        let mut listing = Listing { room: bounds.max_bytes, ..Listing::default() };
        let largest = self.0.largest_listed.load(Ordering::Relaxed).max(1);
        let at_once = (bounds.max_bytes / largest).max(1);
        let (first, others) = members.split_at(members.len().min(at_once));
        let sizes = self.read_first(first, others, &mut listing, context).await?;
        let fitting = listing.fitting(&sizes);
        self.read_others(&others[..fitting], &mut listing, context).await?;

        let Listing { mut page, gone, covered, .. } = listing;
        if let Some(found) = page.records.iter().map(|record| record.data.len()).max() {
            self.0.largest_listed.store(found.max(largest / 2), Ordering::Relaxed);
        }
        let ends_at = if covered == members.len() { oldest } else { Some(members[covered - 1].created_at) };
        page.next = ends_at.map(|position| cursor(owner, position));
        // The page is valid whether or not the index can be repaired: the user may have permission to read only.
        if !gone.is_empty()
            && let Err(error) = self.reap(owner, gone, context).await
        {
            tracing::warn!(error = %Chain(&error), "index members without a record were not removed");
        }
        Ok(page)
    }

    /// Reads the first records and, in the same round trip, the sizes of the others.
    async fn read_first(
        &self,
        first: &[Member],
        others: &[Member],
        listing: &mut Listing,
        context: &Context<'_>,
    ) -> Result<Vec<usize>, StorageError> {
        if first.is_empty() {
            return Ok(Vec::new());
        }
        let mut reads = Pipeline::with_capacity(first.len() + others.len());
        for member in first {
            reads.add_command(hmget(&member.key));
        }
        for member in others {
            reads.cmd("HSTRLEN").arg(&member.key).arg("data");
        }
        let mut replies = self.read_all(&reads, context).await?;
        let sizes = replies.split_off(first.len());
        self.add_all(first, replies, listing).await?;
        others.iter().zip(sizes).map(|(member, size)| self.size(member, size)).collect()
    }

    async fn read_others(
        &self,
        members: &[Member],
        listing: &mut Listing,
        context: &Context<'_>,
    ) -> Result<(), StorageError> {
        if members.is_empty() {
            return Ok(());
        }
        let mut reads = Pipeline::with_capacity(members.len());
        for member in members {
            reads.add_command(hmget(&member.key));
        }
        let replies = self.read_all(&reads, context).await?;
        self.add_all(members, replies, listing).await
    }

    /// Sends reads in one pipeline and returns one reply for each.
    async fn read_all(
        &self,
        reads: &Pipeline,
        context: &Context<'_>,
    ) -> Result<Vec<Result<Value, CommandError>>, StorageError> {
        context.in_flight.begin();
        let replies = self.connection(context).read_all(reads, context.key).await;
        context.in_flight.clear();
        let replies = replies.map_err(|failure| context.storage_error(failure))?;
        if replies.len() != reads.len() {
            return Err(context.unexpected(UnexpectedReply));
        }
        Ok(replies)
    }

    /// Adds the records of these members until the page is full.
    async fn add_all(
        &self,
        members: &[Member],
        replies: Vec<Result<Value, CommandError>>,
        listing: &mut Listing,
    ) -> Result<(), StorageError> {
        for (member, reply) in members.iter().zip(replies) {
            let stored = self.stored_fields(member, reply)?;
            if self.has_expired(&member.key, stored.expires_at()).await? {
                listing.covered += 1;
                continue;
            }
            listing.add(member, stored);
            if listing.is_full {
                break;
            }
        }
        Ok(())
    }

    /// Reads the reply to the `HMGET` of a member. A key of another type is a damaged record.
    fn stored_fields(
        &self,
        member: &Member,
        reply: Result<Value, CommandError>,
    ) -> Result<StoredFields, StorageError> {
        let context = self.reads(&member.key).of(&member.task);
        match reply.map_err(|failure| context.storage_error(failure)) {
            Ok(reply) => StoredFields::read(reply).ok_or_else(|| context.unexpected(UnexpectedReply)),
            Err(StorageError::Corrupt { reason, .. }) => {
                Ok(StoredFields::Corrupt { reason: reason.into(), expires_at: None })
            }
            Err(error) => Err(error),
        }
    }

    /// Returns the size of a record's data by the reply to `HSTRLEN`: 0 for a key of another type.
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

    /// Finds the keys of these index members. This crate does not write members that are not task ids, so the page
    /// leaves them out.
    pub(super) fn members(&self, owner: &OwnerId, members: Vec<(Vec<u8>, u64)>) -> Vec<Member> {
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
        tracing::warn!("an index has a member that is not a task id; remove it from the index");
    }
    id
}
