//! One line of the table, and its targets.

use serde::{Deserialize, Serialize};

use crate::format::short;
use crate::rounds::Samples;

/// How far the worse quartile may miss a target that the median reaches.
const TOLERANCE: f64 = 0.1;

#[derive(Serialize, Deserialize)]
pub struct Row {
    pub work: String,
    pub ours: String,
    pub peer: String,
    pub bare: String,
    pub compared: Vec<String>,
    /// Whether the row reaches all of its targets; `None` for a row without a target.
    pub reached: Option<bool>,
    /// Whether the figures vary more between the rounds than their distance to the target.
    pub is_noisy: bool,
    /// The throughput divided by that of the peer. Only rows that the README shows have it.
    pub headline: Option<f64>,
    /// Why the row misses a target, if it does.
    reason: Option<String>,
}

/// The target of a figure.
#[derive(Clone, Copy)]
pub enum Target {
    AtLeast(f64),
    AtMost(f64),
}

impl Target {
    /// A row is reached when the median reaches the target and the worse quartile misses it by at most 10 %.
    fn is_reached(self, median: f64, [lower, upper]: [f64; 2]) -> bool {
        match self {
            Self::AtLeast(least) => median >= least && lower >= least * (1.0 - TOLERANCE),
            Self::AtMost(most) => median <= most && upper <= most * (1.0 + TOLERANCE),
        }
    }

    fn limit(self) -> f64 {
        let (Self::AtLeast(limit) | Self::AtMost(limit)) = self;
        limit
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AtLeast(least) => write!(f, "at least {least}"),
            Self::AtMost(most) => write!(f, "at most {most}"),
        }
    }
}

impl Row {
    pub fn new(work: impl Into<String>) -> Self {
        let none = String::new;
        Self {
            work: work.into(),
            ours: none(),
            peer: none(),
            bare: none(),
            compared: Vec::new(),
            reached: None,
            is_noisy: false,
            headline: None,
            reason: None,
        }
    }

    pub fn ours(mut self, figure: impl ToString) -> Self {
        self.ours = figure.to_string();
        self
    }

    pub fn peer(mut self, figure: impl ToString) -> Self {
        self.peer = figure.to_string();
        self
    }

    pub fn bare(mut self, figure: impl ToString) -> Self {
        self.bare = figure.to_string();
        self
    }

    /// Shows the row in the README, with its throughput divided by that of the peer.
    pub fn headline(mut self, ratios: &Samples) -> Self {
        self.headline = Some(ratios.median());
        self
    }

    pub fn remark(mut self, text: impl Into<String>) -> Self {
        self.compared.push(text.into());
        self
    }

    /// Says why the row misses a target. The table shows it only if the row does.
    pub fn reason(mut self, text: impl Into<String>) -> Self {
        self.reason = Some(text.into());
        self
    }

    /// Returns the reason, if the row misses a target.
    pub fn missed_because(&self) -> Option<&str> {
        self.reason.as_deref().filter(|_| self.reached == Some(false))
    }

    /// Adds the median of a ratio over the rounds, with its quartiles and its target.
    pub fn ratio(self, what: &str, ratios: &Samples, target: impl Into<Option<Target>>) -> Self {
        let (median, quartiles) = (ratios.median(), ratios.quartiles());
        let text = format!("{} x {what} ({} to {})", short(median), short(quartiles[0]), short(quartiles[1]));
        self.judge(&text, median, quartiles, target.into())
    }

    /// Adds a figure that was measured once, with its target.
    pub fn figure(self, text: &str, figure: f64, target: impl Into<Option<Target>>) -> Self {
        self.judge(text, figure, [figure; 2], target.into())
    }

    fn judge(mut self, text: &str, median: f64, quartiles: [f64; 2], target: Option<Target>) -> Self {
        let Some(target) = target else {
            self.compared.push(text.to_owned());
            return self;
        };
        let is_reached = target.is_reached(median, quartiles);
        let is_noisy = quartiles[1] - quartiles[0] > (median - target.limit()).abs();
        self.reached = Some(is_reached && self.reached.unwrap_or(true));
        self.is_noisy |= is_noisy;
        let verdict = if is_reached { "target" } else { "**misses** the target" };
        let noise = if is_noisy { "; the noise is larger than the margin" } else { "" };
        self.compared.push(format!("{text}; {verdict}: {target}{noise}"));
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(ratios: &[f64], target: Target) -> Row {
        Row::new("work").ratio("the peer", &Samples(ratios.to_vec()), target)
    }

    #[test]
    fn a_row_is_reached_when_its_median_is_and_the_worse_quartile_misses_by_at_most_a_tenth() {
        let least = Target::AtLeast(1.0);
        assert_eq!(judged(&[0.7, 0.92, 1.1, 1.2, 1.3], least).reached, Some(true));
        assert_eq!(judged(&[0.7, 0.88, 1.1, 1.2, 1.3], least).reached, Some(false));
        assert_eq!(judged(&[0.9, 0.95, 0.99, 1.2, 1.3], least).reached, Some(false));
        let most = Target::AtMost(1.0);
        assert_eq!(judged(&[0.7, 0.8, 0.9, 1.08, 1.5], most).reached, Some(true));
        assert_eq!(judged(&[0.7, 0.8, 0.9, 1.12, 1.5], most).reached, Some(false));
        assert_eq!(judged(&[0.7, 0.8, 1.01, 1.02, 1.5], most).reached, Some(false));
    }

    #[test]
    fn a_row_is_noisy_when_its_quartiles_are_further_apart_than_the_median_and_the_target() {
        assert!(judged(&[1.0, 1.05, 1.1, 1.2, 1.3], Target::AtLeast(1.0)).is_noisy);
        assert!(!judged(&[1.4, 1.45, 1.5, 1.55, 1.6], Target::AtLeast(1.0)).is_noisy);
    }

    #[test]
    fn a_reason_shows_only_if_the_row_misses_a_target() {
        let row = |figure| Row::new("work").figure("1", figure, Target::AtMost(1.0)).reason("because");
        assert_eq!(row(2.0).missed_because(), Some("because"));
        assert_eq!(row(1.0).missed_because(), None);
    }
}
