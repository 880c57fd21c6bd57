//! `docs/benchmarks/README.md`: every section as a table.

use std::collections::BTreeMap;

use crate::input::LINE_BYTES;
use crate::machine::Machine;
use crate::results::{Point, Results, Series, System};

use super::parts::{PARTS, Part, Ratio};
use super::{cell, count, number, table, targets};

/// The whole page.
pub fn render(results: &Results, plots: &BTreeMap<&str, Vec<String>>) -> String {
    let mut page = String::from(
        "# Benchmarks\n\n<!-- Written by `cargo run --release -p bench`; changed there, not here. -->\n\n\
         Medians, with the least and the greatest in parentheses, of runs taken in turn; ratios \
         are taken within a round. [bench/README.md](../../bench/README.md) says how to run it \
         and what the figures mean; [results.json](results.json) has every sample.\n\n",
    );
    page.push_str(&machine(&results.machine));
    page.push_str(&entropy(results));
    page.push_str("\n## Targets\n\n");
    page.push_str("✓: the median meets it; ✗: it does not.\n\n");
    page.push_str(&targets::render(results));
    page.push_str(
        "\n[notes.md](notes.md) says where the time goes, and why sizes are what they are.\n",
    );
    for part in &PARTS {
        let rows = part.rows(results);
        if rows.is_empty() {
            continue;
        }
        page.push_str(&format!("\n## {}\n\n{}\n\n", part.title, part.about));
        page.push_str(&table(&part.head(), &rows));
        for plot in plots.get(part.title).into_iter().flatten() {
            page.push_str(&format!("\n![{}]({plot})\n", part.title));
        }
    }
    page
}

fn machine(machine: &Machine) -> String {
    let short = if machine.quick {
        "**A short run, for looking at only.**\n\n"
    } else {
        ""
    };
    format!(
        "{short}{}: {} ({}), {}, Postgres {}; {} cores of {}, {} of memory, {}; data on {}. \
         Upstream, database and benchmark share the cores.\n",
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
    )
}

/// How hard what was sent is to compress.
fn entropy(results: &Results) -> String {
    let floor = results.samples.iter().find_map(|sample| {
        let figure = |name| sample.figures.get(name);
        Some((
            figure("requests_zstd3")?,
            figure("answers_zstd3")?,
            figure("answer_bytes")?,
        ))
    });
    floor.map_or_else(String::new, |(requests, answers, bytes)| {
        format!(
            "\nRequests of {LINE_BYTES} bytes, answers of {} on average, all different; `zstd -3` makes \
             the requests {} times smaller, the answers {} times.\n",
            number(bytes),
            number(requests),
            number(answers)
        )
    })
}

impl Part {
    fn head(&self) -> Vec<String> {
        let axes = self.axes.iter().map(|(name, _)| *name);
        let columns = self.columns.iter().map(|(_, heading)| *heading);
        let ratios = self.ratios.iter().flat_map(|ratios| ratios.columns);
        let ratios = ratios.map(|(Ratio::Over(_, heading) | Ratio::Under(_, heading))| *heading);
        let head = axes.chain([""]).chain(columns).chain(ratios);
        head.map(String::from).collect()
    }

    fn rows(&self, results: &Results) -> Vec<Vec<String>> {
        let mut points: Vec<Point> = results.points(self.section).into_iter().collect();
        points.sort_by_key(|point| {
            self.axes
                .iter()
                .map(|(_, of)| of(point))
                .collect::<Vec<_>>()
        });
        let mut rows = Vec::new();
        for point in points {
            for &system in self.systems {
                rows.extend(self.row(results, point, system));
            }
        }
        rows
    }

    /// `None`: nothing was measured there.
    fn row(&self, results: &Results, point: Point, system: System) -> Option<Vec<String>> {
        let of = |(point, system), figure| results.rounds(self.section, point, system, figure);
        let here = (point, system);
        let own = self.columns.iter().map(|(figure, _)| of(here, figure));
        let own: Vec<Series> = own.collect();
        if own.iter().all(|series| series.0.is_empty()) {
            return None;
        }
        let axes = self.axes.iter().map(|(_, axis)| count(axis(&point)));
        let mut row: Vec<String> = axes.chain([system.name().to_owned()]).collect();
        row.extend(own.iter().map(cell));
        let Some(ratios) = self.ratios else {
            return Some(row);
        };
        let with = (ratios.with)(point, system);
        row.extend(ratios.columns.iter().map(|ratio| match ratio {
            _ if with == here => "1".to_owned(),
            Ratio::Over(figure, _) => cell(&of(here, figure).over(&of(with, figure))),
            Ratio::Under(figure, _) => cell(&of(with, figure).over(&of(here, figure))),
        }));
        Some(row)
    }
}
