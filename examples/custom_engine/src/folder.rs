//! Files that survive a crash, behind a lock that all processes share.
//!
//! The folder contains the file `lock`, files that are being written, and one folder per owner. The name of an owner's folder is the
//! SHA-256 of the owner id. It contains one file per record: `{time of creation}.{SHA-256 of the task id}`. These names sort by
//! creation, so the folder is the owner's index.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use mcp_task_store::{OwnerId, StorageError, TaskId, TaskKey};
use sha2::{Digest, Sha256};
use tempfile::Builder;

use crate::record::{self, Stored};

const LOCK: &str = "lock";
/// The prefix of files that are being written.
const UNFINISHED: &str = "unfinished-";

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
}

/// Why a call failed.
pub(crate) enum Failure {
    Storage(StorageError),
    Io(io::Error),
}

impl From<StorageError> for Failure {
    fn from(error: StorageError) -> Self {
        Self::Storage(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Folder(Arc<Path>);

impl Folder {
    pub(crate) fn open(path: PathBuf) -> Result<Self, StorageError> {
        let folder = Self(path.into());
        folder.prepare().map_err(|error| folder.error(error, Access::Read))?;
        Ok(folder)
    }

    fn prepare(&self) -> io::Result<()> {
        fs::create_dir_all(&self.0)?;
        File::create(self.0.join(LOCK))?;
        // This process holds the lock, so no process writes. An unfinished file is left over from a crash.
        let locked = self.lock(Access::Write)?;
        for file in fs::read_dir(&locked.root)? {
            let file = file?;
            if file.file_name().to_str().is_some_and(|name| name.starts_with(UNFINISHED)) {
                fs::remove_file(file.path())?;
            }
        }
        sync(&self.0)
    }

    /// Runs a call under the lock, on a thread that may block. If the caller drops the future, the call still runs to its end.
    pub(crate) async fn call<T: Send + 'static>(
        &self,
        access: Access,
        call: impl FnOnce(&Locked) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, StorageError> {
        let folder = self.clone();
        let called = tokio::task::spawn_blocking(move || call(&folder.lock(access)?));
        match called.await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(Failure::Storage(error))) => Err(error),
            Ok(Err(Failure::Io(error))) => Err(self.error(error, access)),
            Err(error) => Err(self.error(io::Error::other(error), access)),
        }
    }

    /// Takes the lock. It excludes all other calls, of this process and of other processes. Dropping the file releases the lock.
    fn lock(&self, access: Access) -> io::Result<Locked> {
        let file = File::open(self.0.join(LOCK))?;
        match access {
            Access::Read => file.lock_shared()?,
            Access::Write => file.lock()?,
        }
        Ok(Locked { root: Arc::clone(&self.0), _lock: file })
    }

    fn error(&self, error: io::Error, access: Access) -> StorageError {
        if error.kind() == io::ErrorKind::StorageFull {
            let reason = format!("the disk of {} is full; delete records or other files", self.0.display());
            return StorageError::CapacityExceeded { reason, quota: None, source: Some(error.into()) };
        }
        StorageError::Backend {
            address: self.0.display().to_string(),
            reason: "the file system failed; see the cause".to_owned(),
            // If the sync after the rename failed, the write has still been applied.
            outcome_unknown: access == Access::Write,
            source: Some(error.into()),
        }
    }
}

/// The file of a record.
pub(crate) struct Entry {
    /// Microseconds since the Unix epoch, strictly increasing within an owner.
    pub(crate) created_at: u64,
    task: String,
    path: PathBuf,
}

impl Entry {
    fn new(path: PathBuf) -> Option<Self> {
        let (created_at, task) = path.file_name()?.to_str()?.split_once('.')?;
        let created_at = u64::from_str_radix(created_at, 16).ok()?;
        Some(Self { created_at, task: task.to_owned(), path })
    }

    /// Returns the newest entry of a task. After a crash there may also be an older, expired entry.
    pub(crate) fn of<'a>(entries: &'a [Self], task: &TaskId) -> Option<&'a Self> {
        let task = hash(task.as_str());
        entries.iter().rev().find(|entry| entry.task == task)
    }
}

/// The folder while this process holds its lock.
pub(crate) struct Locked {
    root: Arc<Path>,
    _lock: File,
}

impl Locked {
    fn owner(&self, owner: &OwnerId) -> PathBuf {
        self.root.join(hash(owner.as_str()))
    }

    /// Lists the records of an owner, the oldest first.
    pub(crate) fn entries(&self, owner: &OwnerId) -> Result<Vec<Entry>, Failure> {
        entries(&self.owner(owner))
    }

    /// Lists the records of all owners.
    pub(crate) fn all_entries(&self) -> Result<Vec<Entry>, Failure> {
        let mut all = Vec::new();
        for owner in fs::read_dir(&self.root)? {
            let owner = owner?;
            if owner.file_type()?.is_dir() {
                all.extend(entries(&owner.path())?);
            }
        }
        Ok(all)
    }

    pub(crate) fn read(&self, entry: &Entry, key: &TaskKey) -> Result<Stored, Failure> {
        let corrupt = |what| {
            let reason = format!("{}: {what}", entry.path.display());
            StorageError::Corrupt { key: key.clone(), reason, source: None }.into()
        };
        Stored::decode(fs::read(&entry.path)?.into()).map_err(corrupt)
    }

    /// Reads the task id of a record.
    pub(crate) fn task(&self, entry: &Entry) -> Result<TaskId, Failure> {
        let unreadable = || {
            let reason =
                format!("{}: the first line is not a task id; delete the file", entry.path.display());
            io::Error::new(io::ErrorKind::InvalidData, reason).into()
        };
        record::task(&fs::read(&entry.path)?.into()).ok_or_else(unreadable)
    }

    /// Reads when a record expires. Returns `None` if it never expires, or if it cannot be read.
    pub(crate) fn expires_at(&self, entry: &Entry) -> Result<Option<u64>, Failure> {
        let stored = Stored::decode(Bytes::from(fs::read(&entry.path)?));
        Ok(stored.ok().and_then(|stored| stored.expires_at))
    }

    /// Writes a record. Its bytes are on the disk before the rename makes them visible, and the rename is on the disk before
    /// this returns.
    pub(crate) fn write(&self, key: &TaskKey, created_at: u64, stored: &Stored) -> Result<(), Failure> {
        let owner = self.owner(&key.owner);
        if !owner.exists() {
            fs::create_dir(&owner)?;
            sync(&self.root)?;
        }
        let mut file = Builder::new().prefix(UNFINISHED).tempfile_in(&self.root)?;
        file.write_all(&stored.encode(&key.task).map_err(io::Error::from)?)?;
        file.as_file().sync_all()?;
        let path = owner.join(format!("{created_at:016x}.{}", hash(key.task.as_str())));
        file.persist(path).map_err(|error| error.error)?;
        sync(&owner)?;
        Ok(())
    }

    /// Removes a record. Also removes the owner's folder if it is empty then.
    pub(crate) fn remove(&self, entry: &Entry) -> Result<(), Failure> {
        fs::remove_file(&entry.path)?;
        let Some(owner) = entry.path.parent() else { return Ok(()) };
        sync(owner)?;
        if fs::read_dir(owner)?.next().is_none() {
            fs::remove_dir(owner)?;
            sync(&self.root)?;
        }
        Ok(())
    }
}

fn entries(owner: &Path) -> Result<Vec<Entry>, Failure> {
    let files = match fs::read_dir(owner) {
        Ok(files) => files,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let paths: io::Result<Vec<PathBuf>> = files.map(|file| Ok(file?.path())).collect();
    let mut entries: Vec<Entry> = paths?.into_iter().filter_map(Entry::new).collect();
    entries.sort_by_key(|entry| entry.created_at);
    Ok(entries)
}

/// Hashes an id, because an id may be longer than a file name and may contain any character.
fn hash(id: &str) -> String {
    hex::encode(Sha256::digest(id))
}

/// Makes the names in a folder survive a crash.
fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}
