//! The counts of batches that end: they move from their slots into the batch's own row.

use std::collections::BTreeMap;

use sqlx::FromRow;

use super::batch::CountsSum;
use super::state;
use crate::store::engine::{Tx, bind_each, in_tx, list, on_pool, sql};
use crate::store::{Result, Store};

/// Batches whose counts are settled in one transaction.
const AT_ONCE: usize = 100;
/// Batches that are settled in one round, about.
const ROUND: usize = 1_000;
/// Batches with slots that are listed at once.
const PAGE: i64 = 500;

#[derive(FromRow)]
struct CountsOfBatch {
    batch_id: String,
    #[sqlx(flatten)]
    counts: CountsSum,
}

impl Store {
    /// Moves the counts of some batches that have ended into the batches' own rows. A process of an
    /// earlier version left them in their slots. Returns how many batches there were.
    ///
    /// # Errors
    /// When the database fails; the next round goes on.
    pub async fn settle_counts(&self) -> Result<usize> {
        let (mut settled, mut after) = (0, String::new());
        while settled < ROUND {
            // Along the index from batch to batch. Once all others are settled, only live batches
            // have slots.
            let page: Vec<(String, i64)> = on_pool!(self.reader(), |c| {
                sqlx::query_as(
                    "-- unsettled_counts
                     SELECT counted.batch_id, CASE WHEN b.status IN
                        ('completed', 'failed', 'expired', 'cancelled')
                        THEN CAST(1 AS BIGINT) ELSE CAST(0 AS BIGINT) END
                     FROM (SELECT DISTINCT batch_id FROM batch_counts WHERE batch_id > $1
                        ORDER BY batch_id LIMIT $2) AS counted
                     LEFT JOIN batches b ON b.id = counted.batch_id
                     ORDER BY counted.batch_id",
                )
                .bind(&after)
                .bind(PAGE)
                .fetch_all(c)
                .await?
            });
            let Some((last, _)) = page.last() else { break };
            after.clone_from(last);
            let ended = page.iter().filter(|(_, has_ended)| *has_ended == 1);
            let ended: Vec<&str> = ended.map(|(id, _)| id.as_str()).collect();
            for ended in ended.chunks(AT_ONCE) {
                settled += self.settle_counts_of(ended).await?;
            }
        }
        Ok(settled)
    }

    /// Settles batches that have ended, in one transaction. Leaves out those whose rows another
    /// transaction has locked.
    async fn settle_counts_of(&self, ended: &[&str]) -> Result<usize> {
        let mut tx = self.begin().await?;
        let locked = state::lock_all(&mut tx, ended).await?;
        let ids: Vec<&str> = locked.iter().map(|found| &*found.batch.id).collect();
        if ids.is_empty() {
            return Ok(0);
        }
        let counts = take_counts(&mut tx, &ids).await?;
        if !counts.is_empty() {
            state::add_counts(&mut tx, &counts).await?;
        }
        tx.commit().await?;
        Ok(counts.len())
    }
}

/// Takes the counts of batches out of their slots. Returns the sums, by batch.
pub(super) async fn take_counts(tx: &mut Tx, ids: &[&str]) -> Result<BTreeMap<String, CountsSum>> {
    let sql = sql!(
        "-- take_counts
         DELETE FROM batch_counts WHERE batch_id IN {ids}
         RETURNING batch_id, completed, failed, cancelled, input_tokens, cached_tokens,
            output_tokens, reasoning_tokens, total_tokens",
        ids = list(1, ids.len())
    );
    let is_usual = ids.len() == 1;
    let taken: Vec<CountsOfBatch> = in_tx!(tx, |c| {
        let take = sqlx::query_as(sql).persistent(is_usual);
        bind_each!(take, ids.iter().copied()).fetch_all(c).await?
    });
    let mut counts: BTreeMap<String, CountsSum> = BTreeMap::new();
    for taken in taken {
        *counts.entry(taken.batch_id).or_default() += taken.counts;
    }
    Ok(counts)
}
