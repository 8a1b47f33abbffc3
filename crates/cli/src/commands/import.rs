//! `mcp-tasks import`

use std::cell::RefCell;
use std::io::{self, Write};

use futures_util::{StreamExt, stream};
use indicatif::ProgressBar;
use mcp_task_store::{StorageBackend, StorageError, TaskKey};
use serde_json::json;

use super::restore::{Restored, restore};
use crate::archive::{Archive, ArchivedRecord, Chunk};
use crate::args::ImportArgs;
use crate::engine::Store;
use crate::failure::{Failure, with_causes};
use crate::interrupt::Interrupt;
use crate::key;
use crate::output::{json, progress, remark, text};
use crate::retry::retried;

/// How many chunks are imported at the same time. The records of an owner are created one after the other.
const CONCURRENT: usize = 32;

/// Checks the file, before the store is opened.
pub fn read(args: &ImportArgs, has_keys: bool, quiet: bool) -> Result<Archive, Failure> {
    remark(quiet, format_args!("checks {}", text::plain(&args.file.display().to_string())));
    let archive = Archive::open(&args.file)?;
    if has_keys && archive.encrypted > 0 {
        return Err(Failure::failed(format!(
            "{} in the file are encrypted, because the file was exported without keys; import it without --keys",
            text::count(archive.encrypted, "record")
        )));
    }
    Ok(archive)
}

pub async fn run(store: &Store, archive: Archive, args: &ImportArgs, quiet: bool) -> Result<(), Failure> {
    let (tasks, header) = (text::count(archive.records, "task"), &archive.header);
    remark(
        quiet,
        format_args!(
            "the file has {tasks}, exported from {} at {}",
            text::plain(&header.engine),
            text::plain(&header.exported_at)
        ),
    );
    if args.dry_run {
        remark(quiet, "the file is complete; without --dry-run, the command imports it");
        return Ok(());
    }
    let import = Import {
        store,
        archive: &archive,
        overwrite: args.overwrite,
        counts: RefCell::default(),
        interrupt: Interrupt::listen(),
        bar: progress::bar(archive.records, quiet),
    };
    let imported = import.all().await;
    import.bar.finish_and_clear();
    let counts = import.counts.take();
    if args.form.json {
        writeln!(io::stdout(), "{}", json::line(&counts.json()))?;
    } else {
        remark(quiet, counts.sentence());
    }
    match imported {
        Err(failure) => Err(stopped(&reason(failure), &counts, archive.records)),
        Ok(()) if import.interrupt.is_set() && counts.done() < archive.records => {
            Err(stopped("interrupted", &counts, archive.records))
        }
        Ok(()) if counts.differs > 0 => Err(Failure::failed(format!(
            "{} with other content in the store; --overwrite replaces them",
            match counts.differs {
                1 => "1 task exists".to_owned(),
                tasks => format!("{} tasks exist", text::with_commas(tasks)),
            }
        ))),
        Ok(()) if counts.failed > 0 => {
            Err(Failure::failed(format!("{} could not be imported", text::count(counts.failed, "task"))))
        }
        Ok(()) => Ok(()),
    }
}

fn reason(failure: Failure) -> String {
    match failure {
        Failure::Usage(reason) | Failure::Failed(reason) => reason,
        Failure::Reported | Failure::ReportedRed => "the command failed".to_owned(),
        Failure::OutputClosed => "the output was closed".to_owned(),
    }
}

fn stopped(why: &str, counts: &Counts, records: u64) -> Failure {
    Failure::failed(format!(
        "{why}: {} of {} done; to continue, run the command again: {}",
        text::with_commas(counts.done()),
        text::count(records, "task"),
        shell_words::join(std::env::args())
    ))
}

/// What an import has done.
#[derive(Default)]
struct Counts {
    created: u64,
    overwritten: u64,
    present: u64,
    differs: u64,
    expired: u64,
    failed: u64,
}

impl Counts {
    fn count(&mut self, restored: Restored) {
        *match restored {
            Restored::Created => &mut self.created,
            Restored::Overwritten => &mut self.overwritten,
            Restored::Present => &mut self.present,
            Restored::Differs => &mut self.differs,
            Restored::Expired => &mut self.expired,
        } += 1;
    }

    fn done(&self) -> u64 {
        self.created + self.overwritten + self.present + self.differs + self.expired + self.failed
    }

    fn sentence(&self) -> String {
        let mut sentence = format!("imported {}", text::count(self.created, "task"));
        let others = [
            (self.overwritten, "overwritten"),
            (self.present, "already present"),
            (self.expired, "expired"),
            (self.differs, "left as they are"),
        ];
        for (tasks, what) in others.into_iter().filter(|(tasks, _)| *tasks > 0) {
            sentence.push_str(&format!(", {} {what}", text::with_commas(tasks)));
        }
        sentence
    }

    fn json(&self) -> serde_json::Value {
        let Self { created, overwritten, present, differs, expired, failed } = self;
        json!({
            "created": created, "overwritten": overwritten, "present": present, "differs": differs,
            "expired": expired, "failed": failed,
        })
    }
}

struct Import<'a> {
    store: &'a Store,
    archive: &'a Archive,
    overwrite: bool,
    counts: RefCell<Counts>,
    interrupt: Interrupt,
    bar: ProgressBar,
}

impl Import<'_> {
    async fn all(&self) -> Result<(), Failure> {
        let chunks =
            stream::iter(&self.archive.chunks).take_while(|_| std::future::ready(!self.interrupt.is_set()));
        let mut imported = chunks.map(|chunk| self.chunk(chunk)).buffer_unordered(CONCURRENT);
        while let Some(chunk) = imported.next().await {
            chunk?;
        }
        Ok(())
    }

    async fn chunk(&self, chunk: &Chunk) -> Result<(), Failure> {
        let mut is_first = true;
        for record in self.archive.records_of(chunk) {
            if self.interrupt.is_set() {
                return Ok(());
            }
            let record = record?;
            if std::mem::take(&mut is_first) {
                // The estimates of the clock, which decide the expiries, are exact after this call.
                retried(async || self.store.backend().clock(&record.key).await).await?;
            }
            self.record(&record).await?;
            self.bar.inc(1);
        }
        Ok(())
    }

    async fn record(&self, record: &ArchivedRecord) -> Result<(), Failure> {
        // A second write of the same record finds the first one.
        match retried(async || restore(self.store, record, self.overwrite).await).await {
            Ok(restored) => {
                if restored == Restored::Differs {
                    self.report(&record.key, "exists with other content, and stays as it is");
                }
                self.counts.borrow_mut().count(restored);
                Ok(())
            }
            // The record itself cannot be written, for example because the engine allows only smaller ones.
            Err(
                error @ (StorageError::TooLarge { .. }
                | StorageError::Corrupt { .. }
                | StorageError::MissingKey { .. }
                | StorageError::VersionConflict { .. }
                | StorageError::VersionExhausted { .. }),
            ) => {
                self.report(&record.key, &with_causes(&error));
                self.counts.borrow_mut().failed += 1;
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    fn report(&self, key: &TaskKey, reason: &str) {
        let failure = Failure::failed(format!("{}: {reason}", key::display(key)));
        self.bar.suspend(|| failure.report());
    }
}
