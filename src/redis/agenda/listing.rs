//! Pages of owners and of timers, for operators.

use std::pin::pin;

use futures_util::future::try_join_all;
use redis::Value;
use tracing::Span;

use crate::backend::engine::{MAX_TAKEN, from_millis};
use crate::backend::{Cursor, OwnerPage, Queue, StorageError, TaskKey, Timer, TimerPage};
use crate::redis::RedisBackend;
use crate::redis::connection::MasterOfSlots;
use crate::scripts::{UnexpectedReply, integer, score};
use crate::spans::engine_span;

/// How many keys one `SCAN` reads.
const SCAN_COUNT: usize = 1000;
/// How many `SCAN`s one page sends at most while it finds no owner.
const MAX_SCANS: usize = 4;

/// A position in a sorted set: the score and the member, because several members may have the same score.
pub(in crate::redis) type Position = (f64, Vec<u8>);

fn malformed() -> StorageError {
    StorageError::InvalidPage { reason: "the cursor is malformed".to_owned() }
}

impl RedisBackend {
    pub(super) async fn owners_page(&self, after: Option<&Cursor>) -> Result<OwnerPage, StorageError> {
        let (keys, next) =
            self.scan(engine_span!("owners"), &self.0.schema.every_idx(), "zset", after).await?;
        let mut owners: Vec<_> = keys.iter().filter_map(|key| self.0.schema.owner_of_idx(key)).collect();
        owners.sort();
        Ok(OwnerPage::new(owners, next))
    }

    /// Returns keys of all masters that match a pattern and have this type, each once, and the cursor of the next page.
    pub(in crate::redis) async fn scan(
        &self,
        span: Span,
        pattern: &str,
        kind: &str,
        after: Option<&Cursor>,
    ) -> Result<(Vec<Vec<u8>>, Option<Cursor>), StorageError> {
        let after = after.map(scan_position).transpose()?;
        let context = self.reads("");
        let pages = pin!(async {
            let masters = self.0.connection.masters().await;
            let masters = masters.map_err(|failure| context.storage_error(failure))?;
            let (masters, mut cursor) = left_to_scan(masters, after);
            let mut masters = masters.into_iter().peekable();
            let mut found = Vec::new();
            for _ in 0..MAX_SCANS {
                let Some(master) = masters.peek() else { break };
                let mut scan = redis::cmd("SCAN");
                scan.arg(cursor).arg("MATCH").arg(pattern);
                scan.arg("COUNT").arg(SCAN_COUNT).arg("TYPE").arg(kind);
                let reply = self.0.connection.send_to_master(master, &scan).await;
                let reply = reply.map_err(|failure| context.storage_error(failure))?;
                let (next, keys) = scanned(reply).ok_or_else(|| context.unexpected(UnexpectedReply))?;
                found.extend(keys);
                cursor = next;
                if cursor == 0 {
                    masters.next();
                }
                if !found.is_empty() {
                    break;
                }
            }
            // A scan may return a key twice.
            found.sort_unstable();
            found.dedup();
            let next = masters.peek().map(|master| {
                let MasterOfSlots { slot, host, port } = master;
                Cursor::from(format!("{cursor}.{slot}.{port}.{host}"))
            });
            Ok((found, next))
        });
        self.limited(span, &context, pages).await
    }

    pub(super) async fn timers_page(
        &self,
        queue: &Queue,
        after: Option<&Cursor>,
    ) -> Result<TimerPage, StorageError> {
        let after = after.map(position).transpose()?;
        let keys: Vec<String> =
            (0..self.0.schema.shards()).map(|shard| self.0.schema.due(shard, queue)).collect();
        let context = self.reads(&keys[0]);
        let pages = pin!(async {
            let shards = keys.iter().map(|key| self.members_after(key, after.as_ref()));
            let (mut listed, mut total) = (Vec::new(), 0);
            for (members, count) in try_join_all(shards).await? {
                listed.extend(members);
                total += count;
            }
            listed.sort_by(|(score, member), (other, other_member)| {
                score.total_cmp(other).then_with(|| member.cmp(other_member))
            });
            let has_more = listed.len() > MAX_TAKEN;
            listed.truncate(MAX_TAKEN);
            let next = listed.last().filter(|_| has_more).map(cursor_behind);
            let timers = listed.into_iter().filter_map(|(score, member)| {
                let key: TaskKey = std::str::from_utf8(&member).ok()?.parse().ok()?;
                Some(Timer::new(key, from_millis(score.max(0.0) as u64)))
            });
            Ok(TimerPage::new(timers.collect(), total, next))
        });
        self.limited(engine_span!("timers", queue = %queue.printable()), &context, pages).await
    }

    /// Returns the members of a sorted set after this position, one more than a page holds, and the number of all members.
    pub(in crate::redis) async fn members_after(
        &self,
        key: &str,
        after: Option<&Position>,
    ) -> Result<(Vec<Position>, u64), StorageError> {
        let context = self.reads(key);
        let count = self.send(redis::cmd("ZCARD").arg(key), &context).await?;
        let total = integer(&count).ok_or_else(|| context.unexpected(UnexpectedReply))?;
        let from = after.map_or("-inf".to_owned(), |(score, _)| score.to_string());
        let (mut members, mut passed) = (Vec::new(), 0);
        while members.len() <= MAX_TAKEN {
            let mut range = redis::cmd("ZRANGE");
            range.arg(key).arg(&from).arg("+inf").arg("BYSCORE");
            range.arg("LIMIT").arg(passed).arg(MAX_TAKEN + 1).arg("WITHSCORES");
            let page = self.send(&range, &context).await?;
            let page = with_scores(page).ok_or_else(|| context.unexpected(UnexpectedReply))?;
            let count = page.len();
            let is_behind = |(score, member): &Position| {
                after.is_none_or(|(last, last_member)| {
                    score.total_cmp(last).then_with(|| member.cmp(last_member)).is_gt()
                })
            };
            members.extend(page.into_iter().filter(is_behind));
            passed += count;
            if count <= MAX_TAKEN {
                break;
            }
        }
        Ok((members, total))
    }
}

/// Returns the masters that the scan has not finished, and the cursor at the first of them.
fn left_to_scan(
    mut masters: Vec<MasterOfSlots>,
    after: Option<(MasterOfSlots, u64)>,
) -> (Vec<MasterOfSlots>, u64) {
    let (from, cursor) = after.unwrap_or_default();
    let begun = masters.iter().rposition(|master| master.slot <= from.slot).unwrap_or(0);
    masters.drain(..begun);
    // A cursor is valid only at the server that returned it.
    let is_same = masters.first() == Some(&from);
    (masters, if is_same { cursor } else { 0 })
}

/// Reads a reply to `SCAN`: the next cursor, and keys.
fn scanned(reply: Value) -> Option<(u64, Vec<Vec<u8>>)> {
    let Value::Array(parts) = reply else { return None };
    let [cursor, keys] = <[Value; 2]>::try_from(parts).ok()?;
    Some((integer(&cursor)?, redis::from_redis_value(keys).ok()?))
}

/// Reads members and their scores: one after the other in RESP2, in pairs in RESP3.
fn with_scores(reply: Value) -> Option<Vec<Position>> {
    let Value::Array(values) = reply else { return None };
    let mut values = values.into_iter();
    let mut members = Vec::with_capacity(values.len());
    while let Some(value) = values.next() {
        let (member, score) = match value {
            Value::Array(pair) => <[Value; 2]>::try_from(pair).ok()?.into(),
            member => (member, values.next()?),
        };
        let Value::BulkString(member) = member else { return None };
        let score = match score {
            Value::Double(score) => score,
            Value::BulkString(text) => self::score(std::str::from_utf8(&text).ok()?)?,
            _ => return None,
        };
        members.push((score, member));
    }
    Some(members)
}

/// Reads the cursor of a scan over all masters: the current master, and the cursor there.
fn scan_position(cursor: &Cursor) -> Result<(MasterOfSlots, u64), StorageError> {
    let mut fields = cursor.as_str().splitn(4, '.');
    let mut field = || fields.next().ok_or_else(malformed);
    let (cursor, slot, port) = (field()?, field()?, field()?);
    let host = field()?.to_owned();
    let slot = slot.parse().map_err(|_| malformed())?;
    let port = port.parse().map_err(|_| malformed())?;
    Ok((MasterOfSlots { slot, host, port }, cursor.parse().map_err(|_| malformed())?))
}

pub(in crate::redis) fn cursor_behind((score, member): &Position) -> Cursor {
    let mut text = format!("{score}:");
    for byte in member {
        text.push_str(&format!("{byte:02x}"));
    }
    Cursor::from(text)
}

pub(in crate::redis) fn position(cursor: &Cursor) -> Result<Position, StorageError> {
    let (text, member) = cursor.as_str().split_once(':').ok_or_else(malformed)?;
    let digits = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    let member: Option<Vec<u8>> = member.as_bytes().chunks(2).map(digits).collect();
    let position = (score(text).ok_or_else(malformed)?, member.ok_or_else(malformed)?);
    // Each position has exactly one text.
    if cursor_behind(&position) == *cursor { Ok(position) } else { Err(malformed()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case::plain((1_795_000_000_000.25, b"alice:t1".to_vec()))]
    #[case::no_text((0.0, vec![0, 255]))]
    #[case::negative((-7.5, b"a:b".to_vec()))]
    #[case::infinite((f64::NEG_INFINITY, b"a:b".to_vec()))]
    fn a_cursor_of_timers_contains_its_position(#[case] place: Position) {
        assert_eq!(position(&cursor_behind(&place)).unwrap(), place);
    }

    #[rstest]
    #[case::empty("")]
    #[case::no_member("1795000000000")]
    #[case::no_number("soon:61")]
    #[case::not_a_number("NaN:61")]
    #[case::odd("1:616")]
    #[case::no_digits("1:6z")]
    #[case::signed("1:+1")]
    #[case::another_text("1.0:61")]
    fn a_malformed_cursor_of_timers_is_refused(#[case] text: &str) {
        assert!(matches!(position(&text.into()), Err(StorageError::InvalidPage { .. })));
    }

    #[rstest]
    #[case::empty("")]
    #[case::no_slot("17")]
    #[case::no_host("17.0.6379")]
    #[case::no_number("x.0.6379.localhost")]
    #[case::slot_too_large("17.65536.6379.localhost")]
    #[case::negative("-1.0.6379.localhost")]
    fn a_malformed_cursor_of_owners_is_refused(#[case] text: &str) {
        assert!(matches!(scan_position(&text.into()), Err(StorageError::InvalidPage { .. })));
    }

    #[test]
    fn a_scan_continues_at_its_cursor_and_begins_again_on_a_server_that_took_over() {
        let master = |slot, port| MasterOfSlots { slot, host: "redis".to_owned(), port };
        let all = [master(0, 1), master(5461, 2), master(10923, 3)];
        assert_eq!(left_to_scan(all.to_vec(), None), (all.to_vec(), 0));
        let from = |master| left_to_scan(all.to_vec(), Some((master, 17)));
        assert_eq!(from(master(5461, 2)), (all[1..].to_vec(), 17));
        assert_eq!(from(master(5461, 9)), (all[1..].to_vec(), 0));
        assert_eq!(from(master(10923, 3)), (all[2..].to_vec(), 17));
        let alone = vec![MasterOfSlots::default()];
        assert_eq!(left_to_scan(alone.clone(), Some((alone[0].clone(), 17))), (alone, 17));
    }

    #[test]
    fn a_cursor_of_owners_holds_the_master_and_the_cursor_of_its_scan() {
        let (master, cursor) = scan_position(&"17.5461.6379.redis-1.internal".into()).unwrap();
        assert_eq!((master.slot, master.port, master.host.as_str()), (5461, 6379, "redis-1.internal"));
        assert_eq!(cursor, 17);
    }
}
