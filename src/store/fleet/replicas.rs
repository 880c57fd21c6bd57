//! Leases of processes. A lease is one row for each incarnation of a process. Units name the
//! incarnation's token as their owner. The end of a lease is written by the database's clock, and
//! compared with the database's clock.

use super::shares::forget_silent_holder;
use crate::domain::unit::UnitLease;
use crate::metrics::metrics;
use crate::store::engine::{Sql, Tx, in_tx, on_pool, sql};
use crate::store::work::{add_waiting, count_by_model, count_death, keep};
use crate::store::{Error, Result, Store, Who};

/// An incarnation of a process that works on this store.
#[derive(Clone, Debug)]
pub struct Replica {
    /// Random: names this incarnation and no other, ever.
    pub token: String,
    /// For people, and for a process that is started again. No two replicas have the same.
    pub name: String,
    /// How long a lease lasts from its renewal, and how often the replica renews the lease, in
    /// milliseconds.
    pub lease_ms: i64,
    pub beat_ms: i64,
}

/// Which configuration a replica runs by, for its operators.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Configuration {
    /// Tells it from others, and holds no secret.
    pub hash: String,
    /// When the replica read it, by the replica's clock, in milliseconds.
    pub read_at: i64,
}

/// A replica that has a name which another replica asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incumbent {
    pub token: String,
    /// How often the replica renews its lease, if it lives.
    pub beat_ms: i64,
    /// By the database's clock. Every renewal moves this time.
    pub lease_until: i64,
    /// Until when the replica may use its shares of limits. Every exchange moves this time.
    pub shares_until: Option<i64>,
}

impl Store {
    /// Registers an incarnation of a process, with a lease from now on. A dead incarnation of the
    /// same name is removed, and its units wait again at once. An incarnation is dead if its leases
    /// have run out, or if it is the one that the caller knows to be `dead` and has renewed no
    /// lease since. If the incarnation of that name may live, nothing is changed and it is
    /// returned.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn join(
        &self,
        replica: &Replica,
        dead: Option<&Incumbent>,
    ) -> Result<Option<Incumbent>> {
        let mut tx = self.begin().await?;
        let (incumbent, taken) = self.enter(&mut tx, replica, dead).await?;
        tx.commit().await?;
        metrics().took_over(taken);
        Ok(incumbent)
    }

    /// Registers an incarnation. Returns the live incarnation of the same name, if there is one,
    /// and how many units were taken over.
    async fn enter(
        &self,
        tx: &mut Tx,
        replica: &Replica,
        dead: Option<&Incumbent>,
    ) -> Result<(Option<Incumbent>, u64)> {
        let mut orphans = 0;
        let now = self.engine().now_ms();
        let insert = sql!(
            "-- join
             INSERT INTO replicas (token, name, started_at, beat_ms, lease_until)
             VALUES ($1, $2, $3, $4, {now} + $5) ON CONFLICT DO NOTHING",
            now
        );
        // A second attempt, where another process registers the same name at the same time.
        for _ in 0..2 {
            if let Some((incumbent, has_lapsed)) = self.incumbent(tx, replica).await? {
                if !has_lapsed && dead != Some(&incumbent) {
                    return Ok((Some(incumbent), orphans));
                }
                in_tx!(&mut *tx, |c| {
                    sqlx::query("-- join_after\nDELETE FROM replicas WHERE token = $1")
                        .bind(&incumbent.token)
                        .execute(c)
                        .await?;
                });
                let take = sql!(
                    "-- join_take_over\n{orphan} AND owner = $1 {orphaned}",
                    orphan = orphan(),
                    orphaned = ORPHANED
                );
                let taken: Vec<(String, i64)> = in_tx!(&mut *tx, |c| {
                    sqlx::query_as(take)
                        .bind(&incumbent.token)
                        .fetch_all(c)
                        .await?
                });
                orphans += add_orphans(tx, taken).await?;
                // The process has been started again under its name, so the old incarnation makes
                // no calls any more. Its shares are free once it may not use them any more.
                forget_silent_holder(tx, self, &incumbent.token).await?;
            }
            let joined = in_tx!(&mut *tx, |c| {
                sqlx::query(insert.clone())
                    .bind(&replica.token)
                    .bind(&replica.name)
                    .bind(self.now_ms())
                    .bind(replica.beat_ms)
                    .bind(replica.lease_ms)
                    .execute(c)
                    .await?
                    .rows_affected()
            });
            if joined == 1 {
                return Ok((None, orphans));
            }
        }
        Err(Error::Stale("the replica's name"))
    }

    /// The other replica that has this name, and whether its leases have run out.
    async fn incumbent(&self, tx: &mut Tx, replica: &Replica) -> Result<Option<(Incumbent, bool)>> {
        let sql = sql!(
            "-- incumbent
             SELECT token, beat_ms, lease_until,
                (SELECT held_until FROM share_holders h WHERE h.token = replicas.token), {now}
             FROM replicas
             WHERE name = $1 AND token <> $2 {lock}",
            now = self.engine().now_ms(),
            lock = self.engine().for_update()
        );
        let row: Option<(String, i64, i64, Option<i64>, i64)> = in_tx!(tx, |c| {
            sqlx::query_as(sql)
                .bind(&replica.name)
                .bind(&replica.token)
                .fetch_optional(c)
                .await?
        });
        Ok(row.map(|(token, beat_ms, lease_until, shares_until, now)| {
            let incumbent = Incumbent {
                token,
                beat_ms,
                lease_until,
                shares_until,
            };
            let until = lease_until.max(shares_until.unwrap_or(lease_until));
            (incumbent, until < now)
        }))
    }

    /// Renews a lease, even a lease that has run out and was not taken over. False if the
    /// incarnation is unknown: it was silent for too long, and other processes have put its units
    /// back to waiting. Then the caller calls [`Store::rejoin`].
    ///
    /// # Errors
    /// When the database fails.
    pub async fn renew(&self, token: &str, lease_ms: i64) -> Result<bool> {
        let sql = renew_sql(self);
        let renewed = on_pool!(self.control_pool(), |c| {
            sqlx::query(sql)
                .bind(token)
                .bind(lease_ms)
                .execute(c)
                .await?
                .rows_affected()
        });
        Ok(renewed == 1)
    }

    /// Says which configuration an incarnation runs by. An incarnation that is unknown is left
    /// alone.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn note_configuration(
        &self,
        token: &str,
        configuration: &Configuration,
    ) -> Result<()> {
        let sql = "-- note_configuration
             UPDATE replicas SET config_hash = $2, config_read_at = $3 WHERE token = $1";
        on_pool!(self.control_pool(), |c| {
            sqlx::query(sql)
                .bind(token)
                .bind(&configuration.hash)
                .bind(configuration.read_at)
                .execute(c)
                .await?;
        });
        Ok(())
    }

    /// Registers the same incarnation again, after a silence or after a renewal whose outcome is
    /// unknown. It gets a lease, and keeps those of its units that no other process has leased
    /// meanwhile. Returns the units that it has lost.
    ///
    /// # Errors
    /// When the database fails. [`Error::Refused`] when another process has the name by now.
    pub async fn rejoin(&self, replica: &Replica, held: &[UnitLease]) -> Result<Vec<UnitLease>> {
        let renew = renew_sql(self);
        let mut tx = self.begin_control().await?;
        let renewed = in_tx!(&mut tx, |c| {
            sqlx::query(renew)
                .bind(&replica.token)
                .bind(replica.lease_ms)
                .execute(c)
                .await?
                .rows_affected()
        });
        let mut taken = 0;
        if renewed == 0 {
            let (incumbent, orphans) = self.enter(&mut tx, replica, None).await?;
            if incumbent.is_some() {
                return Err(Error::Refused(format!(
                    "another process has joined as {:?}, the name of this one, which was silent \
                     for too long",
                    replica.name
                )));
            }
            taken = orphans;
        }
        let lost = keep(&mut tx, &replica.token, held).await?;
        tx.commit().await?;
        metrics().took_over(taken);
        Ok(lost)
    }

    /// Ends a lease. Units that were not released wait again at once, and no death is counted.
    ///
    /// # Errors
    /// When the database fails; then others take over when the lease has run out.
    pub async fn leave(&self, token: &str) -> Result<()> {
        let mut tx = self.begin_control().await?;
        let left: Vec<(String, i64)> = in_tx!(&mut tx, |c| {
            sqlx::query("-- leave\nDELETE FROM replicas WHERE token = $1")
                .bind(token)
                .execute(&mut *c)
                .await?;
            sqlx::query("-- leave_tasks\nDELETE FROM tasks WHERE holder = $1")
                .bind(token)
                .execute(&mut *c)
                .await?;
            sqlx::query_as(
                "-- leave_units
                 UPDATE units SET state = 'waiting', owner = NULL
                 WHERE state = 'leased' AND owner = $1 RETURNING batch_id, model_no",
            )
            .bind(token)
            .fetch_all(&mut *c)
            .await?
        });
        let units = add_orphans(&mut tx, left).await?;
        tx.commit().await?;
        if units > 0 {
            self.wake_all(Who::Supplies);
        }
        Ok(())
    }

    /// Removes every other incarnation. This process has the database to itself, so no other
    /// process can hold a lease, or be working on a request with an `Idempotency-Key`.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn evict_others(&self, token: &str) -> Result<u64> {
        on_pool!(self.writer(), |c| {
            sqlx::query("-- evict_others\nDELETE FROM replicas WHERE token <> $1")
                .bind(token)
                .execute(c)
                .await?;
        });
        on_pool!(self.writer(), |c| {
            sqlx::query("-- evict_claims\nDELETE FROM idempotency WHERE status IS NULL")
                .execute(c)
                .await?;
        });
        self.take_over().await
    }

    /// Removes incarnations that have been silent for an hour. Their units were taken over before.
    ///
    /// # Errors
    /// When the database fails; the next round goes on.
    pub async fn forget_replicas(&self) -> Result<()> {
        let sql = sql!(
            "-- forget_replicas\nDELETE FROM replicas WHERE lease_until < {now} - 3600000",
            now = self.engine().now_ms()
        );
        on_pool!(self.writer(), |c| {
            sqlx::query(sql).execute(c).await?;
        });
        Ok(())
    }

    /// Puts units back to waiting whose owner's lease has run out. Returns how many. A unit keeps
    /// the name of its last owner: until another process leases the unit, that owner may still
    /// write the lines that it had finished.
    ///
    /// # Errors
    /// When the database fails, or somebody else has locked a unit for a second; the next round
    /// goes on.
    pub async fn take_over(&self) -> Result<u64> {
        let now = self.engine().now_ms();
        // From owner to owner along the index: as many steps as there are owners, not units.
        let look = sql!(
            "-- take_over_look
             WITH RECURSIVE owners(token) AS (
                SELECT MIN(owner) FROM units WHERE state = 'leased'
                UNION ALL
                SELECT (SELECT MIN(owner) FROM units WHERE state = 'leased' AND owner > token)
                FROM owners WHERE token IS NOT NULL)
             SELECT CAST(1 AS BIGINT) FROM owners WHERE token IS NOT NULL AND token NOT IN
                (SELECT token FROM replicas WHERE lease_until >= {now}) LIMIT 1",
            now
        );
        let orphans: Option<(i64,)> = on_pool!(self.reader(), |c| {
            sqlx::query_as(look).fetch_optional(c).await?
        });
        if orphans.is_none() {
            return Ok(0);
        }
        let lapse = sql!(
            "-- take_over_lapse\nDELETE FROM replicas WHERE lease_until < {now}",
            now
        );
        let take = sql!(
            "-- take_over\n{orphan} AND owner NOT IN (SELECT token FROM replicas) {orphaned}",
            orphan = orphan(),
            orphaned = ORPHANED
        );
        let mut tx = self.begin().await?;
        if let Some(sql) = self.engine().set_lock_timeout() {
            in_tx!(&mut tx, |c| {
                sqlx::query(sql).execute(c).await?;
            });
        }
        let taken: Vec<(String, i64)> = in_tx!(&mut tx, |c| {
            sqlx::query(lapse).execute(&mut *c).await?;
            sqlx::query_as(take).fetch_all(&mut *c).await?
        });
        let count = add_orphans(&mut tx, taken).await?;
        tx.commit().await?;
        metrics().took_over(count);
        if count > 0 {
            tracing::info!(
                units.count = count,
                "took over units of a process that is gone"
            );
            self.wake_all(Who::Supplies);
        }
        Ok(count)
    }
}

/// Takes units from an owner that is gone. `reclaim` in `work/units.rs` undoes this.
fn orphan() -> Sql {
    sql!(
        "UPDATE units SET state = 'waiting', {count_death} WHERE state = 'leased'",
        count_death = count_death()
    )
}
const ORPHANED: &str = "RETURNING batch_id, model_no";

/// Adds units that wait again to the backlog. Returns how many units there are.
async fn add_orphans(tx: &mut Tx, units: Vec<(String, i64)>) -> Result<u64> {
    let count = units.len() as u64;
    for ((batch_id, model_no), units) in count_by_model(units) {
        add_waiting(tx, &batch_id, model_no, units).await?;
    }
    Ok(count)
}

fn renew_sql(store: &Store) -> Sql {
    sql!(
        "-- renew\nUPDATE replicas SET lease_until = {now} + $2 WHERE token = $1",
        now = store.engine().now_ms()
    )
}
