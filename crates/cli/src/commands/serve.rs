//! `mcp-tasks serve`

use std::fs;
use std::path::Path;
use std::sync::Arc;

use mcp_task_console::{Access, Console};
use tokio::net::TcpListener;

use crate::args::ServeArgs;
use crate::engine::Store;
use crate::failure::Failure;
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
        (.., Some(header)) => Access::trusted_header(header)
            .map_err(|error| Failure::usage(format!("--trusted-header: {error}"))),
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
    let router = Console::new(Arc::clone(store.backend()), access).scan_rate(args.rate.rate).router();
    warn(args, quiet);
    remark(quiet, format_args!("the console is at http://{address}/; Ctrl-C ends it"));
    axum::serve(listener, router).with_graceful_shutdown(interrupted()).await?;
    Ok(())
}

/// Says who can read the tasks.
fn warn(args: &ServeArgs, quiet: bool) {
    if let Some(header) = &args.trusted_header {
        remark(
            quiet,
            format_args!(
                "trusts the header {header}: whoever reaches {} without the proxy can set it; let only the proxy connect",
                args.listen
            ),
        );
    } else if !args.listen.ip().is_loopback() {
        remark(
            quiet,
            "other machines reach the console without encryption; put a proxy with TLS in front of it",
        );
    }
}

/// Waits for Ctrl-C. Without a handler for it, the console runs until the process is ended.
async fn interrupted() {
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
    }
}

fn read(option: &str, file: &Path) -> Result<String, Failure> {
    fs::read_to_string(file)
        .map_err(|error| Failure::failed(format!("{option} {} cannot be read: {error}", file.display())))
}
