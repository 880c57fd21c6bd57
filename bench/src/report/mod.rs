//! The page of all figures and the README's table, made from the samples alone. `report.toml` says
//! what they show.

mod spec;
mod typeset;

use std::path::Path;

use anyhow::{Context as _, Result};

use crate::results::{Point, Results, System};
use spec::{Place, Plot, Row, Spec, Table};
use typeset::{cell, chart, number, table, whole};

const BEGIN: &str =
    "<!-- benchmark: written by `cargo run --release -p bench -- report --readme` -->";
const END: &str = "<!-- /benchmark -->";

/// The columns of the tables of targets and of the README.
const COLUMNS: [System; 3] = [System::Sqlite, System::Postgres, System::Floor];
/// Of a plot's lines.
const COLORS: [&str; 3] = ["blue", "orange", "black"];

/// Writes the page beside `results.json`.
pub fn write(results: &Results, out: &Path) -> Result<()> {
    let page = page(&Spec::read()?, results);
    Ok(std::fs::write(out.join("README.md"), page)?)
}

fn page(spec: &Spec, results: &Results) -> String {
    let mut page = filled(&spec.page, results) + "\n" + &target_table(spec, results);
    if results.machine.quick {
        page = format!("**A short run, for looking at only.**\n\n{page}");
    }
    for part in &spec.tables {
        let shown = match results.skipped.get(&part.section) {
            Some(reason) => format!("**Not measured:** {reason}.\n"),
            None => shown(spec, part, results),
        };
        if !shown.is_empty() {
            page += &format!("\n## {}\n\n{}\n\n{shown}", part.title, part.about);
        }
    }
    page
}

/// A text with what it names of the machine.
fn filled(text: &str, results: &Results) -> String {
    let mut text = text.to_owned();
    let machine = serde_json::to_value(&results.machine).unwrap_or_default();
    for (name, value) in machine.as_object().into_iter().flatten() {
        let value = value.as_str().map_or(value.to_string(), str::to_owned);
        text = text.replace(&format!("{{{name}}}"), &value);
    }
    text
}

/// A table and its plots; nothing where nothing was measured.
fn shown(spec: &Spec, part: &Table, results: &Results) -> String {
    let place = Place::new(results, &part.section, &part.at);
    let axes = place.axes();
    let mut rows = Vec::new();
    for point in &place.points {
        for system in System::ALL {
            let of = |column: &String| cell(&place.series(*point, system, column));
            let cells: Vec<String> = part.columns.iter().map(of).collect();
            if cells.iter().any(|cell| cell != "–") {
                let axes = axes.iter().map(|axis| whole(point.coordinate(axis)));
                let head = axes.chain([system.name().to_owned()]);
                rows.push(head.chain(cells).collect());
            }
        }
    }
    if rows.is_empty() {
        return String::new();
    }
    let heads = axes.into_iter().chain([""]).map(|axis| spec.head(axis));
    let columns = part.columns.iter().map(|column| spec.head(column));
    let mut shown = table(&heads.chain(columns).collect::<Vec<_>>(), &rows);
    for plot in &part.plots {
        shown += &drawn(spec, plot, &part.section, results);
    }
    shown
}

/// A plot of the systems that were measured at all of its points.
fn drawn(spec: &Spec, plot: &Plot, section: &str, results: &Results) -> String {
    let place = Place::new(results, section, &plot.at);
    let line = |(system, color): (System, &'static str)| {
        let median = |point: &Point| place.series(*point, system, &plot.y).median();
        let medians = place
            .points
            .iter()
            .map(median)
            .collect::<Option<Vec<f64>>>()?;
        Some((format!("{} {color}", system.name()), color, medians))
    };
    let lines: Vec<_> = COLUMNS.into_iter().zip(COLORS).filter_map(line).collect();
    if lines.is_empty() || place.points.len() < 2 {
        return String::new();
    }
    let labels = place
        .points
        .iter()
        .map(|point| whole(point.coordinate(&plot.x)));
    let (x, y) = (spec.head(&plot.x), spec.head(&plot.y));
    chart(&plot.title, (&x, &labels.collect::<Vec<_>>()), &y, &lines)
}

/// What is to be reached of what was measured, and whether it is, as a table.
pub fn targets(results: &Results) -> Result<String> {
    let table = target_table(&Spec::read()?, results);
    let is_shown = |line: &&str| line.contains(['✓', '✗']) || !line.contains(['≥', '≤', '<']);
    Ok(table.split_inclusive('\n').filter(is_shown).collect())
}

fn target_table(spec: &Spec, results: &Results) -> String {
    let row = |target: &Row| {
        let (sign, sqlite, postgres) = &target.goal;
        let goal = match sqlite == postgres {
            true => format!("{sign} {sqlite}"),
            false => format!("{sign} {sqlite} SQLite, {sign} {postgres} Postgres"),
        };
        let measured = COLUMNS.into_iter().zip([sqlite, postgres]);
        let measured = measured.map(|(system, goal)| {
            let series = target.of(results, system, &target.figure);
            let is_met = series.median().map(|median| match sign.as_str() {
                "≥" => median >= *goal,
                "≤" => median <= *goal,
                _ => median < *goal,
            });
            cell(&series) + is_met.map_or("", |is_met| if is_met { " ✓" } else { " ✗" })
        });
        let head = [target.name.clone(), goal].into_iter();
        head.chain(measured).collect()
    };
    let rows: Vec<Vec<String>> = spec.targets.iter().map(row).collect();
    table(&["", "target", COLUMNS[0].name(), COLUMNS[1].name()], &rows)
}

/// Writes the table in the project's README anew.
pub fn rewrite_readme(results: &Results, path: &Path) -> Result<()> {
    let page = std::fs::read_to_string(path)?;
    let (before, rest) = page.split_once(BEGIN).context("no mark")?;
    let (_, after) = rest.split_once(END).context("the mark has no end")?;
    let page = format!("{before}{}{after}", readme(&Spec::read()?, results));
    Ok(std::fs::write(path, page)?)
}

/// That table, with its marks and what stands below it.
fn readme(spec: &Spec, results: &Results) -> String {
    let row = |row: &Row| {
        let measured = COLUMNS.into_iter().map(|system| {
            let median = |column: &str| row.of(results, system, column).median();
            let (figure, base) = row.figure.split_once('/').unwrap_or((&row.figure, ""));
            let own = median(figure).map_or("–".to_owned(), number);
            match median(&row.figure) {
                Some(ratio) if !base.is_empty() && base != system.key() => {
                    format!("{own} ({})", number(ratio))
                }
                _ => own,
            }
        });
        [row.name.clone()].into_iter().chain(measured).collect()
    };
    let rows: Vec<Vec<String>> = spec.readme.iter().map(row).collect();
    let [first, second, third] = COLUMNS.map(System::name);
    let table = table(&["", first, second, third], &rows);
    let end = filled(&spec.readme_end, results);
    format!("{BEGIN}\n\n{table}\n{end}\n{END}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_readme_and_the_page_say_what_results_json_says() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let results = Results::read(&root.join("docs/benchmarks/results.json")).unwrap();
        let spec = Spec::read().unwrap();
        let text = |path| std::fs::read_to_string(root.join(path)).unwrap();
        let is_in_step = text("README.md").contains(&readme(&spec, &results))
            && text("docs/benchmarks/README.md") == page(&spec, &results);
        assert!(
            is_in_step,
            "run `cargo run --release -p bench -- report --readme`"
        );
    }
}
