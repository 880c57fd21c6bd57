//! The page and the dashboard name what there is.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use nightshift::observe::catalogue;
use serde_json::Value;

use super::{QUICK, mixed};
use crate::support::figures::{Figures, operator};
use crate::support::{CHAT, Server};

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn the_page_lists_exactly_the_metrics_that_there_are() {
    let there_are: BTreeSet<String> = catalogue()
        .into_iter()
        .map(|(name, of_type, help)| format!("| `{name}` | {of_type} | {help} |"))
        .collect();
    let page = read("docs/metrics.md");
    let listed = page
        .lines()
        .filter(|line| line.starts_with("| `nightshift_") || line.starts_with("| `process_"));
    let listed: BTreeSet<String> = listed.map(str::to_owned).collect();
    let missing: Vec<_> = there_are.difference(&listed).collect();
    let gone: Vec<_> = listed.difference(&there_are).collect();
    assert!(
        missing.is_empty() && gone.is_empty(),
        "missing in docs/metrics.md: {missing:#?}\nnot there: {gone:#?}"
    );
}

/// The names of metrics in an expression.
fn names(expression: &str) -> impl Iterator<Item = &str> {
    expression
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| word.starts_with("nightshift_") || word.starts_with("process_"))
}

/// Every `expr` and `definition` in a dashboard.
fn expressions<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
    match value {
        Value::Object(object) => {
            for (key, value) in object {
                match value.as_str() {
                    Some(text) if key == "expr" || key == "definition" => found.push(text),
                    _ => expressions(value, found),
                }
            }
        }
        Value::Array(values) => values.iter().for_each(|value| expressions(value, found)),
        _ => {}
    }
}

#[tokio::test]
async fn the_dashboard_asks_for_metrics_that_a_batch_leaves() {
    let server = Server::binary(QUICK).await;
    let key = operator(&server.database).await;
    server.run(mixed(), CHAT).await;
    let figures = Figures::until(&server.url(""), &key, |figures| {
        figures.sum("nightshift_batches_ended_total", &[]) == 1.0
            && figures.sum("nightshift_database_up", &[]) == 1.0
    })
    .await;
    let there_are: BTreeSet<&str> = figures
        .0
        .lines()
        .filter_map(|line| line.split(['{', ' ']).next())
        .collect();
    let families: BTreeSet<String> = catalogue().into_iter().map(|(name, _, _)| name).collect();
    let dashboard: Value =
        serde_json::from_str(&read("deploy/grafana/nightshift.json")).expect("is JSON");
    let mut asked = Vec::new();
    expressions(&dashboard, &mut asked);
    assert!(asked.len() > 15, "that is not all of it: {asked:?}");
    for name in asked.into_iter().flat_map(names) {
        // A queue that is empty has no sample: there it is enough that the metric exists.
        let is_empty = name.starts_with("nightshift_queue_") && families.contains(name);
        let is_there = there_are.contains(name) || is_empty;
        assert!(is_there, "there is no {name}");
    }
}
