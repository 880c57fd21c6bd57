//! Running one expression on either engine.
//!
//! The expression is compiled once for each engine, so it ends in a value that belongs to neither.
//! It is written as a closure over the connection, which rustfmt can format.

/// Runs an expression on a connection of a pool: `on_pool!(store.reader(), |c| …)`. On Postgres
/// the expression has as long as a statement may take.
macro_rules! on_pool {
    ($pool:expr, |$c:ident| $e:expr) => {
        match $pool {
            $crate::store::engine::Connection::Sqlite($c) => {
                let outcome = async { Ok::<_, $crate::store::Error>($e) }.await;
                $crate::store::engine::counted(outcome)?
            }
            $crate::store::engine::Connection::Postgres(database) => {
                let mut checkout = database.checkout().await?;
                let value = $crate::store::engine::on_checkout!(&mut checkout, |$c| $e);
                checkout.done().await?;
                value
            }
        }
    };
}

/// Runs an expression inside a transaction: `in_tx!(&mut tx, |c| …)`.
macro_rules! in_tx {
    ($tx:expr, |$c:ident| $e:expr) => {
        match $tx {
            $crate::store::engine::Tx::Sqlite(tx) => {
                let $c = tx.connection();
                let outcome = async { Ok::<_, $crate::store::Error>($e) }.await;
                $crate::store::engine::counted(outcome)?
            }
            $crate::store::engine::Tx::Postgres(tx) => {
                $crate::store::engine::on_checkout!(tx, |$c| $e)
            }
        }
    };
}

/// Runs an expression on a connection that was checked out of Postgres' pool.
macro_rules! on_checkout {
    ($checkout:expr, |$c:ident| $e:expr) => {{
        let checkout: &mut $crate::store::engine::Checkout = $checkout;
        let limit = checkout.work();
        let outcome = {
            let $c = &mut *checkout;
            $crate::store::engine::limited(limit, async { Ok::<_, $crate::store::Error>($e) }).await
        };
        checkout.settle(outcome)?
    }};
}

pub(in crate::store) use {in_tx, on_checkout, on_pool};
