//! Leases of processes. A lease is one row for an incarnation; its units name it as their owner.
//! Ends of leases are written and compared with the database's own clock.

use sqlx::AssertSqlSafe;

use super::backlog::add_waiting;
use super::engine::{on, within};
use super::units::tally;
use super::{Result, Store};

impl Store {
    /// Registers an incarnation of this process, with a lease from now on.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn join(&self, token: &str, name: &str, lease_ms: i64) -> Result<()> {
        let sql = format!(
            "-- join
             INSERT INTO replicas (token, name, started_at, lease_until)
             VALUES ($1, $2, $3, {} + $4)",
            self.engine().now_ms()
        );
        on!(self.writer(), c => {
            sqlx::query(AssertSqlSafe(sql))
                .bind(token)
                .bind(name)
                .bind(self.now_ms())
                .bind(lease_ms)
                .execute(c)
                .await?;
        });
        Ok(())
    }

    /// Renews a lease. False if the incarnation is unknown: it was silent for too long, others
    /// have taken its units, and what it still holds is not its own any more.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn renew(&self, token: &str, lease_ms: i64) -> Result<bool> {
        let sql = format!(
            "-- renew\nUPDATE replicas SET lease_until = {} + $2 WHERE token = $1",
            self.engine().now_ms()
        );
        let renewed = on!(self.writer(), c => {
            sqlx::query(AssertSqlSafe(sql)).bind(token).bind(lease_ms).execute(c).await?.rows_affected()
        });
        Ok(renewed == 1)
    }

    /// Ends a lease politely; units that were not given back wait again at once.
    ///
    /// # Errors
    /// When the database fails; then others take over when the lease has run out.
    pub async fn leave(&self, token: &str) -> Result<()> {
        on!(self.writer(), c => {
            sqlx::query("-- leave\nDELETE FROM replicas WHERE token = $1")
                .bind(token)
                .execute(c)
                .await?;
        });
        self.take_over().await.map(|_| ())
    }

    /// Forgets every other incarnation, because nobody else can hold a lease: this process has
    /// the database to itself. Nobody else is working on a request with an `Idempotency-Key`
    /// either.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn evict_others(&self, token: &str) -> Result<u64> {
        on!(self.writer(), c => {
            sqlx::query("-- evict_others\nDELETE FROM replicas WHERE token <> $1")
                .bind(token)
                .execute(c)
                .await?;
        });
        on!(self.writer(), c => {
            sqlx::query("-- evict_claims\nDELETE FROM idempotency WHERE status IS NULL")
                .execute(c)
                .await?;
        });
        self.take_over().await
    }

    /// Forgets incarnations that have been silent for an hour; what they held was taken over.
    ///
    /// # Errors
    /// When the database fails; the next round goes on.
    pub async fn forget_replicas(&self) -> Result<()> {
        let sql = format!(
            "-- forget_replicas\nDELETE FROM replicas WHERE lease_until < {} - 3600000",
            self.engine().now_ms()
        );
        on!(self.writer(), c => { sqlx::query(AssertSqlSafe(sql)).execute(c).await?; });
        Ok(())
    }

    /// Puts units back to waiting whose owner's lease has run out. Returns how many.
    ///
    /// # Errors
    /// When the database fails; the next round goes on.
    pub async fn take_over(&self) -> Result<u64> {
        let lapse = format!(
            "-- take_over_lapse\nDELETE FROM replicas WHERE lease_until < {}",
            self.engine().now_ms()
        );
        let orphans: Option<(i64,)> = on!(self.reader(), c => {
            sqlx::query_as(AssertSqlSafe(format!(
                "-- take_over_look
                 SELECT CAST(1 AS BIGINT) FROM units WHERE state = 'leased' AND owner NOT IN
                    (SELECT token FROM replicas WHERE lease_until >= {}) LIMIT 1",
                self.engine().now_ms()
            )))
            .fetch_optional(c)
            .await?
        });
        if orphans.is_none() {
            return Ok(0);
        }
        let mut tx = self.begin().await?;
        let taken: Vec<(String, i64)> = within!(&mut tx, c => {
            sqlx::query(AssertSqlSafe(lapse)).execute(&mut *c).await?;
            sqlx::query_as(
                "-- take_over
                 UPDATE units SET state = 'waiting', owner = NULL, takeovers = takeovers + 1
                 WHERE state = 'leased' AND owner NOT IN (SELECT token FROM replicas)
                 RETURNING batch_id, model_no",
            )
            .fetch_all(&mut *c)
            .await?
        });
        let count = taken.len() as u64;
        for ((batch_id, model_no), units) in tally(taken) {
            add_waiting(&mut tx, &batch_id, model_no, units).await?;
        }
        tx.commit().await?;
        if count > 0 {
            crate::observe::figures().took_over(count);
            tracing::info!(
                units.count = count,
                "took over units of a process that is gone"
            );
            self.wake();
        }
        Ok(count)
    }
}
