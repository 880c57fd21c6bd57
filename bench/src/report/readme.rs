//! The table in the project's README, between two marks.

use std::path::Path;

use anyhow::{Context as _, Result};

use crate::results::{Point, Results, Series, System};

use super::targets::series;
use super::{number, table};

const BEGIN: &str =
    "<!-- benchmark: written by `cargo run --release -p bench -- report --readme` -->";
const END: &str = "<!-- /benchmark -->";
/// What stands below the table.
const LEGEND: &str = "\
In parentheses: over the floor. Each shares the machine's cores with the same simulated model
server. [docs/benchmarks](docs/benchmarks/README.md) has every figure.";
/// What stands between the marks while there are no results.
#[cfg(test)]
const NOTHING: &str = "No full run has been published yet.";

/// Writes the table anew.
pub fn rewrite(results: &Results, path: &Path) -> Result<()> {
    let page = std::fs::read_to_string(path)?;
    let (before, rest) = page.split_once(BEGIN).context("the README has no mark")?;
    let (_, after) = rest
        .split_once(END)
        .context("the README's mark has no end")?;
    Ok(std::fs::write(
        path,
        format!("{before}{}{after}", block(results)),
    )?)
}

/// The table with its marks.
fn block(results: &Results) -> String {
    let columns = [System::Sqlite, System::Postgres, System::Floor];
    let head: Vec<String> = std::iter::once("")
        .chain(columns.map(System::name))
        .map(String::from)
        .collect();
    let mut rows = Vec::new();
    let mut row = |name: String, of: &dyn Fn(System) -> Series, over: bool| {
        let floor = of(System::Floor);
        let cells = columns.iter().map(|&system| {
            let own = of(system);
            let Some(median) = own.median() else {
                return "–".to_owned();
            };
            match own.over(&floor).median() {
                Some(ratio) if over && system != System::Floor => {
                    format!("{} ({})", number(median), number(ratio))
                }
                _ => number(median),
            }
        });
        rows.push(std::iter::once(name).chain(cells).collect::<Vec<_>>());
    };
    for latency_ms in [0, 10, 100] {
        let point = |p: &Point| (p.latency_ms, p.in_flight) == (latency_ms, 256);
        let of = |system| series(results, "dispatch", point, system, "lines_per_s");
        row(
            format!("lines a second, {latency_ms} ms upstream"),
            &of,
            true,
        );
    }
    let base = |p: &Point| (p.latency_ms, p.in_flight) == (10, 256);
    let base = |figure| move |system| series(results, "dispatch", base, system, figure);
    row(
        "CPU ms a line, server".into(),
        &base("server_cpu_ms_per_line"),
        true,
    );
    row(
        "CPU ms a line, database".into(),
        &base("database_cpu_ms_per_line"),
        false,
    );
    row(
        "bytes written for each byte of input and output".into(),
        &base("written_per_byte"),
        false,
    );
    let all = |section, figure| move |system| series(results, section, |_| true, system, figure);
    row(
        "upload, MB/s".into(),
        &all("upload", "upload_mb_per_s"),
        false,
    );
    row(
        "download, MB/s".into(),
        &all("download", "download_mb_per_s"),
        false,
    );
    row(
        "first call after create, 99th percentile, ms".into(),
        &all("first-call", "first_call_p99_ms"),
        false,
    );
    row(
        "peak memory, 1 GB upload and 1,000,000 lines, MiB".into(),
        &all("memory", "peak_mib"),
        false,
    );
    format!("{BEGIN}\n\n{}\n{LEGEND}\n\n{END}", table(&head, &rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_readme_says_what_results_json_says() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let results = root.join("docs/benchmarks/results.json");
        let block = if results.exists() {
            block(&Results::read(&results).unwrap())
        } else {
            format!("{BEGIN}\n\n{NOTHING}\n\n{END}")
        };
        let page = std::fs::read_to_string(root.join("README.md")).unwrap();
        assert!(page.contains(&block), "{block}");
    }
}
