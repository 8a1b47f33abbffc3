//! The rows of the table, by subject.

mod agenda;
mod blocking;
pub mod client;
pub mod in_process;
mod lifetimes;
mod lists;
mod memory;
mod metrics;
mod network;
mod parts;
mod processor;
mod races;
mod records;
mod sqlite;
mod sweeps;
mod tasks;
mod watch;
mod wire;

use std::path::Path;

use anyhow::Result;
use clap::ValueEnum;

use crate::bench::Bench;
use crate::report::Reports;

/// The subjects, in the order of the tables.
#[derive(Clone, Copy, ValueEnum)]
pub enum Subject {
    Records,
    Charts,
    Network,
    Processor,
    Tasks,
    Metrics,
    Races,
    Lifetimes,
    Lists,
    Memory,
    Blocking,
    Client,
    Parts,
    Agenda,
    Watch,
    Wire,
    InProcess,
    Sqlite,
}

impl Subject {
    /// Measures the rows. `charts` is the folder for the charts.
    pub async fn measure(self, bench: &Bench, charts: &Path, reports: &mut Reports) -> Result<()> {
        let report = &mut reports.redis;
        match self {
            Self::Records => records::rows(bench, report).await,
            Self::Charts => sweeps::rows(bench, charts, report).await,
            Self::Network => network::rows(bench, report).await,
            Self::Processor => processor::rows(bench, report).await,
            Self::Tasks => tasks::rows(bench, report).await,
            Self::Metrics => metrics::rows(bench, report).await,
            Self::Races => races::rows(bench, report).await,
            Self::Lifetimes => lifetimes::rows(bench, report).await,
            Self::Lists => lists::rows(bench, report).await,
            Self::Memory => memory::rows(bench, report).await,
            Self::Blocking => blocking::rows(bench, report).await,
            Self::Client => client::rows(bench, report).await,
            Self::Parts => parts::rows(bench, report).await,
            Self::Agenda => agenda::rows(bench, report).await,
            Self::Watch => watch::rows(bench, report).await,
            Self::Wire => wire::rows(bench, report).await,
            Self::InProcess => in_process::rows(bench, report),
            Self::Sqlite => sqlite::rows(bench, &mut reports.sqlite).await,
        }
    }
}
