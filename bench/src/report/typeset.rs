//! Numbers, tables and charts in Markdown.

use crate::results::Series;

/// A number with as many digits as one can make use of.
pub fn number(value: f64) -> String {
    let digits = match value.abs() {
        size if size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 0.1 || size == 0.0 => 2,
        size if size >= 0.01 => 3,
        _ => 4,
    };
    grouped(&format!("{value:.digits$}"))
}

pub fn whole(value: u64) -> String {
    grouped(&value.to_string())
}

/// Digits, with a comma before each three of the whole part.
fn grouped(text: &str) -> String {
    let (whole, rest) = text.split_at(text.find('.').unwrap_or(text.len()));
    let mut grouped = String::new();
    for (place, digit) in whole.chars().enumerate() {
        if place > 0 && (whole.len() - place).is_multiple_of(3) && !grouped.ends_with('-') {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped + rest
}

/// A median with its interval; a dash where nothing was measured.
pub fn cell(series: &Series) -> String {
    match (series.median().map(number), series.interval()) {
        (Some(median), Some((low, high))) if low < high => {
            format!("{median} ({}–{})", number(low), number(high))
        }
        (median, _) => median.unwrap_or_else(|| "–".to_owned()),
    }
}

pub fn table(head: &[impl AsRef<str>], rows: &[Vec<String>]) -> String {
    let head: Vec<String> = head.iter().map(|cell| cell.as_ref().to_owned()).collect();
    let line = |cells: &Vec<String>| format!("| {} |\n", cells.join(" | "));
    let rule = format!("|{}\n", "---|".repeat(head.len()));
    line(&head) + &rule + &rows.iter().map(line).collect::<String>()
}

/// A Mermaid chart of lines, each with the name that the title has for it, and its colour.
pub fn chart(
    title: &str,
    (x, labels): (&str, &[String]),
    y: &str,
    lines: &[(String, &str, Vec<f64>)],
) -> String {
    let medians = lines.iter().flat_map(|line| &line.2);
    let top = medians.fold(0.0, |top: f64, one| top.max(*one));
    let names: Vec<&str> = lines.iter().map(|line| line.0.as_str()).collect();
    let colors: Vec<&str> = lines.iter().map(|line| line.1).collect();
    let drawn = lines.iter().map(|line| format!("    line {:?}\n", line.2));
    format!(
        "\n```mermaid\n---\nconfig:\n  themeVariables:\n    xyChart:\n      \
         plotColorPalette: \"{}\"\n---\nxychart-beta\n    title \"{title}: {}\"\n    \
         x-axis \"{x}\" {labels:?}\n    y-axis \"{y}\" 0 --> {top}\n{}```\n",
        colors.join(", "),
        names.join(", "),
        drawn.collect::<String>(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_grouped() {
        let texts = [0.0, 0.00123, 0.857, 123.4, 13_900.4, -1234.0].map(number);
        assert_eq!(texts, ["0.00", "0.0012", "0.86", "123", "13,900", "-1,234"]);
        assert_eq!([64, 1024].map(whole), ["64", "1,024"]);
    }

    #[test]
    fn a_cell_has_its_interval() {
        assert_eq!(
            cell(&Series([(0, 1.0), (1, 3.0), (2, 2.0)].into())),
            "2.00 (1.00–3.00)"
        );
        assert_eq!(cell(&Series([(0, 1.0), (1, 1.0)].into())), "1.00");
        assert_eq!(cell(&Series::default()), "–");
    }
}
