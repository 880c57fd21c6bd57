//! Tables of aligned text, and how numbers stand in them.

use console::{Alignment, Term, measure_text_width, pad_str, truncate_str};

/// Between two columns.
const GAP: usize = 2;
/// Columns of a terminal that does not say how many it has.
const NARROW: usize = 80;
/// A cell is not cut to less than this.
const NARROWEST: usize = 4;

/// A column of a table.
#[derive(Clone, Copy)]
pub(in crate::cli) struct Column {
    title: &'static str,
    may_be_cut: bool,
    /// Where there is no room, the column with the highest number is left out first. 0: never.
    leaves: u8,
}

impl Column {
    /// A column that is shown whole, such as one of ids.
    pub fn whole(title: &'static str) -> Self {
        Self {
            title,
            may_be_cut: false,
            leaves: 0,
        }
    }

    /// A column whose cells may be cut.
    pub fn cut(title: &'static str) -> Self {
        Self {
            may_be_cut: true,
            ..Self::whole(title)
        }
    }

    /// The column may be left out, after those with a higher number.
    pub fn leaves(self, leaves: u8) -> Self {
        Self { leaves, ..self }
    }
}

/// Columns under titles. A table without rows is not written.
pub(in crate::cli) struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new<const N: usize>(columns: [Column; N]) -> Self {
        Self {
            rows: vec![columns.map(|column| column.title.to_owned()).to_vec()],
            columns: columns.to_vec(),
        }
    }

    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.map(printable).to_vec());
    }

    /// Writes the table behind an empty line, without spaces at the ends of lines. Where the table
    /// is wider than `most`, columns are cut and left out, as far as they may be.
    pub fn write(&self, text: &mut String, most: Option<usize>) {
        if self.rows.len() < 2 {
            return;
        }
        let widths = self.fitted(most.unwrap_or(usize::MAX));
        text.push('\n');
        for row in &self.rows {
            let cells = row.iter().zip(&widths);
            let line: Vec<String> = cells
                .filter_map(|(cell, width)| width.map(|width| padded(cell, width)))
                .collect();
            text.push_str(line.join("  ").trim_end());
            text.push('\n');
        }
    }

    /// The width of each column; `None`: it is left out.
    fn fitted(&self, most: usize) -> Vec<Option<usize>> {
        let whole = |index: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(index));
            cells.map(|cell| measure_text_width(cell)).max()
        };
        let mut widths: Vec<_> = (0..self.columns.len()).map(whole).collect();
        // First it is seen what has room if all is cut that may be, then the rest is given back.
        let cut = |(column, width): (&Column, &Option<usize>)| {
            width.map(|width| {
                if column.may_be_cut {
                    width.min(NARROWEST.max(column.title.len()))
                } else {
                    width
                }
            })
        };
        loop {
            let least = self.columns.iter().zip(&widths).map(cut);
            let shown = self.columns.iter().zip(&widths).enumerate();
            let shown = shown.filter(|(_, (_, width))| width.is_some());
            let first = shown.max_by_key(|(_, (column, _))| column.leaves);
            match first {
                Some((index, (column, _))) if column.leaves > 0 && total(least) > most => {
                    widths[index] = None;
                }
                _ => break,
            }
        }
        while total(widths.iter().copied()) > most {
            let may_be_cut = self.columns.iter().zip(&mut widths);
            let may_be_cut = may_be_cut.filter_map(|(column, width)| {
                width
                    .as_mut()
                    .filter(|width| column.may_be_cut && **width > NARROWEST)
            });
            match may_be_cut.max() {
                Some(widest) => *widest -= 1,
                None => break,
            }
        }
        widths
    }
}

/// The width of a line with these columns, and the gaps between them.
fn total(widths: impl Iterator<Item = Option<usize>>) -> usize {
    let (count, sum) = widths
        .flatten()
        .fold((0, 0), |(count, sum), width| (count + 1, sum + width));
    sum + GAP * usize::saturating_sub(count, 1)
}

/// A text that cannot steer a terminal: what users and model servers write may hold anything.
pub(in crate::cli) fn printable(text: String) -> String {
    if text.contains(char::is_control) {
        text.replace(char::is_control, " ")
    } else {
        text
    }
}

/// A cell that is cut and filled to a width.
fn padded(cell: &str, width: usize) -> String {
    let cell = cut(cell, width);
    pad_str(&cell, width, Alignment::Left, None).into_owned()
}

/// A text of at most so many columns.
pub(in crate::cli) fn cut(text: &str, width: usize) -> String {
    truncate_str(text, width, "…").into_owned()
}

/// How wide a table may be on standard output; `None`: it goes to no terminal, where nothing need
/// be cut.
pub(in crate::cli) fn width_of_output() -> Option<usize> {
    let terminal = Term::stdout();
    let columns = terminal.size_checked().map(|(_, columns)| columns.into());
    terminal.is_term().then_some(columns.unwrap_or(NARROW))
}

/// A length of time in its two largest units.
pub(in crate::cli) fn duration(seconds: f64) -> String {
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

/// How long ago something was, in its largest unit.
pub(in crate::cli) fn ago(seconds: i64) -> String {
    match seconds {
        ..60 => "just now".to_owned(),
        60..3600 => format!("{}m ago", seconds / 60),
        3600..86_400 => format!("{}h ago", seconds / 3600),
        _ => format!("{}d ago", seconds / 86_400),
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

    fn shown(most: Option<usize>) -> String {
        let mut table = Table::new([
            Column::whole("BATCH"),
            Column::cut("TENANT"),
            Column::whole("DONE"),
            Column::whole("LINES/S").leaves(2),
            Column::cut("MODEL").leaves(1),
        ]);
        let row = ["batch_0123456789", "département", "100%", "12.5", "llama-3"];
        table.row(row.map(str::to_owned));
        let mut text = String::new();
        table.write(&mut text, most);
        text
    }

    #[test]
    fn a_table_that_is_too_wide_is_cut_and_what_has_no_room_left_out() {
        let whole = "\nBATCH             TENANT       DONE  LINES/S  MODEL\n\
                     batch_0123456789  département  100%  12.5     llama-3\n";
        assert_eq!(shown(None), whole);
        assert_eq!(shown(Some(53)), whole);
        assert_eq!(
            shown(Some(50)),
            "\nBATCH             TENANT    DONE  LINES/S  MODEL\n\
             batch_0123456789  départe…  100%  12.5     llama-3\n"
        );
        assert_eq!(
            shown(Some(40)),
            "\nBATCH             TENANT   DONE  MODEL\n\
             batch_0123456789  départ…  100%  llama-3\n"
        );
        assert_eq!(
            shown(Some(30)),
            "\nBATCH             TENANT  DONE\nbatch_0123456789  dépar…  100%\n"
        );
        // An id is never cut.
        assert_eq!(
            shown(Some(10)),
            "\nBATCH             TEN…  DONE\nbatch_0123456789  dép…  100%\n"
        );
    }

    #[test]
    fn numbers_are_short() {
        let durations = [0.4, 59.0, 61.0, 3600.0, 90_000.0, -5.0].map(duration);
        assert_eq!(durations, ["0s", "59s", "1m 1s", "1h 0m", "1d 1h", "0s"]);
        let moments = [0, 59, 60, 7200, 172_801].map(ago);
        assert_eq!(
            moments,
            ["just now", "just now", "1m ago", "2h ago", "2d ago"]
        );
        assert_eq!([0.04, 99.94, 1234.5].map(rate), ["0.0", "99.9", "1234"]);
    }
}
