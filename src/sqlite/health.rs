//! Checks a file: its version, whether it can be written, how fast a sync of the disk is, and whether it is damaged.

use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::SqliteBackend;
use super::clock::{column, now_ms};
use super::error::Failure;
use super::log::{LONG_BYTES, Log};
use super::schema::FileKind;
use crate::backend::{Finding, StorageError};
use crate::printable::Chain;
use crate::spans::engine_span;

/// How many small transactions measure the latency.
const COMMITS: usize = 50;
/// From which 99th percentile on the latency is yellow.
const SLOW: Duration = Duration::from_secs(1);
/// How many expired records wait at most while a process that has the file open removes them.
const MANY_EXPIRED: i64 = 10_000;
/// From which size on free pages are worth a `VACUUM`, if they are more than half of the file.
const MANY_FREE_BYTES: i64 = 64 * 1024 * 1024;

const EXPIRED: &str = "SELECT count(*) FROM (SELECT 1 FROM records WHERE expires_at <= ?1 LIMIT ?2)";

const ORPHANED_PARTS: &str = "
    SELECT count(*) FROM (SELECT 1 FROM parts WHERE record NOT IN (SELECT id FROM records) LIMIT 1000)";

impl SqliteBackend {
    pub(super) async fn findings(&self, is_thorough: bool) -> Result<Vec<Finding>, StorageError> {
        let mut findings =
            self.read(engine_span!("diagnose"), |connection| Ok(readable(connection)?)).await?;
        findings.push(log(Path::new(&self.0.errors.address)));
        findings.extend(self.writable().await);
        if is_thorough {
            let span = engine_span!("quick_check");
            findings.extend(self.read(span, |connection| Ok(thorough(connection)?)).await?);
        }
        Ok(findings)
    }

    /// Commits small transactions that change nothing.
    async fn writable(&self) -> Vec<Finding> {
        const CHECK: &str = "writable";
        let mut times = Vec::with_capacity(COMMITS);
        for _ in 0..COMMITS {
            let began = Instant::now();
            let written =
                self.write(engine_span!("diagnose"), |transaction| rewrite_version(transaction.connection));
            if let Err(error) = written.await {
                let advice = "free space, end the process that holds the lock, or let this user write to the file and its folder";
                return vec![Finding::red(CHECK, Chain(&error).to_string(), advice)];
            }
            times.push(began.elapsed());
        }
        times.sort_unstable();
        let (median, slowest) = (times[COMMITS / 2], times[(COMMITS - 1) * 99 / 100]);
        let shown =
            format!("of {COMMITS} small commits, half took up to {median:.1?}, and 99 % up to {slowest:.1?}");
        let latency = match slowest >= SLOW {
            false => Finding::green("latency", shown),
            true => {
                Finding::yellow("latency", shown, "use a faster disk, or look for what else writes to it")
            }
        };
        vec![Finding::green(CHECK, "a transaction was committed"), latency]
    }
}

/// Writes the first page of the file with the same content.
fn rewrite_version(connection: &Connection) -> Result<(), Failure> {
    let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    connection.pragma_update(None, "user_version", version)?;
    Ok(())
}

fn readable(connection: &Connection) -> rusqlite::Result<Vec<Finding>> {
    let integer = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, i64>(0));
    let library = rusqlite::version();
    let version = match FileKind::read(connection)?.version() {
        Some(version) => Finding::green("version", format!("tables of version {version}, SQLite {library}")),
        None => Finding::red("version", "the tables are of another program", "check the path of the file"),
    };
    let (pages, free) = (integer("PRAGMA page_count")?, integer("PRAGMA freelist_count")?);
    let free_bytes = free * integer("PRAGMA page_size")?;
    let shown = format!("{free} of {pages} pages are free");
    let free = match free * 2 > pages && free_bytes >= MANY_FREE_BYTES {
        false => Finding::green("free pages", shown),
        true => Finding::yellow(
            "free pages",
            shown,
            "if the file should be smaller, run VACUUM at a quiet time; writes wait meanwhile",
        ),
    };
    let expired =
        connection.query_row(EXPIRED, [column(now_ms()), MANY_EXPIRED + 1], |row| row.get::<_, i64>(0))?;
    let expired = match expired > MANY_EXPIRED {
        false => Finding::green("expired records", format!("{expired} wait for their removal")),
        true => Finding::yellow(
            "expired records",
            format!("more than {MANY_EXPIRED} wait for their removal"),
            "a server that has the file open removes them; doctor --repair removes them now",
        ),
    };
    Ok(vec![version, free, expired])
}

fn log(file: &Path) -> Finding {
    const CHECK: &str = "write-ahead log";
    let bytes = Log::bytes_of(file);
    let shown = format!("{} KiB", bytes / 1024);
    match bytes > 2 * LONG_BYTES {
        false => Finding::green(CHECK, shown),
        true => Finding::yellow(
            CHECK,
            shown,
            "a reader keeps it long; look for a program with an open transaction, such as sqlite3",
        ),
    }
}

/// Reads the whole file.
fn thorough(connection: &Connection) -> rusqlite::Result<Vec<Finding>> {
    let advice =
        "stop all processes, copy the three files, and restore a backup; docs/operations.md says how";
    let mut check = connection.prepare("PRAGMA quick_check(3)")?;
    let lines: Result<Vec<String>, _> = check.query_map([], |row| row.get(0))?.collect();
    let damage = match lines {
        Ok(lines) if lines == ["ok"] => Finding::green("quick_check", "ok"),
        Ok(lines) => return Ok(vec![Finding::red("quick_check", lines.join("; "), advice)]),
        Err(error) => return Ok(vec![Finding::red("quick_check", error.to_string(), advice)]),
    };
    let orphaned: i64 = connection.query_row(ORPHANED_PARTS, [], |row| row.get(0))?;
    let parts = match orphaned {
        0 => Finding::green("parts", "each belongs to a record"),
        orphaned => Finding::yellow(
            "parts",
            format!("{orphaned} or more belong to no record, and only take up space"),
            "tables were changed by hand; DELETE FROM parts WHERE record NOT IN (SELECT id FROM records)",
        ),
    };
    Ok(vec![damage, parts])
}
