//! What processes that share a database exchange: how much of each limit each process holds, and
//! which models at which upstreams are in cooldown (the table `gates`). All times are by the
//! database's clock.

use std::collections::BTreeMap;

use sqlx::FromRow;

use super::windows::{WindowBook, WindowRow, write_windows};
use crate::domain::share::{Holder, Share};
use crate::store::engine::{Rows, Tx, Value, bind_each, bind_rows, in_tx, list, sql};
use crate::store::{Result, Store, Who};

/// How long a reset is passed on, in milliseconds: far longer than a process goes without an
/// exchange.
const RESET_TOLD_MS: i64 = 600_000;
/// Rows written by one statement.
const ROWS_A_STATEMENT: usize = 500;

/// A model at an upstream that is closed for so many milliseconds yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CooldownRow {
    pub upstream: String,
    /// By which of the upstream's keys; empty where it has not several.
    pub key: String,
    pub model: String,
    pub closed_ms: i64,
}

/// What a process reads in an exchange.
#[derive(Debug)]
pub struct ShareBook {
    /// Every process that holds shares; this process too, if it has exchanged before.
    pub holders: Vec<Holder>,
    /// The cooldowns that are not over.
    pub cooldowns: Vec<CooldownRow>,
    /// Upstreams that an operator has reset lately, and when.
    pub resets: Vec<(String, i64)>,
    /// The windows that are found out.
    pub windows: WindowBook,
}

/// What a process writes in an exchange.
#[derive(Debug, Default)]
pub struct ShareEntry {
    /// This process's shares, by the limit's name.
    pub shares: BTreeMap<String, Share>,
    /// The lease on them lasts long enough yet: it is not renewed, since that is a write.
    pub lease_lasts: bool,
    /// Shares of processes that are gone, by limit and token: they are given out again.
    pub forgotten: Vec<(String, String)>,
    /// Gates that others may not know of.
    pub cooldowns: Vec<CooldownRow>,
    /// Windows that this process has had a turn at.
    pub windows: Vec<WindowRow>,
}

#[derive(FromRow)]
struct Row {
    token: String,
    joined_at: i64,
    left_ms: i64,
    resource: Option<String>,
    allowed: Option<i64>,
    wants: Option<i64>,
    held: Option<i64>,
}

impl Store {
    /// Exchanges shares in one transaction: reads what all processes hold, lets `decide` choose
    /// what this process holds, and writes what of that has changed. No other exchange runs in
    /// between. Unless [`ShareEntry::lease_lasts`], the shares belong to this process for `ttl_ms`,
    /// counted from before the call. `windows`: the names of those that are found out.
    ///
    /// # Errors
    /// When the database fails, or the lock of the exchange is not acquired within half of
    /// `ttl_ms`. Then it is unknown whether what was decided was written.
    pub async fn exchange_shares<T>(
        &self,
        token: &str,
        ttl_ms: i64,
        windows: &[String],
        decide: impl FnOnce(&ShareBook) -> (ShareEntry, T),
    ) -> Result<T> {
        let mut tx = self.begin_exchange(ttl_ms / 2).await?;
        let mut book = self.read_book(&mut tx).await?;
        book.windows = self.read_windows(&mut tx, windows).await?;
        let (entry, outcome) = decide(&book);
        if !entry.lease_lasts {
            self.write_holder(&mut tx, token, ttl_ms).await?;
        }
        let mine = book.holders.iter().find(|holder| holder.token == token);
        let written = mine.map(|holder| &holder.shares);
        let changed: Vec<(&String, &Share)> = entry
            .shares
            .iter()
            .filter(|(name, share)| written.and_then(|mine| mine.get(*name)) != Some(*share))
            .collect();
        for changed in changed.chunks(ROWS_A_STATEMENT) {
            write_shares(&mut tx, token, changed).await?;
        }
        for forgotten in entry.forgotten.chunks(ROWS_A_STATEMENT) {
            forget(&mut tx, forgotten).await?;
        }
        for rows in entry.cooldowns.chunks(ROWS_A_STATEMENT) {
            self.write_cooldowns(&mut tx, rows).await?;
        }
        write_windows(&mut tx, &entry.windows).await?;
        tx.commit().await?;
        Ok(outcome)
    }

    /// Records for every process that an operator has reset an upstream.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn reset_upstream(&self, upstream: &str) -> Result<()> {
        let now = self.engine().now_ms();
        let note = sql!(
            "-- reset_upstream
             INSERT INTO upstream_resets (upstream, reset_at) VALUES ($1, {now})
             ON CONFLICT (upstream) DO UPDATE SET reset_at = excluded.reset_at",
            now
        );
        let mut tx = self.begin_exchange(LOCK_TIMEOUT_MS).await?;
        in_tx!(&mut tx, |c| {
            sqlx::query(note).bind(upstream).execute(&mut *c).await?;
            sqlx::query("-- reset_gates\nDELETE FROM gates WHERE upstream = $1")
                .bind(upstream)
                .execute(&mut *c)
                .await?;
        });
        tx.commit().await?;
        self.wake_others(Who::Sharers);
        Ok(())
    }

    /// Removes all shares of a process that ends.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn forget_shares(&self, token: &str) -> Result<()> {
        let mut tx = self.begin_exchange(LOCK_TIMEOUT_MS).await?;
        forget_holder(&mut tx, token).await?;
        tx.commit().await?;
        self.wake_others(Who::Sharers);
        Ok(())
    }

    /// Begins the transaction of an exchange. No other exchange runs beside it. The transaction
    /// waits for the lock for this long at most. If this process stops during the exchange, the
    /// other processes wait for this long at most.
    pub(super) async fn begin_exchange(&self, patience_ms: i64) -> Result<Tx> {
        let mut tx = self.begin_control().await?;
        if let Some(sql) = self.engine().acquire_share_lock() {
            let patience = patience_ms.max(1).to_string();
            in_tx!(&mut tx, |c| {
                sqlx::query(sql).bind(patience).execute(c).await?;
            });
        }
        Ok(tx)
    }

    async fn read_book(&self, tx: &mut Tx) -> Result<ShareBook> {
        let now = self.engine().now_ms();
        let sql = sql!(
            "-- read_shares
             SELECT h.token, h.joined_at, h.held_until - {now} AS left_ms, s.resource, s.allowed,
                s.wants, s.held
             FROM share_holders h LEFT JOIN shares s ON s.token = h.token
             ORDER BY h.token",
            now
        );
        let rows: Vec<Row> = in_tx!(&mut *tx, |c| sqlx::query_as(sql).fetch_all(c).await?);
        // One statement for both: it runs once a second in each process.
        let sql = sql!(
            "-- read_gates
             SELECT upstream, key_name, model, closed_until - {now} FROM gates
             UNION ALL
             SELECT upstream, NULL, NULL, reset_at FROM upstream_resets
             WHERE reset_at > {now} - {reset_told_ms}",
            now,
            reset_told_ms = RESET_TOLD_MS
        );
        let told: Vec<(String, Option<String>, Option<String>, i64)> =
            in_tx!(&mut *tx, |c| sqlx::query_as(sql).fetch_all(c).await?);
        let (mut cooldowns, mut resets) = (Vec::new(), Vec::new());
        for (upstream, key, model, number) in told {
            match key.zip(model) {
                Some((key, model)) => cooldowns.push(CooldownRow {
                    upstream,
                    key,
                    model,
                    closed_ms: number,
                }),
                None => resets.push((upstream, number)),
            }
        }
        if cooldowns.iter().any(|cooldown| cooldown.closed_ms <= 0) {
            let sql = sql!(
                "-- open_gates\nDELETE FROM gates WHERE closed_until <= {now}",
                now
            );
            in_tx!(&mut *tx, |c| {
                sqlx::query(sql).execute(c).await?;
            });
        }
        cooldowns.retain(|cooldown| cooldown.closed_ms > 0);
        Ok(ShareBook {
            holders: into_holders(rows),
            cooldowns,
            resets,
            windows: WindowBook::default(),
        })
    }

    async fn write_holder(&self, tx: &mut Tx, token: &str, ttl_ms: i64) -> Result<()> {
        let now = self.engine().now_ms();
        let sql = sql!(
            "-- write_holder
             INSERT INTO share_holders (token, joined_at, held_until)
             VALUES ($1, {now}, {now} + $2)
             ON CONFLICT (token) DO UPDATE SET held_until = excluded.held_until",
            now
        );
        in_tx!(tx, |c| {
            sqlx::query(sql).bind(token).bind(ttl_ms).execute(c).await?;
        });
        Ok(())
    }

    async fn write_cooldowns(&self, tx: &mut Tx, cooldowns: &[CooldownRow]) -> Result<()> {
        let rows = Rows::of(cooldowns.iter().map(|cooldown| {
            [
                ("upstream", Value::from(&cooldown.upstream)),
                ("key_name", Value::from(&cooldown.key)),
                ("model", Value::from(&cooldown.model)),
                ("closed_ms", cooldown.closed_ms.into()),
            ]
        }));
        let sql = sql!(
            "-- write_gates
             WITH {closed}
             INSERT INTO gates (upstream, key_name, model, closed_until)
             SELECT upstream, key_name, model, {now} + closed_ms FROM v WHERE closed_ms > 0
             ON CONFLICT (upstream, key_name, model) DO UPDATE SET closed_until = excluded.closed_until
             WHERE gates.closed_until < excluded.closed_until",
            closed = rows.table("v", 1, tx.engine()),
            now = self.engine().now_ms()
        );
        in_tx!(tx, |c| {
            let write = sqlx::query(sql).persistent(false);
            bind_rows!(write, rows).execute(c).await?;
        });
        Ok(())
    }
}

/// How long to wait for the lock where there is no `ttl_ms`.
const LOCK_TIMEOUT_MS: i64 = 5_000;

fn into_holders(rows: Vec<Row>) -> Vec<Holder> {
    let mut holders: Vec<Holder> = Vec::new();
    let count = |number: Option<i64>| u64::try_from(number.unwrap_or(0)).unwrap_or(0);
    for row in rows {
        if holders.last().is_none_or(|last| last.token != row.token) {
            holders.push(Holder {
                token: row.token,
                joined_at: row.joined_at,
                left_ms: row.left_ms,
                shares: BTreeMap::new(),
            });
        }
        if let (Some(holder), Some(resource)) = (holders.last_mut(), row.resource) {
            let share = Share {
                allowed: count(row.allowed),
                wants: count(row.wants),
                held: count(row.held),
            };
            holder.shares.insert(resource, share);
        }
    }
    holders
}

/// Removes all shares of a process, unless the process may still use them.
pub(in crate::store) async fn forget_silent_holder(
    tx: &mut Tx,
    store: &Store,
    token: &str,
) -> Result<()> {
    let sql = sql!(
        "-- forget_silent_holder
         SELECT token FROM share_holders WHERE token = $1 AND held_until < {now} {lock}",
        now = store.engine().now_ms(),
        lock = store.engine().for_update()
    );
    let silent: Option<(String,)> = in_tx!(&mut *tx, |c| {
        sqlx::query_as(sql).bind(token).fetch_optional(c).await?
    });
    match silent {
        Some(_) => forget_holder(tx, token).await,
        None => Ok(()),
    }
}

/// Removes all shares of a process.
async fn forget_holder(tx: &mut Tx, token: &str) -> Result<()> {
    for sql in [
        "-- forget_holder_shares\nDELETE FROM shares WHERE token = $1",
        "-- forget_holder\nDELETE FROM share_holders WHERE token = $1",
    ] {
        in_tx!(&mut *tx, |c| {
            sqlx::query(sql).bind(token).execute(c).await?;
        });
    }
    Ok(())
}

async fn write_shares(tx: &mut Tx, token: &str, shares: &[(&String, &Share)]) -> Result<()> {
    let count = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    let rows = Rows::of(shares.iter().map(|&(resource, share)| {
        [
            ("resource", Value::from(resource)),
            ("token", Value::from(token)),
            ("allowed", count(share.allowed).into()),
            ("wants", count(share.wants).into()),
            ("held", count(share.held).into()),
        ]
    }));
    let sql = sql!(
        "-- write_shares
         INSERT INTO shares ({columns}) VALUES {rows}
         ON CONFLICT (resource, token) DO UPDATE
         SET allowed = excluded.allowed, wants = excluded.wants, held = excluded.held",
        columns = rows.columns(),
        rows = rows.parameters(1)
    );
    in_tx!(tx, |c| {
        let write = sqlx::query(sql).persistent(false);
        bind_rows!(write, rows).execute(c).await?;
    });
    Ok(())
}

/// Removes shares, and each process that has none left.
async fn forget(tx: &mut Tx, shares: &[(String, String)]) -> Result<()> {
    let rows =
        Rows::of(shares.iter().map(|(resource, token)| {
            [("resource", Value::from(resource)), ("token", token.into())]
        }));
    let forget = sql!(
        "-- forget_shares
         DELETE FROM shares WHERE (resource, token) IN (VALUES {rows})",
        rows = rows.parameters(1)
    );
    let bare = sql!(
        "-- forget_bare_holders
         DELETE FROM share_holders WHERE token IN {tokens}
            AND NOT EXISTS (SELECT 1 FROM shares s WHERE s.token = share_holders.token)",
        tokens = list(1, shares.len())
    );
    in_tx!(tx, |c| {
        let forget = sqlx::query(forget).persistent(false);
        bind_rows!(forget, rows).execute(&mut *c).await?;
        let bare = sqlx::query(bare).persistent(false);
        let tokens = shares.iter().map(|(_, token)| token);
        bind_each!(bare, tokens).execute(c).await?;
    });
    Ok(())
}
