//! Alternating rounds, and what is made of them.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::Result;

/// What the rounds of one contender gave, in the order of the rounds.
#[derive(Clone, Debug, Default)]
pub struct Samples(pub Vec<f64>);

impl Samples {
    pub fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 }
    }

    /// The least and the most.
    pub fn spread(&self) -> (f64, f64) {
        let least = self.0.iter().copied().fold(f64::INFINITY, f64::min);
        let most = self.0.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        (least, most)
    }

    /// The ratios of two contenders round by round, so that what slowed a whole round counts for both.
    pub fn over(&self, other: &Self) -> Self {
        Self(self.0.iter().zip(&other.0).map(|(ours, theirs)| ours / theirs).collect())
    }
}

/// Runs the rounds of `N` contenders, each round in another order. `run` is told whose turn it is.
pub async fn alternate<const N: usize>(
    rounds: usize,
    mut run: impl AsyncFnMut(usize) -> Result<f64>,
) -> Result<[Samples; N]> {
    let mut samples = std::array::from_fn(|_| Samples::default());
    for round in 0..rounds {
        for turn in 0..N {
            let contender = (round + turn) % N;
            samples[contender].0.push(run(contender).await?);
        }
    }
    Ok(samples)
}

/// Makes `calls` calls with `in_flight` of them under way at a time, and gives the microseconds per call.
pub async fn time<F, C>(calls: usize, in_flight: usize, call: C) -> Result<f64>
where
    C: Fn(usize) -> F + Send + Sync + 'static,
    F: Future<Output = Result<()>> + Send,
{
    let (call, next) = (Arc::new(call), Arc::new(AtomicUsize::new(0)));
    let begun = Instant::now();
    let workers: Vec<_> = (0..in_flight)
        .map(|_| {
            let (call, next) = (Arc::clone(&call), Arc::clone(&next));
            tokio::spawn(async move {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= calls {
                        return Ok::<(), anyhow::Error>(());
                    }
                    call(number).await?;
                }
            })
        })
        .collect();
    for worker in workers {
        worker.await??;
    }
    Ok(begun.elapsed().as_secs_f64() * 1e6 / calls as f64)
}
