//! One instance of the server: a process, or a runtime in this process.

use std::net::Ipv4Addr;
use std::process::Stdio;
use std::sync::Arc;

use mcp_task_store::{Agenda, OwnerId};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::runtime::Runtime;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::client::Client;
use crate::engine::Engine;
use crate::server::{self, DigestServer};
use crate::{Failure, with_config};

/// How the instances run.
pub enum Host {
    /// As processes that share this engine.
    Processes { engine: Engine },
    /// As runtimes in this process that share this engine.
    Runtimes { backend: Arc<dyn Agenda> },
}

pub struct Instance {
    pub name: &'static str,
    pub client: Client,
    url: String,
    life: Life,
}

enum Life {
    Process { child: Child, stderr: JoinHandle<String> },
    Runtime { runtime: Owned, stop: Arc<Notify>, served: JoinHandle<Result<(), Failure>> },
}

/// A runtime that may be dropped inside another runtime, where a plain `Runtime` would panic.
struct Owned(Option<Runtime>);

impl Drop for Owned {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl Instance {
    /// Starts an instance, and connects a client to it.
    pub async fn start(name: &'static str, owner: &OwnerId, host: &Host) -> Result<Self, Failure> {
        let (url, life) = match host {
            Host::Processes { engine } => start_process(name, owner, engine).await?,
            Host::Runtimes { backend } => start_runtime(name, owner, Arc::clone(backend)).await?,
        };
        let client = Client::connect(&url).await?;
        Ok(Self { name, client, url, life })
    }

    /// Returns the name and the address of the instance, for the output.
    pub fn description(&self) -> String {
        match &self.life {
            Life::Process { child, .. } => {
                format!("server {} at {} (process {})", self.name, self.url, child.id().unwrap_or_default())
            }
            Life::Runtime { .. } => {
                format!("server {} at {} (a runtime in this process)", self.name, self.url)
            }
        }
    }

    /// Ends the instance without a shutdown. Returns how it ended, for the output.
    pub async fn kill(self) -> Result<&'static str, Failure> {
        match self.life {
            Life::Process { mut child, .. } => {
                child.kill().await?;
                Ok("was killed with SIGKILL")
            }
            Life::Runtime { runtime, served, .. } => {
                drop(runtime);
                // Each Tokio task of the runtime ends at its next await, also the server.
                drop(served.await);
                Ok("was dropped with its runtime")
            }
        }
    }

    /// Shuts the instance down. Returns how it ended, for the output.
    pub async fn stop(self) -> Result<&'static str, Failure> {
        match self.life {
            Life::Process { mut child, stderr } => {
                let id = child.id().ok_or_else(|| format!("server {} has already ended", self.name))?;
                // A shell has `kill` built in. The program is not on every machine.
                let kill = format!("kill -s TERM {id}");
                let sent = Command::new("sh").args(["-c", &kill]).status().await?;
                let ended = child.wait().await?;
                if !sent.success() || !ended.success() {
                    return Err(format!("server {} ended with {ended}: {}", self.name, stderr.await?).into());
                }
                Ok("received SIGTERM and exited with 0")
            }
            Life::Runtime { stop, served, .. } => {
                stop.notify_one();
                served.await??;
                Ok("received the signal to stop and ended")
            }
        }
    }
}

/// Starts this program as a server. The server prints its address in the first line of its output.
async fn start_process(name: &str, owner: &OwnerId, engine: &Engine) -> Result<(String, Life), Failure> {
    let mut server = Command::new(std::env::current_exe()?);
    server.args(["--serve", name, "--owner", owner.as_str()]);
    engine.pass_to(&mut server);
    let mut child = server
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let (Some(stdout), Some(mut stderr)) = (child.stdout.take(), child.stderr.take()) else {
        return Err("the server process has no output to read".into());
    };
    let stderr = tokio::spawn(async move {
        let mut text = Vec::new();
        stderr.read_to_end(&mut text).await.ok();
        String::from_utf8_lossy(&text).lines().last().unwrap_or("it printed no error").to_owned()
    });
    match BufReader::new(stdout).lines().next_line().await? {
        Some(url) => Ok((url, Life::Process { child, stderr })),
        None => Err(format!("server {name} did not start: {}", stderr.await?).into()),
    }
}

async fn start_runtime(
    name: &str,
    owner: &OwnerId,
    backend: Arc<dyn Agenda>,
) -> Result<(String, Life), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let stop = Arc::new(Notify::new());
    let (name, owner, stopped) = (name.to_owned(), owner.clone(), Arc::clone(&stop));
    // The socket and the background tasks belong to the runtime, so that they end with it.
    let serving = async move {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let url = server::url(&listener)?;
        let server = DigestServer::new(with_config(backend), owner, &name);
        let served = tokio::spawn(async move {
            server::serve(listener, server, async move { stopped.notified().await }).await
        });
        Ok::<_, Failure>((url, served))
    };
    let serving = runtime.spawn(serving);
    let runtime = Owned(Some(runtime));
    let (url, served) = serving.await??;
    Ok((url, Life::Runtime { runtime, stop, served }))
}
