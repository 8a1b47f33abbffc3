//! Redis Cluster, and a master behind Redis Sentinel.

use std::process::Output;

use mcp_task_store::{NewTask, RedisBackend, TaskStore};

use crate::support::server::Server;
use crate::support::{command, owner};

/// Runs the command on the store at a URL, and returns what it printed.
fn run(url: &str, args: &[&str]) -> String {
    let Output { status, stdout, stderr } = command().env("MCP_TASKS_URL", url).args(args).output().unwrap();
    assert!(status.success(), "{}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).unwrap()
}

async fn create_and_look(backend: RedisBackend, url: &str) {
    let tasks = TaskStore::new(backend);
    for name in ["alice", "bob", "carol"] {
        tasks.create(&owner(name), NewTask::new("tools/call").operation("render")).await.unwrap();
    }
    let mut owners: Vec<String> = run(url, &["owners"]).lines().map(str::to_owned).collect();
    owners.sort();
    assert_eq!(owners, ["alice", "bob", "carol"]);
    run(url, &["cancel", "--tool", "render", "--now", "--yes"]);
    let listed = run(url, &["list", "--json", "--status", "cancelled"]);
    assert_eq!(listed.lines().count(), 3, "{listed}");
    run(url, &["purge", "--all-ended", "--yes"]);
    assert_eq!(run(url, &["owners"]), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_works_on_a_cluster() {
    let server = Server::cluster();
    let node = format!("redis://127.0.0.1:{}", server.port);
    let backend = RedisBackend::builder().connect_cluster([&node]).await.unwrap();
    // One of the nodes that the URL names may be down.
    create_and_look(backend, &format!("redis+cluster://127.0.0.1:{},127.0.0.1:1", server.port)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_works_on_the_master_that_sentinels_elect() {
    let master = Server::start(&[]);
    let sentinel = Server::sentinel(&master);
    let backend = RedisBackend::connect(&format!("redis://127.0.0.1:{}", master.port)).await.unwrap();
    create_and_look(backend, &format!("redis+sentinel://127.0.0.1:{}/mymaster/0", sentinel.port)).await;
}
