//! The commands and outputs in the guide, and how they compare with those of a run.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek};
use std::path::PathBuf;
use std::process::Command;

use chrono::DateTime;

/// If this variable is set, the test writes the outputs of the run into the guide.
const WRITE: &str = "OPERATING_WRITE";
const FENCE: &str = "```";

/// The guide, and which ids of a run stand for those that it shows.
pub struct Guide {
    text: String,
    ids: HashMap<String, String>,
}

/// A block of commands with their outputs.
pub struct Block {
    pub steps: Vec<Step>,
    range: std::ops::Range<usize>,
}

pub struct Step {
    /// The command, as the guide shows it.
    pub command: String,
    shown: String,
    /// The command with the ids of the run, and what it printed.
    actual: Option<(String, String)>,
}

fn path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/guide/operating.md")
}

/// Runs a command. Returns what it prints on stdout and stderr, in order.
pub fn printed(mut command: Command) -> String {
    let mut file: File = tempfile::tempfile().unwrap();
    command.stdout(file.try_clone().unwrap()).stderr(file.try_clone().unwrap());
    command.status().unwrap();
    let mut printed = String::new();
    file.rewind().unwrap();
    file.read_to_string(&mut printed).unwrap();
    printed
}

impl Guide {
    pub fn read() -> Self {
        Self { text: std::fs::read_to_string(path()).unwrap(), ids: HashMap::new() }
    }

    /// Returns the blocks of type `console`.
    pub fn blocks(&self) -> Vec<Block> {
        let mut blocks = Vec::new();
        let mut at = 0;
        while let Some(found) = self.text[at..].find("```console\n") {
            let begin = at + found + "```console\n".len();
            let end = begin + self.text[begin..].find(FENCE).expect("the block ends");
            blocks.push(Block { steps: steps(&self.text[begin..end]), range: begin..end });
            at = end + FENCE.len();
        }
        assert!(blocks.len() > 5, "the guide shows an incident");
        blocks
    }

    /// Returns a command with the ids of this run.
    pub fn actual(&self, command: &str) -> String {
        self.ids.iter().fold(command.to_owned(), |command, (shown, actual)| command.replace(shown, actual))
    }

    /// Compares what a command has printed with what the guide shows. Only ids, times, ages and measured numbers may differ.
    pub fn compare(&mut self, step: &mut Step, printed: &str) {
        let actual = self.actual(&step.command);
        step.actual = Some((actual, printed.to_owned()));
        let is_doctor = step.command.contains("doctor");
        let (shown, run) = (without_latency(&step.shown), without_latency(printed));
        let (shown, run) = (words(&shown), words(&run));
        let is_written = std::env::var_os(WRITE).is_some();
        let differ = || {
            assert!(
                is_written,
                "{}\nthe guide shows\n{}\nthe command prints\n{printed}\nwrite the guide anew with {WRITE}=1",
                step.command, step.shown
            );
        };
        if shown.len() != run.len() {
            differ();
        }
        for (shown, run) in shown.iter().zip(&run) {
            match (placeholder(shown), placeholder(run)) {
                (Some(Placeholder::Id), Some(Placeholder::Id)) => {
                    let known = self.ids.entry((*shown).to_owned()).or_insert_with(|| (*run).to_owned());
                    if known != run {
                        differ();
                    }
                }
                (Some(a), Some(b)) if a == b => {}
                // It measures and counts what differs from run to run.
                _ if is_doctor && is_number(shown) && is_number(run) => {}
                _ if shown == run => {}
                _ => differ(),
            }
        }
    }

    /// Writes the outputs of the run into the guide, if the environment asks for it.
    pub fn write_if_asked(&self, blocks: &[Block]) {
        if std::env::var_os(WRITE).is_none() {
            return;
        }
        let mut text = self.text.clone();
        for block in blocks.iter().rev() {
            let written = block.steps.iter().map(|step| {
                let (command, printed) = step.actual.as_ref().unwrap();
                format!("$ {command}\n{printed}")
            });
            text.replace_range(block.range.clone(), &written.collect::<String>());
        }
        std::fs::write(path(), text).unwrap();
    }
}

fn steps(block: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    for line in block.lines() {
        match (line.strip_prefix("$ "), steps.last_mut()) {
            (Some(command), _) => {
                steps.push(Step { command: command.to_owned(), shown: String::new(), actual: None });
            }
            (None, Some(step)) => step.shown.push_str(&format!("{line}\n")),
            (None, None) => panic!("a block begins with a command: {block}"),
        }
    }
    steps
}

/// What differs from run to run.
#[derive(Debug, PartialEq, Eq)]
enum Placeholder {
    Id,
    Time,
    Age,
}

fn is_number(word: &str) -> bool {
    word.starts_with(|letter: char| letter.is_ascii_digit())
}

/// Leaves out what depends on how busy the machine is: the line of `doctor` with the latency, and its advice.
fn without_latency(printed: &str) -> String {
    let mut is_left_out = false;
    let kept = |line: &&str| {
        is_left_out = line.contains("  latency  ") || (is_left_out && line.contains("->"));
        !is_left_out
    };
    printed.lines().filter(kept).map(|line| format!("{line}\n")).collect()
}

/// Splits a text into words and the punctuation around them. Columns are as wide as their widest cell, so spaces do not count.
fn words(text: &str) -> Vec<&str> {
    let mut words = Vec::new();
    for word in text.split_whitespace() {
        let mut word = word;
        if let Some(id) = word.strip_prefix("acme:") {
            words.push("acme:");
            word = id;
        }
        let inner = word.trim_matches(['(', ')', ',', ';', ':']);
        let begin = word.find(inner).unwrap_or(0);
        words.extend(
            [&word[..begin], inner, &word[begin + inner.len()..]].into_iter().filter(|part| !part.is_empty()),
        );
    }
    words
}

fn placeholder(word: &str) -> Option<Placeholder> {
    let is_hex = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let unit = word.trim_start_matches(|letter: char| letter.is_ascii_digit());
    let digits = word.len() - unit.len();
    // The id of a task, and the short one of the holder of a lease.
    if is_hex(&word.replace('-', "")) && ((word.len() == 36 && word.contains('-')) || word.len() == 8) {
        Some(Placeholder::Id)
    } else if DateTime::parse_from_rfc3339(word).is_ok() {
        Some(Placeholder::Time)
    } else if digits > 0 && ["ms", "s", "m", "h", "d"].contains(&unit) {
        Some(Placeholder::Age)
    } else {
        None
    }
}
