//! The contract that every engine keeps, and what an engine author needs to keep it.
//!
//! * [`StorageBackend`] stores versioned records by owner and task. Its page lists the rules.
//! * [`Agenda`] adds timers across owners. [`LocalAgenda`] gives them to an engine that has none.
//! * [`Diagnose`] lets operators check an engine, and repair its indexes.
//! * [`engine`] has the building blocks for an engine of your own.
//!
//! Each module depends only on those above it in this list: `version`, `key`, `error`, `parts`, `record`, `page`, `storage`,
//! `queue`, `agenda`, `diagnose`, `engine`, `local_agenda`.

mod agenda;
mod diagnose;
pub mod engine;
pub(crate) mod error;
pub(crate) mod key;
mod local_agenda;
mod page;
mod parts;
mod queue;
mod record;
#[cfg(any(feature = "postgres", feature = "redis"))]
pub(crate) mod server_clock;
#[cfg(any(feature = "postgres", feature = "redis", feature = "sqlite"))]
pub(crate) mod settings;
mod storage;
mod version;

pub use agenda::{Agenda, Due, Next, OwnerPage, Taken, Timer, TimerPage};
pub use diagnose::{CheckedPage, Diagnose, Fault, FaultKind, Finding, Health, QueuePage};
pub use error::{BoxError, StorageError};
pub use key::{MAX_ID_BYTES, OwnerId, TaskId, TaskKey};
pub use local_agenda::LocalAgenda;
pub use page::{CorruptRecord, Cursor, ListedRecord, MAX_PAGE_LIMIT, Page, PageRequest};
pub use parts::{DEFAULT_MAX_PART_BYTES, MAX_PARTS, Part, PartChange, PartChanges, PartName, PartSizes};
pub use queue::{Priority, Queue};
pub use record::{Expiry, PutOptions, Record, Written};
pub use storage::{DEFAULT_MAX_VALUE_BYTES, StorageBackend};
pub use version::Version;
