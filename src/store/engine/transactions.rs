//! A connection or a transaction of either engine.

use sqlx::sqlite::SqlitePool;

use super::Engine;
use super::postgres::{Checkout, Database};
use super::sqlite::Writing;
use crate::store::Result;

/// Where a statement runs by itself: see [`on_pool!`](super::on_pool).
pub(in crate::store) enum Connection<'a> {
    Sqlite(&'a SqlitePool),
    Postgres(&'a Database),
}

/// A transaction: see [`in_tx!`](super::in_tx). Dropped, it is rolled back.
pub(in crate::store) enum Tx {
    Sqlite(Writing),
    Postgres(Checkout),
}

impl Tx {
    pub(in crate::store) fn engine(&self) -> Engine {
        match self {
            Tx::Sqlite(_) => Engine::Sqlite,
            Tx::Postgres(_) => Engine::Postgres,
        }
    }

    pub(in crate::store) async fn commit(self) -> Result<()> {
        match self {
            Tx::Sqlite(writing) => writing.commit().await,
            Tx::Postgres(checkout) => checkout.commit().await,
        }
    }

    /// Undoes the transaction. A transaction that is dropped is undone as well, but its locks may
    /// outlive the drop by a moment.
    pub(in crate::store) async fn rollback(self) -> Result<()> {
        match self {
            Tx::Sqlite(writing) => writing.rollback().await,
            Tx::Postgres(checkout) => checkout.rollback().await,
        }
    }
}
