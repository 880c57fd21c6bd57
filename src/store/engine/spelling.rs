//! What the engines spell differently.

/// Which database stands behind a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    Sqlite,
    Postgres,
}

impl Engine {
    /// The type of bytes.
    pub(super) fn bytes_type(self) -> &'static str {
        match self {
            Engine::Sqlite => "BLOB",
            Engine::Postgres => "BYTEA",
        }
    }

    /// Bytes of no length.
    pub(in crate::store) fn no_bytes(self) -> &'static str {
        match self {
            Engine::Sqlite => "x''",
            Engine::Postgres => "CAST('' AS BYTEA)",
        }
    }

    /// Takes rows that no other transaction has, and leaves out those that one has. SQLite has one
    /// writer, so there the text is empty.
    pub(in crate::store) fn skip_locked(self) -> &'static str {
        match self {
            Engine::Sqlite => "",
            Engine::Postgres => "FOR UPDATE SKIP LOCKED",
        }
    }

    /// Keeps a row that is read for this transaction alone.
    pub(in crate::store) fn for_update(self) -> &'static str {
        match self {
            Engine::Sqlite => "",
            Engine::Postgres => "FOR UPDATE",
        }
    }

    /// Keeps a row that is read from being changed until the transaction ends.
    pub(in crate::store) fn for_share(self) -> &'static str {
        match self {
            Engine::Sqlite => "",
            Engine::Postgres => "FOR SHARE",
        }
    }

    /// Acquires the lock of the exchange of shares until the transaction ends. `$1`: how many
    /// milliseconds to wait for the lock, and how long the transaction may be idle while it has
    /// the lock. The lock's number is `nightshi` in ASCII. SQLite has one writer anyway.
    pub(in crate::store) fn acquire_share_lock(self) -> Option<&'static str> {
        match self {
            Engine::Sqlite => None,
            Engine::Postgres => Some(
                "-- acquire_share_lock
                 SELECT set_config('lock_timeout', $1, true),
                    set_config('idle_in_transaction_session_timeout', $1, true),
                    pg_advisory_xact_lock(7956003915054671977)",
            ),
        }
    }

    /// Acquires the lock of a tenant, `$1`, until the transaction ends. The first number tells
    /// these locks from others: it is `tena` in ASCII. Tenants whose names have one hash share a
    /// lock. SQLite has one writer anyway.
    pub(in crate::store) fn acquire_tenant_lock(self) -> Option<&'static str> {
        match self {
            Engine::Sqlite => None,
            Engine::Postgres => Some(
                "-- acquire_tenant_lock\nSELECT pg_advisory_xact_lock(1952804449, hashtext($1))",
            ),
        }
    }

    /// Makes the transaction wait for a lock for one second at most, so that it does not keep its
    /// connection for longer. A writing transaction on SQLite has its only lock already.
    pub(in crate::store) fn set_lock_timeout(self) -> Option<&'static str> {
        match self {
            Engine::Sqlite => None,
            Engine::Postgres => {
                Some("-- set_lock_timeout\nSELECT set_config('lock_timeout', '1000', true)")
            }
        }
    }

    /// The database's own clock in milliseconds. It is used for what processes compare with each
    /// other, and for what has ended or expired.
    pub(in crate::store) fn now_ms(self) -> &'static str {
        match self {
            Engine::Sqlite => "CAST(unixepoch('subsec') * 1000 AS BIGINT)",
            Engine::Postgres => "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)",
        }
    }
}
