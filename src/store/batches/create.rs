//! Creating a batch.

use super::batch::NewBatch;
use super::state;
use crate::store::engine::{in_tx, sql};
use crate::store::tenants::remember;
use crate::store::{Claim, Result, Store, Who};

impl Store {
    /// Creates a batch in `validating`, and remembers the answer for its `Idempotency-Key`.
    /// The input file's row is locked while the reference to it is written, so that nobody
    /// purges the file in between.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn create_batch(&self, new: &NewBatch, answer: Option<(&Claim, &str)>) -> Result<()> {
        let lock = sql!(
            "-- create_batch_lock\nSELECT id FROM files WHERE id = $1 AND tenant = $2 {lock}",
            lock = self.engine().for_share()
        );
        let mut tx = self.begin().await?;
        in_tx!(&mut tx, |c| {
            sqlx::query(lock)
                .bind(&new.input_file_id)
                .bind(&new.tenant)
                .execute(c)
                .await?;
        });
        state::create(&mut tx, new).await?;
        if let Some((claim, body)) = answer {
            remember(&mut tx, claim, 200, body, self.now_ms()).await?;
        }
        tx.commit().await?;
        self.wake_one(Who::Validators);
        Ok(())
    }
}
