//! The two engines, and all in which they differ: connections, transactions, the spelling of
//! bytes and of the database's clock, and how rows are locked.

mod clock;
mod migrate;
mod postgres;
mod sqlite;
mod store;
mod values;

pub(in crate::store) use postgres::{Database, Lent, limited};
pub(in crate::store) use sqlite::Writing;
pub(in crate::store) use store::{Connection, Tx, lent, on, within};
pub use store::{Engine, OpenOptions, Store};
pub(in crate::store) use values::{typed_values, values};
