//! The table: on the terminal, as Markdown, and its headline rows for the README.

use comfy_table::presets::{ASCII_MARKDOWN, UTF8_FULL_CONDENSED};
use comfy_table::{ContentArrangement, Table};

use serde::{Deserialize, Serialize};

use crate::rounds::Samples;

/// One line of the table.
#[derive(Serialize, Deserialize)]
pub struct Row {
    work: String,
    ours: String,
    peer: String,
    bare: String,
    compared: Vec<String>,
    /// Whether the row reaches all of its targets; `None` for a row without a target.
    reached: Option<bool>,
    /// The throughput divided by that of the peer. Only rows that the README shows have it.
    headline: Option<f64>,
}

/// The target of a figure.
pub enum Target {
    AtLeast(f64),
    AtMost(f64),
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
            headline: None,
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

    /// Adds the median of a ratio over the rounds, with its range and its target.
    pub fn ratio(self, what: &str, ratios: &Samples, target: Option<Target>) -> Self {
        let (least, most) = ratios.spread();
        let spread = format!("{} to {}", short(least), short(most));
        self.figure(&format!("{} x {what} ({spread})", short(ratios.median())), ratios.median(), target)
    }

    /// Adds a figure with its target.
    pub fn figure(mut self, text: &str, figure: f64, target: Option<Target>) -> Self {
        let (holds, target) = match target {
            None => {
                self.compared.push(text.to_owned());
                return self;
            }
            Some(Target::AtLeast(least)) => (figure >= least, format!("at least {least}")),
            Some(Target::AtMost(most)) => (figure <= most, format!("at most {most}")),
        };
        self.reached = Some(holds && self.reached.unwrap_or(true));
        let verdict = if holds { "target" } else { "**misses** the target" };
        self.compared.push(format!("{text}; {verdict}: {target}"));
        self
    }
}

/// Formats a number with three digits.
pub fn short(number: f64) -> String {
    match number.abs() {
        100.0.. => format!("{number:.0}"),
        10.0.. => format!("{number:.1}"),
        _ => format!("{number:.2}"),
    }
}

/// Formats a count with thousands separators.
pub fn thousands(count: usize) -> String {
    match count {
        1000.. => format!("{},{:03}", thousands(count / 1000), count % 1000),
        _ => count.to_string(),
    }
}

/// Formats the median of microseconds per call, in a suitable unit.
pub fn micros(samples: &Samples) -> String {
    match samples.median() {
        us @ 1e6.. => format!("{} s", short(us / 1e6)),
        us @ 1e3.. => format!("{} ms", short(us / 1e3)),
        us => format!("{} µs", short(us)),
    }
}

const HEAD: [&str; 6] = ["work", "this crate", "pmcp-tasks", "bare commands", "compared", "target reached"];
const HEADLINE: [&str; 4] = ["work", "this crate", "pmcp-tasks", "throughput ratio"];

#[derive(Default, Serialize, Deserialize)]
pub struct Report {
    rows: Vec<Row>,
    /// The line above the table. It says what was measured.
    description: String,
}

impl Report {
    pub fn add(&mut self, row: Row) {
        self.rows.push(row);
    }

    pub fn extend(&mut self, other: Self) {
        self.rows.extend(other.rows);
    }

    pub fn describe(&mut self, redis_version: &str, rounds: usize) {
        self.description =
            format!("Redis {redis_version} on loopback without persistence, medians of {rounds} rounds");
    }

    /// Returns how many rows miss a target.
    pub fn missed(&self) -> usize {
        self.rows.iter().filter(|row| row.reached == Some(false)).count()
    }

    pub fn terminal(&self) -> String {
        let mut table = Table::new();
        table.load_preset(UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Dynamic);
        format!("{}\n{}", self.description, self.fill(table, "\n"))
    }

    /// Returns all rows as Markdown.
    pub fn markdown(&self) -> String {
        let mut table = Table::new();
        table.load_preset(ASCII_MARKDOWN);
        format!(
            "{}; the range across rounds is in parentheses.\n\n{}",
            self.description,
            self.fill(table, "<br>")
        )
    }

    /// Returns the rows that the README shows as Markdown, and a sentence that names those that are slower than the peer.
    pub fn headline(&self) -> String {
        let mut table = Table::new();
        table.load_preset(ASCII_MARKDOWN).set_header(HEADLINE);
        let mut slower = Vec::new();
        for row in &self.rows {
            let Some(ratio) = row.headline else { continue };
            table.add_row([&row.work, &row.ours, &row.peer, &format!("{} x", short(ratio))]);
            if ratio < 1.0 {
                slower.push(row.work.as_str());
            }
        }
        let slower = match slower.as_slice() {
            [] => "No row is slower than `pmcp-tasks`.".to_owned(),
            rows => format!("Slower than `pmcp-tasks`: {}.", rows.join("; ")),
        };
        format!("{table}\n\n{}. {slower}", self.description)
    }

    fn fill(&self, mut table: Table, line_end: &str) -> String {
        table.set_header(HEAD);
        for row in &self.rows {
            let reached = match row.reached {
                None => "",
                Some(true) => "yes",
                Some(false) => "**no**",
            };
            let compared = row.compared.join(line_end);
            table.add_row([&row.work, &row.ours, &row.peer, &row.bare, &compared, reached]);
        }
        table.to_string()
    }
}
