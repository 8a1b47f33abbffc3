//! Results in a page, between two marks.

use std::path::Path;

use anyhow::{Context, Result};

/// Replaces the text between the two marks of a file. The marks name the command that writes it.
pub fn show_in(file: &Path, command: &str, text: &str) -> Result<()> {
    let marks = ["begin", "end"].map(|mark| format!("<!-- results of {command}: {mark} -->\n"));
    let missing = |mark: &str| format!("{} has no line {}", file.display(), mark.trim());
    let whole = std::fs::read_to_string(file)?;
    let (before, rest) = whole.split_once(&marks[0]).with_context(|| missing(&marks[0]))?;
    let (_, after) = rest.split_once(&marks[1]).with_context(|| missing(&marks[1]))?;
    std::fs::write(file, format!("{before}{}\n{text}\n\n{}{after}", marks[0], marks[1]))?;
    Ok(())
}
