//! A process that makes the calls of one contender.

use std::io::{BufRead, BufReader, Lines, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result};
use sqlite_calls::{Reply, Request};

use super::Contender;

/// Stops when it is dropped.
pub struct Process {
    contender: Contender,
    process: Child,
    requests: ChildStdin,
    replies: Lines<BufReader<ChildStdout>>,
}

impl Process {
    pub fn start(contender: Contender) -> Result<Self> {
        let mut command = match contender {
            Contender::Turul => turul(),
            Contender::Ours => this_program("ours")?,
            Contender::OneByOne => this_program("one-by-one")?,
            Contender::GroupCommit => this_program("group-commit")?,
        };
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {contender:?}"))?;
        let requests = process.stdin.take().context("the process has an input")?;
        let replies = BufReader::new(process.stdout.take().context("the process has an output")?).lines();
        Ok(Self { contender, process, requests, replies })
    }

    pub fn send(&mut self, request: &Request) -> Result<()> {
        let line = serde_json::to_string(request)?;
        writeln!(self.requests, "{line}").with_context(|| format!("{:?} has ended", self.contender))
    }

    /// Waits for the reply to the earliest request.
    pub fn receive(&mut self) -> Result<f64> {
        let line =
            self.replies.next().with_context(|| format!("{:?} ended without a reply", self.contender))?;
        let reply: Reply = serde_json::from_str(&line?)?;
        reply.map_err(|error| anyhow::anyhow!("{:?}: {error}", self.contender))
    }

    pub fn call(&mut self, request: &Request) -> Result<f64> {
        self.send(request)?;
        self.receive()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The process may have ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn this_program(contender: &str) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["sqlite", contender]);
    Ok(command)
}

/// The peer has a program of its own, because its SQLite and that of this crate cannot be linked into one. Cargo replaces itself by
/// the program.
fn turul() -> Command {
    let mut command = Command::new("cargo");
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../turul/Cargo.toml");
    command.args(["run", "--quiet", "--locked", "--manifest-path", manifest]);
    if !cfg!(debug_assertions) {
        command.arg("--release");
    }
    command
}
