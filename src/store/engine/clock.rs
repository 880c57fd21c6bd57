//! The database's clock: it decides what is over, for the processes' own may be wrong.

use std::sync::atomic::{AtomicBool, Ordering};

use sqlx::AssertSqlSafe;

use crate::metrics::metrics;
use crate::store::engine::on;
use crate::store::{Result, Store};

/// A process whose clock differs by more says so.
const DIFFERS_MS: i64 = 5_000;

/// Whether it was said that this process's clock is wrong.
#[derive(Default)]
pub(in crate::store) struct Skew {
    is_told: AtomicBool,
}

impl Store {
    /// The time by the database's clock, in milliseconds. Sets this process's by it.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn now(&self) -> Result<i64> {
        let sql = format!("-- now\nSELECT {}", self.engine().now_ms());
        let earliest = self.clock().system_ms();
        let (now,): (i64,) = on!(self.reader(), c => {
            sqlx::query_as(AssertSqlSafe(sql)).fetch_one(c).await?
        });
        self.compare_clocks(now, earliest);
        Ok(now.saturating_add(self.clock().offset_ms()))
    }

    /// Compares this process's clock with the database's, which was read after the former said
    /// `earliest`.
    pub(in crate::store) fn compare_clocks(&self, now: i64, earliest: i64) {
        let latest = self.clock().system_ms();
        let ahead = self.clock().set_by(now, earliest, latest);
        metrics().clock_differs(ahead);
        let differs = ahead.abs() > DIFFERS_MS;
        if differs != self.skew().is_told.swap(differs, Ordering::Relaxed) {
            let seconds = ahead / 1000;
            if differs {
                tracing::warn!(
                    clock.ahead_seconds = seconds,
                    "this machine's clock is not the database's, which is used instead: set it right"
                );
            } else {
                tracing::info!("this machine's clock is right again");
            }
        }
    }

    /// An expression for the database's time, in which parameter `number` is how far a test has
    /// moved the clock ([`Store::offset_ms`]).
    pub(in crate::store) fn now_sql(&self, number: usize) -> String {
        format!("({} + CAST(${number} AS BIGINT))", self.engine().now_ms())
    }

    pub(in crate::store) fn offset_ms(&self) -> i64 {
        self.clock().offset_ms()
    }
}
