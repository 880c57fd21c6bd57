//! Windows of calls at once that are found out: how each stands, for all processes. What is in a
//! state, the room that finds windows out knows.

use crate::store::engine::{Rows, Tx, Value, bind_each, bind_rows, in_tx, list, sql};
use crate::store::{Result, Store};

/// How a window stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WindowRow {
    pub name: String,
    pub state: String,
}

/// What a process reads in its turn.
#[derive(Clone, Debug, Default)]
pub struct WindowBook {
    /// The database's clock, in milliseconds.
    pub now_ms: i64,
    /// Those that were stored before.
    pub rows: Vec<WindowRow>,
}

impl Store {
    /// A process's turn at windows of these names, in one transaction: reads them, lets `decide`
    /// choose what is to be stored, and writes that. No other process has its turn in between. For
    /// a process that shares limits with no other: else the turn is a part of
    /// [`exchange_shares`](Self::exchange_shares).
    ///
    /// # Errors
    /// When the database fails, or the lock is not acquired within `patience_ms`. Then it is
    /// unknown whether what was decided was written.
    pub async fn exchange_windows<T>(
        &self,
        patience_ms: i64,
        names: &[String],
        decide: impl FnOnce(&WindowBook) -> (Vec<WindowRow>, T),
    ) -> Result<T> {
        let mut tx = self.begin_exchange(patience_ms).await?;
        let book = self.read_windows(&mut tx, names).await?;
        let (rows, outcome) = decide(&book);
        write_windows(&mut tx, &rows).await?;
        tx.commit().await?;
        Ok(outcome)
    }

    /// Reads how windows stand. Without names there is no statement.
    pub(super) async fn read_windows(&self, tx: &mut Tx, names: &[String]) -> Result<WindowBook> {
        if names.is_empty() {
            return Ok(WindowBook::default());
        }
        // One statement for the time, too: it runs once a second in each process.
        let sql = sql!(
            "-- read_windows
             SELECT t.now_ms, w.name, w.state FROM (SELECT {now} AS now_ms) t
             LEFT JOIN auto_windows w ON w.name IN {names}",
            now = self.engine().now_ms(),
            names = list(1, names.len())
        );
        let found: Vec<(i64, Option<String>, Option<String>)> = in_tx!(&mut *tx, |c| {
            let read = sqlx::query_as(sql);
            bind_each!(read, names).fetch_all(c).await?
        });
        let now_ms = found.first().map_or(0, |(now_ms, _, _)| *now_ms);
        let rows = found.into_iter().filter_map(|(_, name, state)| {
            Some(WindowRow {
                name: name?,
                state: state?,
            })
        });
        Ok(WindowBook {
            now_ms,
            rows: rows.collect(),
        })
    }
}

/// Writes how windows stand.
pub(super) async fn write_windows(tx: &mut Tx, windows: &[WindowRow]) -> Result<()> {
    if windows.is_empty() {
        return Ok(());
    }
    let rows = Rows::of(windows.iter().map(|window| {
        [
            ("name", Value::from(&window.name)),
            ("state", Value::from(&window.state)),
        ]
    }));
    let sql = sql!(
        "-- write_windows
         INSERT INTO auto_windows ({columns}) VALUES {rows}
         ON CONFLICT (name) DO UPDATE SET state = excluded.state",
        columns = rows.columns(),
        rows = rows.parameters(1)
    );
    in_tx!(tx, |c| {
        let write = sqlx::query(sql).persistent(false);
        bind_rows!(write, rows).execute(c).await?;
    });
    Ok(())
}
