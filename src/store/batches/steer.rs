//! Steering a batch while it runs: it is paused and resumed.

use std::collections::{BTreeSet, HashSet};

use super::batch::Batch;
use super::state::{self, IfLocked};
use crate::domain::batch::Status;
use crate::store::engine::{bind_each, list, on_pool, sql};
use crate::store::{Result, Store, Who};

/// What became of a request to pause a batch, or to resume it.
#[derive(Clone, Debug)]
pub enum Steered {
    /// The batch as it is now.
    Done(Box<Batch>),
    /// No line of the batch is sent any more in any case.
    Refused(Status),
    NotFound,
}

/// What is asked for.
#[derive(Clone, Copy)]
enum Ask<'a> {
    /// `by`: the key.
    Pause {
        by: Option<&'a str>,
    },
    Resume,
}

impl Store {
    /// Pauses a tenant's batch: nothing new of it is sent until it is resumed. A batch that is
    /// paused stays so. `by`: the key that asks.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn pause_batch(&self, tenant: &str, id: &str, by: Option<&str>) -> Result<Steered> {
        self.steer_batch(tenant, id, Ask::Pause { by }).await
    }

    /// Resumes a tenant's batch. A batch that is not paused stays as it is.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn resume_batch(&self, tenant: &str, id: &str) -> Result<Steered> {
        self.steer_batch(tenant, id, Ask::Resume).await
    }

    async fn steer_batch(&self, tenant: &str, id: &str, ask: Ask<'_>) -> Result<Steered> {
        // Asked before the row is locked: nobody makes another tenant wait.
        if self.batch_position(tenant, id).await?.is_none() {
            return Ok(Steered::NotFound);
        }
        let mut tx = self.begin().await?;
        let Some(batch) = state::lock(&mut tx, id, IfLocked::Wait).await? else {
            return Ok(Steered::NotFound);
        };
        if !batch.state.can_be_paused() {
            return Ok(Steered::Refused(batch.state.status));
        }
        match ask {
            Ask::Pause { by } => state::pause(&mut tx, id, self.now_ms(), by).await?,
            Ask::Resume => state::resume(&mut tx, id).await?,
        }
        tx.commit().await?;
        self.wake_all(Who::Pauses);
        if matches!(ask, Ask::Resume) {
            self.wake_all(Who::Supplies);
        }
        let batch = self.batch(tenant, id).await?;
        Ok(batch.map_or(Steered::NotFound, |batch| Steered::Done(Box::new(batch))))
    }

    /// Those of these batches that are paused.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn paused_among(&self, ids: &BTreeSet<String>) -> Result<HashSet<String>> {
        if ids.is_empty() {
            return Ok(HashSet::new());
        }
        let sql = sql!(
            "-- paused_among
             SELECT id FROM batches WHERE id IN {ids} AND paused_at IS NOT NULL",
            ids = list(1, ids.len())
        );
        let paused: Vec<(String,)> = on_pool!(self.reader(), |c| {
            let look = sqlx::query_as(sql).persistent(false);
            bind_each!(look, ids).fetch_all(c).await?
        });
        Ok(paused.into_iter().map(|(id,)| id).collect())
    }
}
