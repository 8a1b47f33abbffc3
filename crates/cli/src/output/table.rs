//! Tables: with lines and colors on a terminal, aligned text in a pipe.

use std::io::{self, Write};

use anstyle::{AnsiColor, Style};
use comfy_table::{Cell, CellAlignment, ContentArrangement, Row, Table, presets};
use console::measure_text_width;

use super::Target;
use super::text::cut;

/// The most columns of a cell. JSON has the whole text.
const WIDEST: usize = 200;
/// The columns that a text keeps on a narrow terminal.
const SMALLEST_TEXT: usize = 7;
/// How many spaces are between two columns.
const GAP: u16 = 2;

/// A column.
#[derive(Clone, Copy)]
pub struct Column {
    pub title: &'static str,
    pub kind: ColumnKind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum ColumnKind {
    /// A name that people copy. Other columns give way to it.
    Name,
    /// Text that is cut if the terminal is narrow.
    Text,
    /// A number, aligned to the right.
    Number,
    /// A number that a narrow terminal does not show.
    Detail,
}

/// A line of a table, and its color on a terminal.
pub struct Line {
    pub cells: Vec<String>,
    pub style: Style,
}

pub const PLAIN: Style = Style::new();
pub const GOOD: Style = AnsiColor::Green.on_default();
pub const BAD: Style = AnsiColor::Red.on_default();
pub const NOTABLE: Style = AnsiColor::Yellow.on_default();
pub const FAINT: Style = Style::new().dimmed();
const TITLE: Style = Style::new().bold();

/// Prints a table. The caller shows the titles with the first part of a long table only.
pub fn print(target: Target, columns: &[Column], lines: &[Line], with_titles: bool) -> io::Result<()> {
    let mut out = anstream::stdout().lock();
    for line in render(target, columns, lines, with_titles) {
        writeln!(out, "{line}")?;
    }
    out.flush()
}

/// Returns the lines of a table. They contain colors on a terminal.
pub fn render(target: Target, columns: &[Column], lines: &[Line], with_titles: bool) -> Vec<String> {
    let shown = layout(target, columns, lines);
    let cells = |cells: &[String]| {
        let cut = shown.iter().map(|(index, width)| Cell::new(cut(&cells[*index], *width)));
        Row::from(cut.collect::<Vec<_>>())
    };
    let titles: Vec<String> = columns.iter().map(|column| column.title.to_owned()).collect();
    let mut table = Table::new();
    // The cells fit, so the table needs only to align them.
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(cells(&titles));
    table.add_rows(lines.iter().map(|line| cells(&line.cells)));
    for (shown, (index, _)) in table.column_iter_mut().zip(&shown) {
        shown.set_padding((0, GAP));
        if matches!(columns[*index].kind, ColumnKind::Number | ColumnKind::Detail) {
            shown.set_cell_alignment(CellAlignment::Right);
        }
    }
    let mut rendered = table.lines().map(|line| line.trim_end().to_owned());
    let titles = rendered.next().filter(|_| with_titles).map(|titles| styled(&titles, TITLE, target));
    let lines = rendered.zip(lines).map(|(text, line)| styled(&text, line.style, target));
    titles.into_iter().chain(lines).collect()
}

/// Returns which columns are shown, and how wide each may be.
fn layout(target: Target, columns: &[Column], lines: &[Line]) -> Vec<(usize, usize)> {
    let natural = |index: usize| {
        let cells = lines.iter().map(|line| measure_text_width(&cut(&line.cells[index], WIDEST)));
        cells.chain([columns[index].title.len()]).max().unwrap_or_default()
    };
    let natural: Vec<usize> = (0..columns.len()).map(natural).collect();
    let Target::Terminal { width } = target else {
        return natural.into_iter().enumerate().collect();
    };
    let smallest = |index: usize| match columns[index].kind {
        ColumnKind::Name => natural[index].min(width * 5 / 6),
        ColumnKind::Text => natural[index].min(SMALLEST_TEXT),
        ColumnKind::Number | ColumnKind::Detail => natural[index],
    };
    let mut shown: Vec<(usize, usize)> = (0..columns.len()).map(|index| (index, smallest(index))).collect();
    let taken = |shown: &[(usize, usize)]| -> usize {
        shown.iter().map(|(_, width)| width + usize::from(GAP)).sum::<usize>() - usize::from(GAP)
    };
    while taken(&shown) > width
        && let Some(detail) = shown.iter().rposition(|(index, _)| columns[*index].kind == ColumnKind::Detail)
    {
        shown.remove(detail);
    }
    for at in 0..shown.len() {
        let (index, given) = shown[at];
        let left = width.saturating_sub(taken(&shown));
        shown[at].1 = natural[index].min(given + left);
    }
    shown
}

fn styled(line: &str, style: Style, target: Target) -> String {
    match target {
        Target::Terminal { .. } => format!("{style}{line}{style:#}"),
        Target::Pipe => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use anstream::adapter::strip_str;

    use super::*;

    const COLUMNS: [Column; 3] = [
        Column { title: "TASK", kind: ColumnKind::Name },
        Column { title: "TASKS", kind: ColumnKind::Detail },
        Column { title: "MESSAGE", kind: ColumnKind::Text },
    ];

    fn line(message: &str) -> Line {
        let cells =
            vec!["alice:4ff0c8c2-6d0a-4d64-9e4f-4d4ef8b6f6ac".to_owned(), "7".to_owned(), message.to_owned()];
        Line { cells, style: PLAIN }
    }

    #[test]
    fn a_table_on_a_terminal_keeps_names_and_cuts_messages_to_the_width() {
        let lines = [line(&"long ".repeat(50)), line("short"), line("")];
        for (width, details) in [(57, false), (80, true), (100, true), (200, true)] {
            let shown = render(Target::Terminal { width }, &COLUMNS, &lines, true);
            let plain: Vec<String> = shown.iter().map(|line| strip_str(line).to_string()).collect();
            assert_eq!(plain.len(), 4, "{plain:#?}");
            assert!(plain.iter().all(|line| measure_text_width(line) <= width), "{plain:#?}");
            assert!(plain[1].starts_with("alice:4ff0c8c2-6d0a-4d64-9e4f-4d4ef8b6f6ac  "), "{plain:#?}");
            assert!(plain[1].ends_with('…') && plain[0].ends_with("MESSAGE"), "{plain:#?}");
            assert_eq!(plain[0].contains("TASKS"), details, "{plain:#?}");
        }
    }

    #[test]
    fn a_name_that_fills_the_terminal_is_cut() {
        let mut line = line("short");
        line.cells[0] = "x".repeat(100);
        let shown = render(Target::Terminal { width: 60 }, &COLUMNS, &[line], false);
        assert_eq!(strip_str(&shown[0]).to_string(), format!("{}…  short", "x".repeat(50)));
    }

    #[test]
    fn a_table_in_a_pipe_is_aligned_text_without_colors() {
        let lines = [Line { style: BAD, ..line("a") }, line("b")];
        let shown = render(Target::Pipe, &COLUMNS, &lines, true);
        assert_eq!(
            shown,
            [
                "TASK                                        TASKS  MESSAGE",
                "alice:4ff0c8c2-6d0a-4d64-9e4f-4d4ef8b6f6ac      7  a",
                "alice:4ff0c8c2-6d0a-4d64-9e4f-4d4ef8b6f6ac      7  b",
            ]
        );
        assert_eq!(render(Target::Pipe, &COLUMNS, &lines, false), shown[1..]);
    }
}
