//! `mcp-tasks serve`

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use mcp_task_console::{Access, Console};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::args::ServeArgs;
use crate::audit_log;
use crate::engine::Store;
use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::output::remark;

/// Returns who may see the console. Refuses to show it to everybody.
pub fn access(args: &ServeArgs) -> Result<Access, Failure> {
    let is_loopback = args.listen.ip().is_loopback();
    match (&args.token_file, &args.users_file, &args.trusted_header) {
        (Some(file), ..) => {
            let token = read("--token-file", file)?;
            Access::token(token.trim())
                .map_err(|error| Failure::usage(format!("--token-file {}: {error}", file.display())))
        }
        (_, Some(file), _) => Access::users(&read("--users-file", file)?)
            .map_err(|error| Failure::usage(format!("--users-file {}: {error}", file.display()))),
        (.., Some(user)) => match &args.owner_header {
            Some(owner) => Access::tenants(user, owner)
                .map_err(|error| Failure::usage(format!("--trusted-header, --owner-header: {error}"))),
            None => Access::trusted_header(user)
                .map_err(|error| Failure::usage(format!("--trusted-header: {error}"))),
        },
        (None, None, None) if is_loopback => Ok(Access::loopback()),
        (None, None, None) => Err(Failure::usage(format!(
            "--listen {} lets other machines read the tasks of all owners; pass --token-file, --users-file or --trusted-header, \
             or listen on 127.0.0.1",
            args.listen
        ))),
    }
}

pub async fn run(store: &Store, args: &ServeArgs, access: Access, quiet: bool) -> Result<(), Failure> {
    let listener = TcpListener::bind(args.listen).await.map_err(|error| {
        Failure::failed(format!(
            "cannot listen on {}: {error}; choose another address with --listen",
            args.listen
        ))
    })?;
    let address = listener.local_addr()?;
    let (recorder, _upkeep) = recorder()?;
    if args.allow_actions {
        audit_log::start()?;
        remark(quiet, "visitors can change tasks; each attempt is a line on stderr");
    }
    let console = Console::new(Arc::clone(store.backend()), access).scan_rate(args.rate.rate);
    let console = console.metrics(move || recorder.render()).allow_actions(args.allow_actions);
    let interrupt = Interrupt::listen();
    let router = console.live_until(pressed(interrupt.clone())).router();
    if let Some(warning) = warning(args) {
        remark(quiet, warning);
    }
    remark(quiet, format_args!("the console is at http://{address}/; Ctrl-C ends it"));
    let served = axum::serve(listener, router).with_graceful_shutdown(pressed(interrupt.clone()));
    tokio::select! {
        served = served.into_future() => Ok(served?),
        // A client that neither sends its request nor reads its answer must not keep the command.
        () = overdue(interrupt) => {
            remark(quiet, "some clients have not ended their requests; their connections are closed");
            Ok(())
        }
    }
}

/// How long requests that are under way at Ctrl-C may take.
const LONGEST_SHUTDOWN: Duration = Duration::from_secs(5);

async fn pressed(interrupt: Interrupt) {
    interrupt.pressed().await;
}

async fn overdue(interrupt: Interrupt) {
    interrupt.pressed().await;
    tokio::time::sleep(LONGEST_SHUTDOWN).await;
}

/// The upper bounds of the buckets of durations, in seconds, and of the writes in a batch.
const SECONDS: [f64; 16] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 120.0, 600.0, 3600.0];
const WRITES: [f64; 6] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0];
/// How often the recorder sorts measured values into buckets.
const UPKEEP: Duration = Duration::from_secs(5);

/// Installs the recorder of this process, which records the calls of the engine. Its upkeep ends when the set is dropped.
fn recorder() -> Result<(PrometheusHandle, JoinSet<()>), Failure> {
    let not_installed =
        |error: BuildError| Failure::failed(format!("the metrics cannot be recorded: {error}"));
    let builder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)
        .and_then(|builder| builder.set_buckets_for_metric(Matcher::Suffix("_writes".to_owned()), &WRITES));
    let recorder = builder.and_then(PrometheusBuilder::install_recorder).map_err(not_installed)?;
    mcp_task_store::telemetry::describe();
    let (mut upkeep, kept) = (JoinSet::new(), recorder.clone());
    upkeep.spawn(async move {
        loop {
            tokio::time::sleep(UPKEEP).await;
            kept.run_upkeep();
        }
    });
    Ok((recorder, upkeep))
}

/// Returns who else can read the tasks.
fn warning(args: &ServeArgs) -> Option<String> {
    if let Some(user) = &args.trusted_header {
        let headers = match &args.owner_header {
            Some(owner) => format!("headers {user} and {owner}"),
            None => format!("header {user}"),
        };
        return Some(format!(
            "trusts the {headers}: whoever reaches {} without the proxy can send it; let only the proxy connect",
            args.listen
        ));
    }
    let warning =
        "other machines reach the console without encryption; put a proxy with TLS in front of it".to_owned();
    Some(warning).filter(|_| !args.listen.ip().is_loopback())
}

fn read(option: &str, file: &Path) -> Result<String, Failure> {
    fs::read_to_string(file)
        .map_err(|error| Failure::failed(format!("{option} {} cannot be read: {error}", file.display())))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    fn parse(options: &[&str]) -> ServeArgs {
        let words = ["mcp-tasks", "serve"].iter().chain(options);
        match Cli::try_parse_from(words).unwrap().command {
            Command::Serve(args) => args,
            _ => unreachable!("the words name serve"),
        }
    }

    #[test]
    fn another_address_than_loopback_needs_an_access_and_has_a_warning() {
        let Err(Failure::Usage(refused)) = access(&parse(&["--listen", "0.0.0.0:8181"])) else {
            panic!("everybody could read the tasks");
        };
        for option in ["--token-file", "--users-file", "--trusted-header"] {
            assert!(refused.contains(option), "{refused}");
        }
        for listen in ["127.0.0.1:0", "[::1]:0"] {
            let args = parse(&["--listen", listen]);
            assert!(access(&args).is_ok() && warning(&args).is_none());
        }
        let with_token = parse(&["--listen", "0.0.0.0:8181", "--token-file", "token"]);
        assert!(warning(&with_token).unwrap().contains("without encryption"));
        let tenants = parse(&["--trusted-header", "X-User", "--owner-header", "X-Owner"]);
        assert_eq!(format!("{:?}", access(&tenants).unwrap()), "Access(tenants)");
        assert!(warning(&tenants).unwrap().contains("the headers X-User and X-Owner"));
        for lone in [
            &["--owner-header", "X-Owner"] as &[&str],
            &["--owner-header", "X-Owner", "--token-file", "token"],
        ] {
            assert!(Cli::try_parse_from(["mcp-tasks", "serve"].iter().chain(lone)).is_err(), "{lone:?}");
        }
        let with_header = parse(&["--trusted-header", "X-Forwarded-User"]);
        assert!(access(&with_header).is_ok());
        assert!(warning(&with_header).unwrap().contains("without the proxy"));
    }
}
