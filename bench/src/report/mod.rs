//! Tables and plots, made from the samples alone. `report.toml` says which.

mod plot;
mod spec;

use std::path::Path;

use anyhow::{Context as _, Result};

use crate::input::LINE_BYTES;
use crate::results::{Point, Results, Sample, Series, System};
use spec::{Spec, Table};

const BEGIN: &str =
    "<!-- benchmark: written by `cargo run --release -p bench -- report --readme` -->";
const END: &str = "<!-- /benchmark -->";

/// Writes everything but `results.json`.
pub fn write(results: &Results, out: &Path) -> Result<()> {
    let (spec, results) = (spec::read()?, with_base_in_lines(results));
    Ok(std::fs::write(
        out.join("README.md"),
        page(&spec, &results, out)?,
    )?)
}

/// The growth with lines passes through the base point, which was measured in `dispatch`.
fn with_base_in_lines(results: &Results) -> Results {
    let mut all = results.clone();
    let Some(other) = results.points("lines").into_iter().next() else {
        return all;
    };
    let is_base = |sample: &&Sample| {
        let lines = sample.point.lines;
        sample.section == "dispatch" && sample.point == (Point { lines, ..other })
    };
    let base = results.samples.iter().filter(is_base).cloned();
    all.samples.extend(base.map(|sample| Sample {
        section: "lines".to_owned(),
        ..sample
    }));
    all
}

/// `docs/benchmarks/README.md`. Draws its plots, too.
fn page(spec: &Spec, results: &Results, out: &Path) -> Result<String> {
    let machine = &results.machine;
    let sample = results.samples.iter();
    let figure = |name| sample.clone().find_map(|sample| sample.figures.get(name));
    let number_of = |name| figure(name).map_or_else(|| "–".to_owned(), number);
    let mut page = format!(
        "# Benchmarks\n\n<!-- Written by `cargo run --release -p bench`; changed there, not here. -->\n\n\
         Medians, with the least and the greatest in parentheses, of runs taken in turn; ratios \
         are taken within a round. [bench/README.md](../../bench/README.md) says how to run it \
         and what the figures mean; [results.json](results.json) has every sample.\n\n\
         {}{}: {} ({}), {}, Postgres {}; {} cores of {}, {} of memory, {}; data on {}. Upstream, \
         database and benchmark share the cores.\n\n\
         Requests of {LINE_BYTES} bytes, answers of {} on average, all different; `zstd -3` makes \
         the requests {} times smaller, the answers {} times.\n\n\
         ## Targets\n\n✓: the median meets it; ✗: it does not.\n\n{}\n\
         [notes.md](notes.md) says where the time goes, and why sizes are what they are.\n",
        if machine.quick {
            "**A short run, for looking at only.**\n\n"
        } else {
            ""
        },
        machine.date,
        machine.nightshift,
        machine.revision,
        machine.rust,
        machine.postgres,
        machine.cores,
        machine.processor,
        machine.memory,
        machine.kernel,
        machine.disk,
        number_of("answer_bytes"),
        number_of("requests_zstd3"),
        number_of("answers_zstd3"),
        targets_of(spec, results),
    );
    for part in &spec.tables {
        let rows = rows(part, results);
        if rows.is_empty() {
            continue;
        }
        let table = table(&head(spec, part), &rows);
        page += &format!("\n## {}\n\n{}\n\n{table}", part.title, part.about);
        for plot in &part.plots {
            if plot::draw(plot, &part.section, results, out)? {
                page += &format!("\n![{}]({})\n", plot.title, plot.file);
            }
        }
    }
    Ok(page)
}

fn head(spec: &Spec, part: &Table) -> Vec<String> {
    let figure = |name| &spec.figures[name];
    let axes = part.axes.iter().map(|name| spec.axes[name].clone());
    let columns = part.columns.iter().map(|name| figure(name).clone());
    let over = part
        .over
        .iter()
        .map(|name| format!("{}, over {}", figure(name), part.base_name));
    let under = part
        .under
        .iter()
        .map(|name| format!("{}: {} over this", figure(name), part.base_name));
    let system = std::iter::once(String::new());
    axes.chain(system)
        .chain(columns)
        .chain(over)
        .chain(under)
        .collect()
}

fn rows(part: &Table, results: &Results) -> Vec<Vec<String>> {
    let mut points: Vec<Point> = results.points(&part.section).into_iter().collect();
    let axes = |point: &Point| {
        part.axes
            .iter()
            .map(|axis| spec::coordinate(point, axis))
            .collect::<Vec<_>>()
    };
    points.sort_by_key(axes);
    let mut rows = Vec::new();
    for point in points {
        for &system in &part.systems {
            let of = |(point, system), figure: &String| {
                results.rounds(&part.section, point, system, figure)
            };
            let here = (point, system);
            let own: Vec<Series> = part.columns.iter().map(|figure| of(here, figure)).collect();
            if own.iter().all(|series| series.0.is_empty()) {
                continue;
            }
            let mut row: Vec<String> = axes(&point).into_iter().map(count).collect();
            row.push(system.name().to_owned());
            row.extend(own.iter().map(cell));
            if let Some(base) = &part.base {
                let with = spec::base(results, &part.section, here, base);
                let over = part
                    .over
                    .iter()
                    .map(|name| of(here, name).over(&of(with, name)));
                let under = part
                    .under
                    .iter()
                    .map(|name| of(with, name).over(&of(here, name)));
                let ratio = |series: Series| {
                    if with == here {
                        "1".to_owned()
                    } else {
                        cell(&series)
                    }
                };
                row.extend(over.chain(under).map(ratio));
            }
            rows.push(row);
        }
    }
    rows
}

/// What is to be reached, and whether it is, as a table.
pub fn targets(results: &Results) -> Result<String> {
    Ok(targets_of(&spec::read()?, results))
}

fn targets_of(spec: &Spec, results: &Results) -> String {
    let engines = [System::Sqlite, System::Postgres];
    let head = ["", "target", engines[0].name(), engines[1].name()].map(String::from);
    let rows: Vec<Vec<String>> = spec
        .targets
        .iter()
        .map(|target| {
            let (sign, sqlite, postgres) = &target.goal;
            let goal = if sqlite == postgres {
                format!("{sign} {sqlite}")
            } else {
                format!("{sign} {sqlite} SQLite, {sign} {postgres} Postgres")
            };
            let measured = [sqlite, postgres]
                .into_iter()
                .zip(engines)
                .map(|(goal, system)| {
                    let series = target.of.of(results, system);
                    let mark = series.median().map_or("", |median| {
                        let is_met = match sign.as_str() {
                            "≥" => median >= *goal,
                            "≤" => median <= *goal,
                            _ => median < *goal,
                        };
                        if is_met { " ✓" } else { " ✗" }
                    });
                    cell(&series) + mark
                });
            [target.name.clone(), goal]
                .into_iter()
                .chain(measured)
                .collect()
        })
        .collect();
    table(&head, &rows)
}

/// Writes the table in the project's README anew.
pub fn rewrite_readme(results: &Results, path: &Path) -> Result<()> {
    let page = std::fs::read_to_string(path)?;
    let (before, rest) = page.split_once(BEGIN).context("the README has no mark")?;
    let (_, after) = rest
        .split_once(END)
        .context("the README's mark has no end")?;
    Ok(std::fs::write(
        path,
        format!("{before}{}{after}", readme(results)?),
    )?)
}

/// That table, with its marks and what stands below it.
fn readme(results: &Results) -> Result<String> {
    let columns = [System::Sqlite, System::Postgres, System::Floor];
    let head: Vec<String> = [""]
        .into_iter()
        .chain(columns.map(System::name))
        .map(String::from)
        .collect();
    let rows: Vec<Vec<String>> = spec::read()?
        .readme
        .iter()
        .map(|row| {
            let cells = columns.iter().map(|&system| {
                let median = row.of.own(results, system).median().map(number);
                let ratio = row.of.of(results, system).median().map(number);
                match (median, ratio) {
                    (Some(median), Some(ratio))
                        if row.of.over.is_some() && system != System::Floor =>
                    {
                        format!("{median} ({ratio})")
                    }
                    (median, _) => median.unwrap_or_else(|| "–".to_owned()),
                }
            });
            [row.name.clone()].into_iter().chain(cells).collect()
        })
        .collect();
    let base = |sample: &&Sample| {
        let point = sample.point;
        sample.section == "dispatch" && (point.latency_ms, point.in_flight) == (10, 256)
    };
    let lines = results
        .samples
        .iter()
        .find(base)
        .map_or(0, |sample| sample.point.lines);
    let rounds = results.samples.iter().map(|sample| sample.round + 1).max();
    let machine = &results.machine;
    Ok(format!(
        "{BEGIN}\n\n{}\n\
         In parentheses: over the floor. Medians of {} rounds: batches of {} requests of\n\
         {LINE_BYTES} bytes (fewer at 100 ms), 256 calls in flight; CPU and bytes at 10 ms. Measured on\n\
         {} at {}, on {} cores of {}, which each system shares with the same\n\
         simulated model server. [docs/benchmarks](docs/benchmarks/README.md) has every figure.\n\n{END}",
        table(&head, &rows),
        rounds.unwrap_or_default(),
        count(lines),
        machine.date,
        machine.revision,
        machine.cores,
        machine.processor,
    ))
}

/// A number with as many digits as one can make use of.
fn number(value: f64) -> String {
    let size = value.abs();
    let digits = match size {
        _ if size >= 100.0 => 0,
        _ if size >= 10.0 => 1,
        _ if size >= 0.1 || size == 0.0 => 2,
        _ if size >= 0.01 => 3,
        _ => 4,
    };
    let text = format!("{value:.digits$}");
    let (whole, rest) = text.split_at(text.find('.').unwrap_or(text.len()));
    let mut grouped = String::new();
    for (place, digit) in whole.chars().enumerate() {
        let left = whole.len() - place;
        if place > 0 && left.is_multiple_of(3) && !grouped.ends_with('-') {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped + rest
}

/// A whole number.
fn count(value: u64) -> String {
    if value < 100 {
        return value.to_string();
    }
    number(value as f64)
}

/// A median, with its range where there is one; a dash where nothing was measured.
fn cell(series: &Series) -> String {
    match (series.median(), series.range()) {
        (Some(median), Some((low, high))) if series.0.len() > 1 => {
            format!("{} ({}–{})", number(median), number(low), number(high))
        }
        (Some(median), _) => number(median),
        _ => "–".to_owned(),
    }
}

/// A table in Markdown.
fn table(head: &[String], rows: &[Vec<String>]) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let rule = format!("|{}\n", "---|".repeat(head.len()));
    let rows: String = rows.iter().map(|row| line(row)).collect();
    line(head) + &rule + &rows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn published() -> (std::path::PathBuf, Results) {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let results = Results::read(&root.join("docs/benchmarks/results.json"));
        (root, results.unwrap())
    }

    #[test]
    fn the_readme_says_what_results_json_says() {
        let (root, results) = published();
        let table = readme(&results).unwrap();
        let page = std::fs::read_to_string(root.join("README.md")).unwrap();
        assert!(page.contains(&table), "{table}");
    }

    #[test]
    fn the_page_says_what_results_json_says() {
        let (root, results) = published();
        let out = tempfile::tempdir().unwrap();
        write(&results, out.path()).unwrap();
        let [made, page] = [out.path(), &root.join("docs/benchmarks")]
            .map(|path| std::fs::read_to_string(path.join("README.md")).unwrap());
        assert!(made == page, "run `cargo run --release -p bench -- report`");
    }

    #[test]
    fn numbers_are_short_and_grouped() {
        for (value, text) in [
            (0.0, "0.00"),
            (0.00123, "0.0012"),
            (0.857, "0.86"),
            (123.4, "123"),
            (13_900.4, "13,900"),
            (-1234.0, "-1,234"),
        ] {
            assert_eq!(number(value), text);
        }
        assert_eq!(
            (count(64), count(1024)),
            ("64".to_owned(), "1,024".to_owned())
        );
    }

    #[test]
    fn a_cell_has_its_range() {
        let series = Series([(0, 1.0), (1, 3.0), (2, 2.0)].into());
        assert_eq!(cell(&series), "2.00 (1.00–3.00)");
        assert_eq!(cell(&Series([(0, 1.0)].into())), "1.00");
        assert_eq!(cell(&Series::default()), "–");
    }
}
