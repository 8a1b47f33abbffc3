//! Taking from several shards as one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use tokio::runtime::Handle;
use tokio::time::{Instant, timeout_at};

use super::{Found, QueueState, TAKEN_AT_ONCE, add, in_order};
use crate::backend::engine::on_drop;
use crate::backend::{Queue, StorageError, Taken};
use crate::printable::Chain;
use crate::redis::RedisBackend;

/// How long the other shards may take once one has answered. A server that hangs must not delay the timers of others.
const PATIENCE: Duration = Duration::from_millis(250);
/// The same if only shards are missing that did not answer the last time.
const LEAST_PATIENCE: Duration = Duration::from_millis(20);
/// When to ask again at the latest while a shard does not answer.
const ASKED_EVERY: Duration = Duration::from_secs(1);

/// The shards that did not answer the last time, a bit each.
#[derive(Debug, Default)]
pub(in crate::redis) struct Outages {
    ongoing: AtomicU64,
    /// Those of them that are being waited for in the background.
    awaited: AtomicU64,
}

impl Outages {
    fn has(&self, shard: u64) -> bool {
        self.ongoing.load(Ordering::Relaxed) & (1 << shard) != 0
    }

    fn ended(&self, shard: u64) {
        if self.ongoing.fetch_and(!(1 << shard), Ordering::Relaxed) & (1 << shard) != 0 {
            tracing::info!(shard, "a shard of timers answers again");
        }
    }

    fn began(&self, shard: u64, error: Option<&StorageError>) {
        if self.ongoing.fetch_or(1 << shard, Ordering::Relaxed) & (1 << shard) == 0 {
            let error = error.map_or_else(|| "no answer".to_owned(), |error| Chain(error).to_string());
            tracing::warn!(
                shard,
                error,
                "a shard of timers does not answer; its timers are late until it does"
            );
        }
    }
}

/// How one shard stands: its number, and its queues.
type Stand = (u64, Found);

impl RedisBackend {
    /// Asks all shards what is due, then takes from those that have it. Two steps, so that the queues keep their order
    /// over all shards, one taker of one timer finds it wherever it is, and only what is taken is hidden.
    pub(super) async fn take_from_shards(
        &self,
        queues: &[Queue],
        limit: usize,
        hide_ms: u64,
    ) -> Result<Taken, StorageError> {
        let (mut stands, is_complete) = self.look_at_shards(queues).await?;
        let since = Instant::now();
        let (mut due, mut is_complete) = (Vec::new(), is_complete);
        let mut failed = Vec::new();
        for mut step in steps(shares(&stands, limit)) {
            // The others do not wait for it once more.
            step.retain(|share| !failed.contains(&share.place));
            let takes = step.into_iter().map(|Share { place, queue, count }| {
                let (shard, queue_alone) = (stands[place].0, &queues[queue..=queue]);
                async move { (place, queue, self.take(shard, queue_alone, count, hide_ms).await) }
            });
            for (place, queue, taken) in join_all(takes).await {
                let (shard, stand) = &mut stands[place];
                match taken {
                    Ok(found) => {
                        let of_queue = found.due.into_iter().map(|(_, due_at, timer)| (queue, due_at, timer));
                        add(&mut due, of_queue.collect());
                        (stand.queues[queue], stand.server_us) = (found.queues[0], found.server_us);
                    }
                    Err(error) => {
                        self.0.outages.began(*shard, Some(&error));
                        failed.push(place);
                        is_complete = false;
                    }
                }
            }
        }
        let next_in = stands.iter().filter_map(|(_, found)| found.next_in()).min();
        let next_in = next_in.map(|next| next.saturating_sub(since.elapsed()));
        let next_in =
            if is_complete { next_in } else { Some(next_in.unwrap_or(ASKED_EVERY).min(ASKED_EVERY)) };
        Ok(in_order(due, next_in))
    }

    /// How the shards stand that answer, and whether these are all.
    ///
    /// # Errors
    /// That of one shard if none answers.
    async fn look_at_shards(&self, queues: &[Queue]) -> Result<(Vec<Stand>, bool), StorageError> {
        let outages = &self.0.outages;
        let (mut stands, mut failed) = (Vec::new(), None);
        let mut missing: Vec<u64> = (0..self.0.schema.shards()).collect();
        let asked = missing.iter().map(|&shard| async move { (shard, self.take(shard, queues, 0, 0).await) });
        let mut asked: FuturesUnordered<_> = asked.collect();
        let mut until = None;
        loop {
            if !stands.is_empty() {
                let is_expected = missing.iter().any(|shard| !outages.has(*shard));
                let patience = Instant::now() + if is_expected { PATIENCE } else { LEAST_PATIENCE };
                until = Some(until.map_or(patience, |until: Instant| until.min(patience)));
            }
            let next = match until {
                Some(until) => timeout_at(until, asked.next()).await.unwrap_or_default(),
                None => asked.next().await,
            };
            let Some((shard, answer)) = next else { break };
            match answer {
                Ok(found) => {
                    missing.retain(|other| *other != shard);
                    outages.ended(shard);
                    stands.push((shard, found));
                }
                Err(error) => {
                    missing.retain(|other| *other != shard);
                    outages.began(shard, Some(&error));
                    failed = Some(error);
                }
            }
        }
        let is_complete = missing.is_empty() && failed.is_none();
        for shard in missing {
            outages.began(shard, None);
            // The call that asked is dropped before its time limit, at which a cluster looks for another master.
            self.0.connection.timed_out(&self.0.schema.due(shard, &queues[0]));
            self.wait_in_the_background(shard, &queues[0]);
        }
        match failed {
            Some(error) if stands.is_empty() => Err(error),
            _ => Ok((stands, is_complete)),
        }
    }

    /// Gives a shard the time of a whole call to answer. The next taker waits for it again if it does: one whose server
    /// is merely farther away than the others would never be in time again.
    fn wait_in_the_background(&self, shard: u64, queue: &Queue) {
        let Ok(runtime) = Handle::try_current() else { return };
        if self.0.outages.awaited.fetch_or(1 << shard, Ordering::Relaxed) & (1 << shard) != 0 {
            return;
        }
        let (backend, queue) = (self.clone(), queue.clone());
        // Whatever ends the task, and its runtime too.
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

/// How many timers to take from which of the shards, and from which queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Share {
    place: usize,
    queue: usize,
    count: usize,
}

/// Shares the limit queue by queue, and in each among the shards in turn, beginning with that whose timer was due first.
fn shares(stands: &[Stand], limit: usize) -> Vec<Share> {
    let (mut shares, mut left) = (Vec::new(), limit);
    let queues = stands.iter().map(|(_, found)| found.queues.len()).max().unwrap_or_default();
    for queue in 0..queues {
        let state = |place: usize| stands[place].1.queues.get(queue).copied();
        let mut with_due: Vec<(Share, QueueState)> = (0..stands.len())
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

/// Shares in steps of as many timers as are taken at once.
fn steps(shares: Vec<Share>) -> Vec<Vec<Share>> {
    let (mut steps, mut room) = (vec![Vec::new()], TAKEN_AT_ONCE);
    for mut share in shares {
        while share.count > 0 {
            if room == 0 {
                steps.push(Vec::new());
                room = TAKEN_AT_ONCE;
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

    /// A shard whose queues have so many due timers, the first of them at this time.
    fn shard(number: u64, queues: &[(f64, u64)]) -> Stand {
        let state = |&(first, due): &(f64, u64)| QueueState { first: (due > 0).then_some(first), due };
        (
            number,
            Found { due: Vec::new(), count: 0, queues: queues.iter().map(state).collect(), server_us: 0 },
        )
    }

    fn shared(stands: &[Stand], limit: usize) -> Vec<(usize, usize, usize)> {
        let shares = shares(stands, limit).into_iter();
        shares.map(|Share { place, queue, count }| (place, queue, count)).collect()
    }

    #[test]
    fn no_step_takes_more_than_32_timers_and_all_steps_take_all() {
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
        let stands = [shard(0, &[(5.0, 2), (1.0, 9)]), shard(7, &[(6.0, 1), (1.0, 9)])];
        assert_eq!(shared(&stands, 3), [(0, 0, 2), (1, 0, 1)]);
        assert_eq!(shared(&stands, 5), [(0, 0, 2), (1, 0, 1), (0, 1, 1), (1, 1, 1)]);
    }

    #[test]
    fn a_single_timer_is_taken_from_the_shard_where_it_was_due_first() {
        let stands = [shard(0, &[(5.0, 2)]), shard(1, &[(3.0, 1)]), shard(2, &[(4.0, 7)])];
        assert_eq!(shared(&stands, 1), [(1, 0, 1)]);
        assert_eq!(shared(&stands, 0), []);
    }

    #[test]
    fn no_more_is_taken_than_the_limit_and_than_is_due() {
        let stands = [shard(0, &[(5.0, 3)]), shard(1, &[(3.0, 1000)]), shard(2, &[(3.0, 0)])];
        assert_eq!(shared(&stands, 10), [(1, 0, 7), (0, 0, 3)]);
        assert_eq!(shared(&stands[..1], 10), [(0, 0, 3)]);
        assert_eq!(shared(&[], 10), []);
    }
}
