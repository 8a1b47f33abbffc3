//! Removes expired records. SQLite uses their space again.

use rusqlite::{Connection, params};

use super::clock::column;

const DROP: &str = "
    DELETE FROM records WHERE id IN (
        SELECT id FROM records WHERE expires_at <= ?1 ORDER BY expires_at LIMIT ?2)";

/// Removes at most `most` records that have expired, those that expired first. Returns how many it removed.
pub(super) fn drop_expired(connection: &Connection, now_ms: u64, most: usize) -> rusqlite::Result<usize> {
    connection.prepare_cached(DROP)?.execute(params![column(now_ms), column(most as u64)])
}
