//! The tables: on the terminal, as Markdown, and their headline rows for the README.

use comfy_table::presets::{ASCII_MARKDOWN, UTF8_FULL_CONDENSED};
use comfy_table::{ContentArrangement, Table};
use serde::{Deserialize, Serialize};

use crate::format::short;
use crate::rounds::Samples;
use crate::row::Row;

/// The tables of all rows.
pub struct Reports {
    /// Also has the rows of the memory engine.
    pub redis: Report,
    pub sqlite: Report,
}

impl Default for Reports {
    fn default() -> Self {
        Self { redis: Report::default(), sqlite: Report::of("turul-mcp-task-storage", "bare statements") }
    }
}

impl Reports {
    pub fn describe(&mut self, redis_version: &str, rounds: usize) {
        let sqlite = rusqlite::version();
        self.redis.describe(format!("Redis {redis_version} on loopback without persistence"), rounds);
        self.sqlite.describe(
            format!("SQLite {sqlite}, write-ahead log and `synchronous=FULL` for each contender"),
            rounds,
        );
    }

    /// Returns the tables that have rows.
    pub fn terminal(&self) -> String {
        let reports = [&self.redis, &self.sqlite].into_iter().filter(|report| !report.rows.is_empty());
        reports.map(Report::terminal).collect::<Vec<_>>().join("\n\n")
    }
}

#[derive(Serialize, Deserialize)]
pub struct Report {
    /// Whom the rows compare with: the peer, and what is the least that a call needs.
    peer: String,
    bare: String,
    rows: Vec<Row>,
    /// The line above the table. It says what was measured.
    description: String,
    /// How far the bare commands varied between the rounds.
    noise: Vec<String>,
}

impl Default for Report {
    fn default() -> Self {
        Self::of("pmcp-tasks", "bare commands")
    }
}

impl Report {
    fn of(peer: &str, bare: &str) -> Self {
        let (rows, description, noise) = (Vec::new(), String::new(), Vec::new());
        Self { peer: peer.to_owned(), bare: bare.to_owned(), rows, description, noise }
    }

    pub fn add(&mut self, row: Row) {
        self.rows.push(row);
    }

    pub fn extend(&mut self, other: Self) {
        self.rows.extend(other.rows);
    }

    fn describe(&mut self, engine: String, rounds: usize) {
        self.description = format!("{engine}, medians of {rounds} rounds");
    }

    /// Notes how far a bare command or statement varied between the rounds: what does not depend on the contenders is the machine.
    pub fn note_noise(&mut self, work: &str, bare: &Samples) {
        let [lower, upper] = bare.quartiles();
        self.noise.push(format!("{work}: {:.0} %", (upper - lower) / bare.median() * 100.0));
    }

    /// Says how many rows reach their targets, and how noisy the machine was.
    pub fn summary(&self) -> String {
        let count = |wanted: fn(&&Row) -> bool| self.rows.iter().filter(wanted).count();
        format!(
            "{} of {} rows with a target miss it. Of {} the noise is larger than the margin. Between their quartiles, the times of \
             the {} varied by this much: {}.",
            count(|row| row.reached == Some(false)),
            count(|row| row.reached.is_some()),
            count(|row| row.is_noisy),
            self.bare,
            self.noise.join("; ")
        )
    }

    pub fn terminal(&self) -> String {
        let mut table = Table::new();
        table.load_preset(UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Dynamic);
        format!("{}\n{}\n{}", self.description, self.fill(table, "\n"), self.summary())
    }

    /// Returns all rows as Markdown.
    pub fn markdown(&self) -> String {
        let mut table = Table::new();
        table.load_preset(ASCII_MARKDOWN);
        format!(
            "{}; the quartiles are in parentheses. {}\n\n{}",
            self.description,
            self.summary(),
            self.fill(table, "<br>")
        )
    }

    /// Returns the rows that the README shows as Markdown, and a sentence that names those that are slower than the peer.
    pub fn headline(&self) -> String {
        let mut table = Table::new();
        table.load_preset(ASCII_MARKDOWN);
        table.set_header(["work", "this crate", &self.peer, "throughput ratio"]);
        let mut slower = Vec::new();
        for row in &self.rows {
            let Some(ratio) = row.headline else { continue };
            table.add_row([&row.work, &row.ours, &row.peer, &format!("{} x", short(ratio))]);
            if ratio < 1.0 {
                slower.push(row.work.as_str());
            }
        }
        let slower = match slower.as_slice() {
            [] => format!("None of these rows is slower than with `{}`.", self.peer),
            rows => format!("Slower than `{}`: {}.", self.peer, rows.join("; ")),
        };
        format!("{table}\n\n{}. {slower}", self.description)
    }

    fn fill(&self, mut table: Table, line_end: &str) -> String {
        table.set_header(["work", "this crate", &self.peer, &self.bare, "compared", "target reached"]);
        for row in &self.rows {
            let reached = match (row.reached, row.is_noisy) {
                (None, _) => "",
                (Some(true), false) => "yes",
                (Some(true), true) => "yes, noisy",
                (Some(false), false) => "**no**",
                (Some(false), true) => "**no**, noisy",
            };
            let mut compared = row.compared.clone();
            compared.extend(row.missed_because().map(|reason| format!("Reason: {reason}")));
            let compared = compared.join(line_end);
            table.add_row([&row.work, &row.ours, &row.peer, &row.bare, &compared, reached]);
        }
        table.to_string()
    }
}
