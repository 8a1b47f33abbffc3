//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::RangedU64ValueParser;
use clap::{Args, Parser, Subcommand, ValueEnum};
use mcp_task_store::{OwnerId, PartName, RotationPosition, TaskFilter, TaskStatus};

const ABOUT: &str = "Shows and changes the tasks of MCP servers";

const LONG_ABOUT: &str = "\
Shows and changes the tasks that MCP servers store with mcp-task-store, in a SQLite file, in Redis or in Valkey.

A command only reads, unless its name says that it changes tasks: cancel, requeue, delete, purge, answer, \
import, rotate; and serve with --allow-actions. init creates or migrates a SQLite file, and doctor --repair repairs indexes and timers. A task is named \
OWNER:TASK, as the tables show it, or as --owner OWNER TASK.";

const AFTER_HELP: &str = "\
Environment:
  MCP_TASKS_URL       the URL of the store, if --url is not given; it may contain a password
  MCP_TASKS_PASSWORD  the password, if --password-file is not given
  MCP_TASKS_KEYS      the keys of an encrypted store, if --keys is not given
  NO_COLOR            if set, the output has no colors

Exit codes: 0 success, 1 the command failed, 2 the command line is wrong. doctor and init have codes of their own.

Examples:
  export MCP_TASKS_URL=sqlite:tasks.db
  mcp-tasks stats
  mcp-tasks list --status failed --older-than 1h
  mcp-tasks show alice:4ff0c8c2-6d0a-4d64-9e4f-4d4ef8b6f6ac
  mcp-tasks requeue --dead --tool render --dry-run";

/// What every command that changes many tasks does.
macro_rules! bulk_help {
    ($first:literal) => {
        concat!(
            $first,
            "With filters, the command scans, says how many tasks match, and asks. --yes skips the question. Ctrl-C stops \
             between two tasks; run the same command again to continue."
        )
    };
}
const BULK_HELP: &str = bulk_help!("");
const REQUEUE_HELP: &str =
    bulk_help!("With filters, only failed tasks are requeued, unless --status names others. ");

const INIT_HELP: &str = "\
For SQLite, the command creates the file and its tables, or migrates the tables of an older version. On Redis there is nothing \
to create. The exit codes are those of doctor.";

const DOCTOR_HELP: &str = "\
Each line is green, yellow (change it soon) or red (tasks are lost or calls fail), and says what to do. Servers may run \
meanwhile.

--repair re-creates the timers of open tasks, adds records to their index, removes index members that have no record, corrects \
counts, and removes expired records. It changes no live record.

Exit codes: 0 all is green, 1 something is yellow, 2 something is red or the store cannot be opened.";

const EXPORT_HELP: &str = "\
The file has the tasks as they are stored, also those that cannot be read as tasks, unless there are filters other than --owner. \
Records of the runtime, such as those of workers, are left out. An encrypted store is decrypted with --keys, so the file is not \
encrypted; without --keys, the file has what is stored.

Examples:
  mcp-tasks export --output tasks.jsonl
  mcp-tasks export --owner alice | gzip > alice.jsonl.gz";
const IMPORT_HELP: &str = "\
The whole file is checked first, so a file that was cut off or altered changes nothing. Open tasks are scheduled: a task that a worker \
has worked on is resumed or failed once its lease has lapsed, as after the loss of the worker. Expired tasks are left out. Stop the \
servers of the old store before you export its open tasks, or both stores run them.

Ctrl-C stops between two tasks; run the same command again to continue. Tasks that exist with the same content are left out.";
const ROTATE_HELP: &str = "\
Put the new key at the top of the file of keys, keep the old ones below it, and run rotate. Servers can run meanwhile, if they have \
both keys. Once rotate ends with no record encrypted and none left as it is, remove the old keys.

Ctrl-C stops between two pages; the command then prints how to continue.";

const SERVE_HELP: &str = "\
/metrics has the metrics of the store for Prometheus, for the same visitors as the pages. /healthz needs no access: it answers 200 if \
the engine answers, and 503 if not.";

#[derive(Parser)]
#[command(name = "mcp-tasks", version, about = ABOUT, long_about = LONG_ABOUT, after_long_help = AFTER_HELP)]
#[command(disable_help_subcommand = true, max_term_width = 110)]
pub struct Cli {
    /// Print no progress and no remarks on stderr; errors remain
    #[arg(long, short, global = true)]
    pub quiet: bool,
    #[command(flatten)]
    pub connect: ConnectArgs,
    #[command(subcommand)]
    pub command: Command,
}

/// Which store, and how to reach it.
#[derive(Args)]
#[command(next_help_heading = "Store")]
pub struct ConnectArgs {
    /// URL of the store: sqlite:PATH, redis://[USER@]HOST[:PORT][/DATABASE], redis+cluster://HOST,…, or
    /// redis+sentinel://HOST,…/MASTER; rediss for TLS. Must not contain a password [env: MCP_TASKS_URL]
    #[arg(long, global = true, value_name = "URL")]
    pub url: Option<String>,
    /// First part of every key in Redis, as the servers have configured it [default: pmcp]
    #[arg(long, global = true, value_name = "PREFIX")]
    pub prefix: Option<String>,
    /// File that holds the password [env: MCP_TASKS_PASSWORD is the password itself]
    #[arg(long, global = true, value_name = "FILE")]
    pub password_file: Option<PathBuf>,
    /// File with the certificate authorities to trust, in PEM, instead of those of the system
    #[arg(long, global = true, value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// File with the keys of an encrypted store, each line ID:KEY, the current key first [env: MCP_TASKS_KEYS is the keys
    /// themselves]
    #[arg(long, global = true, value_name = "FILE")]
    pub keys: Option<PathBuf>,
}

#[derive(Subcommand)]
pub enum Command {
    /// Make the store ready, and check it as doctor does
    #[command(after_help = INIT_HELP)]
    Init(InitArgs),
    /// Check the store: its settings, permissions, speed, and whether its indexes and timers are complete
    #[command(after_help = DOCTOR_HELP)]
    Doctor(DoctorArgs),
    /// List the owners that have tasks, each as --owner takes it
    Owners(OwnersArgs),
    /// List the workers that run tasks, and those that were lost within the last hour
    Workers(WorkersArgs),
    /// List tasks
    List(ListArgs),
    /// Show one task: its state, lease, questions, arguments and result
    Show(ShowArgs),
    /// Count tasks by tool and status
    Stats(StatsArgs),
    /// Follow the tasks in a live table, or one task until it ends
    Watch(WatchArgs),
    /// Request that open tasks end
    #[command(after_help = BULK_HELP)]
    Cancel(CancelArgs),
    /// Run ended tasks again, each as a new task
    #[command(after_help = REQUEUE_HELP)]
    Requeue(RequeueArgs),
    /// Delete tasks that have ended
    #[command(after_help = BULK_HELP)]
    Delete(DeleteArgs),
    /// Delete all ended tasks that match: --older-than or --all-ended is required
    #[command(after_help = BULK_HELP)]
    Purge(PurgeArgs),
    /// Answer the questions of a task in place of its client
    Answer(AnswerArgs),
    /// Write tasks to a file, as JSON lines
    #[command(after_help = EXPORT_HELP)]
    Export(ExportArgs),
    /// Create the tasks of a file that export has written, with their ids, times and expiries
    #[command(after_help = IMPORT_HELP)]
    Import(ImportArgs),
    /// Encrypt the stored records under the current key of --keys
    #[command(after_help = ROTATE_HELP)]
    Rotate(RotateArgs),
    /// Serve the console for the browser. It shows tasks, and changes them only with --allow-actions
    #[command(after_help = SERVE_HELP)]
    Serve(ServeArgs),
    /// Print the completions for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print a manual page; `mcp-tasks man | man -l -` shows it
    Man {
        /// The command to describe; without it, the page of mcp-tasks
        command: Option<String>,
    },
}

/// The form of the output.
#[derive(Args, Clone, Copy)]
pub struct FormArgs {
    /// Print one JSON object per line
    #[arg(long)]
    pub json: bool,
}

/// How fast a command scans.
#[derive(Args, Clone, Copy)]
pub struct RateArgs {
    /// How many records to read per second at most
    #[arg(long, value_name = "RECORDS", default_value_t = 5_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub rate: u32,
}

/// Which tasks.
#[derive(Args, Clone, Default)]
#[command(next_help_heading = "Filters (a task must meet all of them)")]
pub struct FilterArgs {
    /// Tasks of this owner
    #[arg(long, value_name = "OWNER")]
    pub owner: Option<OwnerId>,
    /// Tasks with this status; several are separated by commas
    #[arg(long, value_name = "STATUS", value_delimiter = ',', value_enum)]
    pub status: Vec<StatusArg>,
    /// Tasks of this tool
    #[arg(long, value_name = "NAME")]
    pub tool: Option<String>,
    /// Open tasks that nobody works on although somebody should: the lease has lapsed and no server detects it, no
    /// worker has claimed the task for 5 minutes, or nothing has changed for an hour
    #[arg(long)]
    pub stuck: bool,
    /// Failed tasks whose attempts are used up, and that were not requeued
    #[arg(long)]
    pub dead: bool,
    /// Tasks that were created longer ago than this; for ended tasks, that ended longer ago (30s, 15m, 2h, 7d)
    #[arg(long, value_name = "AGE", value_parser = duration)]
    pub older_than: Option<Duration>,
}

fn duration(text: &str) -> Result<Duration, &'static str> {
    humantime::parse_duration(text).map_err(|_| "write numbers with units, such as 30s, 15m, 2h or 7d")
}

fn interval(text: &str) -> Result<Duration, &'static str> {
    let interval = duration(text)?;
    if interval.is_zero() {
        Err("the command must wait between two scans, for 1ms at least")
    } else {
        Ok(interval)
    }
}

fn limit() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..)
}

impl FilterArgs {
    pub fn is_empty(&self) -> bool {
        self.owner.is_none() && self.is_empty_but_owner()
    }

    pub fn is_empty_but_owner(&self) -> bool {
        let Self { owner: _, status, tool, stuck, dead, older_than } = self;
        status.is_empty() && tool.is_none() && !stuck && !dead && older_than.is_none()
    }

    pub fn to_filter(&self) -> TaskFilter {
        let mut filter = TaskFilter::new();
        if let Some(owner) = self.owner.clone() {
            filter = filter.owner(owner);
        }
        for status in &self.status {
            filter = filter.status((*status).into());
        }
        if let Some(tool) = &self.tool {
            filter = filter.tool(tool);
        }
        if self.stuck {
            filter = filter.stuck();
        }
        if self.dead {
            filter = filter.dead();
        }
        if let Some(age) = self.older_than {
            filter = filter.older_than(age);
        }
        filter
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum StatusArg {
    Working,
    InputRequired,
    Completed,
    Failed,
    Cancelled,
}

impl From<StatusArg> for TaskStatus {
    fn from(status: StatusArg) -> Self {
        match status {
            StatusArg::Working => Self::Working,
            StatusArg::InputRequired => Self::InputRequired,
            StatusArg::Completed => Self::Completed,
            StatusArg::Failed => Self::Failed,
            StatusArg::Cancelled => Self::Cancelled,
        }
    }
}

#[derive(Args)]
pub struct InitArgs {
    /// Print what to set for an engine, without opening a store
    #[arg(long, value_name = "ENGINE", value_enum, conflicts_with = "url")]
    pub backend: Option<BackendArg>,
    #[command(flatten)]
    pub form: FormArgs,
}

/// An engine, and how its servers are arranged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BackendArg {
    Sqlite,
    Redis,
    RedisCluster,
    RedisSentinel,
}

#[derive(Args)]
pub struct DoctorArgs {
    /// Repair what is safe to repair
    #[arg(long)]
    pub repair: bool,
    /// Leave out the checks that read the whole store
    #[arg(long, conflicts_with = "repair")]
    pub quick: bool,
    #[command(flatten)]
    pub rate: RateArgs,
    #[command(flatten)]
    pub form: FormArgs,
}

#[derive(Args)]
pub struct OwnersArgs {
    /// How many owners to list at most
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = limit())]
    pub limit: usize,
    #[command(flatten)]
    pub form: FormArgs,
}

#[derive(Args)]
pub struct WorkersArgs {
    /// How many workers to list at most
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = limit())]
    pub limit: usize,
    #[command(flatten)]
    pub form: FormArgs,
}

#[derive(Args)]
pub struct ListArgs {
    /// How many tasks to list at most
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = limit())]
    pub limit: usize,
    #[command(flatten)]
    pub rate: RateArgs,
    #[command(flatten)]
    pub form: FormArgs,
    #[command(flatten)]
    pub filter: FilterArgs,
}

#[derive(Args)]
pub struct ShowArgs {
    #[command(flatten)]
    pub task: TaskArg,
    /// Print the stored JSON of the record as it is
    #[arg(long, conflicts_with_all = ["json", "part"])]
    pub raw: bool,
    /// Print the bytes of a part of the record: input (arguments), output (result) or checkpoint. Only payloads over 4 KiB
    /// are parts
    #[arg(long, value_name = "NAME", conflicts_with = "json", value_parser = part_name)]
    pub part: Option<PartName>,
    #[command(flatten)]
    pub form: FormArgs,
}

fn part_name(name: &str) -> Result<PartName, String> {
    PartName::try_from(name.to_owned()).map_err(|error| error.to_string())
}

#[derive(Args)]
pub struct TaskArg {
    /// The task, as OWNER:TASK, or only its id if --owner is given
    pub task: String,
    /// Owner of the task
    #[arg(long, value_name = "OWNER")]
    pub owner: Option<OwnerId>,
}

#[derive(Args)]
pub struct StatsArgs {
    #[command(flatten)]
    pub rate: RateArgs,
    #[command(flatten)]
    pub form: FormArgs,
    #[command(flatten)]
    pub filter: FilterArgs,
}

#[derive(Args)]
pub struct WatchArgs {
    /// The task to follow, as OWNER:TASK, or only its id if --owner is given; without it, all tasks that match
    pub task: Option<String>,
    /// How long to wait between two scans
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = interval)]
    pub interval: Duration,
    #[command(flatten)]
    pub rate: RateArgs,
    #[command(flatten)]
    pub form: FormArgs,
    #[command(flatten)]
    pub filter: FilterArgs,
}

/// How to change tasks: those that are named, or those that match.
#[derive(Args)]
pub struct BulkArgs {
    /// The tasks, each as OWNER:TASK, or only its id if --owner is given; without any, all tasks that match the filters
    pub tasks: Vec<String>,
    /// Change tasks that match without asking
    #[arg(long, short)]
    pub yes: bool,
    /// List the tasks, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub rate: RateArgs,
    #[command(flatten)]
    pub form: FormArgs,
    #[command(flatten)]
    pub filter: FilterArgs,
}

#[derive(Args)]
pub struct CancelArgs {
    /// End the tasks as cancelled now, also while a worker works on them. Without it, the worker of a task receives the
    /// request and decides how the task ends, and tasks without a worker end now
    #[arg(long)]
    pub now: bool,
    #[command(flatten)]
    pub bulk: BulkArgs,
}

#[derive(Args)]
pub struct RequeueArgs {
    #[command(flatten)]
    pub bulk: BulkArgs,
}

#[derive(Args)]
pub struct DeleteArgs {
    /// Also delete open tasks, and named tasks whose record cannot be read. A worker that works on a deleted task
    /// loses its result
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    pub bulk: BulkArgs,
}

#[derive(Args)]
pub struct PurgeArgs {
    /// Delete ended tasks of any age
    #[arg(long, conflicts_with = "older_than")]
    pub all_ended: bool,
    /// Delete without asking
    #[arg(long, short)]
    pub yes: bool,
    /// List the tasks, and delete nothing
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub rate: RateArgs,
    #[command(flatten)]
    pub form: FormArgs,
    #[command(flatten)]
    pub filter: FilterArgs,
}

#[derive(Args)]
pub struct AnswerArgs {
    #[command(flatten)]
    pub task: TaskArg,
    /// The answers by the keys of their questions, as JSON: '{"key": {"action": "accept", "content": {…}}}', @FILE, or -
    /// for stdin. Without it, the command asks on the terminal
    #[arg(long, value_name = "ANSWERS")]
    pub json: Option<String>,
}

#[derive(Args)]
pub struct ExportArgs {
    /// File to write; it must not exist. Without it, the command writes to stdout
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
    #[command(flatten)]
    pub rate: RateArgs,
    #[command(flatten)]
    pub filter: FilterArgs,
}

#[derive(Args)]
pub struct ImportArgs {
    /// File that export has written, or - for stdin
    pub file: PathBuf,
    /// Replace tasks that exist with other content. Without it, they stay as they are, and the command fails
    #[arg(long)]
    pub overwrite: bool,
    /// Check the file, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub form: FormArgs,
}

#[derive(Args)]
pub struct RotateArgs {
    /// Rotate only the records of this owner
    #[arg(long, value_name = "OWNER")]
    pub owner: Option<OwnerId>,
    /// Also encrypt records that are not encrypted. Use it once, to encrypt an existing store: it accepts whatever is stored
    #[arg(long)]
    pub encrypt_plain: bool,
    /// Continue at the position that an interrupted rotation has printed
    #[arg(long, value_name = "POSITION", value_parser = str::parse::<RotationPosition>, conflicts_with = "owner")]
    pub resume: Option<RotationPosition>,
    #[command(flatten)]
    pub rate: RateArgs,
    #[command(flatten)]
    pub form: FormArgs,
}

#[derive(Args)]
pub struct ServeArgs {
    /// Address and port to listen on. An address that is not a loopback address needs --token-file, --users-file or
    /// --trusted-header
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8181")]
    pub listen: SocketAddr,
    /// File with a token of 16 characters or more. A visitor enters it, or a script sends it as Authorization: Bearer TOKEN
    #[arg(long, value_name = "FILE", group = "access")]
    pub token_file: Option<PathBuf>,
    /// File with users who sign in with a password. Each line is NAME:HASH, with an argon2id hash
    #[arg(long, value_name = "FILE", group = "access")]
    pub users_file: Option<PathBuf>,
    /// Header in which a reverse proxy names the user that it has authenticated. Only the proxy may reach the address
    #[arg(long, value_name = "NAME", group = "access")]
    pub trusted_header: Option<String>,
    /// Header in which the same proxy names the only owner whose tasks the user sees. A request without it is refused
    // clap does not require an option that conflicts with another one that is given.
    #[arg(long, value_name = "NAME", requires = "trusted_header", conflicts_with_all = ["token_file", "users_file"])]
    pub owner_header: Option<String>,
    /// Let visitors cancel, requeue and delete tasks, and answer their questions. Each attempt is a line on stderr
    #[arg(long)]
    pub allow_actions: bool,
    #[command(flatten)]
    pub rate: RateArgs,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
