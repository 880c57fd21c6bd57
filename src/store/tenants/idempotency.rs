//! Requests with an `Idempotency-Key`: done once, answered the same again.

use crate::store::engine::{Tx, in_tx, on_pool, sql};
use crate::store::{Error, Result, Store};

/// How long an answer is remembered.
const REMEMBERED_MS: i64 = 24 * 3600 * 1000;
/// How long a request may go without a sign of life before another may begin in its place.
const ABANDONED_MS: i64 = 2 * 60 * 1000;

/// The right to be the one request of its key.
#[derive(Clone, Debug)]
pub struct Claim {
    pub tenant: String,
    pub route: String,
    pub key: String,
    /// Random: distinguishes this claim from a claim that took its place.
    pub token: String,
    /// A hash of what the request asks for. Set before the answer is remembered.
    pub fingerprint: String,
}

/// An answer that was given before.
#[derive(Clone, Debug)]
pub struct Remembered {
    pub fingerprint: String,
    pub status: i64,
    pub body: String,
}

/// What a key stands for.
#[derive(Clone, Debug)]
pub enum Claimed {
    /// Nothing so far: this request is the one.
    Fresh,
    /// The first request is still being worked on.
    Running,
    Answered(Remembered),
}

impl Store {
    /// Claims a key for a request.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn claim(&self, claim: &Claim) -> Result<Claimed> {
        let now = self.now_sql(5);
        let sql = sql!(
            "-- claim
             INSERT INTO idempotency (tenant, route, key, claim, touched_at)
             VALUES ($1, $2, $3, $4, {now})
             ON CONFLICT (tenant, route, key) DO UPDATE SET claim = excluded.claim,
                touched_at = excluded.touched_at, fingerprint = NULL, status = NULL, body = NULL
             WHERE (idempotency.status IS NULL AND idempotency.touched_at < {now} - $6)
                OR (idempotency.status IS NOT NULL AND idempotency.touched_at < {now} - $7)",
            now
        );
        // One statement makes a new row, or takes over a row whose request is gone or whose answer
        // need not be remembered any more.
        let claimed = on_pool!(self.writer(), |c| {
            sqlx::query(sql)
                .bind(&claim.tenant)
                .bind(&claim.route)
                .bind(&claim.key)
                .bind(&claim.token)
                .bind(self.offset_ms())
                .bind(ABANDONED_MS)
                .bind(REMEMBERED_MS)
                .execute(c)
                .await?
                .rows_affected()
        });
        if claimed == 1 {
            return Ok(Claimed::Fresh);
        }
        let row: Option<(Option<String>, Option<i64>, Option<String>)> =
            on_pool!(self.writer(), |c| {
                sqlx::query_as(
                    "-- claimed
                 SELECT fingerprint, status, body FROM idempotency
                 WHERE tenant = $1 AND route = $2 AND key = $3",
                )
                .bind(&claim.tenant)
                .bind(&claim.route)
                .bind(&claim.key)
                .fetch_optional(c)
                .await?
            });
        Ok(match row {
            Some((Some(fingerprint), Some(status), Some(body))) => Claimed::Answered(Remembered {
                fingerprint,
                status,
                body,
            }),
            _ => Claimed::Running,
        })
    }

    /// Says that the request of a claim is still being worked on.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn touch_claim(&self, claim: &Claim) -> Result<()> {
        on_pool!(self.writer(), |c| {
            sqlx::query(
                "-- touch_claim
                 UPDATE idempotency SET touched_at = $2 WHERE claim = $1 AND status IS NULL
                    AND tenant = $3 AND route = $4 AND key = $5",
            )
            .bind(&claim.token)
            .bind(self.now_ms())
            .bind(&claim.tenant)
            .bind(&claim.route)
            .bind(&claim.key)
            .execute(c)
            .await?;
        });
        Ok(())
    }

    /// Gives a claim up: the request failed, and failures are not remembered.
    ///
    /// # Errors
    /// When the database fails; the claim lapses by itself.
    pub async fn abandon_claim(&self, claim: &Claim) -> Result<()> {
        on_pool!(self.writer(), |c| {
            sqlx::query(
                "-- abandon_claim
                 DELETE FROM idempotency WHERE claim = $1 AND status IS NULL
                    AND tenant = $2 AND route = $3 AND key = $4",
            )
            .bind(&claim.token)
            .bind(&claim.tenant)
            .bind(&claim.route)
            .bind(&claim.key)
            .execute(c)
            .await?;
        });
        Ok(())
    }

    /// Removes answers that need not be remembered any more.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn forget_claims(&self) -> Result<u64> {
        let sql = sql!(
            "-- forget_claims\nDELETE FROM idempotency WHERE touched_at < {now} - $2",
            now = self.now_sql(1)
        );
        Ok(on_pool!(self.writer(), |c| {
            sqlx::query(sql)
                .bind(self.offset_ms())
                .bind(REMEMBERED_MS)
                .execute(c)
                .await?
                .rows_affected()
        }))
    }
}

/// Remembers an answer, in the transaction that does what it says.
pub(in crate::store) async fn remember(
    tx: &mut Tx,
    claim: &Claim,
    status: i64,
    body: &str,
    now: i64,
) -> Result<()> {
    let remembered = in_tx!(tx, |c| {
        sqlx::query(
            "-- remember
             UPDATE idempotency SET fingerprint = $5, status = $6, body = $7, touched_at = $8
             WHERE tenant = $1 AND route = $2 AND key = $3 AND claim = $4 AND status IS NULL",
        )
        .bind(&claim.tenant)
        .bind(&claim.route)
        .bind(&claim.key)
        .bind(&claim.token)
        .bind(&claim.fingerprint)
        .bind(status)
        .bind(body)
        .bind(now)
        .execute(c)
        .await?
        .rows_affected()
    });
    if remembered == 1 {
        Ok(())
    } else {
        Err(Error::Stale("the claim of the Idempotency-Key"))
    }
}
