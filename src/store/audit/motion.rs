//! What tasks repair by themselves: a fault only if a server has run for long enough to have
//! repaired it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::report::{Audit, count};
use crate::store::Result;
use crate::store::engine::{on_pool, sql};

/// How long a server may take to sweep what a process has left that died.
const SWEPT_WITHIN_MS: i64 = 10 * 60 * 1000;
/// How long it may take to remove what is due: one file may have many gigabytes.
const REMOVED_WITHIN_MS: i64 = 3600 * 1000;
/// Between two looks at units that somebody is about to take over.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Beside two leases, the longest that a take-over may take.
const TAKE_OVER_WITHIN: Duration = Duration::from_secs(5);

/// Something that servers do by and by.
struct Chore {
    /// What is wrong where it was not done, and what there is to do.
    fault: &'static str,
    waits: &'static str,
    /// How long it may take, in milliseconds.
    within: i64,
    /// The ids of what should have been dealt with by the time `$1`.
    sql: &'static str,
}

/// Units that are leased by processes that hold no lease, and since when that is known.
pub(super) struct AbandonedUnits {
    /// How many units, by owner. A process that begins anew does so under another name, so an
    /// owner that is gone never comes back.
    owners: BTreeMap<String, i64>,
    seen: Instant,
}

impl Audit<'_> {
    /// Units whose owner is gone.
    pub(super) async fn abandoned(&mut self) -> Result<AbandonedUnits> {
        let sql = sql!(
            "-- audit_abandoned
                 SELECT owner, COUNT(*) FROM units
                 WHERE state = 'leased' AND owner IS NOT NULL AND owner NOT IN
                    (SELECT token FROM replicas WHERE lease_until >= {now}) GROUP BY owner",
            now = self.store.engine().now_ms()
        );
        let owners: Vec<(String, i64)> = on_pool!(self.store.reader(), |c| {
            sqlx::query_as(sql).fetch_all(c).await?
        });
        Ok(AbandonedUnits {
            owners: owners.into_iter().collect(),
            seen: Instant::now(),
        })
    }

    /// Whether others take over the units that were seen, as they should.
    pub(super) async fn still_abandoned(&mut self, mut before: AbandonedUnits) -> Result<()> {
        let deadline = before.seen + 2 * self.settings.lease + TAKE_OVER_WITHIN;
        loop {
            let now = self.abandoned().await?;
            before
                .owners
                .retain(|owner, _| now.owners.contains_key(owner));
            for (owner, units) in &mut before.owners {
                *units = now.owners[owner];
            }
            let units: i64 = before.owners.values().sum();
            if units == 0 {
                return Ok(());
            }
            if self.oldest_server().await?.is_none() {
                self.waits(format!(
                    "{} of a process that is gone: the next server takes them over",
                    count(units, "unit")
                ));
                return Ok(());
            }
            if Instant::now() >= deadline {
                break;
            }
            self.progress();
            tokio::time::sleep(LOOK_EVERY).await;
        }
        for (owner, units) in before.owners {
            self.fault(format!(
                "{} leased by {owner}, which is gone, and nobody takes them over",
                count(units, "unit")
            ));
        }
        Ok(())
    }

    /// When the server that has run for longest was started; `None` where none runs.
    async fn oldest_server(&self) -> Result<Option<i64>> {
        let sql = sql!(
            "-- audit_servers\nSELECT MIN(started_at) FROM replicas WHERE lease_until >= {now}",
            now = self.store.engine().now_ms()
        );
        let (started,): (Option<i64>,) = on_pool!(self.store.reader(), |c| {
            sqlx::query_as(sql).fetch_one(c).await?
        });
        Ok(started)
    }

    /// What should have been hidden, swept or removed by now.
    pub(super) async fn overdue(&mut self) -> Result<()> {
        let now = self.store.now_ms();
        let grace = i64::try_from(self.settings.grace.as_millis()).unwrap_or(i64::MAX);
        let oldest = self.oldest_server().await?;
        let chores = [
            Chore {
                fault: "this upload shows no sign of life, and no server has swept it",
                waits: "uploads that show no sign of life",
                within: SWEPT_WITHIN_MS,
                sql: "SELECT id FROM files WHERE state IN ('uploading', 'deleted')
                        AND state = 'uploading' AND touched_at < $1",
            },
            Chore {
                fault: "this file is past its expiry, and no server has hidden it",
                waits: "files past their expiry",
                within: SWEPT_WITHIN_MS,
                sql: "SELECT id FROM files WHERE state = 'ready' AND expires_at < $1",
            },
            Chore {
                fault: "this file was hidden long ago, and no server has removed its content",
                waits: "files whose content is to be removed",
                within: grace.saturating_add(REMOVED_WITHIN_MS),
                sql: "SELECT id FROM files f
                      WHERE state IN ('uploading', 'deleted') AND state = 'deleted'
                        AND touched_at < $1 AND NOT EXISTS
                         (SELECT 1 FROM batches b WHERE b.input_file_id = f.id AND
                            (b.status IN ('validating', 'in_progress', 'finalizing', 'cancelling')
                             OR b.completed_at >= $1 OR b.expired_at >= $1
                             OR b.cancelled_at >= $1))",
            },
            Chore {
                fault: "this batch has ended, and no server has removed its units",
                waits: "batches that have ended and have units still",
                within: SWEPT_WITHIN_MS,
                sql: "SELECT id FROM batches
                      WHERE status IN ('completed', 'expired', 'cancelled', 'failed')
                        AND COALESCE(completed_at, expired_at, cancelled_at, failed_at) < $1
                        AND id IN (SELECT batch_id FROM units)",
            },
            // A server of an earlier version left them there. There may be very many.
            Chore {
                fault: "this batch has ended, and no server has moved its counts into its row",
                waits: "batches that have ended and have rows of counts still",
                within: REMOVED_WITHIN_MS,
                sql: "SELECT id FROM batches
                      WHERE status IN ('completed', 'expired', 'cancelled', 'failed')
                        AND COALESCE(completed_at, expired_at, cancelled_at, failed_at) < $1
                        AND id IN (SELECT batch_id FROM batch_counts)",
            },
        ];
        for chore in chores {
            let due = now.saturating_sub(chore.within);
            let sql = sql!("-- audit_overdue\n{look}", look = chore.sql);
            let overdue: Vec<(String,)> = on_pool!(self.store.reader(), |c| {
                sqlx::query_as(sql).bind(due).fetch_all(c).await?
            });
            // A server that has only just begun cannot have done it yet.
            if oldest.is_some_and(|oldest| oldest < due) {
                for (id,) in overdue {
                    self.fault(format!("{id}: {}", chore.fault));
                }
            } else if !overdue.is_empty() {
                self.waits(format!("{}: {}", chore.waits, overdue.len()));
            }
        }
        Ok(())
    }
}
