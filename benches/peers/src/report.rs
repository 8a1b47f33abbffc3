//! The table: on the terminal, as Markdown, and its first lines in the README.

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
    /// Whether it has a figure to reach, and reaches all it has.
    reached: Option<bool>,
}

/// A ratio that a row is to show.
pub enum Wanted {
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

    pub fn remark(mut self, text: impl Into<String>) -> Self {
        self.compared.push(text.into());
        self
    }

    /// A ratio by rounds, and what it is to be.
    pub fn ratio(self, what: &str, ratios: &Samples, wanted: Option<Wanted>) -> Self {
        let (least, most) = ratios.spread();
        let spread = format!("{} to {}", short(least), short(most));
        self.figure(&format!("{} x {what} ({spread})", short(ratios.median())), ratios.median(), wanted)
    }

    /// Any figure, and what it is to be.
    pub fn figure(mut self, text: &str, figure: f64, wanted: Option<Wanted>) -> Self {
        let (holds, wanted) = match wanted {
            None => (true, String::new()),
            Some(Wanted::AtLeast(least)) => (figure >= least, format!("at least {least}")),
            Some(Wanted::AtMost(most)) => (figure <= most, format!("at most {most}")),
        };
        if wanted.is_empty() {
            self.compared.push(text.to_owned());
        } else {
            self.reached = Some(holds && self.reached.unwrap_or(true));
            let verdict = if holds { "" } else { "short: " };
            self.compared.push(format!("{text}; {verdict}{wanted}"));
        }
        self
    }
}

/// Three digits.
pub fn short(number: f64) -> String {
    match number.abs() {
        100.0.. => format!("{number:.0}"),
        10.0.. => format!("{number:.1}"),
        _ => format!("{number:.2}"),
    }
}

/// A count with its thousands apart.
pub fn thousands(count: usize) -> String {
    match count {
        1000.. => format!("{},{:03}", thousands(count / 1000), count % 1000),
        _ => count.to_string(),
    }
}

/// Microseconds per call, as a time a person reads.
pub fn micros(samples: &Samples) -> String {
    match samples.median() {
        us @ 1e6.. => format!("{} s", short(us / 1e6)),
        us @ 1e3.. => format!("{} ms", short(us / 1e3)),
        us => format!("{} µs", short(us)),
    }
}

const HEAD: [&str; 6] = ["work", "this crate", "pmcp-tasks", "bare commands", "compared", "reached"];

#[derive(Default, Serialize, Deserialize)]
pub struct Report(Vec<Row>);

impl Report {
    pub fn add(&mut self, row: Row) {
        self.0.push(row);
    }

    pub fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// The rows that fall short of a figure.
    pub fn short_rows(&self) -> usize {
        self.0.iter().filter(|row| row.reached == Some(false)).count()
    }

    pub fn terminal(&self) -> String {
        let mut table = Table::new();
        table.load_preset(UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Dynamic);
        self.fill(table, "\n", |_| true)
    }

    /// All rows.
    pub fn markdown(&self) -> String {
        let mut table = Table::new();
        table.load_preset(ASCII_MARKDOWN);
        self.fill(table, "<br>", |_| true)
    }

    /// The rows that have a figure to reach.
    pub fn summary(&self) -> String {
        let mut table = Table::new();
        table.load_preset(ASCII_MARKDOWN);
        self.fill(table, "<br>", |row| row.reached.is_some())
    }

    fn fill(&self, mut table: Table, line_end: &str, shown: fn(&Row) -> bool) -> String {
        table.set_header(HEAD);
        for row in self.0.iter().filter(|row| shown(row)) {
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
