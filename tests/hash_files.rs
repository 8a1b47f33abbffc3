//! The example `hash_files`, run as a user runs it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

/// Cargo puts examples beside the folder that holds the executables of the tests.
fn example() -> Command {
    let test = std::env::current_exe().unwrap();
    let examples = test.parent().and_then(Path::parent).unwrap().join("examples");
    let path = examples.join(format!("hash_files{}", std::env::consts::EXE_SUFFIX));
    assert!(
        path.is_file(),
        "no {}: `cargo test` builds it, or `cargo build --example hash_files`",
        path.display()
    );
    Command::new(path)
}

/// What a run printed, and its exit code.
struct Run {
    stdout: String,
    stderr: String,
    code: Option<i32>,
}

fn run(command: &mut Command) -> Run {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Run { stdout: text(stdout), stderr: text(stderr), code: status.code() }
}

impl Run {
    /// The rows of the table, cell by cell; the name of a file may hold spaces and is left out.
    fn rows(&self) -> Vec<Vec<&str>> {
        let lines = self.stdout.lines().skip_while(|line| !line.trim_start().starts_with("file ")).skip(1);
        let rows = lines.take_while(|line| !line.contains(" bytes: worker 1 finished "));
        rows.map(|row| {
            let mut cells: Vec<&str> = row.split_whitespace().rev().take(6).collect();
            cells.reverse();
            cells
        })
        .collect()
    }

    /// Every one of `files` is done exactly once, with the digest of `sha256sum`; gives the rows.
    fn assert_all_done_once(&self, files: usize) -> Vec<Vec<&str>> {
        assert_eq!((self.code, self.stderr.as_str()), (Some(0), ""), "{}", self.stdout);
        let rows = self.rows();
        assert_eq!(rows.len(), files, "{}", self.stdout);
        for row in &rows {
            assert_eq!((row[3], row[5]), ("1", "same"), "{row:?}");
        }
        assert!(self.stdout.contains("every file is done exactly once, and every digest equals sha256sum's"));
        rows
    }

    fn assert_one_line_of_error(&self, parts: &[&str]) {
        assert_eq!(self.code, Some(1), "{}{}", self.stdout, self.stderr);
        assert_eq!(self.stderr.lines().count(), 1, "{}", self.stderr);
        for part in parts {
            assert!(self.stderr.contains(part), "{part:?} is not in {:?}", self.stderr);
        }
    }
}

/// A folder with `count` files `f0`, `f1`, …, each with its own name as content.
fn folder(count: usize) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for number in 0..count {
        write(&folder, &format!("f{number}"));
    }
    folder
}

fn write(folder: &TempDir, name: &str) -> PathBuf {
    let path = folder.path().join(name);
    std::fs::write(&path, name).unwrap();
    path
}

#[test]
fn in_memory_every_file_is_done_once_whatever_its_name() {
    let folder = folder(5);
    write(&folder, ".hidden");
    write(&folder, "-c");
    write(&folder, "two words");
    std::fs::create_dir_all(folder.path().join("a/b")).unwrap();
    write(&folder, "a/b/nested");
    std::fs::write(folder.path().join("empty"), "").unwrap();
    #[cfg(unix)]
    {
        write(&folder, "new\nline");
        write(&folder, "back\\slash");
    }
    let files = if cfg!(unix) { 12 } else { 10 };

    let run = run(example().arg(folder.path()));
    run.assert_all_done_once(files);
    assert!(run.stdout.contains("killed worker 1"), "{}", run.stdout);
    let empty = run.stdout.lines().find(|line| line.trim_start().starts_with("empty ")).unwrap();
    assert!(empty.contains("e3b0c44298fc1c14"), "{empty}");
}

/// Not every file system takes such a name.
#[cfg(target_os = "linux")]
#[test]
fn a_name_that_is_not_utf8_is_a_name() {
    use std::os::unix::ffi::OsStrExt;

    let folder = folder(1);
    let name = std::ffi::OsStr::from_bytes(b"caf\xe9");
    if std::fs::write(folder.path().join(name), "x").is_ok() {
        run(example().arg(folder.path())).assert_all_done_once(2);
    }
}

#[test]
fn files_that_git_ignores_are_left_out_unless_all_are_wanted() {
    let folder = folder(2);
    std::fs::create_dir(folder.path().join(".git")).unwrap();
    std::fs::write(folder.path().join(".git/HEAD"), "").unwrap();
    std::fs::write(folder.path().join(".gitignore"), "f1\n").unwrap();
    run(example().arg(folder.path())).assert_all_done_once(2);
    run(example().arg(folder.path()).arg("--all")).assert_all_done_once(4);
}

#[test]
fn a_single_file_is_hashed_without_a_kill_and_an_empty_folder_is_no_error() {
    for files in [0, 1] {
        let run = run(example().arg(folder(files).path()));
        run.assert_all_done_once(files);
        assert!(!run.stdout.contains("killed"), "{}", run.stdout);
    }
}

#[test]
fn a_missing_folder_gives_one_line() {
    let folder = folder(1);
    let missing = folder.path().join("missing");
    run(example().arg(&missing)).assert_one_line_of_error(&["no folder at ", missing.to_str().unwrap()]);
    run(example().arg(folder.path().join("f0"))).assert_one_line_of_error(&["f0 is not a folder"]);
}

/// A link to nothing can be read by nobody, not even by root.
#[cfg(unix)]
#[test]
fn an_unreadable_file_gives_one_line_and_the_others_are_done() {
    let folder = folder(4);
    std::os::unix::fs::symlink("nowhere", folder.path().join("dangling")).unwrap();
    let run = run(example().arg(folder.path()));
    run.assert_one_line_of_error(&["cannot read ", "/dangling: No such file or directory"]);
    let (failed, done): (Vec<_>, Vec<_>) = run.rows().into_iter().partition(|row| row[4] == "failed");
    assert_eq!((failed.len(), done.len()), (1, 4), "{}", run.stdout);
    assert_eq!(failed[0][3], "0");
    assert!(done.iter().all(|row| (row[3], row[5]) == ("1", "same")), "{}", run.stdout);
}

#[test]
fn the_help_explains_it() {
    let run = run(example().arg("--help"));
    assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""));
    for part in ["Hash (SHA-256) every file under a folder", "[FOLDER]", "--owner <NAME>", "--redis <URL>"] {
        assert!(run.stdout.contains(part), "{part:?} is not in {}", run.stdout);
    }
}

#[cfg(not(feature = "redis"))]
#[test]
fn without_the_redis_engine_the_line_says_how_to_build_it() {
    let run = run(example().arg(folder(1).path()).args(["--redis", "redis://127.0.0.1"]));
    run.assert_one_line_of_error(&["build with `--features redis`"]);
}

#[cfg(feature = "redis-tests")]
mod support;

#[cfg(feature = "redis-tests")]
mod on_redis {
    use redis::Commands;

    use super::support::redis::{connection, free_port, url};
    use super::{example, folder, run};

    fn keys_of(owner: &str) -> Vec<String> {
        let mut connection = connection(&url());
        let keys = connection.scan_match(format!("pmcp:*:{owner}*")).unwrap();
        keys.map(Result::unwrap).collect()
    }

    #[test]
    fn a_second_process_finishes_what_the_killed_one_left() {
        let owner = format!("test-{}", uuid::Uuid::new_v4());
        let folder = folder(40);
        // The worker takes half a second for every eight files: it dies long before the last.
        let run = run(example().arg(folder.path()).args(["--redis", &url(), "--owner", &owner]).args([
            "--workers",
            "8",
            "--pace",
            "500",
        ]));
        let rows = run.assert_all_done_once(40);
        assert!(run.stdout.contains("killed worker 1 (process "), "{}", run.stdout);
        for worker in ["1", "2"] {
            assert!(rows.iter().any(|row| row[1] == worker), "worker {worker} in {}", run.stdout);
        }
        assert_eq!(keys_of(&owner), Vec::<String>::new());
    }

    #[test]
    fn tasks_of_another_run_of_the_owner_are_left_alone() {
        let owner = format!("test-{}", uuid::Uuid::new_v4());
        let job = || {
            let folder = folder(12);
            run(example().arg(folder.path()).args(["--redis", &url(), "--owner", &owner]))
                .assert_all_done_once(12);
        };
        std::thread::scope(|scope| {
            scope.spawn(job);
            scope.spawn(job);
        });
        assert_eq!(keys_of(&owner), Vec::<String>::new());
    }

    #[test]
    fn a_stopped_redis_gives_one_line_with_its_address() {
        let address = format!("127.0.0.1:{}", free_port());
        let run = run(example().arg(folder(1).path()).args(["--redis", &format!("redis://{address}")]));
        run.assert_one_line_of_error(&["hash_files: ", &address]);
    }
}
