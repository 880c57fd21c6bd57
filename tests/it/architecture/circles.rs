//! No circle between files. A name that a facade passes on counts as a name of the
//! file that has it, so a file may take from its room's `mod.rs` what stands below the file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::{is_of_a_word, sources, without_comments};

/// How many facades a name may pass.
const FACADES_MAX: usize = 8;

/// The names of a path, such as that of a module.
type Names = Vec<String>;

/// The code of each module.
type Modules = BTreeMap<Names, String>;

#[test]
fn no_files_import_each_other_in_a_circle() {
    let sources = sources();
    let modules = modules(sources.iter().map(|(path, text)| (path.as_path(), &**text)));
    let circles = in_circles(&modules);
    assert!(
        circles.is_empty(),
        "in a circle, or above one: {circles:#?}"
    );
}

#[test]
fn a_circle_is_found() {
    let facade = "mod a;\nmod b;\npub(crate) use a::A;\npub(crate) use b::{B, make};";
    let found = |a: &str, b: &str| {
        let files = [("r/mod.rs", facade), ("r/a.rs", a), ("r/b.rs", b)];
        let files = files.map(|(path, text)| (Path::new(path), text));
        in_circles(&modules(files.into_iter()))
    };
    let below = "use std::fmt;\npub(crate) struct A;\nmod tests { use super::super::B; }";
    assert_eq!(found(below, "use crate::r::{self, A};\nstruct B;"), [""; 0]);
    for above in [
        "use super::B;\nstruct A;",
        "use super::{\n    b::{B},\n};\nstruct A;",
        "fn f() { crate::r::make() }\nstruct A;",
    ] {
        assert_eq!(
            found(above, "use super::A;\nstruct B;"),
            ["r::a", "r::b"],
            "{above}"
        );
    }
}

#[test]
fn a_circle_between_a_room_and_a_module_in_it_is_found() {
    let files = [
        ("r/mod.rs", "mod a;\nfn f() { a::g() }"),
        ("r/a.rs", "fn g() { super::f() }"),
    ];
    let modules = modules(files.iter().map(|(path, text)| (Path::new(path), *text)));
    assert_eq!(in_circles(&modules), ["r", "r::a"]);
}

#[test]
fn a_module_that_names_where_it_may_be_seen_does_not_import_that() {
    let files = [
        ("r/mod.rs", "mod a;\nfn f() { a::g() }"),
        ("r/a.rs", "pub(in crate::r) fn g() {}"),
    ];
    let modules = modules(files.iter().map(|(path, text)| (Path::new(path), *text)));
    assert_eq!(in_circles(&modules), [""; 0]);
}

fn modules<'a>(sources: impl Iterator<Item = (&'a Path, &'a str)>) -> Modules {
    sources
        .map(|(path, text)| {
            let names = path.with_extension("");
            let mut names: Names = names
                .iter()
                .map(|name| name.to_string_lossy().into_owned())
                .collect();
            if names
                .last()
                .is_some_and(|name| name == "mod" || name == "lib")
            {
                names.pop();
            }
            let code = without_comments(text);
            let end = code.find("mod tests {").unwrap_or(code.len());
            (names, code[..end].to_owned())
        })
        .collect()
}

/// The files that stand in a circle, or import from one: those that are left when,
/// again and again, each file is taken out that imports none of the others.
fn in_circles(modules: &Modules) -> Vec<String> {
    let mut left: BTreeMap<&Names, BTreeSet<Names>> = modules
        .iter()
        .filter(|(_, code)| has_code(code))
        .map(|(names, code)| (names, imports(modules, names, code)))
        .collect();
    loop {
        let standing: BTreeSet<Names> = left.keys().map(|names| (*names).clone()).collect();
        left.retain(|names, imports| {
            imports
                .iter()
                .any(|import| import != *names && standing.contains(import))
        });
        if left.len() == standing.len() {
            return left.keys().map(|names| names.join("::")).collect();
        }
    }
}

/// Whether a file has more than modules and names that it passes on.
fn has_code(code: &str) -> bool {
    let words: BTreeSet<&str> = code.split(|c| !is_of_a_word(c)).collect();
    let items = [
        "fn",
        "impl",
        "struct",
        "enum",
        "const",
        "static",
        "trait",
        "macro_rules",
    ];
    items.iter().any(|item| words.contains(item))
}

/// The files whose names a file uses.
fn imports(modules: &Modules, module: &Names, code: &str) -> BTreeSet<Names> {
    let paths = uses(code).into_iter().chain(inline_paths(code));
    let paths = paths.filter_map(|path| absolute(modules, module, &path));
    paths.map(|path| file_of(modules, &path, 0)).collect()
}

/// What the `use` declarations of a file name, a path for each name.
fn uses(code: &str) -> Vec<Names> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("use ") {
        if !code[..at].ends_with(is_of_a_word) {
            let rest = &code[at + "use ".len()..];
            let end = rest.find(';').unwrap_or(rest.len());
            expand(&[], &rest[..end], &mut found);
        }
    }
    found
}

/// Splits a path with groups into paths without.
fn expand(before: &[String], path: &str, found: &mut Vec<Names>) {
    let (plain, group) = match path.find('{') {
        Some(at) => (&path[..at], Some(&path[at + 1..])),
        None => (path.split(" as ").next().unwrap_or_default(), None),
    };
    let names = plain
        .split("::")
        .map(str::trim)
        .filter(|name| !name.is_empty());
    let before: Names = before
        .iter()
        .cloned()
        .chain(names.map(str::to_owned))
        .collect();
    let Some(group) = group else {
        found.push(before);
        return;
    };
    let (mut depth, mut start) = (0, 0);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                if !group[start..at].trim().is_empty() {
                    expand(&before, &group[start..at], found);
                }
                start = at + 1;
                if c == '}' {
                    return;
                }
            }
            _ => {}
        }
    }
}

/// The paths in the code itself: `crate::a::b`, `super::a`, `child::a`.
fn inline_paths(code: &str) -> Vec<Names> {
    // A visibility is no import.
    let code = code.replace("(in crate::", "(in ");
    let words = code.split(|c: char| !is_of_a_word(c) && c != ':');
    let paths = words.filter(|word| word.contains("::") && !word.starts_with(':'));
    paths
        .map(|path| {
            let names = path.split("::").filter(|name| !name.is_empty());
            names.map(str::to_owned).collect()
        })
        .collect()
}

/// A path from the root of the crate. `None` for one that leads out of the crate.
fn absolute(modules: &Modules, module: &Names, path: &Names) -> Option<Names> {
    let climbs = path.iter().take_while(|name| *name == "super").count();
    let (mut names, rest) = match path.first()?.as_str() {
        "crate" => (Names::new(), &path[1..]),
        "self" => (module.clone(), &path[1..]),
        "super" => (
            module[..module.len().checked_sub(climbs)?].to_vec(),
            &path[climbs..],
        ),
        _ => (module.clone(), &path[..]),
    };
    let is_rooted = ["crate", "self", "super"].contains(&path[0].as_str());
    let child = [names.as_slice(), &path[..1]].concat();
    names.extend(rest.iter().cloned());
    // Another first name is that of a module in this one, or of another crate.
    (is_rooted || modules.contains_key(&child)).then_some(names)
}

/// The file that has what a path names: behind as many facades as pass the name on.
fn file_of(modules: &Modules, path: &Names, passed: usize) -> Names {
    let length = (1..=path.len())
        .take_while(|&length| modules.contains_key(&path[..length]))
        .last()
        .unwrap_or(0);
    let module = path[..length].to_vec();
    let (Some(name), Some(code)) = (path.get(length), modules.get(&module)) else {
        return module;
    };
    if passed < FACADES_MAX {
        for import in uses(code) {
            if import.last() == Some(name)
                && let Some(behind) = absolute(modules, &module, &import)
                && behind != *path
            {
                return file_of(modules, &behind, passed + 1);
            }
        }
    }
    module
}
