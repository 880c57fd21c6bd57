//! Removing all rows of a file or a batch from a table, in small transactions.
//!
//! Several processes may remove the same rows at once. Each removes what it finds, and is done when
//! nothing is left, whoever removed it. Rows are locked in the order of their keys before they are
//! deleted: two processes that locked them in different orders would wait for each other.

use crate::store::engine::{on_pool, sql};
use crate::store::{Result, Store};

/// A table, and how its rows belong to a file or a batch.
pub(super) struct Owned {
    pub(super) table: &'static str,
    /// The column that names the file or the batch.
    pub(super) owner: &'static str,
    /// The other columns of the key, of which the first is `chunk_no`.
    pub(super) key: &'static str,
    /// Rows removed in one transaction: few enough to hold nobody up.
    pub(super) at_once: i64,
}

/// Removes all rows of a file or a batch from a table.
pub(super) async fn remove_rows(store: &Store, rows: &Owned, id: &str) -> Result<()> {
    let Owned {
        table, owner, key, ..
    } = *rows;
    let remove = sql!(
        "-- remove_rows
         WITH chosen AS MATERIALIZED
            (SELECT {key} FROM {table} WHERE {owner} = $1 AND chunk_no >= $3
             ORDER BY {key} LIMIT $2 {lock})
         DELETE FROM {table} WHERE {owner} = $1 AND ({key}) IN (SELECT * FROM chosen)
         RETURNING chunk_no",
        key,
        table,
        owner,
        lock = store.engine().for_update()
    );
    let left = sql!(
        "-- remove_rows_left
         SELECT CAST(1 AS BIGINT) FROM {table} WHERE {owner} = $1 LIMIT 1",
        table,
        owner
    );
    // From where the last statement came to: on Postgres the index has the entries of removed rows
    // until a vacuum has passed, and each statement would pass them all.
    let mut from = 0;
    loop {
        let removed: Vec<(i64,)> = on_pool!(store.writer(), |c| {
            let remove = sqlx::query_as(remove.clone()).bind(id).bind(rows.at_once);
            remove.bind(from).fetch_all(c).await?
        });
        if let Some(last) = removed.into_iter().map(|(chunk,)| chunk).max() {
            from = last;
            continue;
        }
        // None were removed also where another process removed the same rows first.
        let left: Option<(i64,)> = on_pool!(store.writer(), |c| {
            sqlx::query_as(left.clone())
                .bind(id)
                .fetch_optional(c)
                .await?
        });
        if left.is_none() {
            return Ok(());
        }
        from = 0;
    }
}
