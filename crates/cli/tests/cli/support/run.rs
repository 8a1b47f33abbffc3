//! Runs the command in a pipe, or in a pseudo-terminal.

use std::io::Write;
use std::process::{Command, Stdio};

use rexpect::process::WaitStatus;
use rexpect::session::PtySession;
use serde_json::Value;

/// How long a terminal waits for an expected text, in milliseconds.
const PATIENCE_MS: u64 = 60_000;

/// Returns the command without the variables of this process that change its output.
pub fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mcp-tasks"));
    for variable in [
        "MCP_TASKS_URL",
        "MCP_TASKS_PASSWORD",
        "MCP_TASKS_KEYS",
        "NO_COLOR",
        "CLICOLOR",
        "CLICOLOR_FORCE",
        "COLUMNS",
    ] {
        command.env_remove(variable);
    }
    command.env("TERM", "xterm-256color");
    command
}

/// What the command printed in a pipe.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Ended {
    pub fn of(mut command: Command, stdin: &str) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // The command may end without reading it.
        let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
        let output = child.wait_with_output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }

    /// Returns the output of a command that succeeded.
    pub fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.out
    }

    /// Returns the objects that a command that succeeded printed.
    pub fn json(self) -> Vec<Value> {
        self.ok().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Returns what a command that ended with this code printed on stderr.
    pub fn failed(self, code: i32) -> String {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert!(self.err.contains("error:"), "{self:?}");
        self.err
    }
}

/// A command in a pseudo-terminal.
pub struct Running(PtySession);

/// Returns a command that SIGINT ends. A program that a shell has started in the background ignores it, and so do its children.
fn interruptible(command: Command) -> Command {
    let mut env = Command::new("env");
    env.arg("--default-signal=INT").arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => env.env(name, value),
            None => env.env_remove(name),
        };
    }
    env
}

impl Running {
    pub fn new(command: Command) -> Self {
        Self(rexpect::session::spawn_command(interruptible(command), Some(PATIENCE_MS)).unwrap())
    }

    /// Waits for a text, and returns what came before it.
    pub fn expect(&mut self, text: &str) -> String {
        self.0.exp_string(text).unwrap_or_else(|error| panic!("no {text:?} on the terminal: {error}"))
    }

    /// Types text.
    pub fn send(&mut self, text: &str) {
        self.0.send(text).unwrap();
        self.0.flush().unwrap();
    }

    pub fn press_ctrl_c(&mut self) {
        self.0.send_control('c').unwrap();
    }

    /// Waits for the end. Returns the rest of the output, and the exit code.
    pub fn end(self) -> (String, i32) {
        let (rest, status) = self.end_by_any();
        match status {
            WaitStatus::Exited(_, code) => (rest, code),
            other => panic!("{other:?}, after {rest}"),
        }
    }

    pub fn end_by_any(mut self) -> (String, WaitStatus) {
        // The session takes each byte for a character.
        let bytes = self.0.exp_eof().unwrap().chars().map(|byte| u8::try_from(byte).unwrap()).collect();
        let rest = String::from_utf8(bytes).unwrap();
        let status = self.0.process().wait().unwrap();
        (rest, status)
    }
}
