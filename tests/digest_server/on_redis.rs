//! The example on Redis: each server is a process of its own.

use std::io::Read;

use redis::Commands;

use super::*;

fn url() -> String {
    std::env::var("REDIS_URL").unwrap_or_else(|_| "redis://127.0.0.1:6379".to_owned())
}

/// Returns a URL of the same server with a password. A server without a password accepts any.
fn url_with_password() -> String {
    let url = url();
    if url.contains('@') { url } else { url.replacen("://", "://default:pass-word@", 1) }
}

#[test]
fn server_processes_are_killed_and_stopped_and_nothing_is_left_behind() {
    let folder = folder(30);
    let owner = format!("digest-server-{}", uuid::Uuid::new_v4());
    let output = demonstration(folder.path()).args(["--redis", &url(), "--owner", &owner]).output().unwrap();
    assert_all_steps(&output, 30 + AWKWARD, AS_PROCESSES.0, AS_PROCESSES.1);
    let mut connection = redis::Client::open(url()).unwrap().get_connection().unwrap();
    let left = connection.scan_match::<_, String>(format!("pmcp:*{owner}*")).unwrap();
    assert_eq!(left.count(), 0);
}

#[cfg(target_os = "linux")]
#[test]
fn the_password_of_a_url_is_in_no_command_line() {
    let (folder, url) = (folder(3), url_with_password());
    let (secret, _) = url.split_once("://").unwrap().1.split_once('@').unwrap();
    let secret = secret.rsplit(':').next().unwrap();
    let mut command = demonstration(folder.path());
    command.env(REDIS_VARIABLE, &url).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut process = command.spawn().unwrap();
    let mut processes = vec![process.id().to_string()];
    for line in BufReader::new(process.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        assert!(!line.contains(secret), "{line}");
        if let Some((_, server)) = line.split_once("(process ") {
            processes.push(server.trim_end_matches(')').to_owned());
        }
        for id in &processes {
            // Some processes have ended by now.
            let Ok(command_line) = std::fs::read(format!("/proc/{id}/cmdline")) else { continue };
            assert!(!String::from_utf8_lossy(&command_line).contains(secret));
        }
    }
    let mut stderr = String::new();
    process.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert!(process.wait().unwrap().success() && stderr.is_empty(), "{stderr}");
    assert_eq!(processes.len(), 4);
}

#[test]
fn a_stopped_redis_is_reported_in_one_line_without_the_password() {
    let folder = folder(0);
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = format!("redis://user:pass-word@127.0.0.1:{port}");
    let output = demonstration(folder.path()).args(["--redis", &url]).output().unwrap();
    let line = only_line_of_stderr(&output);
    assert!(line.starts_with(&format!("digest_server: 127.0.0.1:{port} is unavailable: ")), "{line}");
    assert!(line.ends_with(": Connection refused (os error 111)\n"), "{line}");
    assert!(!line.contains("pass-word"), "{line}");
}
