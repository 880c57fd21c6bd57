//! `GET /v1/batches/{id}?wait=SECONDS`: the answer comes when the batch has changed.

use std::ops::RangeInclusive;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::Api;
use super::error::{self, Result};
use super::integer::integer;
use super::page::Query;
use crate::domain::batch::Status;
use crate::store::Batch;

const SECONDS: RangeInclusive<i64> = 0..=300;
/// The first pause between two looks. Each later one is twice as long: a batch that has just begun
/// may end soon.
const PAUSE_MIN: Duration = Duration::from_millis(50);

/// Looks of those who have waited for longer come so far apart.
const ROUND: Duration = Duration::from_secs(1);
/// What a client waits for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wait {
    until: Instant,
    /// Until the batch has another status than this one. `None`: than the one that it has now.
    status: Option<Status>,
}

impl Wait {
    /// `None`: the client does not wait.
    ///
    /// # Errors
    /// When a parameter is wrong.
    pub(super) fn of(query: &Query) -> Result<Option<Wait>> {
        let Some(seconds) = query.text("wait") else {
            return Ok(None);
        };
        let seconds = integer("wait", seconds, &SECONDS)?.unsigned_abs();
        let named = query.text("status");
        let status = named.map(|named| {
            let names = Status::ALL.map(Status::as_str);
            Status::parse(named).ok_or_else(|| error::invalid_value("status", named, &names))
        });
        Ok(Some(Wait {
            until: Instant::now() + Duration::from_secs(seconds),
            status: status.transpose()?,
        }))
    }

    /// Waits until the batch has another status, cannot get another one, the time is over, or the
    /// process stops. Returns the batch as it is then, or `None` where it is gone.
    ///
    /// # Errors
    /// When the database fails.
    pub(super) async fn change(self, api: &Api, batch: Batch) -> Result<Option<Batch>> {
        // Whoever finds no place is answered at once, and asks again.
        let Some(_place) = api.waits.place(&batch.row.tenant) else {
            return Ok(Some(batch));
        };
        let (tenant, id) = (batch.row.tenant.clone(), batch.row.id.clone());
        let known = self.status.unwrap_or(batch.state.status);
        let mut batch = Some(batch);
        let mut pause = PAUSE_MIN;
        while let Some(found) = &batch {
            let status = found.state.status;
            let now = Instant::now();
            if status != known || status.is_terminal() || now >= self.until {
                break;
            }
            // Those who have waited for a second look together.
            let next = if pause < ROUND {
                now + pause
            } else {
                api.looks.next_round(now)
            };
            pause = ROUND.min(pause * 2);
            tokio::select! {
                () = sleep_until(next.min(self.until)) => {}
                () = api.stopping.cancelled() => break,
            }
            batch = api.looks.batch(&tenant, &id).await?;
        }
        Ok(batch)
    }
}
