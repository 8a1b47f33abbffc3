//! The tasks that match the filters of a command, page by page.

use std::sync::Arc;

use indicatif::{ProgressBar, ProgressStyle};
use mcp_task_store::{Agenda, Cursor, StoredTask, TaskError, TaskFilter, TaskKey, TaskScan};

use crate::args::{FilterArgs, RateArgs};
use crate::engine::Store;
use crate::output::{remark, text};

/// What a user can do about records that cannot be read.
const HINT: &str = "if the store is encrypted, --keys FILE decrypts it";

/// Which tasks a command selects.
#[derive(Clone)]
pub struct Wanted {
    pub filter: TaskFilter,
    is_dead: bool,
    of_owner: bool,
    rate: u32,
    quiet: bool,
}

impl Wanted {
    pub fn new(filter: &FilterArgs, rate: RateArgs, quiet: bool) -> Self {
        Self {
            filter: filter.to_filter(),
            is_dead: filter.dead,
            of_owner: filter.owner.is_some(),
            rate: rate.rate,
            quiet,
        }
    }

    /// Says on stderr what the selection costs.
    pub fn announce(&self) {
        let rate = text::with_commas(self.rate.into());
        let what = match (self.is_dead, self.of_owner) {
            (true, _) => "reads the list of dead tasks".to_owned(),
            (false, true) => format!("scans the tasks of one owner, at most {rate} records per second"),
            (false, false) => format!("scans the tasks of all owners, at most {rate} records per second"),
        };
        remark(self.quiet, what);
    }

    /// Returns the same selection, without its own progress on stderr.
    pub fn silent(&self) -> Self {
        Self { quiet: true, ..self.clone() }
    }

    /// Returns the dead tasks of the selection, without its own progress on stderr.
    pub fn dead(&self) -> Self {
        Self { filter: self.filter.clone().dead(), is_dead: true, ..self.silent() }
    }

    /// Begins to select.
    pub fn select(&self, store: &Store) -> Selection {
        let source = match self.is_dead {
            true => Source::Dead(Some(None)),
            false => Source::Scan(Box::new(store.scan(self.filter.clone()).rate(self.rate))),
        };
        let bar = if self.quiet { ProgressBar::hidden() } else { ProgressBar::new_spinner() };
        bar.set_style(ProgressStyle::default_spinner());
        Selection {
            store: store.clone(),
            filter: self.filter.clone(),
            source,
            scanned: 0,
            unreadable: 0,
            unreadable_of_page: Vec::new(),
            bar,
        }
    }
}

pub struct Selection {
    store: Store,
    filter: TaskFilter,
    source: Source,
    scanned: u64,
    /// How many records could not be read.
    pub unreadable: u64,
    /// The records of the last page that could not be read.
    pub unreadable_of_page: Vec<TaskKey>,
    bar: ProgressBar,
}

enum Source {
    Scan(Box<TaskScan<Arc<dyn Agenda>>>),
    /// The list of dead tasks, which needs no scan: the cursor of its next page, or `None` at its end.
    Dead(Option<Option<Cursor>>),
}

impl Selection {
    /// Returns the next tasks that match; `None` at the end. A page may be empty.
    pub async fn next_page(&mut self) -> Result<Option<Vec<StoredTask>>, TaskError> {
        let page = match &mut self.source {
            Source::Scan(scan) => match scan.next_page().await? {
                Some(page) => {
                    self.scanned += page.scanned as u64;
                    self.unreadable += page.unreadable.len() as u64;
                    let key = |task| TaskKey { owner: page.owner.clone(), task };
                    self.unreadable_of_page = page.unreadable.into_iter().map(key).collect();
                    Some(page.tasks)
                }
                None => None,
            },
            Source::Dead(None) => None,
            Source::Dead(Some(cursor)) => {
                let page = self.store.dead_tasks(cursor.as_ref()).await?;
                self.scanned += page.tasks.len() as u64;
                let now = self.store.backend().now();
                self.source = Source::Dead(page.next.map(Some));
                Some(page.tasks.into_iter().filter(|stored| self.filter.matches(stored, now)).collect())
            }
        };
        match &page {
            Some(_) => {
                self.bar.set_message(format!("{} read", text::count(self.scanned, "record")));
                self.bar.tick();
            }
            None => self.bar.finish_and_clear(),
        }
        Ok(page)
    }

    /// Prints while the progress on stderr is hidden.
    pub fn print<T>(&self, print: impl FnOnce() -> T) -> T {
        self.bar.suspend(print)
    }

    /// Ends the progress on stderr, and says how many records the command leaves out because they could not be read.
    pub fn mention_unreadable(&self, quiet: bool) {
        self.bar.finish_and_clear();
        if self.unreadable > 0 {
            let records = text::count(self.unreadable, "record");
            remark(
                quiet,
                format_args!("leaves out {records} that this version cannot read as tasks; {HINT}"),
            );
        }
    }

    /// Ends the progress on stderr, and says what the user can do about records that are listed as unreadable.
    pub fn explain_unreadable(&self, quiet: bool) {
        self.bar.finish_and_clear();
        if self.unreadable > 0 {
            remark(quiet, format_args!("unreadable: this version cannot read the record as a task; {HINT}"));
        }
    }
}

impl Drop for Selection {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
