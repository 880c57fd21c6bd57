//! The page and the dashboard name what there is.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use nightshift::internals::metrics::catalogue;
use serde_json::Value;

use super::{QUICK, mixed};
use crate::support::metrics::{Metrics, operator};
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

/// A panel's text, or nothing.
fn text<'a>(panel: &'a Value, pointer: &str) -> &'a str {
    panel
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// Where several servers are scraped, a panel must not mix them.
#[test]
fn each_panel_says_what_it_shows_of_the_chosen_job() {
    let dashboard: Value =
        serde_json::from_str(&read("deploy/grafana/nightshift.json")).expect("is JSON");
    let panels = dashboard["panels"].as_array().expect("is a list");
    let shown = panels.iter().filter(|panel| panel["type"] != "row");
    for panel in shown.clone() {
        let title = text(panel, "/title");
        assert!(!text(panel, "/description").is_empty(), "{title}");
        let mut asked = Vec::new();
        expressions(panel, &mut asked);
        for expression in asked {
            let selectors = names(expression).count();
            let of_job = expression.matches(r#"{job="$job""#).count();
            assert_eq!(of_job, selectors, "{title}: {expression}");
        }
    }
    // What tells whether all is well comes first, and is green or red.
    let first: Vec<_> = shown.take(6).collect();
    for panel in &first {
        let title = text(panel, "/title");
        assert_eq!(panel["type"], "stat", "{title}");
        let steps = &panel["fieldConfig"]["defaults"]["thresholds"]["steps"];
        assert!(
            steps.as_array().is_some_and(|steps| steps.len() > 1),
            "{title}"
        );
    }
    for (title, values) in [("Database", &["0", "1"][..]), ("Upstreams not up", &["0"])] {
        let panel = first.iter().find(|panel| text(panel, "/title") == title);
        let panel = panel.expect("is among the first");
        let mappings = &panel["fieldConfig"]["defaults"]["mappings"][0]["options"];
        for value in values {
            assert!(mappings[value]["text"].is_string(), "{title}: {value}");
        }
    }
}

/// What the text of the rules has behind a key, on its line or folded on those below.
fn rules(key: &str) -> Vec<String> {
    let text = read("deploy/prometheus/nightshift.rules.yml");
    let mut found = Vec::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let entry = line.trim_start().trim_start_matches("- ");
        let indent = line.len() - entry.len();
        let Some(value) = entry.strip_prefix(key) else {
            continue;
        };
        let mut value = value.trim().trim_start_matches(">-").to_owned();
        let is_below = |line: &&str| line.len() - line.trim_start().len() > indent;
        while let Some(more) = lines.next_if(is_below) {
            value = format!("{value} {}", more.trim());
        }
        found.push(value);
    }
    found
}

#[test]
fn the_alerts_ask_for_metrics_that_there_are_and_say_what_to_do() {
    let families: BTreeSet<String> = catalogue().into_iter().map(|(name, _, _)| name).collect();
    let alerts = rules("alert:");
    for alert in ["BatchAtRisk", "UpstreamDown", "StoreErrors", "NoProgress"] {
        let name = format!("Nightshift{alert}");
        assert!(alerts.iter().any(|a| a.trim() == name), "{alerts:?}");
    }
    let expressions = rules("expr:");
    let counts = [&expressions, &rules("summary:"), &rules("description:")].map(Vec::len);
    assert_eq!(counts, [alerts.len(); 3]);
    for expression in &expressions {
        let asked: Vec<_> = names(expression).collect();
        assert!(
            !asked.is_empty() || expression.contains("up{"),
            "{expression}"
        );
        for name in asked {
            assert!(families.contains(name), "there is no {name}: {expression}");
        }
    }
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
    let server = Server::with(QUICK).binary().await;
    let key = operator(&server.database).await;
    server.run(mixed(), CHAT).await;
    let metrics = Metrics::until(&server.url(""), &key, |metrics| {
        metrics.sum("nightshift_batches_ended_total", &[]) == 1.0
            && metrics.sum("nightshift_database_up", &[]) == 1.0
    })
    .await;
    let there_are: BTreeSet<&str> = metrics
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
