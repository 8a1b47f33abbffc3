//! Removes expired records. SQLite uses their space again.

use rusqlite::{Connection, params};

use super::clock::column;

/// Costs a tenth of [`DROP`], and most transactions find nothing.
const HAS_EXPIRED: &str = "SELECT 1 FROM records WHERE expires_at <= ?1 LIMIT 1";

const DROP: &str = "
    DELETE FROM records WHERE id IN (
        SELECT id FROM records WHERE expires_at <= ?1 ORDER BY expires_at LIMIT ?2)";

/// Removes at most `most` records that have expired, those that expired first. Returns how many it removed.
pub(super) fn drop_expired(connection: &Connection, now_ms: u64, most: usize) -> rusqlite::Result<usize> {
    if !connection.prepare_cached(HAS_EXPIRED)?.exists([column(now_ms)])? {
        return Ok(0);
    }
    connection.prepare_cached(DROP)?.execute(params![column(now_ms), column(most as u64)])
}
