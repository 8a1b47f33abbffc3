//! Unique tasks: at most one open task of an owner for each key.
//!
//! A start claims the pointer of the key, creates the task, confirms its entry, and only then returns the attempt. A start that
//! cannot confirm its entry deletes its task, and joins the task of the winner.

use std::fmt;
use std::pin::pin;
use std::time::Duration;

use tokio::time::sleep;
use tracing::Instrument;

use super::TaskStore;
use super::attempt::Attempt;
use super::deadline::{CallTarget, Deadline};
use super::durations::{BackOff, jittered, pause_after_conflicts};
use super::enqueue;
use super::error::TaskError;
use super::hold::{Hold, Span, hold, pointer_of};
use super::keeper::KeptRecords;
use super::lease;
use super::limits::check_owner;
use super::new_task::NewTask;
use super::pointer::{EntryState, Pointer, PointerClient, clear, hash, set};
use super::records::Records;
use crate::backend::{Agenda, Expiry, OwnerId, PartChanges, StorageError, TaskId, TaskKey};
use crate::printable::Chain;
use crate::spans;
use crate::task::StoredTask;

/// How many milliseconds a start waits at most before it reads a pointer again that another start has claimed.
const WAIT_MS: u64 = 40;
/// How long the claim of a key for a task without a TTL lives. The confirmation replaces the expiry.
const LONGEST_CLAIM: Duration = Duration::from_secs(3600);

/// The key of a unique task: a tool, and a text that the tool derives from the arguments of a call.
///
/// An owner has at most one open task of each key. Two owners never share a key. The store keeps only a hash of the key.
///
/// ```
/// use mcp_task_store::UniqueKey;
///
/// let key = UniqueKey::new("render", "scene 7");
/// assert_ne!(key, UniqueKey::new("preview", "scene 7"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct UniqueKey(String);

impl UniqueKey {
    /// Returns the key of this text for a tool. Both may be any text.
    pub fn new(tool: &str, key: &str) -> Self {
        Self(hash(&[tool, key]))
    }
}

/// What [`TaskStore::enqueue_unique`] returns.
#[derive(Debug)]
pub enum UniqueEnqueue {
    /// The call has created the task, which waits for a worker.
    Enqueued(StoredTask),
    /// The owner has an open task of this key already.
    Joined(StoredTask),
}

impl UniqueEnqueue {
    /// Returns the open task of the key.
    pub fn into_task(self) -> StoredTask {
        match self {
            Self::Enqueued(task) | Self::Joined(task) => task,
        }
    }
}

/// What [`TaskStore::start_unique`] returns.
pub enum UniqueStart<B> {
    /// The call has started the task.
    Started {
        /// The new task.
        task: StoredTask,
        /// The first attempt at the task, in this process.
        attempt: Attempt<B>,
    },
    /// The owner has an open task of this key already. Its attempt may run in any process.
    Joined(StoredTask),
}

impl<B> fmt::Debug for UniqueStart<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Started { task, attempt } => {
                f.debug_struct("Started").field("task", task).field("attempt", attempt).finish()
            }
            Self::Joined(task) => f.debug_tuple("Joined").field(task).finish(),
        }
    }
}

impl<B: Agenda> TaskStore<B> {
    /// Creates a task and starts its first attempt in this process, unless the owner has an open task of the same key. Then the call
    /// returns that task. This holds across all instances on the same engine.
    ///
    /// A task is open until it has ended or its TTL has elapsed. The store keeps a pointer to it: a small record under a reserved
    /// owner, which expires one [time limit](crate::StoreConfig::call_timeout) after the record of the task. The pointer of a task
    /// without a TTL lives for 30 days, or 40 leases if that is longer, and the instances extend it while the task is open. If an instance
    /// dies between the claim of the key and the start, the key is free again after the time limit of a call, by the engine's
    /// clock.
    ///
    /// # Errors
    /// The errors of [`start`](Self::start). A call that waits for the start of another instance fails with
    /// [`Unavailable`](crate::StorageError::Unavailable) at its own time limit.
    ///
    /// # Cancellation safety
    /// The same as for [`start`](Self::start). No worker runs a task that remains without a confirmed pointer while the key has
    /// another open task.
    ///
    /// # Examples
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), mcp_task_store::TaskError> {
    /// use mcp_task_store::{MemoryBackend, NewTask, OwnerId, TaskStore, UniqueKey, UniqueStart};
    ///
    /// let store = TaskStore::new(MemoryBackend::new());
    /// let alice = OwnerId::try_from("alice").expect("not empty");
    /// let key = UniqueKey::new("render", "scene 7");
    /// let new = NewTask::new("tools/call");
    /// let UniqueStart::Started { task, attempt } = store.start_unique(&alice, new.clone(), &key).await? else {
    ///     unreachable!("the owner has no task yet");
    /// };
    /// let UniqueStart::Joined(same) = store.start_unique(&alice, new, &key).await? else {
    ///     unreachable!("the first task is open");
    /// };
    /// assert_eq!(same.key, task.key);
    /// # drop(attempt);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn start_unique(
        &self,
        owner: &OwnerId,
        mut new: NewTask,
        key: &UniqueKey,
    ) -> Result<UniqueStart<B>, TaskError> {
        new.traceparent = spans::inherited(new.traceparent.take());
        let deadline = self.0.records().deadline();
        let starter = Starter::new(&self.0, &deadline, owner, new, key, Begin::AtOnce)?;
        let start = pin!(starter.start());
        match deadline.limit("start_unique", CallTarget::Owner(owner), start).await? {
            Begun::Started(task, attempt) => Ok(UniqueStart::Started { task, attempt }),
            Begun::Enqueued(task) | Begun::Joined(task) => Ok(UniqueStart::Joined(task)),
        }
    }

    /// Creates a task that waits for a worker, as [`enqueue`](Self::enqueue) does, unless the owner has an open task of the same
    /// key. Then the call returns that task. Otherwise the call is like [`start_unique`](Self::start_unique).
    ///
    /// # Errors
    /// The errors of [`enqueue`](Self::enqueue) and of [`start_unique`](Self::start_unique).
    ///
    /// # Cancellation safety
    /// The same as for [`start_unique`](Self::start_unique).
    pub async fn enqueue_unique(
        &self,
        owner: &OwnerId,
        mut new: NewTask,
        key: &UniqueKey,
    ) -> Result<UniqueEnqueue, TaskError> {
        // A call that joins a task has no id, and one that starts over has several.
        let span = enqueue::span(owner, None, &mut new);
        let enqueue = async {
            let deadline = self.0.records().deadline();
            let starter = Starter::new(&self.0, &deadline, owner, new, key, Begin::InQueue)?;
            let start = pin!(starter.start());
            match deadline.limit("enqueue_unique", CallTarget::Owner(owner), start).await? {
                Begun::Joined(task) => Ok(UniqueEnqueue::Joined(task)),
                Begun::Enqueued(task) | Begun::Started(task, _) => {
                    deadline.limit_optional(enqueue::offer(self.0.records(), &task)).await;
                    Ok(UniqueEnqueue::Enqueued(task))
                }
            }
        };
        enqueue.instrument(span).await
    }
}

/// Requeues a unique task under this key. If the owner has an open task of the same unique key, returns that task.
pub(super) async fn requeue<B: Agenda>(
    kept: &KeptRecords<B>,
    deadline: &Deadline,
    key: &TaskKey,
    new: NewTask,
    pointer: String,
) -> Result<StoredTask, TaskError> {
    let unique = UniqueKey(pointer);
    let starter = Starter::new(kept, deadline, &key.owner, new, &unique, Begin::Requeued(&key.task))?;
    match starter.start().await? {
        Begun::Joined(task) | Begun::Enqueued(task) | Begun::Started(task, _) => Ok(task),
    }
}

/// How a new task begins.
#[derive(Clone, Copy)]
enum Begin<'a> {
    /// With an attempt of this process.
    AtOnce,
    /// It waits for a worker.
    InQueue,
    /// It waits for a worker, and has this id. Calls that requeue the same task have the same id.
    Requeued(&'a TaskId),
}

/// What a start has led to.
enum Begun<B> {
    Started(StoredTask, Attempt<B>),
    Enqueued(StoredTask),
    Joined(StoredTask),
}

/// One call of [`TaskStore::start_unique`] or [`TaskStore::enqueue_unique`].
struct Starter<'a, B> {
    kept: &'a KeptRecords<B>,
    records: &'a Records<B>,
    deadline: &'a Deadline,
    owner: &'a OwnerId,
    new: NewTask,
    begin: Begin<'a>,
    /// The expiry of the record of the task.
    record: Expiry,
    pointers: PointerClient<'a, B>,
}

/// What a read of the pointer means for a start.
enum Verdict {
    /// The key has an open task.
    Open(Box<StoredTask>),
    /// This start has claimed the key.
    Claimed,
    /// Another start has claimed the key, and may still confirm its task.
    Busy,
    /// The key is free. The pointer still names these tasks.
    Free(Outdated),
}

/// Entries of a pointer that the next claim removes or makes void.
#[derive(Default)]
struct Outdated {
    ended: Vec<TaskId>,
    /// The starts of these tasks took too long.
    abandoned: Vec<TaskId>,
}

impl<'a, B: Agenda> Starter<'a, B> {
    fn new(
        kept: &'a KeptRecords<B>,
        deadline: &'a Deadline,
        owner: &'a OwnerId,
        new: NewTask,
        key: &UniqueKey,
        begin: Begin<'a>,
    ) -> Result<Self, TaskError> {
        check_owner(owner)?;
        let records = kept.records();
        // A task that is refused must not claim the key.
        new.check_all(&records.config)?;
        if !matches!(begin, Begin::AtOnce) {
            new.check_can_wait()?;
        }
        let record = new.record_expiry(&records.config)?;
        let pointers = pointer_of(records, owner, &key.0)?;
        let new = new.unique(key.0.clone());
        Ok(Self { kept, records, deadline, owner, new, begin, record, pointers })
    }

    async fn start(&self) -> Result<Begun<B>, TaskError> {
        loop {
            // Each try has an id of its own: a late copy of an earlier create must not bring back a task that was deleted. A
            // requeued task that a late copy brings back has no pointer, so its first claim fails it.
            let key = match self.begin {
                Begin::Requeued(id) => self.key(id.clone()),
                Begin::AtOnce | Begin::InQueue => self.key(TaskId::random()),
            };
            if let Some(open) = self.claim(&key.task).await? {
                self.deadline.limit_optional(self.records.scheduler.schedule_if_lapsed(&open)).await;
                return Ok(Begun::Joined(open));
            }
            let (task, attempt) = match pin!(self.create(&key)).await {
                Ok(created) => created,
                Err(error) if matches!(self.begin, Begin::Requeued(_)) => {
                    return self.find_requeued(&key, error).await;
                }
                Err(error) => return Err(self.give_up(&key, error).await),
            };
            self.deadline.set_in_doubt(true);
            if self.confirm(&task).await? {
                let Some(attempt) = attempt else { return Ok(Begun::Enqueued(task)) };
                attempt.set_begun();
                return Ok(Begun::Started(task, attempt));
            }
            self.withdraw(&key.task).await?;
            self.records.engine.delete(&key).await?;
            attempt.inspect(Attempt::set_over);
            self.deadline.set_in_doubt(false);
        }
    }

    async fn create(&self, key: &TaskKey) -> Result<(StoredTask, Option<Attempt<B>>), TaskError> {
        let new = self.new.clone();
        match self.begin {
            Begin::AtOnce => {
                let (task, attempt) = lease::create(self.kept, self.deadline, key, new).await?;
                Ok((task, Some(attempt)))
            }
            Begin::InQueue | Begin::Requeued(_) => {
                Ok((enqueue::create(self.records, self.deadline, key, new).await?, None))
            }
        }
    }

    fn key(&self, task: TaskId) -> TaskKey {
        TaskKey { owner: self.owner.clone(), task }
    }

    /// Claims the key for a task. Returns the open task of the key if there is one.
    async fn claim(&self, mine: &TaskId) -> Result<Option<StoredTask>, TaskError> {
        loop {
            let pointer = self.pointers.read().await?;
            match self.judge(pointer.as_ref(), mine).await? {
                Verdict::Claimed => return Ok(None),
                Verdict::Open(open) => {
                    if pointer.is_some_and(|pointer| pointer.state_of(mine).is_some()) {
                        self.withdraw(mine).await?;
                    }
                    return Ok(Some(*open));
                }
                Verdict::Free(outdated) => {
                    if self.try_claim(pointer.as_ref(), mine, &outdated).await? {
                        continue;
                    }
                }
                Verdict::Busy => {}
            }
            sleep(jittered(WAIT_MS)).await;
        }
    }

    async fn judge(&self, pointer: Option<&Pointer>, mine: &TaskId) -> Result<Verdict, TaskError> {
        let mut outdated = Outdated::default();
        let Some(pointer) = pointer else { return Ok(Verdict::Free(outdated)) };
        let mut open = Vec::new();
        for task in pointer.others(mine, EntryState::Confirmed) {
            match self.open_task(&self.key(task.clone())).await? {
                Some(stored) => open.push(stored),
                None => outdated.ended.push(task.clone()),
            }
        }
        for task in pointer.others(mine, EntryState::Void) {
            self.records.engine.delete(&self.key(task.clone())).await?;
            outdated.ended.push(task.clone());
        }
        match (open.pop(), open.is_empty()) {
            (Some(open), true) => return Ok(Verdict::Open(Box::new(open))),
            // The store of one of the tasks is about to remove it.
            (Some(_), false) => return Ok(Verdict::Busy),
            (None, _) if pointer.state_of(mine).is_some() => return Ok(Verdict::Claimed),
            (None, _) => {}
        }
        outdated.abandoned.extend(pointer.others(mine, EntryState::Pending).cloned());
        if !outdated.abandoned.is_empty() && !pointer.is_older_than_a_call(self.pointers.clock().await?) {
            return Ok(Verdict::Busy);
        }
        Ok(Verdict::Free(outdated))
    }

    /// Reads a task, and returns it if it is open. Otherwise it is never open again, even if the engine's clock is set back: its end is
    /// stored, or its record is removed.
    async fn open_task(&self, key: &TaskKey) -> Result<Option<StoredTask>, TaskError> {
        let max_conflicts = self.records.config.max_conflicts;
        for conflicts in 0..max_conflicts {
            pause_after_conflicts(conflicts).await;
            let read = match self.records.read(key).await {
                Ok(read) => read,
                Err(TaskError::NotFound { .. }) => {
                    self.records.engine.delete(key).await?;
                    return Ok(None);
                }
                Err(error) => return Err(error),
            };
            if read.task.status.is_terminal() {
                return Ok(None);
            }
            match self.records.expire_if_overdue(read).await {
                Ok(Some(current)) if !current.task.status.is_terminal() => return Ok(Some(current)),
                // The next read shows whether the engine has stored the end.
                Ok(_) | Err(TaskError::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Err(self.records.contended(key))
    }

    /// Writes the claim. Returns whether the engine answered that it applied the write.
    async fn try_claim(
        &self,
        pointer: Option<&Pointer>,
        mine: &TaskId,
        outdated: &Outdated,
    ) -> Result<bool, TaskError> {
        let mut changes = PartChanges::new();
        for task in &outdated.ended {
            clear(&mut changes, task)?;
        }
        for task in &outdated.abandoned {
            set(&mut changes, task, EntryState::Void)?;
        }
        set(&mut changes, mine, EntryState::Pending)?;
        let life = match self.record {
            Expiry::After(_) => self.span(None).life(),
            Expiry::Never | Expiry::Keep => LONGEST_CLAIM.max(self.records.config.call_timeout * 2),
        };
        match self.pointers.write(pointer, changes, life).await {
            // The next read shows whether the engine has applied the write.
            Err(error) if error.outcome_unknown() => Ok(false),
            written => written,
        }
    }

    /// Confirms the task. Returns whether it is the open task of the key. Failed calls are repeated until the time limit, because
    /// other calls may have joined the task already.
    async fn confirm(&self, created: &StoredTask) -> Result<bool, TaskError> {
        let span = self.span(Some(created));
        let mut back_off = BackOff::new();
        loop {
            let max_conflicts = self.records.config.max_conflicts;
            match hold(&self.pointers, &created.key.task, span, max_conflicts).await {
                Ok(found) => return Ok(found == Hold::Held),
                Err(error) if error.is_retryable() => sleep(back_off.next_pause()).await,
                Err(error) => return Err(error),
            }
        }
    }

    fn span(&self, created: Option<&StoredTask>) -> Span {
        let until = created.and_then(|created| created.expires_at);
        let config = &self.records.config;
        match self.record {
            Expiry::After(life) => Span::limited(life, until, config.call_timeout),
            Expiry::Never | Expiry::Keep => Span::unlimited(self.records.engine.now(), config.lease),
        }
    }

    /// Releases the key after the create has failed. Returns the error of the create.
    async fn give_up(&self, key: &TaskKey, error: TaskError) -> TaskError {
        let released = async {
            self.withdraw(&key.task).await?;
            match error.outcome_unknown() {
                true => self.records.engine.delete(key).await.map(drop),
                false => Ok(()),
            }
        };
        if let Err(failed) = released.await {
            tracing::debug!(error = %Chain(&failed), "the claim of a unique key could not be released; it is void after the time limit of a call");
        }
        error
    }

    /// Returns the task that another call has requeued under the same key. After any other error the claim stays: another call may
    /// share it, and it is void after the time limit of a call.
    async fn find_requeued(&self, key: &TaskKey, error: TaskError) -> Result<Begun<B>, TaskError> {
        if !matches!(error, TaskError::Storage(StorageError::VersionConflict { .. })) {
            return Err(error);
        }
        let requeued = self.records.read_current(key).await?;
        if requeued.task.status.is_terminal() {
            self.withdraw(&key.task).await?;
        }
        Ok(Begun::Joined(requeued))
    }

    /// Removes the entry of a task of this call. A pointer without another entry expires at once.
    async fn withdraw(&self, mine: &TaskId) -> Result<(), TaskError> {
        let max_conflicts = self.records.config.max_conflicts;
        for conflicts in 0..max_conflicts {
            pause_after_conflicts(conflicts).await;
            let Some(pointer) = self.pointers.read().await? else { return Ok(()) };
            if pointer.state_of(mine).is_none() {
                return Ok(());
            }
            let mut changes = PartChanges::new();
            clear(&mut changes, mine)?;
            if self.pointers.write(Some(&pointer), changes, self.life_without(&pointer, mine).await?).await? {
                return Ok(());
            }
        }
        Err(TaskError::Contended { task: mine.clone(), conflicts: max_conflicts })
    }

    /// Returns how long a pointer must live without the entry of a task: longer than the record of every other task. A late write
    /// of this call may have made the expiry earlier than that.
    async fn life_without(&self, pointer: &Pointer, mine: &TaskId) -> Result<Duration, TaskError> {
        if pointer.entries.iter().all(|entry| entry.task == *mine) {
            return Ok(Duration::from_millis(1));
        }
        let mut longest = self.span(None).life();
        for task in pointer.others(mine, EntryState::Confirmed) {
            let key = self.key(task.clone());
            let stored = match self.records.read(&key).await {
                Ok(stored) => stored,
                Err(TaskError::NotFound { .. }) => continue,
                Err(error) => return Err(error),
            };
            let now = self.records.engine.clock(&key).await?;
            longest = longest.max(Span::of(&stored, now, self.records.config.call_timeout).life());
        }
        Ok(longest)
    }
}
