//! Which upstreams operators have enabled and disabled at run time, and which processes have
//! nothing in flight at those that are disabled.

use sqlx::FromRow;

use crate::store::engine::{in_tx, on_pool, sql};
use crate::store::{Result, Store, Who};

/// What an operator has set for an upstream.
#[derive(Clone, Debug, PartialEq, Eq, FromRow)]
pub struct SwitchRow {
    pub upstream: String,
    /// Whether lines are sent there.
    pub enabled: bool,
    /// What the configuration said when it was set.
    pub configured: bool,
    /// Who has set it.
    pub changed_by: String,
    /// By the database's clock, in milliseconds. Each change of an upstream has a later one.
    pub changed_at: i64,
}

impl Store {
    /// Enables or disables an upstream for every process. What is so already stays as it is, with
    /// who has set it. Returns what holds now.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn switch_upstream(
        &self,
        upstream: &str,
        enabled: bool,
        configured: bool,
        changed_by: &str,
    ) -> Result<SwitchRow> {
        let write = sql!(
            "-- switch_upstream
             INSERT INTO upstream_switches (upstream, enabled, configured, changed_by, changed_at)
             VALUES ($1, $2, $3, $4, {now})
             ON CONFLICT (upstream) DO UPDATE
             SET enabled = excluded.enabled, configured = excluded.configured,
                changed_by = excluded.changed_by,
                changed_at = CASE WHEN excluded.changed_at > upstream_switches.changed_at
                    THEN excluded.changed_at ELSE upstream_switches.changed_at + 1 END
             WHERE upstream_switches.enabled <> excluded.enabled
                OR upstream_switches.configured <> excluded.configured",
            now = self.engine().now_ms()
        );
        let mut tx = self.begin().await?;
        let row = in_tx!(&mut tx, |c| {
            sqlx::query(write)
                .bind(upstream)
                .bind(enabled)
                .bind(configured)
                .bind(changed_by)
                .execute(&mut *c)
                .await?;
            sqlx::query_as(
                "-- switched_upstream
                 SELECT upstream, enabled, configured, changed_by, changed_at
                 FROM upstream_switches WHERE upstream = $1",
            )
            .bind(upstream)
            .fetch_one(c)
            .await?
        });
        tx.commit().await?;
        self.wake_all(Who::Switches);
        Ok(row)
    }

    /// What operators have set, of all upstreams: one row for each upstream that anybody has ever
    /// switched.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn upstream_switches(&self) -> Result<Vec<SwitchRow>> {
        Ok(on_pool!(self.reader(), |c| {
            sqlx::query_as(
                "-- upstream_switches
                 SELECT upstream, enabled, configured, changed_by, changed_at
                 FROM upstream_switches ORDER BY upstream",
            )
            .fetch_all(c)
            .await?
        }))
    }

    /// Notes that a process has nothing in flight at an upstream that was disabled at this time,
    /// and will send nothing there. What is noted of processes that are gone is removed.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn note_drained(&self, token: &str, upstream: &str, changed_at: i64) -> Result<()> {
        let mut tx = self.begin().await?;
        in_tx!(&mut tx, |c| {
            sqlx::query(
                "-- note_drained
                 INSERT INTO upstream_drains (upstream, token, changed_at) VALUES ($1, $2, $3)
                 ON CONFLICT (upstream, token) DO UPDATE SET changed_at = excluded.changed_at",
            )
            .bind(upstream)
            .bind(token)
            .bind(changed_at)
            .execute(&mut *c)
            .await?;
            sqlx::query(
                "-- forget_drained
                 DELETE FROM upstream_drains WHERE upstream = $1 AND token <> $2
                    AND token NOT IN (SELECT token FROM replicas)",
            )
            .bind(upstream)
            .bind(token)
            .execute(c)
            .await?;
        });
        tx.commit().await
    }

    /// The names of the live processes that may have calls in flight at an upstream which was
    /// disabled at this time.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn undrained(&self, upstream: &str, changed_at: i64) -> Result<Vec<String>> {
        let sql = sql!(
            "-- undrained
             SELECT name FROM replicas
             WHERE lease_until >= {now} AND token NOT IN
                (SELECT token FROM upstream_drains WHERE upstream = $1 AND changed_at = $2)
             ORDER BY name",
            now = self.engine().now_ms()
        );
        let names: Vec<(String,)> = on_pool!(self.reader(), |c| {
            sqlx::query_as(sql)
                .bind(upstream)
                .bind(changed_at)
                .fetch_all(c)
                .await?
        });
        Ok(names.into_iter().map(|(name,)| name).collect())
    }
}
