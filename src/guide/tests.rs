//! The pages hold together: links lead somewhere, and the README stays short and complete.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use pulldown_cmark::{CodeBlockKind, Event, Options, Parser, Tag, TagEnd};

const MAX_README_LINES: usize = 180;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn events(text: &str) -> impl Iterator<Item = Event<'_>> {
    Parser::new_ext(text, Options::ENABLE_TABLES)
}

/// All Markdown files of these folders, without their subfolders.
fn pages() -> Vec<PathBuf> {
    let entries =
        ["", "docs", "docs/guide"].iter().flat_map(|folder| fs::read_dir(root().join(folder)).unwrap());
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.filter(|path| path.extension().is_some_and(|extension| extension == "md")).collect()
}

/// The relative addresses of all links and images of a page.
fn relative_links(text: &str) -> Vec<String> {
    let address = |event| match event {
        Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
            Some(dest_url.into_string())
        }
        _ => None,
    };
    events(text).filter_map(address).filter(|address| !address.contains("://")).collect()
}

/// The anchors of all headings of a page, as GitHub derives them.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut anchors = BTreeSet::new();
    let mut heading = None;
    for event in events(text) {
        match (event, &mut heading) {
            (Event::Start(Tag::Heading { .. }), _) => heading = Some(String::new()),
            (Event::Text(text) | Event::Code(text), Some(heading)) => heading.push_str(&text),
            (Event::End(TagEnd::Heading(_)), Some(text)) => {
                anchors.insert(anchor(text));
                heading = None;
            }
            _ => {}
        }
    }
    anchors
}

fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

#[test]
fn every_relative_link_leads_to_a_file_and_a_heading() {
    let pages = pages();
    assert!(pages.len() > 8, "{pages:?}");
    for page in pages {
        let text = read(&page);
        for link in relative_links(&text) {
            let (file, wanted) = link.split_once('#').unwrap_or((&link, ""));
            let target = if file.is_empty() { page.clone() } else { page.parent().unwrap().join(file) };
            assert!(target.exists(), "{} links to {link}, which does not exist", page.display());
            let found = wanted.is_empty() || anchors(&read(&target)).contains(wanted);
            assert!(found, "{} links to {link}, which is no heading there", page.display());
        }
    }
}

#[test]
fn the_readme_has_at_most_180_lines() {
    let lines = read(&root().join("README.md")).lines().count();
    assert!(lines <= MAX_README_LINES, "README.md has {lines} lines, and may have {MAX_README_LINES}");
}

/// GitHub shows the lines that rustdoc hides.
#[test]
fn no_page_has_a_hidden_line() {
    for page in pages() {
        let text = read(&page);
        let mut is_rust = false;
        for event in events(&text) {
            match event {
                Event::Start(Tag::CodeBlock(CodeBlockKind::Fenced(language))) => {
                    is_rust = language.starts_with("rust");
                }
                Event::End(TagEnd::CodeBlock) => is_rust = false,
                Event::Text(code) if is_rust => {
                    let hidden =
                        code.lines().find(|line| line.trim() == "#" || line.trim_start().starts_with("# "));
                    assert_eq!(hidden, None, "{}", page.display());
                }
                _ => {}
            }
        }
    }
}
