//! What the store keeps so that a request that kills its process is found: how often an owner of
//! the unit died, which request was recorded last before it was sent, and how often an owner died
//! while that request alone was in flight.
//!
//! An owner's death counts against a unit if requests of the unit may have been sent (`begun`).
//! Until the first death the store assumes that requests were sent. After the first death, each
//! owner records what it sends.

use crate::domain::unit::UnitLease;
use crate::store::engine::{Sql, on_pool, sql};
use crate::store::{Result, Store};

/// From so many deaths on, requests of a unit are sent one at a time.
const ISOLATED_AFTER: i64 = 3;
/// How many requests of a unit may be in flight at once after one death less. So few requests are
/// suspects after the next death.
const THROTTLED_TO: usize = 8;

/// What is known of the deaths of a unit's owners.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Deaths {
    /// How many owners have died while requests of the unit may have been in flight, since a flush
    /// last cleared the unit.
    pub owners: i64,
    /// The line that the last owner recorded: no request behind this line was in flight when that
    /// owner died.
    pub recorded_line: Option<i64>,
    /// How many owners have died while that request alone was in flight.
    pub alone: i64,
}

impl Deaths {
    /// How many requests of the unit may be in flight at once. `None`: no death is recorded.
    #[must_use]
    pub fn at_once(&self) -> Option<usize> {
        match self.owners {
            ..=0 => None,
            ISOLATED_AFTER.. => Some(1),
            1 => Some(usize::MAX),
            _ => Some(THROTTLED_TO),
        }
    }
}

/// Columns of a unit: an owner is gone.
pub(in crate::store) fn count_death() -> Sql {
    sql!(
        "takeovers = takeovers + begun,
         crashes = CASE WHEN takeovers < {isolated_after} THEN 0 ELSE crashes + begun END",
        isolated_after = ISOLATED_AFTER
    )
}

/// Columns of a unit: the owner was not gone after all.
pub(in crate::store) fn undo_death() -> Sql {
    sql!(
        "takeovers = takeovers - begun,
         crashes = CASE WHEN takeovers - begun < {isolated_after} THEN 0 ELSE crashes - begun END",
        isolated_after = ISOLATED_AFTER
    )
}

/// Columns of a unit: somebody leases it.
pub(in crate::store) const LEASE: &str = "begun = CASE WHEN takeovers = 0 THEN 1 ELSE 0 END";

/// Columns of a unit: a flush cleared it, where `v.cleared` is one. What its owner sends from now
/// on is not recorded.
pub(in crate::store) const CLEAR: &str = "
    begun = CASE WHEN v.cleared = 1 THEN 1 ELSE units.begun END,
    takeovers = CASE WHEN v.cleared = 1 THEN 0 ELSE units.takeovers END,
    noted_line = CASE WHEN v.cleared = 1 THEN NULL ELSE units.noted_line END,
    crashes = CASE WHEN v.cleared = 1 THEN 0 ELSE units.crashes END";

impl Store {
    /// Records that requests of a unit are about to be sent, none of them behind this line. False
    /// if the owner has lost that lease of the unit: then the requests must not be sent.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn record_sending(&self, owner: &str, lease: &UnitLease, line: u32) -> Result<bool> {
        let UnitLease { key, epoch } = lease;
        let recorded = on_pool!(self.writer(), |c| {
            sqlx::query(
                "-- record_sending
                 UPDATE units SET begun = 1, noted_line = $6,
                    crashes = CASE WHEN noted_line = $6 THEN crashes ELSE 0 END
                 WHERE batch_id = $1 AND chunk_no = $2 AND model_no = $3
                    AND owner = $4 AND epoch = $5 AND state = 'leased'",
            )
            .bind(&key.batch_id)
            .bind(key.chunk_no)
            .bind(key.model_no)
            .bind(owner)
            .bind(epoch)
            .bind(i64::from(line))
            .execute(c)
            .await?
            .rows_affected()
        });
        Ok(recorded == 1)
    }
}
