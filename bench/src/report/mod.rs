//! Tables and plots, made from the samples alone.

mod page;
mod parts;
mod plot;
pub mod readme;
mod targets;

use std::path::Path;

use anyhow::Result;

use crate::results::{Point, Results, Sample, Series};

pub use targets::render as targets;

/// Writes everything but `results.json`.
pub fn write(results: &Results, out: &Path) -> Result<()> {
    let results = with_base_in_lines(results);
    let plots = plot::all(&results, out)?;
    let page = page::render(&results, &plots);
    Ok(std::fs::write(out.join("README.md"), page)?)
}

/// The growth with lines passes through the base point, which was measured in `dispatch`.
fn with_base_in_lines(results: &Results) -> Results {
    let mut all = results.clone();
    let Some(other) = results.points("lines").into_iter().next() else {
        return all;
    };
    for sample in &results.samples {
        let lines = sample.point.lines;
        if sample.section == "dispatch" && sample.point == (Point { lines, ..other }) {
            all.samples.push(Sample {
                section: "lines".to_owned(),
                ..sample.clone()
            });
        }
    }
    all
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

    #[test]
    fn numbers_are_short_and_grouped() {
        for (value, text) in [
            (0.0, "0.00"),
            (0.0123, "0.012"),
            (0.00123, "0.0012"),
            (0.857, "0.86"),
            (12.34, "12.3"),
            (123.4, "123"),
            (13_900.4, "13,900"),
            (1_234_567.0, "1,234,567"),
            (-1234.0, "-1,234"),
        ] {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn counts_have_no_digits_behind_the_point() {
        for (value, text) in [(0, "0"), (64, "64"), (1024, "1,024"), (50_000, "50,000")] {
            assert_eq!(count(value), text);
        }
    }

    #[test]
    fn a_cell_has_its_range() {
        let series = Series([(0, 1.0), (1, 3.0), (2, 2.0)].into());
        assert_eq!(cell(&series), "2.00 (1.00–3.00)");
        assert_eq!(cell(&Series([(0, 1.0)].into())), "1.00");
        assert_eq!(cell(&Series::default()), "–");
    }
}
