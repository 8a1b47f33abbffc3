//! What the commands print: tables for people, aligned text in a pipe, JSON lines for scripts.

pub mod json;
pub mod progress;
pub mod table;
pub mod tasks;
pub mod text;

use std::io::{self, IsTerminal};

use console::Term;

/// The width of a terminal that does not state its own.
const DEFAULT_WIDTH: usize = 80;

/// Where the output goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A terminal with this many columns.
    Terminal {
        width: usize,
    },
    Pipe,
}

impl Target {
    /// Returns where stdout goes.
    pub fn of_stdout() -> Self {
        if !io::stdout().is_terminal() {
            return Self::Pipe;
        }
        let columns = Term::stdout().size_checked().map(|(_, columns)| usize::from(columns));
        Self::Terminal { width: columns.filter(|columns| *columns > 0).unwrap_or(DEFAULT_WIDTH) }
    }

    pub fn is_terminal(self) -> bool {
        self != Self::Pipe
    }
}

/// Prints a remark on stderr, unless the user wants none.
pub fn remark(quiet: bool, text: impl std::fmt::Display) {
    if !quiet {
        anstream::eprintln!("{text}");
    }
}
