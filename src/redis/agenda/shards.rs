//! Takes due timers from several shards.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use tokio::runtime::Handle;
use tokio::time::{Instant, timeout_at};

use super::{MAX_TAKEN_BY_SCRIPT, QueueState, ShardReply, in_order, merge};
use crate::backend::engine::on_drop;
use crate::backend::{Queue, StorageError, Taken};
use crate::printable::Chain;
use crate::redis::RedisBackend;

/// How long the other shards may take after the first reply. A server that hangs must not delay the timers of others.
const PATIENCE: Duration = Duration::from_millis(250);
/// The same limit, if none of the missing shards replied to the previous call either.
const LEAST_PATIENCE: Duration = Duration::from_millis(20);
/// The maximum delay of the next call while a shard does not reply.
const MAX_DELAY: Duration = Duration::from_secs(1);

/// The shards that did not reply to the latest call, one bit for each.
#[derive(Debug, Default)]
pub(in crate::redis) struct Outages {
    ongoing: AtomicU64,
    /// The shards that a background task waits for.
    awaited: AtomicU64,
}

impl Outages {
    fn has(&self, shard: u64) -> bool {
        self.ongoing.load(Ordering::Relaxed) & (1 << shard) != 0
    }

    fn ended(&self, shard: u64) {
        if self.ongoing.fetch_and(!(1 << shard), Ordering::Relaxed) & (1 << shard) != 0 {
            tracing::info!(shard, "a shard of timers replies again");
        }
    }

    fn began(&self, shard: u64, error: Option<&StorageError>) {
        if self.ongoing.fetch_or(1 << shard, Ordering::Relaxed) & (1 << shard) == 0 {
            let error = error.map_or_else(|| "no reply".to_owned(), |error| Chain(error).to_string());
            tracing::warn!(
                shard,
                error,
                "a shard of timers does not reply; its timers fire late until it replies"
            );
        }
    }
}

impl RedisBackend {
    /// Asks all shards which timers are due, then takes timers from the shards that have due ones. Because of these two
    /// steps, the queues keep their order across all shards, a call for one timer finds it in any shard, and the call
    /// hides only the timers that it returns.
    pub(super) async fn take_from_shards(
        &self,
        queues: &[Queue],
        limit: usize,
        hide_ms: u64,
    ) -> Result<Taken, StorageError> {
        let (mut replies, mut is_complete) = self.ask_shards(queues).await?;
        let since = Instant::now();
        let (mut due, mut failed) = (Vec::new(), Vec::new());
        for mut step in steps(shares(&replies, limit)) {
            // A shard that failed in one step is left out of the later steps, so it delays the others only once.
            step.retain(|share| !failed.contains(&share.place));
            let takes = step.into_iter().map(|Share { place, queue, count }| {
                let (shard, queue_alone) = (replies[place].shard, &queues[queue..=queue]);
                async move { (place, queue, self.take(shard, queue_alone, count, hide_ms).await) }
            });
            for (place, queue, taken) in join_all(takes).await {
                let reply = &mut replies[place];
                match taken {
                    Ok(found) => {
                        let of_queue = found.due.into_iter().map(|(_, due_at, timer)| (queue, due_at, timer));
                        merge(&mut due, of_queue.collect());
                        (reply.queues[queue], reply.server_us) = (found.queues[0], found.server_us);
                    }
                    Err(error) => {
                        self.0.outages.began(reply.shard, Some(&error));
                        failed.push(place);
                        is_complete = false;
                    }
                }
            }
        }
        let next_in = replies.iter().filter_map(ShardReply::next_in).min();
        let next_in = next_in.map(|next| next.saturating_sub(since.elapsed()));
        let next_in = if is_complete { next_in } else { Some(next_in.unwrap_or(MAX_DELAY).min(MAX_DELAY)) };
        Ok(in_order(due, next_in))
    }

    /// Returns what the shards reply about their queues, and whether all shards replied.
    ///
    /// # Errors
    /// The error of one shard, if no shard replies.
    async fn ask_shards(&self, queues: &[Queue]) -> Result<(Vec<ShardReply>, bool), StorageError> {
        let outages = &self.0.outages;
        let (mut replies, mut failed) = (Vec::new(), None);
        let mut missing: Vec<u64> = (0..self.0.schema.shards()).collect();
        let asked = missing.iter().map(|&shard| async move { (shard, self.take(shard, queues, 0, 0).await) });
        let mut asked: FuturesUnordered<_> = asked.collect();
        let mut until = None;
        loop {
            if !replies.is_empty() {
                let is_expected = missing.iter().any(|shard| !outages.has(*shard));
                let patience = Instant::now() + if is_expected { PATIENCE } else { LEAST_PATIENCE };
                until = Some(until.map_or(patience, |until: Instant| until.min(patience)));
            }
            let next = match until {
                Some(until) => timeout_at(until, asked.next()).await.unwrap_or_default(),
                None => asked.next().await,
            };
            let Some((shard, reply)) = next else { break };
            missing.retain(|other| *other != shard);
            match reply {
                Ok(reply) => {
                    outages.ended(shard);
                    replies.push(reply);
                }
                Err(error) => {
                    outages.began(shard, Some(&error));
                    failed = Some(error);
                }
            }
        }
        let is_complete = missing.is_empty() && failed.is_none();
        for shard in missing {
            outages.began(shard, None);
            // The call to the shard is dropped before its time limit, so its connection must be probed here.
            self.0.connection.timed_out(&self.0.schema.due(shard, &queues[0]));
            self.wait_in_the_background(shard, &queues[0]);
        }
        match failed {
            Some(error) if replies.is_empty() => Err(error),
            _ => Ok((replies, is_complete)),
        }
    }

    /// Waits up to the time limit of a whole call for a shard to reply. If it replies, the next taker waits for it
    /// again. Without this, takers would never again wait for a shard whose server is only slower than the others.
    fn wait_in_the_background(&self, shard: u64, queue: &Queue) {
        let Ok(runtime) = Handle::try_current() else { return };
        if self.0.outages.awaited.fetch_or(1 << shard, Ordering::Relaxed) & (1 << shard) != 0 {
            return;
        }
        let (backend, queue) = (self.clone(), queue.clone());
        // Runs when the task ends for any reason, also when its runtime shuts down.
        let ended = on_drop({
            let inner = Arc::clone(&self.0);
            move || {
                inner.outages.awaited.fetch_and(!(1 << shard), Ordering::Relaxed);
            }
        });
        runtime.spawn(async move {
            let _ended = ended;
            if backend.take(shard, &[queue], 0, 0).await.is_ok() {
                backend.0.outages.ended(shard);
            }
        });
    }
}

/// How many timers to take from one queue of one shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Share {
    /// The place of the shard's reply.
    place: usize,
    queue: usize,
    count: usize,
}

/// Divides the limit among the queues in their order. Within a queue the shards take turns, and the shard with the
/// earliest timer begins.
fn shares(replies: &[ShardReply], limit: usize) -> Vec<Share> {
    let (mut shares, mut left) = (Vec::new(), limit);
    let queues = replies.iter().map(|reply| reply.queues.len()).max().unwrap_or_default();
    for queue in 0..queues {
        let state = |place: usize| replies[place].queues.get(queue).copied();
        let mut with_due: Vec<(Share, QueueState)> = (0..replies.len())
            .filter_map(|place| {
                let due = state(place).filter(|state| state.due > 0)?;
                Some((Share { place, queue, count: 0 }, due))
            })
            .collect();
        with_due.sort_by(|(_, one), (_, other)| {
            let first = |state: &QueueState| state.first.unwrap_or(f64::INFINITY);
            first(one).total_cmp(&first(other))
        });
        let mut has_more = true;
        while left > 0 && has_more {
            has_more = false;
            for (share, state) in &mut with_due {
                if left > 0 && (share.count as u64) < state.due {
                    (share.count, left, has_more) = (share.count + 1, left - 1, true);
                }
            }
        }
        shares.extend(with_due.into_iter().map(|(share, _)| share).filter(|share| share.count > 0));
    }
    shares
}

/// Divides shares into steps. The scripts of one step together take at most [`MAX_TAKEN_BY_SCRIPT`] timers.
fn steps(shares: Vec<Share>) -> Vec<Vec<Share>> {
    let (mut steps, mut room) = (vec![Vec::new()], MAX_TAKEN_BY_SCRIPT);
    for mut share in shares {
        while share.count > 0 {
            if room == 0 {
                steps.push(Vec::new());
                room = MAX_TAKEN_BY_SCRIPT;
            }
            let count = share.count.min(room);
            steps.iter_mut().last().into_iter().for_each(|step| step.push(Share { count, ..share }));
            (share.count, room) = (share.count - count, room - count);
        }
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the reply of a shard. For each queue: when its first timer is due, and how many timers are due.
    fn shard(shard: u64, queues: &[(f64, u64)]) -> ShardReply {
        let state = |&(first, due): &(f64, u64)| QueueState { first: (due > 0).then_some(first), due };
        let queues = queues.iter().map(state).collect();
        ShardReply { shard, due: Vec::new(), count: 0, queues, server_us: 0 }
    }

    fn shared(replies: &[ShardReply], limit: usize) -> Vec<(usize, usize, usize)> {
        let shares = shares(replies, limit).into_iter();
        shares.map(|Share { place, queue, count }| (place, queue, count)).collect()
    }

    #[test]
    fn no_step_takes_more_than_32_timers_and_the_steps_together_take_all_timers() {
        let share = |place, queue, count| Share { place, queue, count };
        let all = [share(0, 0, 10), share(1, 0, 50), share(0, 1, 10), share(1, 1, 26)];
        let expected = [
            vec![share(0, 0, 10), share(1, 0, 22)],
            vec![share(1, 0, 28), share(0, 1, 4)],
            vec![share(0, 1, 6), share(1, 1, 26)],
        ];
        assert_eq!(steps(all.to_vec()), expected);
        assert_eq!(steps(Vec::new()), [vec![]]);
    }

    #[test]
    fn the_first_queue_is_emptied_in_all_shards_before_the_next_one() {
        let replies = [shard(0, &[(5.0, 2), (1.0, 9)]), shard(7, &[(6.0, 1), (1.0, 9)])];
        assert_eq!(shared(&replies, 3), [(0, 0, 2), (1, 0, 1)]);
        assert_eq!(shared(&replies, 5), [(0, 0, 2), (1, 0, 1), (0, 1, 1), (1, 1, 1)]);
    }

    #[test]
    fn a_single_timer_is_taken_from_the_shard_where_it_was_due_first() {
        let replies = [shard(0, &[(5.0, 2)]), shard(1, &[(3.0, 1)]), shard(2, &[(4.0, 7)])];
        assert_eq!(shared(&replies, 1), [(1, 0, 1)]);
        assert_eq!(shared(&replies, 0), []);
    }

    #[test]
    fn no_more_is_taken_than_the_limit_and_than_is_due() {
        let replies = [shard(0, &[(5.0, 3)]), shard(1, &[(3.0, 1000)]), shard(2, &[(3.0, 0)])];
        assert_eq!(shared(&replies, 10), [(1, 0, 7), (0, 0, 3)]);
        assert_eq!(shared(&replies[..1], 10), [(0, 0, 3)]);
        assert_eq!(shared(&[], 10), []);
    }
}
