//! The example on a SQLite file: each server is a process of its own.

use super::*;

/// Counts the rows of each table that a run fills. The record of a worker that was killed stays for an hour.
fn left(file: &Path) -> Vec<i64> {
    let file = rusqlite::Connection::open(file).unwrap();
    let count = |rows: &str| {
        let workers = "(SELECT id FROM owners WHERE name = char(0) || 'mcp/workers')";
        let count = format!("SELECT count(*) FROM {}", rows.replace("WORKERS", workers));
        file.query_row(&count, [], |row| row.get(0)).unwrap()
    };
    ["owners WHERE id NOT IN WORKERS", "records WHERE owner NOT IN WORKERS", "parts"].map(count).into()
}

#[test]
fn server_processes_on_one_file_are_killed_and_stopped_and_no_task_is_left_behind() {
    let (folder, tasks) = (folder(30), TempDir::new().unwrap());
    let file = tasks.path().join("tasks.db");
    let mut command = demonstration(folder.path());
    // A variable that names an engine for other runs does not matter.
    command.arg("--sqlite").arg(&file).env(REDIS_VARIABLE, "redis://127.0.0.1:1");
    assert_all_steps(&command.output().unwrap(), 30 + AWKWARD, AS_PROCESSES.0, AS_PROCESSES.1);
    assert_eq!(left(&file), [0, 0, 0]);
}

#[test]
fn a_file_that_cannot_be_opened_is_reported_in_one_line() {
    let (folder, tasks) = (folder(0), TempDir::new().unwrap());
    let run = |file: &Path| {
        let output = demonstration(folder.path()).arg("--sqlite").arg(file).output().unwrap();
        let line = only_line_of_stderr(&output);
        assert!(line.starts_with(&format!("digest_server: storage error at {}: ", file.display())), "{line}");
        line
    };
    let line = run(&tasks.path().join("missing/tasks.db"));
    assert!(line.contains("check that its folder exists"), "{line}");
    let text = tasks.path().join("text");
    std::fs::write(&text, "no database ".repeat(1000)).unwrap();
    run(&text);
    assert_eq!(std::fs::read_to_string(&text).unwrap(), "no database ".repeat(1000));
}

#[test]
fn a_file_and_a_redis_together_are_refused() {
    let tasks = TempDir::new().unwrap();
    let mut command = digest_server();
    command.current_dir(tasks.path()).args(["--sqlite", "tasks.db", "--redis", "redis://127.0.0.1:1"]);
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{text}");
    let refused = "error: the argument '--sqlite <FILE>' cannot be used with '--redis <URL>'";
    assert!(text.starts_with(refused), "{text}");
}
