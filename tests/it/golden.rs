//! The golden rows of `docs/providers.md`: each has tests that are named after it.

use std::fs;
use std::path::{Path, PathBuf};

/// All sources in Rust and in Python below a directory.
fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("can be listed") {
        let path = entry.expect("can be listed").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path
            .extension()
            .is_some_and(|end| end == "rs" || end == "py")
        {
            found.push(path);
        }
    }
}

#[test]
fn each_golden_row_has_tests_of_its_name() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/providers.md")).expect("is there");
    let (_, table) = page.split_once("| row | what holds |").expect("the table");
    let rows = table
        .lines()
        .skip(2)
        .take_while(|line| line.starts_with("| "));
    let rows: Vec<&str> = rows.map(|line| &line[2..4]).collect();
    assert!(rows.len() == 22 && rows.is_sorted(), "{rows:?}");
    let mut files = Vec::new();
    for directory in ["src", "tests"] {
        sources(&root.join(directory), &mut files);
    }
    let texts = files
        .iter()
        .map(|file| fs::read_to_string(file).expect("is text"));
    let texts: Vec<String> = texts.collect();
    let mut functions = texts
        .iter()
        .flat_map(|text| text.lines())
        .filter_map(|line| {
            let line = line.trim_start();
            let line = line.strip_prefix("async ").unwrap_or(line);
            line.strip_prefix("fn ")
                .or_else(|| line.strip_prefix("def "))
        });
    let functions: Vec<&str> = functions.by_ref().collect();
    for row in rows {
        let name = format!("row_{row}_");
        let is_there = functions.iter().any(|function| function.contains(&name));
        assert!(is_there, "no test is named {name}…");
    }
}
