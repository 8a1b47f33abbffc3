//! Faults of the server that stores alice's records.

use redis::{Connection, Value};

use super::{End, LASTS, ends};
use crate::support::cluster::{eventually, info};
use crate::support::deployment::{Deployment, app_url};
use crate::support::redis::command;

fn set(admin: &mut Connection, name: &str, value: &str) {
    command(admin, ["CONFIG", "SET", name, value])
}

pub fn kill(deployment: &mut Deployment) -> Option<End> {
    let target = deployment.target();
    deployment.servers[target].kill();
    ends(move |deployment| deployment.servers[target].start_again())
}

pub fn hang(deployment: &mut Deployment) -> Option<End> {
    let target = deployment.target();
    deployment.servers[target].signal("STOP");
    ends(move |deployment| deployment.servers[target].signal("CONT"))
}

pub fn pause(deployment: &mut Deployment) -> Option<End> {
    let mut admin = deployment.admin(deployment.target());
    let _: () = command(&mut admin, ["CLIENT", "PAUSE", &LASTS.as_millis().to_string()]);
    ends(|_| ())
}

pub fn refuse_connections(deployment: &mut Deployment) -> Option<End> {
    let mut admin = deployment.admin(deployment.target());
    set(&mut admin, "maxclients", "1");
    let _: i64 = command(&mut admin, ["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    ends(move |_| set(&mut admin, "maxclients", "10000"))
}

pub fn run_out_of_memory(deployment: &mut Deployment) -> Option<End> {
    let mut admin = deployment.admin(deployment.target());
    set(&mut admin, "maxmemory", "1");
    ends(move |_| set(&mut admin, "maxmemory", "0"))
}

/// Creates a folder with the name of the server's snapshot.
pub fn fail_to_save(deployment: &mut Deployment) -> Option<End> {
    let target = deployment.target();
    let mut admin = deployment.admin(target);
    let obstacle = deployment.servers[target].folder().join("dump.rdb");
    // Without a snapshot there is no file.
    let _ = std::fs::remove_file(&obstacle);
    std::fs::create_dir(&obstacle).unwrap();
    set(&mut admin, "save", "3600 1");
    save(&mut admin, "rdb_last_bgsave_status:err");
    ends(move |_| {
        std::fs::remove_dir(&obstacle).unwrap();
        save(&mut admin, "rdb_last_bgsave_status:ok");
    })
}

/// Makes the server save its data, and waits for this status.
fn save(admin: &mut Connection, status: &str) {
    let _: Value = command(admin, ["BGSAVE"]);
    eventually(|| info(admin, "persistence").contains(status));
}

/// Restarts the server with many keys and a delay for each, so that it loads its data until it is restarted without
/// that delay.
pub fn load_slowly(deployment: &mut Deployment) -> Option<End> {
    const FILL: &str =
        "for i = 1, 20000 do redis.call('SET', 'fill:{alice}:' .. i, string.rep('x', 100)) end";
    let target = deployment.target();
    let mut admin = deployment.admin(target);
    let _: Value = command(&mut admin, ["EVAL", FILL, "0"]);
    let _: () = command(&mut admin, ["SAVE"]);
    deployment.servers[target].kill();
    // Microseconds for each key.
    deployment.servers[target].launch_again_with(&["--key-load-delay", "1000"]);
    ends(move |deployment| {
        deployment.servers[target].kill();
        deployment.servers[target].start_again();
    })
}

pub fn rotate_password(deployment: &mut Deployment) -> Option<End> {
    "second".clone_into(&mut deployment.password.lock().unwrap());
    deployment.everywhere(&["ACL", "SETUSER", "app", "resetpass", ">second"]);
    let with_the_first = app_url(deployment.servers[deployment.target()].port);
    assert!(redis::Client::open(with_the_first).unwrap().get_connection().is_err());
    deployment.everywhere(&["CLIENT", "KILL", "USER", "app"]);
    None
}

/// Changes the user of the instances. A user that is disabled keeps its connections, so this function closes them.
pub fn set_user(deployment: &mut Deployment, rule: &'static str, ends_with: &'static str) -> Option<End> {
    deployment.everywhere(&["ACL", "SETUSER", "app", rule]);
    if rule == "off" {
        deployment.everywhere(&["CLIENT", "KILL", "USER", "app"]);
    }
    ends(move |deployment| deployment.everywhere(&["ACL", "SETUSER", "app", ends_with]))
}

pub fn close_idle_connections(deployment: &mut Deployment) -> Option<End> {
    deployment.everywhere(&["CONFIG", "SET", "timeout", "1"]);
    None
}

/// Makes the server a replica of a master that does not exist.
pub fn become_replica(deployment: &mut Deployment) -> Option<End> {
    let mut admin = deployment.admin(deployment.target());
    let _: () = command(&mut admin, ["REPLICAOF", "127.0.0.1", "1"]);
    ends(move |_| command(&mut admin, ["REPLICAOF", "NO", "ONE"]))
}
