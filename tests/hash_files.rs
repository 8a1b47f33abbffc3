//! `examples/hash_files.rs`, run as a user would.

use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::OnceLock;

use tempfile::TempDir;

/// The example, built with the features of this test: a run of this file alone would not build it.
fn hash_files() -> Command {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    let program = PROGRAM.get_or_init(|| {
        let features = if cfg!(feature = "redis-tests") { "redis-tests" } else { "" };
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "--example", "hash_files", "--features", features]);
        assert!(build.current_dir(env!("CARGO_MANIFEST_DIR")).status().unwrap().success());
        let test = std::env::current_exe().unwrap();
        let profile = test.parent().unwrap().parent().unwrap();
        profile.join("examples").join(format!("hash_files{}", std::env::consts::EXE_SUFFIX))
    });
    Command::new(program)
}

/// A folder of `count` plain files and a few with names that are hard to handle.
fn folder(count: usize) -> TempDir {
    let folder = TempDir::new().unwrap();
    std::fs::create_dir(folder.path().join("nested")).unwrap();
    for number in 0..count {
        std::fs::write(folder.path().join(format!("nested/{number}")), vec![b'x'; number * 100]).unwrap();
    }
    for name in ["empty", "with space", "line\nbreak", "back\\slash", "-n", "🦀", ".hidden"] {
        std::fs::write(folder.path().join(name), name.repeat(usize::from(name != "empty"))).unwrap();
    }
    folder
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// The one line that a failing run writes to standard error.
fn only_line_of_stderr(output: &Output) -> String {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    assert_eq!(output.status.code(), Some(1), "{text}");
    text
}

fn assert_all_done_once(output: &Output, files: usize) {
    let text = stdout(output);
    assert!(output.status.success(), "{text} {}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("worker 1 was killed after"), "{text}");
    assert!(text.contains(", worker 2 finished "), "{text}");
    assert!(
        text.contains("every file was done exactly once, with the digest that sha256sum gives"),
        "{text}"
    );
    assert!(text.contains(&format!("{files} files, ")), "{text}");
    assert_eq!(text.matches("┆ same").count(), files, "{text}");
}

#[test]
fn without_a_server_every_file_is_done_once_across_two_workers() {
    let folder = folder(20);
    #[cfg(unix)]
    {
        use std::os::unix::ffi::OsStrExt;
        let not_utf8 = std::ffi::OsStr::from_bytes(b"caf\xe9");
        std::fs::write(folder.path().join(not_utf8), "latin 1").unwrap();
        // Neither is a file: a folder behind a link, and a socket.
        std::os::unix::fs::symlink("nested", folder.path().join("link")).unwrap();
        drop(std::os::unix::net::UnixListener::bind(folder.path().join("socket")).unwrap());
    }
    let output = hash_files().arg(folder.path()).output().unwrap();
    assert_all_done_once(&output, if cfg!(unix) { 28 } else { 27 });
}

#[test]
fn a_single_file_and_an_empty_folder_are_done_too() {
    let folder = TempDir::new().unwrap();
    let output = hash_files().arg(folder.path()).output().unwrap();
    assert!(output.status.success() && stdout(&output).contains("0 files, 0 bytes"), "{output:?}");
    std::fs::write(folder.path().join("one"), "1").unwrap();
    let output = hash_files().arg(folder.path()).output().unwrap();
    assert!(output.status.success() && stdout(&output).contains("1 files, 1 bytes"), "{output:?}");
}

#[test]
fn what_git_ignores_is_left_out_unless_all_is_asked_for() {
    let folder = TempDir::new().unwrap();
    for (name, text) in [(".gitignore", "/out\n"), ("out", "built"), ("in", "source")] {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    std::fs::create_dir(folder.path().join(".git")).unwrap();
    std::fs::write(folder.path().join(".git/HEAD"), "ref").unwrap();
    let run = |arguments: &[&str]| stdout(&hash_files().arg(folder.path()).args(arguments).output().unwrap());
    assert!(run(&[]).contains("2 files, "));
    assert!(run(&["--all"]).contains("3 files, "));
}

#[test]
fn a_missing_folder_is_one_clear_line() {
    let output = hash_files().arg("Cargo.toml").current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
    assert_eq!(only_line_of_stderr(&output), "hash_files: Cargo.toml is not a folder\n");
    let output = hash_files().arg("no/such/folder").output().unwrap();
    assert_eq!(only_line_of_stderr(&output), "hash_files: there is no folder at no/such/folder\n");
}

#[cfg(unix)]
#[test]
fn an_unreadable_file_is_one_clear_line_and_the_others_are_done() {
    let folder = folder(3);
    // Also for a user who may read everything: there is nothing behind the link.
    std::os::unix::fs::symlink("nowhere", folder.path().join("dangling")).unwrap();
    let output = hash_files().arg(folder.path()).output().unwrap();
    let line = only_line_of_stderr(&output);
    assert!(line.starts_with("hash_files: cannot read dangling: No such file"), "{line}");
    let text = stdout(&output);
    assert_eq!((text.matches("┆ same").count(), text.matches("┆ failed").count()), (10, 1), "{text}");
}

#[test]
fn help_explains_the_run() {
    let text = stdout(&hash_files().arg("--help").output().unwrap());
    for word in ["[FOLDER]", "--owner", "--workers", "Half-way the worker is killed", "sha256sum"] {
        assert!(text.contains(word), "{word}: {text}");
    }
    assert!(!text.contains("--work "), "{text}");
}

#[cfg(not(feature = "redis"))]
#[test]
fn a_build_without_redis_says_so() {
    let output = hash_files().args(["--redis", "redis://127.0.0.1"]).output().unwrap();
    assert_eq!(only_line_of_stderr(&output), "hash_files: --redis needs a build with --features redis\n");
}

#[cfg(feature = "redis-tests")]
mod on_redis {
    use super::*;
    use redis::Commands;

    fn url() -> String {
        std::env::var("REDIS_URL").unwrap_or_else(|_| "redis://127.0.0.1:6379".to_owned())
    }

    #[test]
    fn a_killed_worker_process_loses_nothing_and_nothing_is_left_behind() {
        let folder = folder(30);
        let owner = format!("hash-files-{}", uuid::Uuid::new_v4());
        let arguments = ["--redis", &url(), "--owner", &owner, "--pace", "50"];
        let output = hash_files().arg(folder.path()).args(arguments).output().unwrap();
        assert_all_done_once(&output, 37);
        let mut connection = redis::Client::open(url()).unwrap().get_connection().unwrap();
        let left = connection.scan_match::<_, String>(format!("pmcp:*{owner}*")).unwrap();
        assert_eq!(left.count(), 0);
    }

    #[test]
    fn a_stopped_redis_is_one_clear_line_without_the_password() {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let url = format!("redis://user:pass-word@127.0.0.1:{port}");
        let output = hash_files().args(["--redis", &url]).output().unwrap();
        let line = only_line_of_stderr(&output);
        assert!(line.starts_with(&format!("hash_files: 127.0.0.1:{port} is unavailable: ")), "{line}");
        assert!(!line.contains("pass-word"), "{line}");
    }
}
