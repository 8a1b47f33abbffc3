//! The commands, one a file.

mod answer;
mod cancel;
mod delete;
mod doctor;
mod export;
mod import;
mod init;
mod list;
mod owners;
mod pages;
mod purge;
mod requeue;
mod restore;
mod rotate;
mod serve;
mod show;
mod stats;
mod watch;
mod watch_task;
mod workers;

use mcp_task_console::operator::Action;

use crate::args::{BulkArgs, Cli, Command};
use crate::bulk::Change;
use crate::engine::{self, Opening, Store};
use crate::failure::Failure;
use crate::selection::Wanted;

/// Runs the command of a command line.
pub async fn run(cli: Cli) -> Result<(), Failure> {
    let (connect, quiet) = (&cli.connect, cli.quiet);
    // A mistake in the arguments of a command is reported before the store is opened.
    match cli.command {
        Command::Completions { shell } => pages::completions(shell),
        Command::Man { command } => pages::man(command.as_deref()),
        Command::Init(args) => init::run(connect, &args, quiet).await,
        Command::Doctor(args) => doctor::run(connect, &args, quiet).await,
        Command::Owners(args) => owners::run(&engine::open(connect).await?, &args, quiet).await,
        Command::Workers(args) => workers::run(&engine::open(connect).await?, &args, quiet).await,
        Command::List(args) => list::run(&engine::open(connect).await?, &args, quiet).await,
        Command::Show(args) => show::run(&engine::open(connect).await?, &args).await,
        Command::Stats(args) => stats::run(&engine::open(connect).await?, &args, quiet).await,
        Command::Watch(args) => match &args.task {
            Some(task) => watch_task::run(&engine::open(connect).await?, task, &args).await,
            None => watch::run(&engine::open(connect).await?, &args, quiet).await,
        },
        Command::Cancel(args) => {
            check_bulk(&args.bulk)?;
            cancel::run(&engine::open(connect).await?, args, quiet).await
        }
        Command::Requeue(args) => {
            check_bulk(&args.bulk)?;
            requeue::run(&engine::open(connect).await?, args, quiet).await
        }
        Command::Delete(args) => {
            check_bulk(&args.bulk)?;
            delete::run(&engine::open(connect).await?, args, quiet).await
        }
        Command::Purge(args) => {
            purge::check(&args)?;
            purge::run(&engine::open(connect).await?, args, quiet).await
        }
        Command::Export(args) => {
            export::check(&args)?;
            export::run(&engine::open(connect).await?, engine::Kind::of(connect)?, &args, quiet).await
        }
        Command::Import(args) => {
            // The file is checked before the store is opened.
            let archive = import::read(&args, engine::keyring(connect)?.is_some(), quiet)?;
            import::run(&engine::open(connect).await?, archive, &args, quiet).await
        }
        Command::Rotate(args) => {
            let keyring = rotate::check(engine::keyring(connect)?)?;
            let engine = engine::open_engine(connect, Opening::Existing).await?;
            rotate::run(engine, keyring, &args, quiet).await
        }
        Command::Serve(args) => {
            let access = serve::access(&args)?;
            serve::run(&engine::open(connect).await?, &args, access, quiet).await
        }
        Command::Answer(args) => answer::run(&engine::open(connect).await?, &args).await,
    }
}

/// Changes the named tasks, or those that match.
async fn change(store: &Store, args: BulkArgs, action: Action, quiet: bool) -> Result<(), Failure> {
    let change = Change { action, yes: args.yes, dry_run: args.dry_run, json: args.form.json, quiet };
    match args.tasks.is_empty() {
        true => change.matching(store, &Wanted::new(&args.filter, args.rate, quiet)).await,
        false => change.named(store, args.filter.owner.as_ref(), &args.tasks).await,
    }
}

fn check_bulk(args: &BulkArgs) -> Result<(), Failure> {
    match (args.tasks.is_empty(), args.filter.is_empty()) {
        (true, true) => Err(Failure::usage(
            "no task was named; name tasks as OWNER:TASK, or select tasks with filters such as --owner or --status",
        )),
        (false, _) if !args.filter.is_empty_but_owner() => {
            Err(Failure::usage("the command names tasks and has filters; use one of the two"))
        }
        _ => Ok(()),
    }
}
