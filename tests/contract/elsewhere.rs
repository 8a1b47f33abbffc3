//! The contract tests of the Redis engine on other deployments: on a cluster, behind sentinels, for a user with the
//! documented ACL rule, and over TLS. Each run is a process of its own.

use std::process::Command;

use crate::support::cluster::Cluster;
use crate::support::redis::{Server, command, rule_for};
use crate::support::sentinel::{MASTER, Watched};
use crate::support::tls::Authority;

/// The minimum number of tests in each run: the rules of the suite.
const AT_LEAST: usize = 80;

/// These tests connect to a single server without TLS, whatever the environment says.
const CONNECT_THEMSELVES: [&str; 2] =
    ["with_hash_tags_the_owner_is_in_braces_in_each_key", "a_backend_works_over_a_connection"];

/// Runs the tests of the module `redis` with these variables in the environment.
fn assert_the_contract_holds(environment: &[(&str, &str)], skipped: &[&str]) {
    let mut suite = Command::new(std::env::current_exe().unwrap());
    suite.args(["redis::", "--skip", "hash_tagged", "--test-threads", "4"]);
    for name in skipped {
        suite.args(["--skip", name]);
    }
    let ran = suite.envs(environment.iter().copied()).output().unwrap();
    let printed = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success(), "{printed}\n{}", String::from_utf8_lossy(&ran.stderr));
    let summary = printed.lines().find(|line| line.starts_with("test result: ok. ")).unwrap();
    let passed: usize = summary.split(' ').nth(3).unwrap().parse().unwrap();
    assert!(passed >= AT_LEAST, "{summary}");
}

#[test]
fn the_contract_holds_on_a_cluster_and_again_after_a_failover() {
    let mut cluster = Cluster::start(3, 3);
    let urls = cluster.urls();
    assert_the_contract_holds(&[("REDIS_URL", &urls)], &CONNECT_THEMSELVES);
    let lost = cluster.master_for("{alice}");
    cluster.nodes[lost].kill();
    cluster.nodes.remove(lost);
    cluster.settled();
    assert_the_contract_holds(&[("REDIS_URL", &urls)], &CONNECT_THEMSELVES);
}

#[test]
fn the_contract_holds_on_a_master_behind_sentinels() {
    let watched = Watched::start(&[]);
    let sentinels = watched.sentinel_urls().join(",");
    let master = format!("redis://{MASTER}");
    let admin = watched.master.url();
    let environment = [("REDIS_URL", &*master), ("REDIS_SENTINELS", &sentinels), ("REDIS_ADMIN_URL", &admin)];
    assert_the_contract_holds(&environment, &[]);
}

#[test]
fn the_contract_holds_for_a_user_with_the_documented_acl_rule() {
    let server = Server::start(&[]);
    // Each test has a prefix of its own.
    let rule = rule_for(&mut server.connection());
    let rule = rule.replace("~pmcp:", "~test-*:").replace("&pmcp:", "&test-*:");
    let user = rule.split(' ').nth(2).unwrap();
    let password = rule.split(' ').find_map(|word| word.strip_prefix('>')).unwrap();
    let _: () = command(&mut server.connection(), rule.split(' '));
    let url = format!("redis://{user}:{password}@127.0.0.1:{}", server.port);
    assert_the_contract_holds(&[("REDIS_URL", &url), ("REDIS_ADMIN_URL", &server.url())], &[]);
}

#[test]
fn the_contract_holds_over_tls_with_a_client_certificate() {
    let authority = Authority::new();
    let (server, port) = authority.start_server(true);
    let url = format!("rediss://127.0.0.1:{port}");
    let folder = authority.folder().to_str().unwrap();
    let environment =
        [("REDIS_URL", &*url), ("REDIS_ADMIN_URL", &server.url()), ("REDIS_TLS_FOLDER", folder)];
    assert_the_contract_holds(&environment, &CONNECT_THEMSELVES);
}
