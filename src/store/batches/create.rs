//! Creating a batch.

use super::batch::NewBatch;
use super::state;
use crate::store::engine::{bind_rows, in_tx, on_pool};
use crate::store::tenants::remember;
use crate::store::{Claim, Result, Store, Who};

impl Store {
    /// Creates a batch in `validating`, and remembers the answer for its `Idempotency-Key`.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn create_batch(&self, new: &NewBatch, answer: Option<(&Claim, &str)>) -> Result<()> {
        let (sql, row) = state::creation(new, self.engine());
        let _place = self.place_to_create().await?;
        match answer {
            None => on_pool!(self.writer(), |c| {
                bind_rows!(sqlx::query(sql), row).execute(c).await?;
            }),
            Some((claim, body)) => {
                let mut tx = self.begin().await?;
                in_tx!(&mut tx, |c| {
                    bind_rows!(sqlx::query(sql), row).execute(c).await?;
                });
                remember(&mut tx, claim, 200, body, self.now_ms()).await?;
                tx.commit().await?;
            }
        }
        self.wake_one(Who::Validators);
        Ok(())
    }
}
