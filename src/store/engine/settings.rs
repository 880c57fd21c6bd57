//! How a database is opened.

use std::time::Duration;

/// How a database is opened.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Connections to Postgres that this process holds at most.
    pub connections: u32,
    /// How many of them are for [`Store::http_pool`](super::Store::http_pool) alone, fewer than
    /// all. With 0, HTTP shares in all of them.
    pub http_connections: u32,
    /// How long a statement may run on Postgres before it is given up.
    pub statement_timeout: Duration,
    /// How long to wait for a database that cannot be used yet.
    pub open_timeout: Duration,
    /// A pooler in transaction mode stands before Postgres.
    pub pooler: bool,
    /// Claims a SQLite file until the store is closed. Two servers on one file would each believe
    /// that nobody else can hold a lease. On Postgres this changes nothing.
    pub exclusive: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            connections: 4,
            http_connections: 0,
            statement_timeout: Duration::from_mins(1),
            open_timeout: Duration::from_secs(5),
            pooler: false,
            exclusive: false,
        }
    }
}
