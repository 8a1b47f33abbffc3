//! Progress on stderr, if it is a terminal.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// How often the progress is drawn.
const REDRAWN_EACH: Duration = Duration::from_millis(100);

/// Returns a bar for this many tasks.
pub fn bar(tasks: u64, quiet: bool) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} tasks, {eta} left");
    drawn(ProgressBar::new(tasks), style.unwrap_or_else(|_| ProgressStyle::default_bar()), quiet)
}

/// Returns the progress of something whose end is unknown. The caller sets the message.
pub fn spinner(quiet: bool) -> ProgressBar {
    drawn(ProgressBar::new_spinner(), ProgressStyle::default_spinner(), quiet)
}

fn drawn(bar: ProgressBar, style: ProgressStyle, quiet: bool) -> ProgressBar {
    if quiet {
        return ProgressBar::hidden();
    }
    bar.set_style(style);
    bar.enable_steady_tick(REDRAWN_EACH);
    bar
}
