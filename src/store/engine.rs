//! The two engines, and everything in which they differ: connections, transactions, the spelling
//! of bytes and of the database's clock, and how rows are locked. No file of the other folders
//! knows which engine it speaks to, but for sizes and free space of a SQLite file.

mod clock;
mod failures;
mod macros;
mod migrate;
mod notify;
mod open;
mod postgres;
mod settings;
mod spelling;
mod sql;
mod sqlite;
mod store;
mod transactions;

pub(in crate::store) use failures::counted;
pub(in crate::store) use macros::{in_tx, on_checkout, on_pool};
pub use notify::Who;
pub(in crate::store) use postgres::{Checkout, Database, limited};
pub use settings::Settings;
pub use spelling::Engine;
pub(in crate::store) use sql::{Rows, Sql, Value, bind_each, bind_rows, list, part, sql, sql_part};
pub use store::Store;
pub(in crate::store) use transactions::{Connection, Tx};
