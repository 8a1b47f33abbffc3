//! Timers of tasks.

use std::time::Duration;

use rusqlite::{Connection, params};

use super::clock::{column, now_ms};
use super::error::Failure;
use super::transaction::Transaction;
use crate::backend::engine::{MAX_TAKEN, from_millis, timer_cursor, timer_position};
use crate::backend::{Cursor, Due, Queue, Taken, TaskKey, Timer, TimerPage};

const SCHEDULE: &str = "
    INSERT INTO timers (queue, owner, task, due_at, token) VALUES (?1, ?2, ?3, ?4, random())
    ON CONFLICT DO UPDATE SET due_at = min(due_at, excluded.due_at), token = excluded.token";

const FIRST: &str = "SELECT min(due_at) FROM timers WHERE queue = ?1";

const DUE: &str = "
    SELECT owner, task FROM timers WHERE queue = ?1 AND due_at <= ?2
    ORDER BY due_at, owner, task LIMIT ?3";

const HIDE: &str = "
    UPDATE timers SET due_at = ?4, token = random() WHERE queue = ?1 AND owner = ?2 AND task = ?3
    RETURNING token";

const MOVE: &str = "
    UPDATE timers SET due_at = ?5, token = random()
    WHERE queue = ?1 AND owner = ?2 AND task = ?3 AND token = ?4";

const REMOVE: &str = "DELETE FROM timers WHERE queue = ?1 AND owner = ?2 AND task = ?3 AND token = ?4";

const LIST: &str = "
    SELECT owner, task, due_at FROM timers
    WHERE queue = ?1 AND (due_at, owner, task) > (?2, ?3, ?4)
    ORDER BY due_at, owner, task LIMIT ?5";

const COUNT: &str = "SELECT count(*) FROM timers WHERE queue = ?1";

/// Returns when the earliest timer of a queue fires, in milliseconds since the epoch.
pub(super) fn first(connection: &Connection, queue: &Queue) -> rusqlite::Result<Option<u64>> {
    let mut first = connection.prepare_cached(FIRST)?;
    let at: Option<i64> = first.query_row([queue.as_str()], |row| row.get(0))?;
    Ok(at.map(|at| u64::try_from(at).unwrap_or(0)))
}

/// Tells the subscribers of a queue when its earliest timer fires.
fn moved(transaction: &mut Transaction<'_>, queue: &Queue) -> rusqlite::Result<()> {
    if transaction.needs_first(queue) {
        let first = first(transaction.connection, queue)?;
        transaction.moved_timers(queue, first);
    }
    Ok(())
}

/// Lets a timer fire at `due_at_ms`, in milliseconds since the epoch, unless it fires earlier.
pub(super) fn schedule(
    transaction: &mut Transaction<'_>,
    queue: &Queue,
    key: &TaskKey,
    due_at_ms: u64,
) -> Result<(), Failure> {
    let due_at = column(due_at_ms);
    let mut schedule = transaction.connection.prepare_cached(SCHEDULE)?;
    schedule.execute(params![queue.as_str(), key.owner.as_str(), key.task.as_str(), due_at])?;
    drop(schedule);
    Ok(moved(transaction, queue)?)
}

pub(super) fn take_due(
    transaction: &mut Transaction<'_>,
    queues: &[Queue],
    limit: usize,
    hide_ms: u64,
) -> Result<Taken, Failure> {
    let (now_ms, limit) = (now_ms(), limit.min(MAX_TAKEN));
    let (mut taken, mut next): (Vec<Due>, Option<u64>) = (Vec::new(), None);
    for queue in queues {
        take(transaction.connection, queue, limit, now_ms, hide_ms, &mut taken)?;
        let first = first(transaction.connection, queue)?;
        transaction.moved_timers(queue, first);
        next = [next, first].into_iter().flatten().min();
    }
    let next_in = next.map(|at| Duration::from_millis(at.saturating_sub(now_ms)));
    Ok(Taken::new(taken, next_in))
}

/// Takes the due timers of one queue, until there are `limit` timers of all queues.
fn take(
    connection: &Connection,
    queue: &Queue,
    limit: usize,
    now_ms: u64,
    hide_ms: u64,
    taken: &mut Vec<Due>,
) -> Result<(), Failure> {
    let left = column((limit - taken.len()) as u64);
    let mut due = connection.prepare_cached(DUE)?;
    let found =
        due.query_map(params![queue.as_str(), column(now_ms), left], |row| Ok((row.get(0)?, row.get(1)?)))?;
    // All due timers, before the first one moves: it may be due again at once.
    let found: Vec<(String, String)> = found.collect::<rusqlite::Result<_>>()?;
    let mut hide = connection.prepare_cached(HIDE)?;
    for (owner, task) in found {
        let hidden = params![queue.as_str(), owner, task, column(now_ms + hide_ms)];
        let token: i64 = hide.query_row(hidden, |row| row.get(0))?;
        match TaskKey::new(&owner, &task) {
            Ok(key) => taken.push(Due::new(queue.clone(), key, token.to_string())),
            // This crate did not write the timer, and it would be due again and again.
            Err(_) => {
                let mut remove = connection.prepare_cached(REMOVE)?;
                remove.execute(params![queue.as_str(), owner, task, token])?;
                tracing::warn!(queue = %queue.printable(), "removed a timer that belongs to no task");
            }
        }
    }
    Ok(())
}

/// Moves a timer to `after_ms` from now, or removes it. Returns whether its token is valid.
pub(super) fn resolve(
    transaction: &mut Transaction<'_>,
    due: &Due,
    after_ms: Option<u64>,
) -> Result<bool, Failure> {
    let Due { queue, key, token, .. } = due;
    let valid = token.parse::<i64>().ok().filter(|number| number.to_string() == *token);
    let Some(token) = valid else { return Ok(false) };
    let (name, owner, task) = (queue.as_str(), key.owner.as_str(), key.task.as_str());
    let changed = match after_ms {
        Some(after_ms) => {
            let due_at = column(now_ms() + after_ms);
            transaction.connection.prepare_cached(MOVE)?.execute(params![name, owner, task, token, due_at])?
        }
        None => transaction.connection.prepare_cached(REMOVE)?.execute(params![name, owner, task, token])?,
    };
    if changed > 0 {
        moved(transaction, queue)?;
    }
    Ok(changed > 0)
}

pub(super) fn list(
    connection: &Connection,
    queue: &Queue,
    after: Option<&Cursor>,
) -> Result<TimerPage, Failure> {
    let after = after.map(timer_position).transpose()?;
    let (at, owner, task) = match &after {
        Some((at, key)) => (column(*at), key.owner.as_str(), key.task.as_str()),
        None => (-1, "", ""),
    };
    let mut list = connection.prepare_cached(LIST)?;
    let most = column(MAX_TAKEN as u64 + 1);
    let mut rows = list.query(params![queue.as_str(), at, owner, task, most])?;
    let mut timers = Vec::new();
    while let Some(row) = rows.next()? {
        let Ok(key) = TaskKey::new(&row.get::<_, String>(0)?, &row.get::<_, String>(1)?) else { continue };
        let due_at = u64::try_from(row.get::<_, i64>(2)?).unwrap_or(0);
        timers.push(Timer::new(key, from_millis(due_at)));
    }
    let has_more = timers.len() > MAX_TAKEN;
    timers.truncate(MAX_TAKEN);
    let next = timers.last().filter(|_| has_more).map(timer_cursor);
    let mut count = connection.prepare_cached(COUNT)?;
    let total: i64 = count.query_row([queue.as_str()], |row| row.get(0))?;
    Ok(TimerPage::new(timers, total.unsigned_abs(), next))
}
