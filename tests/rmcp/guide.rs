//! The guide shows the example that the package compiles.

use std::path::Path;

fn read(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

#[test]
fn the_guide_shows_the_server_of_the_example() {
    let example = read("examples/rmcp_server.rs");
    let (title, program) = example.split_once('\n').unwrap();
    assert!(title.starts_with("//! "), "{title}");
    let shown = format!("```rust,no_run\n{program}```\n");
    assert!(read("docs/guide/rmcp.md").contains(&shown), "docs/guide/rmcp.md lacks examples/rmcp_server.rs");
}
