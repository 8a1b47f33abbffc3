//! `mcp-tasks init`

use std::io::{self, Write};

use super::doctor;
use crate::args::{BackendArg, ConnectArgs, DoctorArgs, InitArgs, RateArgs};
use crate::engine::{Kind, Opening};
use crate::failure::Failure;
use crate::output::remark;

const RATE: u32 = 5_000;

pub async fn run(connect: &ConnectArgs, args: &InitArgs, quiet: bool) -> Result<(), Failure> {
    if let Some(backend) = args.backend {
        return Ok(writeln!(io::stdout(), "{}", what_to_set(backend))?);
    }
    match Kind::of(connect)? {
        Kind::Sqlite => {
            remark(quiet, "creates the file and its tables if they do not exist, or migrates them")
        }
        Kind::Redis => remark(quiet, "Redis needs no tables: the first task creates the first keys"),
    }
    let rate = RateArgs { rate: RATE };
    let doctor = DoctorArgs { repair: false, quick: false, rate, form: args.form };
    doctor::examine(connect, Opening::MakeReady, &doctor, quiet).await
}

/// Returns the settings of a server and of this command.
fn what_to_set(backend: BackendArg) -> &'static str {
    match backend {
        BackendArg::Sqlite => {
            "\
export MCP_TASKS_URL=sqlite:tasks.db    # a file on a local disk
mcp-tasks init                          # creates the file

In the server, with the feature sqlite:
SqliteBackend::open(\"tasks.db\")"
        }
        BackendArg::Redis => {
            "\
export MCP_TASKS_URL=redis://127.0.0.1:6379    # rediss:// for TLS
export MCP_TASKS_PASSWORD=                     # or --password-file, if the server has a password
mcp-tasks init                                 # checks the server

In redis.conf:
appendonly yes
maxmemory-policy noeviction
lazyfree-lazy-expire yes

In the server, with the feature redis:
RedisBackend::connect(\"redis://127.0.0.1:6379\")"
        }
        BackendArg::RedisCluster => {
            "\
export MCP_TASKS_URL=redis+cluster://10.0.0.1:6379,10.0.0.2:6379    # rediss+cluster:// for TLS
export MCP_TASKS_PASSWORD=                                          # or --password-file
mcp-tasks init                                                      # checks the cluster

In the redis.conf of each node:
appendonly yes
maxmemory-policy noeviction
lazyfree-lazy-expire yes

In the server, with the feature redis-cluster:
RedisBackend::builder().connect_cluster([\"redis://10.0.0.1:6379\", \"redis://10.0.0.2:6379\"])"
        }
        BackendArg::RedisSentinel => {
            "\
export MCP_TASKS_URL=redis+sentinel://10.0.0.1:26379,10.0.0.2:26379/mymaster    # rediss+sentinel:// for TLS
export MCP_TASKS_PASSWORD=                                                      # or --password-file
mcp-tasks init                                                                  # checks the master

In the redis.conf of the master and of each replica:
appendonly yes
maxmemory-policy noeviction
lazyfree-lazy-expire yes

In the server, with the feature redis-sentinel:
RedisBackend::builder().connect_sentinel([\"redis://10.0.0.1:26379\", \"redis://10.0.0.2:26379\"], \"redis://mymaster\")"
        }
    }
}
