//! Tables of aligned text, and how numbers stand in them.

/// Between two columns.
const GAP: usize = 2;
/// A column is not made narrower than this.
const NARROWEST: usize = 5;

/// Columns under titles. A table without rows is not written.
pub(in crate::cli) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new<const N: usize>(titles: [&str; N]) -> Self {
        let titles = titles.map(str::to_owned);
        Self {
            rows: vec![titles.to_vec()],
        }
    }

    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.to_vec());
    }

    /// Writes it behind an empty line, without spaces at the ends of lines. Where it is wider than
    /// `most`, its widest cells are cut.
    pub fn write(&self, text: &mut String, most: Option<usize>) {
        if self.rows.len() < 2 {
            return;
        }
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let mut widths: Vec<usize> = (0..columns).map(width).collect();
        shrink(&mut widths, most.unwrap_or(usize::MAX));
        text.push('\n');
        for row in &self.rows {
            let cells = row.iter().zip(&widths);
            let line: Vec<String> = cells
                .map(|(cell, &width)| format!("{:width$}", cut(cell, width)))
                .collect();
            text.push_str(line.join("  ").trim_end());
            text.push('\n');
        }
    }
}

/// Takes from the widest columns until all of them fit, with the gaps between them.
fn shrink(widths: &mut [usize], most: usize) {
    let gaps = GAP * widths.len().saturating_sub(1);
    while widths.iter().sum::<usize>() + gaps > most {
        match widths.iter_mut().max() {
            Some(widest) if *widest > NARROWEST => *widest -= 1,
            _ => return,
        }
    }
}

fn cut(cell: &str, width: usize) -> String {
    if cell.chars().count() <= width {
        return cell.to_owned();
    }
    let kept: String = cell.chars().take(width.saturating_sub(1)).collect();
    format!("{kept}…")
}

/// A length of time in its two largest units.
pub(super) fn duration(seconds: f64) -> String {
    let seconds = seconds.max(0.0).round() as u64;
    let (days, hours) = (seconds / 86_400, seconds / 3600 % 24);
    let minutes = seconds / 60 % 60;
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, minutes) => format!("{minutes}m {}s", seconds % 60),
        (0, hours, minutes) => format!("{hours}h {minutes}m"),
        (days, hours, _) => format!("{days}d {hours}h"),
    }
}

/// A rate, to the tenth where that matters.
pub(super) fn rate(per_second: f64) -> String {
    if per_second < 100.0 {
        format!("{per_second:.1}")
    } else {
        format!("{per_second:.0}")
    }
}

/// Bytes, in MiB.
pub(super) fn size(bytes: usize) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_that_is_too_wide_has_its_widest_cells_cut() {
        let mut table = Table::new(["BATCH", "DONE"]);
        table.row(["batch_0123456789".to_owned(), "1/2".to_owned()]);
        let mut text = String::new();
        table.write(&mut text, Some(14));
        assert_eq!(text, "\nBATCH     DONE\nbatch_0…  1/2\n");
        let mut text = String::new();
        table.write(&mut text, None);
        assert!(text.contains("batch_0123456789  1/2"), "{text}");
    }

    #[test]
    fn numbers_are_short() {
        let durations = [0.4, 59.0, 61.0, 3600.0, 90_000.0, -5.0].map(duration);
        assert_eq!(durations, ["0s", "59s", "1m 1s", "1h 0m", "1d 1h", "0s"]);
        assert_eq!([0.04, 99.94, 1234.5].map(rate), ["0.0", "99.9", "1234"]);
    }
}
