//! `examples/digest_server` and `examples/quickstart.rs`, run as a user would.
#![cfg(feature = "rmcp")]

#[cfg(feature = "redis-tests")]
#[path = "digest_server/mistakes.rs"]
mod mistakes;
#[cfg(feature = "redis-tests")]
#[path = "digest_server/on_redis.rs"]
mod on_redis;
#[cfg(feature = "sqlite")]
#[path = "digest_server/on_sqlite.rs"]
mod on_sqlite;
#[cfg(all(feature = "sqlite", unix))]
#[path = "digest_server/quickstart.rs"]
mod quickstart;
#[cfg(feature = "redis-tests")]
mod support;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use tempfile::TempDir;

/// Where the example looks for the URL of a Redis.
const REDIS_VARIABLE: &str = "DIGEST_SERVER_REDIS_URL";

/// The features of this build. A build of the example with the same features reuses everything that `cargo test` has compiled.
const FEATURES: [(&str, bool); 8] = [
    ("pmcp", cfg!(feature = "pmcp")),
    ("redis", cfg!(feature = "redis")),
    ("redis-cluster", cfg!(feature = "redis-cluster")),
    ("redis-sentinel", cfg!(feature = "redis-sentinel")),
    ("redis-tests", cfg!(feature = "redis-tests")),
    ("redis-tls", cfg!(feature = "redis-tls")),
    ("rmcp", cfg!(feature = "rmcp")),
    ("sqlite", cfg!(feature = "sqlite")),
];

/// Builds an example, because `cargo test --test digest_server` does not. Returns its executable.
fn build(example: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let profile = test.parent().unwrap().parent().unwrap();
    let features: Vec<&str> = FEATURES.iter().filter(|(_, is_on)| *is_on).map(|(name, _)| *name).collect();
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--quiet", "--example", example, "--features", &features.join(",")]);
    build.arg("--target-dir").arg(profile.parent().unwrap());
    if profile.ends_with("release") {
        build.arg("--release");
    }
    // Cargo sets these variables for this test. The build script of `ring` depends on some, and would run again, with all that follows.
    let of_this_test = |name: &str| name.starts_with("CARGO_MANIFEST_") || name.starts_with("CARGO_PKG_");
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(of_this_test) {
            build.env_remove(name);
        }
    }
    assert!(build.current_dir(env!("CARGO_MANIFEST_DIR")).status().unwrap().success());
    profile.join("examples").join(format!("{example}{}", std::env::consts::EXE_SUFFIX))
}

fn digest_server() -> Command {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    let mut command = Command::new(PROGRAM.get_or_init(|| build("digest_server")));
    command.env_remove(REDIS_VARIABLE);
    command
}

/// The demonstration for a folder, at a fast pace.
fn demonstration(folder: &Path) -> Command {
    let mut command = digest_server();
    command.arg(folder).args(["--seconds", "1"]);
    command
}

/// A folder of `count` plain files, a few with names that are hard to handle, and one that git ignores.
fn folder(count: usize) -> TempDir {
    let folder = TempDir::new().unwrap();
    std::fs::create_dir(folder.path().join("nested")).unwrap();
    for number in 0..count {
        std::fs::write(folder.path().join(format!("nested/{number}")), vec![b'x'; number * 100]).unwrap();
    }
    for name in ["empty", "nested.txt", "with space", "line\nbreak", "back\\slash", "-n", "🦀", ".hidden"] {
        std::fs::write(folder.path().join(name), name.repeat(usize::from(name != "empty"))).unwrap();
    }
    std::fs::create_dir(folder.path().join(".git")).unwrap();
    for (name, text) in [(".git/HEAD", "ref"), (".gitignore", "/ignored\n"), ("ignored", "built")] {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

/// How many files of a folder are digested in addition to the plain ones.
const AWKWARD: usize = 9;

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Returns the one line that a failing run writes to standard error.
fn only_line_of_stderr(output: &Output) -> String {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    assert_eq!(output.status.code(), Some(1), "{text}");
    text
}

/// Asserts that every step has succeeded. `killed` and `stopped` say how the servers ended. Returns the digest.
fn assert_all_steps(output: &Output, files: usize, killed: &str, stopped: &str) -> String {
    let text = stdout(output);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && stderr.is_empty(), "{text}{stderr}");
    // Without a terminal there is no progress bar.
    assert!(!text.contains(['\r', '\u{1b}']), "{text}");
    let steps = [
        format!("{files} files under "),
        "server 1 at http://127.0.0.1:".to_owned(),
        "server 2 at http://127.0.0.1:".to_owned(),
        "called on server 1, answered on server 2: Digest the files under ".to_owned(),
        format!("polled on server 2: completed by server 1, attempt 1: {files} files, "),
        "called on server 1, polled on server 2: ".to_owned(),
        "cancelled on server 2: stopped after ".to_owned(),
        "called on server 1, answered on server 2: ".to_owned(),
        format!("server 1 {killed}, with a lease of 3 s on task "),
        "resumed ".to_owned(),
        format!("polled on server 2: completed by server 2, attempt 2: {files} files, "),
        "server 3 at http://127.0.0.1:".to_owned(),
        "called on server 2, polled on server 3: ".to_owned(),
        format!("server 2 {stopped}: its lease is released"),
        "resumed ".to_owned(),
        format!("polled on server 3: completed by server 3, attempt 2: {files} files, "),
        format!("server 3 {stopped}"),
        format!("each digest equals that of sha256sum over the {files} files: "),
    ];
    let mut lines = text.lines();
    for step in &steps {
        assert!(
            lines.next().is_some_and(|line| line.contains(step.as_str())),
            "{step:?} is not next in\n{text}"
        );
    }
    assert_eq!(lines.next(), None);
    text.trim_end().rsplit(' ').next().unwrap().to_owned()
}

const IN_MEMORY: (&str, &str) = ("was dropped with its runtime", "received the signal to stop and ended");
#[cfg(feature = "sqlite")]
const AS_PROCESSES: (&str, &str) = ("was killed with SIGKILL", "received SIGTERM and exited with 0");

#[test]
fn in_memory_a_task_is_answered_cancelled_and_resumed_across_servers() {
    let folder = folder(20);
    #[cfg(unix)]
    {
        use std::os::unix::ffi::OsStrExt;
        let not_utf8 = std::ffi::OsStr::from_bytes(b"caf\xe9");
        std::fs::write(folder.path().join(not_utf8), "latin 1").unwrap();
        // A link to a folder and a socket are not files.
        std::os::unix::fs::symlink("nested", folder.path().join("link")).unwrap();
        drop(std::os::unix::net::UnixListener::bind(folder.path().join("socket")).unwrap());
    }
    let output = demonstration(folder.path()).output().unwrap();
    let files = 20 + AWKWARD + usize::from(cfg!(unix));
    let digest = assert_all_steps(&output, files, IN_MEMORY.0, IN_MEMORY.1);
    if cfg!(target_os = "linux") {
        let by_hand = "find . -type f -not -path './.git/*' -not -name ignored -printf '%P\\0' |
            LC_ALL=C sort -z | xargs -0 sha256sum --zero -- | sha256sum";
        let output = Command::new("sh").args(["-c", by_hand]).current_dir(folder.path()).output().unwrap();
        assert_eq!(stdout(&output), format!("{digest}  -\n"));
    }
}

#[test]
fn a_folder_with_one_file_is_digested() {
    let folder = TempDir::new().unwrap();
    std::fs::write(folder.path().join("one"), "1").unwrap();
    let output = demonstration(folder.path()).output().unwrap();
    assert_all_steps(&output, 1, IN_MEMORY.0, IN_MEMORY.1);
}

#[test]
fn a_digest_that_differs_from_that_of_sha256sum_is_reported_in_one_line() {
    let folder = folder(3);
    let mut process =
        demonstration(folder.path()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
    // sha256sum has read all files when the first line appears.
    lines.next().unwrap().unwrap();
    std::fs::write(folder.path().join("with space"), "changed").unwrap();
    lines.for_each(|line| drop(line.unwrap()));
    let line = only_line_of_stderr(&process.wait_with_output().unwrap());
    assert!(line.starts_with("digest_server: the tool returned "), "{line}");
    assert!(line.ends_with("; was a file changed?\n"), "{line}");
}

#[test]
fn a_folder_without_files_or_that_does_not_exist_is_reported_in_one_line() {
    let output = digest_server().arg("Cargo.toml").current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
    assert_eq!(only_line_of_stderr(&output), "digest_server: Cargo.toml is not a folder\n");
    let output = digest_server().arg("no/such/folder").output().unwrap();
    assert_eq!(only_line_of_stderr(&output), "digest_server: there is no folder at no/such/folder\n");
    let empty = TempDir::new().unwrap();
    let output = digest_server().arg(".").current_dir(empty.path()).output().unwrap();
    assert_eq!(only_line_of_stderr(&output), "digest_server: there is no file to digest in .\n");
}

#[cfg(unix)]
#[test]
fn an_unreadable_file_is_reported_in_one_line() {
    let folder = folder(3);
    // A dangling link is unreadable for every user.
    std::os::unix::fs::symlink("nowhere", folder.path().join("dangling")).unwrap();
    let line = only_line_of_stderr(&demonstration(folder.path()).output().unwrap());
    assert!(line.starts_with("digest_server: cannot read dangling: No such file"), "{line}");
}

#[test]
fn an_invalid_time_is_refused() {
    for seconds in ["-1", "NaN", "1e300"] {
        let argument = format!("--seconds={seconds}");
        let output = digest_server().arg(argument).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.starts_with("error: invalid value"), "{text}");
    }
}

#[test]
fn help_explains_the_run() {
    let text = stdout(&digest_server().arg("--help").output().unwrap());
    for word in [
        "[FOLDER]",
        "--sqlite",
        "--redis",
        REDIS_VARIABLE,
        "--owner",
        "--serve",
        "killed halfway",
        "sha256sum",
    ] {
        assert!(text.contains(word), "{word}: {text}");
    }
}

#[cfg(not(feature = "redis"))]
#[test]
fn a_build_without_redis_says_so() {
    let output = digest_server().args(["--redis", "redis://127.0.0.1"]).output().unwrap();
    assert_eq!(only_line_of_stderr(&output), "digest_server: --redis needs a build with --features redis\n");
}
