//! Which store a command opens, and how it keeps the password secret.

use rstest_reuse::apply;

use crate::support::{Ended, Engine, command, on_every_engine};

#[cfg(feature = "redis-tests")]
const SECRET: &str = "s3cret/p@ss";

fn run(args: &[&str], variables: &[(&str, &str)]) -> Ended {
    let mut command = command();
    command.args(args).envs(variables.iter().copied());
    Ended::of(command, "")
}

#[test]
fn without_a_store_the_error_shows_every_form_of_a_url() {
    for args in [&["list"] as &[&str], &["list", "--url", "mysql://host"], &["list", "--url", "redis:host"]] {
        let error = run(args, &[]).failed(2);
        for form in [
            "sqlite:PATH",
            "redis://",
            "rediss://",
            "redis+cluster://",
            "rediss+cluster://",
            "redis+sentinel://",
        ] {
            assert!(error.contains(form), "{form}: {error}");
        }
    }
}

#[test]
fn a_missing_sqlite_file_is_an_error_and_not_created() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("nothing.db");
    for prefix in ["sqlite:", "sqlite://"] {
        let error = run(&["list", "--url", &format!("{prefix}{}", file.display())], &[]).failed(1);
        assert!(error.contains("there is no such file") && error.contains("nothing.db"), "{error}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    run(&["list", "--url", "sqlite:"], &[]).failed(2);
    run(&["list", "--url", "sqlite:x.db", "--prefix", "p"], &[]).failed(2);
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn the_url_is_an_argument_before_or_after_the_command_or_a_variable(#[case] engine: Engine) {
    let store = engine.open().await;
    store.waiting("alice", "render").await;
    assert_eq!(store.run(&["owners", "-q"]).ok(), "alice\n");
    // A server whose URL has a password cannot be an argument.
    if !store.url.contains('@') {
        for args in
            [&["--url", &store.url, "owners", "-q"] as &[&str], &["owners", "-q", "--url", &store.url]]
        {
            let options: Vec<&str> = store.options.iter().map(String::as_str).collect();
            assert_eq!(
                run(&[args, &options].concat(), &[("MCP_TASKS_URL", "redis://127.0.0.1:1")]).ok(),
                "alice\n"
            );
        }
    }
}

#[test]
fn a_server_that_cannot_be_reached_is_named_without_the_password() {
    let error =
        run(&["list"], &[("MCP_TASKS_URL", &format!("redis://tasks:{}@127.0.0.1:1", "hunter2"))]).failed(1);
    assert!(error.contains("127.0.0.1:1") && !error.contains("hunter2"), "{error}");
}

#[test]
fn a_password_on_the_command_line_is_refused_and_not_repeated() {
    for url in
        ["redis://:hunter2@host", "redis+cluster://tasks:hunter2@a:1,b:2", "redis+sentinel://t:hunter2@a/m"]
    {
        let error = run(&["list", "--url", url], &[]).failed(2);
        assert!(error.contains("--password-file") && error.contains("MCP_TASKS_PASSWORD"), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
    // A URL that cannot be understood may hold a password anywhere.
    let error = run(&["list", "--url", "hunter2@host"], &[]).failed(2);
    assert!(!error.contains("hunter2"), "{error}");
}

#[test]
fn a_password_file_must_hold_a_password() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    let url = ["list", "--url", "redis://127.0.0.1:1", "--password-file", file.to_str().unwrap()];
    assert!(run(&url, &[]).failed(1).contains("cannot be read"));
    std::fs::write(&file, "\n").unwrap();
    assert!(run(&url, &[]).failed(2).contains("is empty"));
    run(&["list", "--url", "sqlite:x.db", "--password-file", "x"], &[]).failed(2);
}

#[cfg(feature = "redis-tests")]
#[test]
fn opening_a_redis_leaves_no_key_behind() {
    let server = crate::support::server::Server::start(&[]);
    for command in ["owners", "list", "stats"] {
        run(&[command], &[("MCP_TASKS_URL", &format!("redis://127.0.0.1:{}", server.port))]).ok();
    }
    assert_eq!(server.keys(), 0);
}

#[cfg(feature = "redis-tests")]
mod with_a_password {
    use std::process::Stdio;

    use super::*;
    use crate::support::server::Server;

    #[test]
    fn the_password_comes_from_a_file_a_variable_or_the_variable_of_the_url() {
        let server = Server::with_password(SECRET);
        let url = format!("redis://127.0.0.1:{}", server.port);
        let with_user = format!("redis://default@127.0.0.1:{}", server.port);
        let in_the_url = format!("redis://default:s3cret%2Fp%40ss@127.0.0.1:{}", server.port);
        let wrong_in_the_url = format!("redis://default:hunter2@127.0.0.1:{}", server.port);
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("password");
        std::fs::write(&file, format!("{SECRET}\n")).unwrap();
        let from_file = ["owners", "--password-file", file.to_str().unwrap()];

        for url in [&url, &with_user, &wrong_in_the_url] {
            run(&from_file, &[("MCP_TASKS_URL", url)]).ok();
            run(&["owners"], &[("MCP_TASKS_URL", url), ("MCP_TASKS_PASSWORD", SECRET)]).ok();
        }
        run(&["owners", "--url", &with_user], &[("MCP_TASKS_PASSWORD", SECRET)]).ok();
        run(&["owners"], &[("MCP_TASKS_URL", &in_the_url)]).ok();
        for variables in [vec![("MCP_TASKS_URL", &*url)], vec![("MCP_TASKS_URL", &*wrong_in_the_url)]] {
            let error = run(&["owners"], &variables).failed(1);
            assert!(!error.contains("hunter2") && !error.contains(SECRET), "{error}");
        }
    }

    /// What every user of the machine can see of a process.
    #[cfg(target_os = "linux")]
    #[test]
    fn the_list_of_processes_does_not_show_the_password() {
        let server = Server::with_password(SECRET);
        let mut command = command();
        command.args(["watch", "--interval", "20ms"]).env("MCP_TASKS_PASSWORD", SECRET);
        command.env("MCP_TASKS_URL", format!("redis://default@127.0.0.1:{}", server.port));
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut said = String::new();
        // The command has opened the store once it says that it scans.
        std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stderr.take().unwrap()), &mut said)
            .unwrap();
        assert!(said.contains("scans"), "{said}");
        let shown = std::fs::read(format!("/proc/{}/cmdline", child.id())).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        let shown = String::from_utf8(shown).unwrap();
        assert!(shown.contains("watch") && !shown.contains(SECRET), "{shown}");
    }
}
