//! The schema of a file: who it belongs to, its version, and the migrations from older versions.

use rusqlite::{Connection, TransactionBehavior};

/// Marks a file as one of this crate: `mcpt` in ASCII (<https://www.sqlite.org/pragma.html#pragma_application_id>).
const APPLICATION_ID: i32 = 0x6d63_7074;

/// Each script migrates a file from the version before it. The first script creates the tables. A script never changes
/// after a release.
const MIGRATIONS: [&str; 1] = [include_str!("schema/1.sql")];

/// What a file is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum FileKind {
    /// Without tables, or with tables of this crate at this version or an older one. The version of an empty file is 0.
    Ours { version: usize },
    /// With tables of a newer version of this crate.
    Newer { version: i64, known: usize },
    /// With tables of another program.
    Foreign { application_id: i32 },
}

impl FileKind {
    pub(super) fn read(connection: &Connection) -> rusqlite::Result<Self> {
        // One transaction, because another process may create the tables between two reads. It changes nothing, and is rolled back.
        let transaction = connection.unchecked_transaction()?;
        Self::read_among(&transaction, MIGRATIONS.len())
    }

    /// Returns the version of the tables; `None` if they are not of this crate.
    pub(super) fn version(&self) -> Option<i64> {
        match self {
            Self::Ours { version } => i64::try_from(*version).ok(),
            Self::Newer { version, .. } => Some(*version),
            Self::Foreign { .. } => None,
        }
    }

    /// Returns whether the file has the tables of this version.
    pub(super) fn is_current(&self) -> bool {
        *self == Self::Ours { version: MIGRATIONS.len() }
    }

    fn read_among(connection: &Connection, known: usize) -> rusqlite::Result<Self> {
        let integer = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, i64>(0));
        let application_id: i32 = connection.query_row("PRAGMA application_id", [], |row| row.get(0))?;
        let tables = integer("SELECT count(*) FROM sqlite_schema")?;
        let version = integer("PRAGMA user_version")?;
        if application_id == 0 && tables == 0 && version == 0 {
            return Ok(Self::Ours { version: 0 });
        }
        if application_id != APPLICATION_ID {
            return Ok(Self::Foreign { application_id });
        }
        Ok(match usize::try_from(version) {
            Ok(version) if version <= known => Self::Ours { version },
            _ => Self::Newer { version, known },
        })
    }
}

/// Migrates a file to the current version, in one transaction. Does nothing if the file has this version.
pub(super) fn migrate(connection: &mut Connection) -> rusqlite::Result<FileKind> {
    migrate_by(connection, &MIGRATIONS)
}

fn migrate_by(connection: &mut Connection, migrations: &[&str]) -> rusqlite::Result<FileKind> {
    // Another process may migrate the same file, so this transaction reads the version again.
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let kind = FileKind::read_among(&transaction, migrations.len())?;
    let FileKind::Ours { version } = kind else { return Ok(kind) };
    if version < migrations.len() {
        for script in &migrations[version..] {
            transaction.execute_batch(script)?;
        }
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        transaction.pragma_update(None, "user_version", migrations.len() as i64)?;
        transaction.commit()?;
    }
    Ok(FileKind::Ours { version: migrations.len() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(connection: &Connection, table: &str) -> i64 {
        connection.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap()
    }

    #[test]
    fn an_empty_file_is_created_and_an_older_one_is_migrated_with_its_rows() {
        let mut connection = Connection::open_in_memory().unwrap();
        assert_eq!(migrate(&mut connection).unwrap(), FileKind::Ours { version: 1 });
        connection.execute("INSERT INTO owners (name, records, newest) VALUES ('alice', 0, 0)", []).unwrap();
        let next =
            [MIGRATIONS[0], "CREATE TABLE added (id INTEGER PRIMARY KEY); INSERT INTO added VALUES (1);"];
        assert_eq!(migrate_by(&mut connection, &next).unwrap(), FileKind::Ours { version: 2 });
        assert_eq!((count(&connection, "owners"), count(&connection, "added")), (1, 1));
        // A second run finds nothing to do.
        assert_eq!(migrate_by(&mut connection, &next).unwrap(), FileKind::Ours { version: 2 });
        assert_eq!(count(&connection, "added"), 1);
    }

    #[test]
    fn a_migration_that_fails_changes_nothing() {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate(&mut connection).unwrap();
        let next = [MIGRATIONS[0], "CREATE TABLE added (id INTEGER PRIMARY KEY); DROP TABLE no_such_table;"];
        migrate_by(&mut connection, &next).unwrap_err();
        assert_eq!(FileKind::read(&connection).unwrap(), FileKind::Ours { version: 1 });
        assert_eq!(count(&connection, "sqlite_schema WHERE name = 'added'"), 0);
    }

    #[test]
    fn a_newer_file_and_a_foreign_one_are_recognized_and_not_changed() {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate(&mut connection).unwrap();
        connection.pragma_update(None, "user_version", 7).unwrap();
        assert_eq!(migrate(&mut connection).unwrap(), FileKind::Newer { version: 7, known: 1 });

        let mut foreign = Connection::open_in_memory().unwrap();
        foreign.execute_batch("CREATE TABLE notes (text TEXT)").unwrap();
        assert_eq!(migrate(&mut foreign).unwrap(), FileKind::Foreign { application_id: 0 });
        assert_eq!(count(&foreign, "sqlite_schema"), 1);
    }

    #[test]
    fn a_file_whose_tables_another_process_creates_is_never_foreign() {
        for _ in 0..50 {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("tasks.db");
            let connect = || {
                let connection = Connection::open(&path).unwrap();
                connection.busy_timeout(std::time::Duration::from_secs(60)).unwrap();
                connection.pragma_update(None, "journal_mode", "wal").unwrap();
                connection
            };
            let (reads, mut creates) = (connect(), connect());
            std::thread::scope(|scope| {
                scope.spawn(move || migrate(&mut creates).unwrap());
                loop {
                    match FileKind::read(&reads).unwrap() {
                        FileKind::Ours { version: 0 } => {}
                        kind => break assert!(kind.is_current(), "{kind:?}"),
                    }
                }
            });
        }
    }
}
