//! The pages show the examples that the package compiles.

use std::path::Path;

fn read(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// Asserts that a page shows an example, without the line that says what the example is.
fn assert_shows(page: &str, example: &str) {
    let text = read(example);
    let (title, program) = text.split_once('\n').unwrap();
    assert!(title.starts_with("//! "), "{title}");
    let shown = format!("```rust,no_run\n{}```\n", program.trim_start());
    assert!(read(page).contains(&shown), "{page} lacks {example}");
}

#[test]
fn the_readme_and_the_guide_show_the_quickstart() {
    assert_shows("README.md", "examples/quickstart.rs");
    assert_shows("docs/guide/rmcp.md", "examples/quickstart.rs");
}

#[test]
fn the_guide_shows_the_server_of_the_example() {
    assert_shows("docs/guide/rmcp.md", "examples/rmcp_server.rs");
}
