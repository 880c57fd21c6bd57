//! Ending a batch before its lines have all run: by its user, or at the end of its window.

use super::batch::Batch;
use super::state::{self, IfLocked};
use crate::domain::batch::{Event, Status};
use crate::store::each::each;
use crate::store::engine::{on_pool, sql};
use crate::store::{Result, Store, Who};

/// Batches expired in one round.
const ROUND: i64 = 100;

/// What became of a request to cancel.
#[derive(Clone, Debug)]
pub enum Cancel {
    /// The batch as it is now.
    Granted(Box<Batch>),
    /// The batch has ended already.
    Refused(Status),
    NotFound,
}

impl Store {
    /// Begins to cancel a tenant's batch.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn cancel_batch(&self, tenant: &str, id: &str) -> Result<Cancel> {
        // Asked before the row is locked: nobody makes another tenant wait.
        if self.batch_position(tenant, id).await?.is_none() {
            return Ok(Cancel::NotFound);
        }
        let mut tx = self.begin().await?;
        let Some(batch) = state::lock(&mut tx, id, IfLocked::Wait).await? else {
            return Ok(Cancel::NotFound);
        };
        if batch.state.refuses_cancel() {
            return Ok(Cancel::Refused(batch.state.status));
        }
        let now = self.now_ms();
        let changed = state::advance(&mut tx, &batch, Event::CancelRequested, now).await?;
        tx.commit().await?;
        if let Some(changed) = changed {
            if !changed.is_terminal() {
                // The processes that hold units of the batch conclude their lines.
                self.wake_all(Who::Supplies);
            }
            changed.announce();
        }
        let batch = self.batch(tenant, id).await?;
        Ok(batch.map_or(Cancel::NotFound, |batch| Cancel::Granted(Box::new(batch))))
    }

    /// Ends the window of batches whose time is up, at most a hundred of them. A batch that is
    /// being validated expires at once. A batch in progress is marked: its lines that have not run
    /// will not run. A batch that fails is logged, and waits for the next round. Returns how many
    /// batches succeeded.
    ///
    /// # Errors
    /// When the database is away, or no batch succeeded.
    pub async fn expire_batches(&self) -> Result<usize> {
        // The condition of the partial index over live batches is repeated word for word: SQLite
        // uses the index only then.
        let sql = sql!(
            "-- expire_batches
             SELECT id FROM batches
             WHERE status IN ('validating', 'in_progress', 'finalizing', 'cancelling')
               AND status IN ('validating', 'in_progress') AND ending IS NULL
               AND expires_at <= {now} LIMIT $2",
            now = self.now_sql(1)
        );
        let due: Vec<(String,)> = on_pool!(self.reader(), |c| {
            sqlx::query_as(sql)
                .bind(self.offset_ms())
                .bind(ROUND)
                .fetch_all(c)
                .await?
        });
        let expired = each(
            "expire_batches",
            &due,
            |(id,)| id,
            |(id,)| self.expire_batch(id),
        )
        .await;
        if !due.is_empty() {
            // The processes that hold units of the batches conclude their lines.
            self.wake_all(Who::Supplies);
        }
        expired
    }

    async fn expire_batch(&self, id: &str) -> Result<()> {
        let mut tx = self.begin().await?;
        let Some(batch) = state::lock(&mut tx, id, IfLocked::Wait).await? else {
            return Ok(());
        };
        let now = self.now_ms();
        let changed = state::advance(&mut tx, &batch, Event::WindowEnded, now).await?;
        tx.commit().await?;
        if let Some(changed) = changed {
            changed.announce();
        }
        Ok(())
    }
}
