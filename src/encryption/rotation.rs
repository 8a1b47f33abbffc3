//! Encrypts the stored records under the current key, page by page.

use std::collections::VecDeque;
use std::fmt;
use std::str::FromStr;

use futures_util::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};

use super::backend::Encrypted;
use super::rotated_record::{Outcome, rotate};
use crate::backend::{
    Agenda, Cursor, ListedRecord, MAX_PAGE_LIMIT, OwnerId, PageRequest, Record, StorageBackend, StorageError,
    TaskKey,
};

/// How many records without parts are rotated at the same time. Engines put writes of the same moment into one batch.
const CONCURRENT_RECORDS: usize = 32;

/// Encrypts the stored records under the current key, page by page. [`Encrypted::rotation`] creates it.
///
/// A step reads one page of one owner's records, and writes those that are encrypted under another key. A write keeps data, parts and
/// expiry, and applies only if no other writer has changed the record since the read. Otherwise the step reads the record again.
/// Subscribers receive no notification. The version of the record grows by 1.
///
/// The rotation uses bounded memory: one page, and the parts of one record. It can end at any time. A later rotation leaves out the
/// records that are already encrypted under the current key, but reads them again, with their parts. To save these reads, keep the
/// [`position`](Self::position), and [`resume`](Self::resume) from it.
///
/// # Examples
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use mcp_task_store::{Encrypted, Keyring, MemoryBackend, PutOptions, StorageBackend, TaskKey};
///
/// # let (old_key, new_key) = (vec![1; 32], vec![2; 32]);
/// # let engine = MemoryBackend::new();
/// # let before = Encrypted::new(engine.clone(), Keyring::new([("2025-11", old_key.clone())])?);
/// # before.put(&TaskKey::new("alice", "t1")?, "data".into(), PutOptions::default()).await?;
/// let encrypted = Encrypted::new(engine, Keyring::new([("2026-11", new_key), ("2025-11", old_key)])?);
/// let mut rotation = encrypted.rotation();
/// while let Some(page) = rotation.step().await? {
///     for failed in page.failed {
///         eprintln!("{}: {}", failed.key, failed.error);
///     }
/// }
/// assert_eq!(rotation.counts().rotated, 1);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Rotation<'a, B> {
    encrypted: &'a Encrypted<B>,
    encrypts_plain: bool,
    /// The next page to read.
    position: Place,
    /// The owners of the current page of owners that are left; `None` before the page is read.
    owners: Option<VecDeque<OwnerId>>,
    /// The page of owners after the current one.
    next_owners: Option<Cursor>,
    counts: RotationCounts,
}

impl<B: StorageBackend> Encrypted<B> {
    /// Prepares to encrypt the stored records under the current key. Nothing is read or written before the first
    /// [`step`](Rotation::step).
    pub fn rotation(&self) -> Rotation<'_, B> {
        Rotation {
            encrypted: self,
            encrypts_plain: false,
            position: Place::default(),
            owners: None,
            next_owners: None,
            counts: RotationCounts::default(),
        }
    }
}

impl<B: Agenda> Rotation<'_, B> {
    /// Also encrypts records that are not encrypted. Without this call, they fail.
    ///
    /// Use it once, to enable encryption for a store that has records. It accepts whatever is stored. So someone who can
    /// write to the store can make it accept a forged record.
    #[must_use]
    pub fn encrypt_plain_records(mut self) -> Self {
        self.encrypts_plain = true;
        self
    }

    /// Rotates only the records of this owner. An engine that cannot list its owners supports only this.
    #[must_use]
    pub fn owner(mut self, owner: OwnerId) -> Self {
        self.owners = Some(VecDeque::from([owner]));
        self
    }

    /// Continues at the [`position`](Self::position) of another rotation.
    #[must_use]
    pub fn resume(mut self, position: RotationPosition) -> Self {
        self.position = position.0;
        self
    }

    /// Rotates the next page of records. Returns `None` after the last page.
    ///
    /// The rotation of all records calls [`Agenda::owners`], which may scan the whole store.
    ///
    /// # Errors
    /// The engine failed. Call `step` again to repeat the page. The counts of the repeated page do not include what the failed call has
    /// rotated.
    ///
    /// # Cancellation safety
    /// If the future is dropped, each record of the page is rotated as a whole or not at all. The next call repeats the page.
    pub async fn step(&mut self) -> Result<Option<RotatedPage>, StorageError> {
        let Some(owner) = self.next_owner().await? else { return Ok(None) };
        let (page, next) = self.rotate_page(&owner).await?;
        self.counts.add(page.counts);
        self.position.tasks = next;
        if self.position.tasks.is_none() {
            self.leave_owner();
        }
        Ok(Some(page))
    }

    /// Returns what this rotation has done so far.
    pub fn counts(&self) -> RotationCounts {
        self.counts
    }

    /// Returns the position of the next page, for [`resume`](Self::resume).
    pub fn position(&self) -> RotationPosition {
        RotationPosition(self.position.clone())
    }

    /// Returns the owner of the next page of records.
    async fn next_owner(&mut self) -> Result<Option<OwnerId>, StorageError> {
        loop {
            if self.owners.is_none() {
                self.read_owners().await?;
            }
            let next = self.owners.as_ref().and_then(|owners| owners.front().cloned());
            if next.is_some() || !self.turn_page_of_owners() {
                return Ok(next);
            }
        }
    }

    /// Goes to the first page of the next owner.
    fn leave_owner(&mut self) {
        if let Some(owners) = &mut self.owners {
            owners.pop_front();
            self.position.owner = owners.front().cloned();
        }
        if self.position.owner.is_none() {
            self.turn_page_of_owners();
        }
    }

    /// Goes to the next page of owners. Returns `false` if there is none.
    fn turn_page_of_owners(&mut self) -> bool {
        let Some(next) = self.next_owners.take() else { return false };
        self.position = Place { owners: Some(text(next)), ..Place::default() };
        self.owners = None;
        true
    }

    /// Reads a page of owners, and goes to the owner of a position.
    async fn read_owners(&mut self) -> Result<(), StorageError> {
        let after = self.position.owners.clone().map(Cursor::from);
        let page = self.encrypted.engine().owners(after.as_ref()).await?;
        let mut owners = VecDeque::from(page.owners);
        let reached = self.position.owner.as_ref();
        match reached.and_then(|reached| owners.iter().position(|owner| owner == reached)) {
            Some(index) => drop(owners.drain(..index)),
            // The page has other owners than before, so its records are read from the first one on.
            None => (self.position.owner, self.position.tasks) = (owners.front().cloned(), None),
        }
        (self.owners, self.next_owners) = (Some(owners), page.next);
        Ok(())
    }

    /// Rotates one page of an owner's records. Returns the cursor of the next page.
    async fn rotate_page(&self, owner: &OwnerId) -> Result<(RotatedPage, Option<String>), StorageError> {
        let request = PageRequest::new(MAX_PAGE_LIMIT);
        let request = match &self.position.tasks {
            Some(after) => request.after(after.as_str()),
            None => request,
        };
        let page = self.encrypted.engine().list(owner, request).await?;
        let mut rotated = RotatedPage::new(owner);
        for corrupt in page.corrupt {
            let key = TaskKey { owner: owner.clone(), task: corrupt.task };
            let error = StorageError::Corrupt { key: key.clone(), reason: corrupt.reason, source: None };
            rotated.add(key, Outcome::Failed(error));
        }
        let (plain, with_parts): (Vec<_>, Vec<_>) =
            page.records.into_iter().partition(|record| record.parts.is_empty());
        for (records, concurrent) in [(plain, CONCURRENT_RECORDS), (with_parts, 1)] {
            let rotating = records.into_iter().map(|listed| self.rotate_listed(owner, listed));
            let mut outcomes = stream::iter(rotating).buffer_unordered(concurrent);
            while let Some((key, outcome)) = outcomes.try_next().await? {
                rotated.add(key, outcome);
            }
        }
        Ok((rotated, page.next.map(text)))
    }

    async fn rotate_listed(
        &self,
        owner: &OwnerId,
        listed: ListedRecord,
    ) -> Result<(TaskKey, Outcome), StorageError> {
        let ListedRecord { task, data, version, expires_at, parts, .. } = listed;
        let key = TaskKey { owner: owner.clone(), task };
        let record = Record::new(data, version, expires_at, parts);
        let outcome = rotate(self.encrypted, &key, record, self.encrypts_plain).await?;
        Ok((key, outcome))
    }
}

fn text(cursor: Cursor) -> String {
    cursor.as_str().to_owned()
}

/// The next page of records: the page of owners, the owner, and the cursor of the owner's page.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Place {
    owners: Option<String>,
    owner: Option<OwnerId>,
    tasks: Option<String>,
}

/// Where a [`Rotation`] continues: opaque text, valid for one store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RotationPosition(Place);

impl fmt::Display for RotationPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&serde_json::to_string(&self.0).map_err(|_| fmt::Error)?)
    }
}

impl FromStr for RotationPosition {
    type Err = StorageError;

    /// # Errors
    /// `InvalidPage` for text that is no position.
    fn from_str(text: &str) -> Result<Self, StorageError> {
        let malformed =
            |_| StorageError::InvalidPage { reason: "the position of the rotation is malformed".to_owned() };
        serde_json::from_str(text).map(Self).map_err(malformed)
    }
}

/// How many records a [`Rotation`] has visited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RotationCounts {
    /// The records that are now encrypted under the current key.
    pub rotated: u64,
    /// The records that were encrypted under the current key before.
    pub current: u64,
    /// The records that stay as they are, because they cannot be decrypted or written.
    pub failed: u64,
}

impl RotationCounts {
    fn add(&mut self, other: Self) {
        self.rotated += other.rotated;
        self.current += other.current;
        self.failed += other.failed;
    }
}

/// What one [`step`](Rotation::step) has done.
#[derive(Debug)]
#[non_exhaustive]
pub struct RotatedPage {
    /// The owner of the records.
    pub owner: OwnerId,
    /// How many records the page has.
    pub counts: RotationCounts,
    /// The records that stay as they are.
    pub failed: Vec<FailedRotation>,
}

/// A record that a [`Rotation`] leaves as it is.
#[derive(Debug)]
#[non_exhaustive]
pub struct FailedRotation {
    /// The key of the record.
    pub key: TaskKey,
    /// Why. After a `VersionConflict`, other writers were faster each time: run another rotation.
    pub error: StorageError,
}

impl RotatedPage {
    fn new(owner: &OwnerId) -> Self {
        Self { owner: owner.clone(), counts: RotationCounts::default(), failed: Vec::new() }
    }

    fn add(&mut self, key: TaskKey, outcome: Outcome) {
        match outcome {
            Outcome::Rotated => self.counts.rotated += 1,
            Outcome::Current => self.counts.current += 1,
            Outcome::Gone => {}
            Outcome::Failed(error) => {
                self.counts.failed += 1;
                self.failed.push(FailedRotation { key, error });
            }
        }
    }
}
