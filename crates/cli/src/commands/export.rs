//! `mcp-tasks export`

use std::collections::{BTreeMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use indicatif::ProgressBar;
use mcp_task_store::{
    Cursor, ListedRecord, MAX_PAGE_LIMIT, OwnerId, PageRequest, PartName, StorageBackend, StorageError, Task,
    TaskFilter, TaskKey,
};
use serde_json::{Value, json};
use tempfile::NamedTempFile;
use tokio::time::{Instant, sleep_until};

use crate::archive::{ArchiveWriter, Header};
use crate::args::{ExportArgs, FilterArgs};
use crate::engine::{Kind, Store};
use crate::failure::{Failure, with_causes};
use crate::interrupt::Interrupt;
use crate::key;
use crate::output::{progress, remark, text};
use crate::retry::retried;

/// How many owners the command remembers, because an engine may list an owner twice.
const MAX_REMEMBERED: usize = 1_000_000;
/// How often a record is read again that changes while its parts are read.
const MAX_READS: u32 = 20;

pub fn check(args: &ExportArgs) -> Result<(), Failure> {
    match &args.output {
        Some(path) if path.exists() => Err(exists(path)),
        None if io::stdout().is_terminal() => {
            Err(Failure::usage("stdout is a terminal; pass --output FILE, or redirect the output"))
        }
        _ => Ok(()),
    }
}

fn exists(path: &Path) -> Failure {
    Failure::failed(format!("{} exists; remove it, or pass another name to --output", path.display()))
}

pub async fn run(store: &Store, kind: Kind, args: &ExportArgs, quiet: bool) -> Result<(), Failure> {
    let rate = text::with_commas(args.rate.rate.into());
    let whose = if args.filter.owner.is_some() { "one owner" } else { "all owners" };
    remark(quiet, format_args!("scans the tasks of {whose}, at most {rate} records per second"));
    let header = Header::new(store.backend().now(), kind.name(), filters(&args.filter));
    let writer = ArchiveWriter::new(Output::open(args.output.as_deref())?, &header)?;
    let mut export = Export {
        store,
        writer,
        filter: args.filter.to_filter(),
        is_filtered: !args.filter.is_empty_but_owner(),
        time_per_record: Duration::from_secs(1) / args.rate.rate,
        not_before: Instant::now(),
        bar: progress::spinner(quiet),
        counts: Counts::default(),
    };
    let interrupt = Interrupt::listen();
    let exported = tokio::select! {
        exported = export.all(args.filter.owner.as_ref()) => exported,
        () = interrupt.pressed() => Err(Failure::failed("interrupted; no file was written")),
    };
    export.bar.finish_and_clear();
    exported?;
    export.finish(quiet)
}

/// What an export left out, and what it could not decode.
#[derive(Default)]
struct Counts {
    unreadable: u64,
    not_tasks: u64,
    opaque: u64,
}

struct Export<'a> {
    store: &'a Store,
    writer: ArchiveWriter<Output>,
    filter: TaskFilter,
    /// Whether there are filters other than the owner.
    is_filtered: bool,
    time_per_record: Duration,
    /// When the next page may be read.
    not_before: Instant,
    bar: ProgressBar,
    counts: Counts,
}

impl Export<'_> {
    async fn all(&mut self, owner: Option<&OwnerId>) -> Result<(), Failure> {
        if let Some(owner) = owner {
            return self.owner(owner).await;
        }
        let (mut seen, hasher, mut cursor) = (HashSet::new(), RandomState::new(), None);
        loop {
            let page = retried(async || self.store.owners(cursor.as_ref()).await).await?;
            for owner in page.owners {
                let hash = hasher.hash_one(&owner);
                if seen.contains(&hash) {
                    continue;
                }
                if seen.len() < MAX_REMEMBERED {
                    seen.insert(hash);
                }
                self.owner(&owner).await?;
            }
            cursor = page.next;
            if cursor.is_none() {
                return Ok(());
            }
        }
    }

    async fn owner(&mut self, owner: &OwnerId) -> Result<(), Failure> {
        let mut cursor: Option<Cursor> = None;
        loop {
            sleep_until(self.not_before).await;
            let (begun, mut request) = (Instant::now(), PageRequest::new(MAX_PAGE_LIMIT));
            if let Some(cursor) = cursor {
                request = request.after(cursor);
            }
            let page = retried(async || self.store.backend().list(owner, request.clone()).await).await?;
            let records = u32::try_from((page.records.len() + page.corrupt.len()).max(1)).unwrap_or(u32::MAX);
            for listed in page.records {
                self.record(owner, listed).await?;
            }
            for corrupt in page.corrupt {
                self.unreadable(&TaskKey { owner: owner.clone(), task: corrupt.task }, &corrupt.reason);
            }
            self.bar.set_message(format!("{} exported", text::count(self.writer.records(), "record")));
            cursor = page.next;
            self.not_before = begun + self.time_per_record * records;
            if cursor.is_none() {
                return Ok(());
            }
        }
    }

    async fn record(&mut self, owner: &OwnerId, listed: ListedRecord) -> Result<(), Failure> {
        let task = serde_json::from_slice::<Task>(&listed.data);
        if self.is_filtered {
            let Ok(task) = &task else {
                self.counts.not_tasks += 1;
                return Ok(());
            };
            if !self.filter.matches_task(owner, task, self.store.backend().now()) {
                return Ok(());
            }
        }
        let key = TaskKey { owner: owner.clone(), task: listed.task.clone() };
        match self.read_parts(&key, listed).await {
            Ok(Some((listed, parts))) => {
                self.writer.record(owner, &listed, &parts)?;
                self.counts.opaque += u64::from(task.is_err());
            }
            Ok(None) => {}
            Err(
                error @ (StorageError::Corrupt { .. }
                | StorageError::MissingKey { .. }
                | StorageError::VersionConflict { .. }),
            ) => self.unreadable(&key, &with_causes(&error)),
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Reads the parts of a record, all of the same version as its data. Returns `None` if the record is gone.
    async fn read_parts(
        &self,
        key: &TaskKey,
        mut listed: ListedRecord,
    ) -> Result<Option<(ListedRecord, BTreeMap<PartName, Vec<u8>>)>, StorageError> {
        for _ in 0..MAX_READS {
            match retried(async || self.parts_of_version(key, &listed).await).await {
                Ok(Some(parts)) => return Ok(Some((listed, parts))),
                Ok(None) => {}
                Err(StorageError::NotFound { .. }) => return Ok(None),
                Err(error) => return Err(error),
            }
            match retried(async || self.store.backend().get(key).await).await {
                Ok(record) => listed = ListedRecord::new(listed.task, record, listed.created_at),
                Err(StorageError::NotFound { .. }) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        Err(StorageError::VersionConflict {
            key: key.clone(),
            expected: listed.version,
            actual: self.store.backend().get(key).await?.version,
        })
    }

    /// Returns `None` if a part belongs to another version.
    async fn parts_of_version(
        &self,
        key: &TaskKey,
        listed: &ListedRecord,
    ) -> Result<Option<BTreeMap<PartName, Vec<u8>>>, StorageError> {
        let mut parts = BTreeMap::new();
        for name in listed.parts.keys() {
            match self.store.backend().part(key, name).await? {
                Some(part) if part.version == listed.version => {
                    parts.insert(name.clone(), part.data.to_vec())
                }
                _ => return Ok(None),
            };
        }
        Ok(Some(parts))
    }

    fn unreadable(&mut self, key: &TaskKey, reason: &str) {
        self.counts.unreadable += 1;
        let failure = Failure::failed(format!("{} was left out: {reason}", key::display(key)));
        self.bar.suspend(|| failure.report());
    }

    fn finish(self, quiet: bool) -> Result<(), Failure> {
        let Counts { unreadable, not_tasks, opaque } = self.counts;
        let exported = text::count(self.writer.records(), "task");
        self.writer.finish()?.close()?;
        if not_tasks > 0 {
            let records = text::count(not_tasks, "record");
            remark(
                quiet,
                format_args!(
                    "leaves out {records} that cannot be read as tasks, so no filter can match them"
                ),
            );
        }
        if opaque > 0 {
            let records = text::count(opaque, "record");
            remark(
                quiet,
                format_args!(
                    "exported {records} as stored that cannot be read as tasks; if the store is encrypted, --keys FILE decrypts them"
                ),
            );
        }
        if unreadable > 0 {
            let records = text::count(unreadable, "record");
            return Err(Failure::failed(format!(
                "exported {exported}, and left out {records} that cannot be read"
            )));
        }
        remark(quiet, format_args!("exported {exported}"));
        Ok(())
    }
}

fn filters(args: &FilterArgs) -> Value {
    json!({
        "owner": args.owner,
        "status": args.status.iter().map(|status| mcp_task_store::TaskStatus::from(*status)).collect::<Vec<_>>(),
        "tool": args.tool,
        "stuck": args.stuck,
        "dead": args.dead,
        "olderThanSeconds": args.older_than.map(|age| age.as_secs()),
    })
}

/// Where the lines go.
enum Output {
    Stdout(BufWriter<io::Stdout>),
    /// The file has a temporary name until it is complete.
    File(BufWriter<NamedTempFile>, PathBuf),
}

impl Output {
    fn open(path: Option<&Path>) -> Result<Self, Failure> {
        let Some(path) = path else { return Ok(Self::Stdout(BufWriter::new(io::stdout()))) };
        // A file can be renamed within its folder.
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let file = NamedTempFile::new_in(folder).map_err(|error| {
            Failure::failed(format!("cannot create a file in {}: {error}", folder.display()))
        })?;
        Ok(Self::File(BufWriter::new(file), path.to_owned()))
    }

    /// Gives the complete file its name.
    fn close(self) -> Result<(), Failure> {
        let Self::File(file, path) = self else { return Ok(()) };
        let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.as_file().sync_all()?;
        file.persist_noclobber(&path).map_err(|error| match error.error.kind() {
            io::ErrorKind::AlreadyExists => exists(&path),
            _ => Failure::failed(format!("cannot create {}: {}", path.display(), error.error)),
        })?;
        Ok(())
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Stdout(out) => out.write(bytes),
            Self::File(out, _) => out.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Stdout(out) => out.flush(),
            Self::File(out, _) => out.flush(),
        }
    }
}
