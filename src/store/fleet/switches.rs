//! Which upstreams operators have enabled and disabled at run time, and how many calls processes
//! have in flight at those that are disabled.

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

/// A live process that may have calls in flight at an upstream that is disabled.
#[derive(Clone, Debug, PartialEq, Eq, FromRow)]
pub struct Undrained {
    /// The process's name.
    pub name: String,
    /// As it has told. `None`: it has told nothing since the upstream was disabled.
    pub in_flight: Option<i64>,
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

    /// Notes how many calls a process has in flight at an upstream that was disabled at this time,
    /// and to which it sends nothing more. What is noted of processes that are gone is removed.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn note_in_flight(
        &self,
        token: &str,
        upstream: &str,
        changed_at: i64,
        in_flight: usize,
    ) -> Result<()> {
        let mut tx = self.begin().await?;
        in_tx!(&mut tx, |c| {
            sqlx::query(
                "-- note_in_flight
                 INSERT INTO upstream_drains (upstream, token, changed_at, in_flight)
                 VALUES ($1, $2, $3, $4)
                 ON CONFLICT (upstream, token) DO UPDATE
                 SET changed_at = excluded.changed_at, in_flight = excluded.in_flight",
            )
            .bind(upstream)
            .bind(token)
            .bind(changed_at)
            .bind(i64::try_from(in_flight).unwrap_or(i64::MAX))
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

    /// The live processes that may have calls in flight at an upstream which was disabled at this
    /// time, in the order of their names.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn undrained(&self, upstream: &str, changed_at: i64) -> Result<Vec<Undrained>> {
        let sql = sql!(
            "-- undrained
             SELECT replicas.name, told.in_flight FROM replicas
             LEFT JOIN upstream_drains AS told ON told.token = replicas.token
                AND told.upstream = $1 AND told.changed_at = $2
             WHERE replicas.lease_until >= {now}
                AND (told.in_flight IS NULL OR told.in_flight > 0)
             ORDER BY replicas.name",
            now = self.engine().now_ms()
        );
        Ok(on_pool!(self.reader(), |c| {
            sqlx::query_as(sql)
                .bind(upstream)
                .bind(changed_at)
                .fetch_all(c)
                .await?
        }))
    }
}
