//! Tables of aligned text.

use console::{Alignment, Term, measure_text_width, pad_str};

use super::printable::{cut, printable};

/// Between two columns.
const GAP: usize = 2;
/// Columns of a terminal that does not say how many it has.
const NARROW: usize = 80;
/// A cell is not cut to less than this.
const NARROWEST: usize = 4;

/// A column of a table.
#[derive(Clone, Copy)]
pub(super) struct Column {
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
pub(super) struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new(columns: impl Into<Vec<Column>>) -> Self {
        let columns = columns.into();
        let titles = columns.iter().map(|column| column.title.to_owned());
        Self {
            rows: vec![titles.collect()],
            columns,
        }
    }

    /// As many cells as there are columns.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let cells = cells.into_iter();
        let cells = cells.map(|cell| printable(&cell).into_owned());
        self.rows.push(cells.collect());
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

/// A cell that is cut and filled to a width.
fn padded(cell: &str, width: usize) -> String {
    let cell = cut(cell, width);
    pad_str(&cell, width, Alignment::Left, None).into_owned()
}

/// How wide a table may be on standard output; `None`: it goes to no terminal, where nothing need
/// be cut.
pub(super) fn width_of_output() -> Option<usize> {
    let terminal = Term::stdout();
    let columns = terminal.size_checked().map(|(_, columns)| columns.into());
    terminal.is_term().then_some(columns.unwrap_or(NARROW))
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
}
