//! Files that the engine cannot use. It says why, and leaves them as they are.

use std::fs;
use std::path::Path;

use mcp_task_store::{SqliteBackend, StorageBackend, StorageError};

use crate::support::sqlite::Folder;
use crate::support::{keep, key};

/// Asserts that the file is refused with a text that contains `reason`, and is unchanged.
async fn assert_refused_unchanged(path: &Path, reason: &str) {
    let before = fs::read(path).unwrap();
    let error = SqliteBackend::open(path).await.unwrap_err();
    assert!(matches!(error, StorageError::Backend { .. }), "{error:?}");
    assert!(!error.is_retryable() && !error.outcome_unknown());
    let text = error.to_string();
    assert!(text.contains(reason) && text.contains("tasks.db"), "{text}");
    assert!(fs::read(path).unwrap() == before, "the file has changed");
    let names: Vec<_> =
        fs::read_dir(path.parent().unwrap()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["tasks.db"], "no file was left next to it");
}

#[tokio::test]
async fn a_database_of_another_program_is_refused_and_unchanged() {
    let folder = Folder::new();
    folder
        .connection()
        .execute_batch("CREATE TABLE notes (text TEXT); INSERT INTO notes VALUES ('mine')")
        .unwrap();
    assert_refused_unchanged(&folder.path(), "belongs to another program").await;
}

#[tokio::test]
async fn a_file_that_is_no_database_is_refused_and_unchanged() {
    let folder = Folder::new();
    fs::write(folder.path(), "a text of some length, but not a database. ".repeat(100)).unwrap();
    assert_refused_unchanged(&folder.path(), "not a SQLite database").await;
}

#[tokio::test]
async fn a_file_of_a_newer_version_is_refused_and_unchanged() {
    let folder = Folder::new();
    folder.backend().await.put(&key("alice", "t1"), "kept".into(), keep()).await.unwrap();
    let connection = folder.connection();
    connection.pragma_update(None, "user_version", 99).unwrap();
    // Leaves no other file next to it, whenever the threads of the engine have ended.
    until(|| connection.pragma_update_and_check(None, "journal_mode", "DELETE", |_| Ok(())).is_ok()).await;
    drop(connection);
    assert_refused_unchanged(&folder.path(), "schema version 99").await;

    // The version that knows this schema reads the record.
    folder.connection().pragma_update(None, "user_version", 1).unwrap();
    assert_eq!(folder.backend().await.get(&key("alice", "t1")).await.unwrap().data, "kept");
}

#[tokio::test]
async fn a_file_that_must_exist_is_neither_created_nor_given_tables() {
    let folder = Folder::new();
    let open = || SqliteBackend::builder(folder.path()).must_exist().open();
    let missing = open().await.unwrap_err().to_string();
    assert!(missing.contains("there is no such file") && missing.contains("tasks.db"), "{missing}");
    assert!(!folder.path().exists());

    fs::write(folder.path(), "").unwrap();
    let empty = open().await.unwrap_err().to_string();
    assert!(empty.contains("has no tables"), "{empty}");
    assert_eq!(fs::read(folder.path()).unwrap(), b"");

    folder.backend().await.put(&key("alice", "t1"), "kept".into(), keep()).await.unwrap();
    assert_eq!(open().await.unwrap().get(&key("alice", "t1")).await.unwrap().data, "kept");
}

async fn until(mut is_done: impl FnMut() -> bool) {
    let waiting = async {
        while !is_done() {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(60), waiting).await.expect("the condition holds");
}

#[tokio::test]
async fn a_folder_that_does_not_exist_is_named_in_the_error() {
    let path = Folder::new().path().with_file_name("missing").join("tasks.db");
    let error = SqliteBackend::open(&path).await.unwrap_err();
    assert_refused!(Err::<(), _>(&error), StorageError::Backend { .. });
    assert!(
        error.to_string().contains("missing/tasks.db") && error.to_string().contains("folder"),
        "{error}"
    );
}

#[tokio::test]
async fn a_damaged_file_fails_calls_with_a_clear_error() {
    let folder = Folder::new();
    let store = folder.backend().await;
    for number in 0..200 {
        store.put(&key("alice", &number.to_string()), vec![b'x'; 2_000].into(), keep()).await.unwrap();
    }
    let connection = folder.connection();
    connection.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    drop((store, connection));
    let mut bytes = fs::read(folder.path()).unwrap();
    // The first page stays, so the file is still a database of this crate.
    bytes[4096 * 2..].fill(0xA5);
    fs::write(folder.path(), bytes).unwrap();

    let store = folder.backend().await;
    let (alice, owner) = (key("alice", "7"), crate::support::owner("alice"));
    for error in [
        store.get(&alice).await.unwrap_err(),
        store.put(&alice, "new".into(), keep()).await.unwrap_err(),
        store.list(&owner, mcp_task_store::PageRequest::new(10)).await.unwrap_err(),
    ] {
        assert!(matches!(error, StorageError::Backend { .. }), "{error:?}");
        assert!(error.to_string().contains("damaged"), "{error}");
        assert!(!error.is_retryable() && !error.outcome_unknown(), "{error:?}");
    }
}

#[cfg(unix)]
#[tokio::test]
async fn no_write_to_a_deleted_or_replaced_file_is_acknowledged() {
    let folder = Folder::new();
    let store = folder.backend().await;
    let t1 = key("alice", "t1");
    store.put(&t1, "data".into(), keep()).await.unwrap();
    let aside = folder.path().with_file_name("aside.db");
    fs::rename(folder.path(), &aside).unwrap();
    for is_replaced in [false, true] {
        if is_replaced {
            fs::write(folder.path(), "").unwrap();
        }
        let error = store.put(&t1, "lost".into(), keep()).await.unwrap_err();
        assert!(matches!(error, StorageError::Backend { .. }), "{error:?}");
        assert!(!error.outcome_unknown() && error.to_string().contains("deleted or replaced"), "{error}");
    }
    fs::rename(&aside, folder.path()).unwrap();
    assert_eq!(store.put(&t1, "more".into(), keep()).await.unwrap().version.get(), 2);
}

/// What the other process opens.
#[cfg(unix)]
const OTHER_USER: &str = "SQLITE_OTHER_USER";

/// Runs as another user, who may read the file but not write it.
#[cfg(unix)]
#[tokio::test]
async fn the_process_of_another_user() {
    let Ok(path) = std::env::var(OTHER_USER) else { return };
    let error = SqliteBackend::open(&path).await.unwrap_err();
    assert!(matches!(error, StorageError::Denied { .. }), "{error:?}");
    assert!(!error.is_retryable() && error.to_string().contains("write"), "{error}");
}

#[cfg(unix)]
#[tokio::test]
async fn a_file_or_folder_that_this_process_may_not_write_is_denied() {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;

    let folder = Folder::new();
    let store = folder.backend().await;
    store.put(&key("alice", "t1"), "kept".into(), keep()).await.unwrap();
    drop(store);
    let connection = folder.connection();
    until(|| connection.pragma_update_and_check(None, "journal_mode", "DELETE", |_| Ok(())).is_ok()).await;
    drop(connection);
    let modes = |file, parent| {
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(file)).unwrap();
        fs::set_permissions(folder.path().parent().unwrap(), fs::Permissions::from_mode(parent)).unwrap();
    };
    for (file, parent) in [(0o444, 0o777), (0o666, 0o555), (0o000, 0o777)] {
        modes(file, parent);
        let mut other = std::process::Command::new(std::env::current_exe().unwrap());
        other.args(["--exact", "files::the_process_of_another_user"]).env(OTHER_USER, folder.path());
        // Permissions do not bind the superuser.
        if fs::metadata("/proc/self").is_ok_and(|this| std::os::unix::fs::MetadataExt::uid(&this) == 0) {
            other.uid(65_534).gid(65_534);
        }
        let ran = match other.output() {
            // The test program is in a folder that the other user cannot read.
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => return,
            ran => ran.unwrap(),
        };
        modes(0o600, 0o700);
        assert!(ran.status.success(), "{file:o} {parent:o}: {}", String::from_utf8_lossy(&ran.stdout));
    }
    assert_eq!(folder.backend().await.get(&key("alice", "t1")).await.unwrap().data, "kept");
}
