//! The table in the project's README, between two marks.

use std::path::Path;

use anyhow::{Context as _, Result};

use crate::input::LINE_BYTES;
use crate::machine::Machine;
use crate::results::{Point, Results, Series, System};

use super::targets::{first, series};
use super::{count, number, table};

const BEGIN: &str =
    "<!-- benchmark: written by `cargo run --release -p bench -- report --readme` -->";
const END: &str = "<!-- /benchmark -->";
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
    let of = |section, figure| move |system| first(results, section, system, figure);
    row(
        "upload, MB/s".into(),
        &of("upload", "upload_mb_per_s"),
        false,
    );
    row(
        "download, MB/s".into(),
        &of("download", "download_mb_per_s"),
        false,
    );
    row(
        "first call after create, 99th percentile, ms".into(),
        &of("first-call", "first_call_p99_ms"),
        false,
    );
    row(
        "peak memory, 1 GB upload and 1,000,000 lines, MiB".into(),
        &of("memory", "peak_mib"),
        false,
    );
    let (table, legend) = (table(&head, &rows), legend(results));
    format!("{BEGIN}\n\n{table}\n{legend}\n\n{END}")
}

/// What stands below the table: how and where it was measured.
fn legend(results: &Results) -> String {
    let base = results.samples.iter().find(|sample| {
        let point = sample.point;
        sample.section == "dispatch" && (point.latency_ms, point.in_flight) == (10, 256)
    });
    let lines = base.map_or(0, |sample| sample.point.lines);
    let rounds = results.samples.iter().map(|sample| sample.round + 1).max();
    let Machine {
        date,
        revision,
        cores,
        processor,
        ..
    } = &results.machine;
    format!(
        "In parentheses: over the floor. Medians of {} rounds: batches of {} requests of\n\
         {LINE_BYTES} bytes (fewer at 100 ms), 256 calls in flight; CPU and bytes at 10 ms. Measured on\n\
         {date} at {revision}, on {cores} cores of {processor}, which each system shares with the same\n\
         simulated model server. [docs/benchmarks](docs/benchmarks/README.md) has every figure.",
        rounds.unwrap_or_default(),
        count(lines),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_readme_says_what_results_json_says() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let results = Results::read(&root.join("docs/benchmarks/results.json")).unwrap();
        let block = block(&results);
        let page = std::fs::read_to_string(root.join("README.md")).unwrap();
        assert!(page.contains(&block), "{block}");
    }
}
