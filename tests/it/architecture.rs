//! The rooms of `src`: imports point down only, and each thing has one room that may touch it.

mod circles;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Every room from the bottom up, and what it may import beside itself.
const ROOMS: [(&str, &[&str]); 11] = [
    ("domain", &[]),
    ("metrics", &[]),
    ("codec", &["domain"]),
    ("intake", &["domain"]),
    ("store", &["domain", "metrics", "codec", "intake"]),
    ("upstream", &["domain", "metrics"]),
    ("transfer", &["domain", "codec", "intake", "store"]),
    ("config", &["domain", "store", "upstream"]),
    (
        "api",
        &["domain", "metrics", "config", "intake", "store", "transfer"],
    ),
    (
        "worker",
        &["domain", "metrics", "codec", "store", "upstream"],
    ),
    ("simulate", &[]),
];

/// What starts and stops everything, and so may import all.
const LOBBY: [&str; 6] = ["app", "cli", "lib", "main", "shutdown", "telemetry"];

/// Words of the code that only some rooms may say.
const OWNED: [(&str, &[&str]); 10] = [
    ("sqlx", &["store"]),
    ("SELECT", &["store"]),
    ("INSERT INTO", &["store"]),
    ("DELETE FROM", &["store"]),
    // In `upstream` by its tests: servers to call.
    ("axum", &["api", "upstream"]),
    ("prometheus_client", &["metrics"]),
    ("opentelemetry", &["metrics", "telemetry"]),
    ("std::env", &["config"]),
    ("env::var", &["config"]),
    ("env::vars_os", &["config"]),
];

/// What the statements of one file alone may say, in whatever white space.
const ONE_FILE: [(&str, &[&str]); 2] = [
    // A batch is created and moved on in one place, so that an event can be written with the move.
    (
        "store/batches/state.rs",
        &[
            "INSERT INTO batches",
            "UPDATE batches",
            "DELETE FROM batches",
        ],
    ),
    // The bytes of chunks and segments have one door, so that they can be kept elsewhere.
    (
        "store/files/bytes.rs",
        &[
            "INSERT INTO chunks",
            "INSERT INTO segments",
            "UPDATE chunks",
            "UPDATE segments",
            "DELETE FROM chunks",
            "DELETE FROM segments",
            "data",
        ],
    ),
];

/// Words that the rules of batching, which are pure, do without.
const IMPURE: [&str; 7] = [
    "tokio",
    "async",
    "std::fs",
    "std::io",
    "std::net",
    "std::process",
    "std::thread",
];

#[test]
fn imports_point_down() {
    let faults: Vec<String> = sources()
        .iter()
        .flat_map(|(path, text)| faults(path, text))
        .collect();
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

#[test]
fn every_room_is_in_the_table() {
    let found: BTreeSet<String> = sources().iter().map(|(path, _)| room(path)).collect();
    let named: BTreeSet<String> = ROOMS
        .iter()
        .map(|(room, _)| *room)
        .chain(LOBBY)
        .map(str::to_owned)
        .collect();
    assert_eq!(
        found,
        named,
        "ROOMS and LOBBY in {} name what is in src",
        file!()
    );
}

#[test]
fn the_table_itself_points_down() {
    for (place, (room, may_import)) in ROOMS.iter().enumerate() {
        for import in *may_import {
            let below = ROOMS[..place].iter().any(|(name, _)| name == import);
            assert!(below, "{import} is not below {room}");
        }
    }
}

#[test]
fn what_breaks_a_rule_is_found() {
    for (path, text) in [
        ("domain/id.rs", "use crate::store::Store;"),
        ("store/files.rs", "fn f() { crate::api::error::internal() }"),
        (
            "worker/dispatch/result.rs",
            "use crate::{\n    config,\n    api::{self, error},\n};",
        ),
        ("api/mod.rs", "use super::worker::Worker;"),
        ("api/files.rs", "use super::super::worker::Worker;"),
        ("api/files.rs", "use crate::*;"),
        ("api/files.rs", "use crate::unheard_of::Thing;"),
        ("simulate/mod.rs", "use nightshift::internals::domain;"),
        ("worker/lease.rs", "use sqlx::Row;"),
        ("cli/run.rs", "let sql = \"SELECT 1\";"),
        (
            "store/batches/finalize.rs",
            "\"-- finalize\nUPDATE\n  batches SET status = 'completed' WHERE id = $1\"",
        ),
        (
            "store/batches/create.rs",
            "sql!(\"-- create_batch\nINSERT INTO batches ({columns}) VALUES {row}\", row)",
        ),
        (
            "store/work/flush.rs",
            "\"-- insert_segments\nINSERT INTO segments (batch_id) VALUES ($1)\"",
        ),
        (
            "store/audit/files.rs",
            "\"-- audit_pieces\nSELECT chunk_no, data FROM chunks WHERE file_id = $1\"",
        ),
        ("cli/simulate.rs", "std::env::var(name)"),
        (
            "worker/lease.rs",
            "use std::{env, fs};\nlet v = env::var(name);",
        ),
        ("domain/file.rs", "async fn f() {}"),
        ("domain/file.rs", "use std::{fmt, fs::File};"),
    ] {
        assert!(!faults(Path::new(path), text).is_empty(), "{path}: {text}");
    }
}

#[test]
fn what_keeps_the_rules_is_left_alone() {
    for (path, text) in [
        ("domain/id.rs", "use crate::domain::clock::Clock;"),
        (
            "store/files.rs",
            "use super::engine::on; use crate::{codec, domain::id};",
        ),
        (
            "store/files.rs",
            "//! See crate::api. SELECT.\n/// [`crate::api`]\nuse super::Store;",
        ),
        (
            "config/overrides.rs",
            "use super::upstream::CONCURRENCY_MAX;",
        ),
        ("config/log.rs", "\"such as nightshift=debug,sqlx=warn\""),
        (
            "store/batches/state.rs",
            "\"-- advance_batches\nUPDATE batches SET status = 'failed'\"",
        ),
        (
            "store/files/chunks.rs",
            "\"-- chunk_of_line\nSELECT chunk_no FROM chunks\"; let data = row.data;",
        ),
        ("api/mod.rs", "mod tests { use super::*; }"),
        ("api/openapi.rs", "env!(\"CARGO_PKG_VERSION\")"),
        ("cli/run.rs", "use crate::{app, shutdown, telemetry};"),
        ("main.rs", "nightshift::cli::main().await"),
    ] {
        assert_eq!(faults(Path::new(path), text), [""; 0], "{path}: {text}");
    }
}

/// Every source file: its path under `src`, and its text.
fn sources() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut folders = vec![root.clone()];
    let mut sources = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("can be read") {
            let path = entry.expect("can be read").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("is text");
                let path = path.strip_prefix(&root).expect("is below").to_owned();
                sources.push((path, text));
            }
        }
    }
    assert!(
        sources.len() > 50,
        "that is not all of it: {}",
        sources.len()
    );
    sources
}

/// The first name of a path under `src`.
fn room(path: &Path) -> String {
    let first = path.iter().next().expect("is not empty").to_string_lossy();
    first.strip_suffix(".rs").unwrap_or(&first).to_owned()
}

/// What is wrong with a file.
fn faults(path: &Path, text: &str) -> Vec<String> {
    let room = room(path);
    let code = without_comments(text);
    let mut faults = Vec::new();
    let mut fault = |what: String| faults.push(format!("src/{}: {what}", path.display()));
    if let Some((_, may_import)) = ROOMS.iter().find(|(name, _)| *name == room) {
        for import in imports(path, &code) {
            if import != room && !may_import.contains(&import.as_str()) {
                fault(format!("{room} may not import {import}"));
            }
        }
    }
    for (word, owners) in OWNED {
        if says(&code, word) && !owners.contains(&room.as_str()) {
            fault(format!("only {} may say {word}", owners.join(", ")));
        }
    }
    for (owner, words) in ONE_FILE {
        if path == Path::new(owner) {
            continue;
        }
        let (statements, code) = (statements(&code), in_one_line(&code));
        for word in words {
            // A word by itself may mean anything but in a statement.
            let is_said = if word.contains(' ') {
                says(&code, word)
            } else {
                statements.iter().any(|text| says(text, word))
            };
            if is_said {
                fault(format!("the SQL of {owner} alone may say {word}"));
            }
        }
    }
    if room == "domain" {
        for word in IMPURE.into_iter().filter(|word| says(&code, word)) {
            fault(format!("domain is pure and does not say {word}"));
        }
    }
    faults
}

/// The rooms that a file names, by `crate::`, by this crate's own name, or by climbing out of its
/// own room.
fn imports(path: &Path, code: &str) -> BTreeSet<String> {
    let climbs = "super::".repeat(depth(path));
    let mut imports = BTreeSet::new();
    for root in ["crate::", "nightshift::"] {
        for (at, _) in code.match_indices(root) {
            if !code[..at].ends_with(is_of_a_word) {
                imports.extend(first_names(&code[at + root.len()..]));
            }
        }
    }
    for (at, _) in code.match_indices(&climbs) {
        let names = first_names(&code[at + climbs.len()..]);
        // What a module inside the file means by `super` is the file itself.
        imports.extend(names.into_iter().filter(|name| is_a_room(name)));
    }
    imports
}

/// How many `super::` lead from a file's module to the root of the crate.
fn depth(path: &Path) -> usize {
    let names = path.iter().count();
    if path.ends_with("mod.rs") {
        names - 1
    } else {
        names
    }
}

fn is_a_room(name: &str) -> bool {
    LOBBY.contains(&name) || ROOMS.iter().any(|(room, _)| *room == name)
}

/// What a path that begins here names first; a group names several.
fn first_names(path: &str) -> Vec<String> {
    let Some(group) = path.strip_prefix('{') else {
        return vec![first_name(path)];
    };
    let (mut open, mut start, mut names) = (0, 0, Vec::new());
    for (at, c) in group.char_indices() {
        match c {
            '{' => open += 1,
            '}' if open > 0 => open -= 1,
            ',' | '}' if open == 0 => {
                names.push(first_name(&group[start..at]));
                start = at + 1;
                if c == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    names.retain(|name| !name.is_empty());
    names
}

fn first_name(path: &str) -> String {
    let path = path.trim_start();
    let end = path.find(|c: char| !is_of_a_word(c) && c != '*');
    path[..end.unwrap_or(path.len())].to_owned()
}

fn is_of_a_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Whether code says a word, as a whole, other than as a setting in a text (`sqlx=warn`).
/// `std::fs` is also said by `std::{fmt, fs}`.
fn says(code: &str, word: &str) -> bool {
    let whole = code.match_indices(word).any(|(at, _)| {
        let rest = &code[at + word.len()..];
        !code[..at].ends_with(is_of_a_word) && !rest.starts_with(|c| is_of_a_word(c) || c == '=')
    });
    let grouped = word.strip_prefix("std::").is_some_and(|name| {
        code.match_indices("std::{").any(|(at, found)| {
            first_names(&code[at + found.len() - 1..])
                .iter()
                .any(|n| n == name)
        })
    });
    whole || grouped
}

/// Code with single spaces for all white space, that of texts included.
fn in_one_line(code: &str) -> String {
    let code = code.replace("\\n", " ");
    code.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The SQL statements in a file, each in one line: the texts that begin with a statement's name.
fn statements(code: &str) -> Vec<String> {
    let mut statements = Vec::new();
    let mut rest = code;
    while let Some(at) = rest.find("\"-- ") {
        let text = &rest[at + 1..];
        let end = text.find('"').unwrap_or(text.len());
        statements.push(in_one_line(&text[..end]));
        rest = &rest[at + 1 + end..];
    }
    statements
}

fn without_comments(text: &str) -> String {
    text.lines()
        .map(|line| match line.find("//") {
            // Not the one of a URL in a text.
            Some(at) if !line[..at].ends_with(':') => &line[..at],
            _ => line,
        })
        .collect::<Vec<_>>()
        .join("\n")
}
