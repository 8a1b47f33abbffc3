//! Rounds in which the contenders alternate, and their statistics.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::Result;

/// The figures of one contender, in the order of the rounds.
#[derive(Clone, Debug, Default)]
pub struct Samples(pub Vec<f64>);

impl Samples {
    pub fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// Returns the lower and the upper quartile.
    pub fn quartiles(&self) -> [f64; 2] {
        [self.quantile(0.25), self.quantile(0.75)]
    }

    /// Returns the figure that this share of the figures does not exceed. Between two figures it interpolates.
    fn quantile(&self, share: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let at = share * (sorted.len() - 1) as f64;
        let (below, above) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
        below + (above - below) * at.fract()
    }

    /// Returns the ratios of two contenders round by round, so that a slow round counts for both.
    pub fn over(&self, other: &Self) -> Self {
        self.with(other, |ours, theirs| ours / theirs)
    }

    /// Returns the sums round by round.
    pub fn plus(&self, other: &Self) -> Self {
        self.with(other, |ours, theirs| ours + theirs)
    }

    /// Returns the differences round by round.
    pub fn minus(&self, other: &Self) -> Self {
        self.with(other, |ours, theirs| ours - theirs)
    }

    fn with(&self, other: &Self, combine: impl Fn(f64, f64) -> f64) -> Self {
        Self(self.0.iter().zip(&other.0).map(|(ours, theirs)| combine(*ours, *theirs)).collect())
    }
}

/// Runs `N` contenders in rounds, in a different order each round. Returns `M` figures of each. `run` receives the number of the
/// contender.
pub async fn alternate_all<const N: usize, const M: usize>(
    rounds: usize,
    mut run: impl AsyncFnMut(usize) -> Result<[f64; M]>,
) -> Result<[[Samples; N]; M]> {
    let mut samples: [[Samples; N]; M] = std::array::from_fn(|_| std::array::from_fn(|_| Samples::default()));
    for round in 0..rounds {
        for turn in 0..N {
            let contender = (round + turn) % N;
            for (samples, figure) in samples.iter_mut().zip(run(contender).await?) {
                samples[contender].0.push(figure);
            }
        }
    }
    Ok(samples)
}

/// Does the same for one figure.
pub async fn alternate<const N: usize>(
    rounds: usize,
    mut run: impl AsyncFnMut(usize) -> Result<f64>,
) -> Result<[Samples; N]> {
    let [samples] = alternate_all(rounds, async |turn| Ok([run(turn).await?])).await?;
    Ok(samples)
}

/// The numbers of the remaining calls. Workers take them one by one.
pub struct Numbers {
    next: Arc<AtomicUsize>,
    end: usize,
}

impl Iterator for Numbers {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        (number < self.end).then_some(number)
    }
}

/// Makes `calls` calls, `in_flight` at a time, and returns the microseconds per call. A `worker` makes one call after the
/// other until there are no numbers left. It clones what it needs once, before its first call.
pub async fn time<F>(calls: usize, in_flight: usize, worker: impl Fn(Numbers) -> F) -> Result<f64>
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    time_each(calls, in_flight, |_, numbers| worker(numbers)).await
}

/// Does the same. `worker` also receives its own number.
pub async fn time_each<F>(calls: usize, in_flight: usize, worker: impl Fn(usize, Numbers) -> F) -> Result<f64>
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    let next = Arc::new(AtomicUsize::new(0));
    let numbers = || Numbers { next: Arc::clone(&next), end: calls };
    let begun = Instant::now();
    let workers: Vec<_> = (0..in_flight).map(|slot| tokio::spawn(worker(slot, numbers()))).collect();
    for worker in workers {
        worker.await??;
    }
    Ok(begun.elapsed().as_secs_f64() * 1e6 / calls as f64)
}
