//! The contenders on a SQLite file. Each runs in a process of its own.

mod bare;
mod ours;
mod process;

use anyhow::Result;
use clap::ValueEnum;
use sqlite_calls::serve;

use bare::{GroupCommit, OneByOne};
use ours::Ours;
pub use process::Process;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Contender {
    /// This crate.
    Ours,
    /// `turul-mcp-task-storage`, in the program `benches/turul`.
    Turul,
    /// Bare statements, with a transaction for each write.
    OneByOne,
    /// Bare statements on a thread, with a transaction for all writes that wait.
    GroupCommit,
}

impl Contender {
    /// The order of the figures.
    pub const ALL: [Self; 4] = [Self::Ours, Self::Turul, Self::OneByOne, Self::GroupCommit];

    /// Handles the requests of the harness in this process.
    pub fn serve(self) -> Result<()> {
        match self {
            Self::Ours => serve::<Ours>(),
            Self::OneByOne => serve::<OneByOne>(),
            Self::GroupCommit => serve::<GroupCommit>(),
            Self::Turul => anyhow::bail!("benches/turul is the program of this contender"),
        }
    }
}
