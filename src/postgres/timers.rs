//! Timers of tasks.

use std::time::Duration;

use tokio_postgres::Row;

use super::database::{Access, Database};
use super::error::Failed;
use super::group_commit::Batched;
use super::puts::in_order;
use super::rows::{column, signed, unsigned};
use crate::backend::engine::{MAX_TAKEN, from_millis, timer_cursor, timer_position};
use crate::backend::key::{escape, unescape};
use crate::backend::{Cursor, Due, Queue, StorageError, Taken, TaskKey, Timer, TimerPage};
use crate::spans::engine_span;

/// Lets a timer fire in so many milliseconds, unless it fires earlier.
pub(super) struct Schedule {
    pub(super) queue: Queue,
    pub(super) key: TaskKey,
    pub(super) after_ms: u64,
}

fn row(queue: &Queue, key: &TaskKey) -> String {
    format!("{key} {queue}")
}

impl Batched for Schedule {
    type Reply = ();

    fn row(&self) -> String {
        row(&self.queue, &self.key)
    }

    fn bytes(&self) -> usize {
        0
    }

    async fn send(writes: &[Self], database: &Database) -> Result<Vec<Result<(), StorageError>>, Failed> {
        let queues: Vec<_> = writes.iter().map(|write| escape(write.queue.as_str())).collect();
        let owners: Vec<_> = writes.iter().map(|write| escape(write.key.owner.as_str())).collect();
        let tasks: Vec<_> = writes.iter().map(|write| escape(write.key.task.as_str())).collect();
        let delays: Vec<_> = writes.iter().map(|write| signed(write.after_ms)).collect();
        let statement = &database.statements.schedule;
        database.run(statement, &[&queues, &owners, &tasks, &delays], Access::Writes).await?;
        Ok(writes.iter().map(|_| Ok(())).collect())
    }
}

/// Moves a timer, or removes it, if its token is valid.
pub(super) struct Resolve {
    pub(super) due: Due,
    pub(super) token: i64,
    pub(super) after_ms: Option<u64>,
}

impl Batched for Resolve {
    /// Whether the token was valid.
    type Reply = bool;

    fn row(&self) -> String {
        row(&self.due.queue, &self.due.key)
    }

    fn bytes(&self) -> usize {
        0
    }

    async fn send(writes: &[Self], database: &Database) -> Result<Vec<Result<bool, StorageError>>, Failed> {
        let queues: Vec<_> = writes.iter().map(|write| escape(write.due.queue.as_str())).collect();
        let owners: Vec<_> = writes.iter().map(|write| escape(write.due.key.owner.as_str())).collect();
        let tasks: Vec<_> = writes.iter().map(|write| escape(write.due.key.task.as_str())).collect();
        let tokens: Vec<_> = writes.iter().map(|write| write.token).collect();
        let delays: Vec<_> = writes.iter().map(|write| write.after_ms.map(signed)).collect();
        let statement = &database.statements.resolve;
        let rows =
            database.run(statement, &[&queues, &owners, &tasks, &tokens, &delays], Access::Writes).await?;
        in_order(&rows, writes, |_, row| Ok(Ok(row.try_get("is_valid")?)))
    }
}

/// Returns the number of a token; `None` for a token that the engine never returned.
pub(super) fn token(due: &Due) -> Option<i64> {
    due.token.parse::<i64>().ok().filter(|number| number.to_string() == due.token)
}

/// Reads what `take_due` returned. The last row states when the next timer is due.
pub(super) fn taken(database: &Database, rows: &[Row]) -> Result<Taken, StorageError> {
    let (mut due, mut next_in) = (Vec::new(), None);
    for row in rows {
        let Some(queue) = column::<Option<&str>>(database, row, "queue")? else {
            let now_ms = unsigned(column(database, row, "now_us")?) / 1000;
            let next_due: Option<i64> = column(database, row, "next_due")?;
            next_in = next_due.map(|at| Duration::from_millis(unsigned(at).saturating_sub(now_ms)));
            continue;
        };
        let (owner, task): (&str, &str) = (column(database, row, "owner")?, column(database, row, "task")?);
        let token: i64 = column(database, row, "token")?;
        let queue = unescape(queue).and_then(|queue| Queue::try_from(queue.as_str()).ok());
        match (queue, key(owner, task)) {
            (Some(queue), Some(key)) => due.push(Due::new(queue, key, token.to_string())),
            // This crate writes no other ids.
            _ => tracing::warn!(
                "a timer belongs to no task; delete it by hand: owner {owner:?}, task {task:?}"
            ),
        }
    }
    Ok(Taken::new(due, next_in))
}

pub(super) async fn list(
    database: &Database,
    queue: &Queue,
    after: Option<&Cursor>,
) -> Result<TimerPage, StorageError> {
    let span = engine_span!("timers", queue = %queue.printable());
    let after = after.map(timer_position).transpose()?;
    let (at, owner, task) = match &after {
        Some((at, key)) => (signed(*at), escape(key.owner.as_str()), escape(key.task.as_str())),
        None => (-1, "".into(), "".into()),
    };
    let (queue, most) = (escape(queue.as_str()), signed(MAX_TAKEN as u64 + 1));
    let statement = &database.statements.timers;
    let rows = database.call(span, statement, &[&queue, &at, &owner, &task, &most], Access::Reads).await?;
    let (mut timers, mut total) = (Vec::new(), 0);
    for row in &rows {
        let (owner, task): (&str, &str) = (column(database, row, "owner")?, column(database, row, "task")?);
        total = unsigned(column(database, row, "count")?);
        let due_at = unsigned(column(database, row, "due_at")?);
        if let Some(key) = key(owner, task) {
            timers.push(Timer::new(key, from_millis(due_at)));
        }
    }
    let has_more = timers.len() > MAX_TAKEN;
    timers.truncate(MAX_TAKEN);
    let next = timers.last().filter(|_| has_more).map(timer_cursor);
    Ok(TimerPage::new(timers, total, next))
}

fn key(owner: &str, task: &str) -> Option<TaskKey> {
    TaskKey::new(&unescape(owner)?, &unescape(task)?).ok()
}
