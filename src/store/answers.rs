//! Answers that are kept to be given to equal requests.
//!
//! Whoever writes answers or removes them also writes the totals, in the same transaction: first
//! the rows of answers in the order of their keys, then those of totals in the order of tenants, in
//! one statement. So what makes room for new answers is no part of the transaction that keeps them.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use sqlx::FromRow;

use crate::codec;
use crate::domain::reuse::Key;
use crate::store::engine::{Rows, Sql, Tx, Value, bind_each, bind_rows, in_tx, list, on_pool, sql};
use crate::store::{Error, Result, Store};

/// Answers removed in one transaction.
const REMOVED_AT_ONCE: i64 = 500;
/// Answers removed at once to make room for others, at least.
const EVICTED_MIN: i64 = 16;
/// How long to wait for another process that has locked what is to be removed.
const LOCKED_PAUSE: Duration = Duration::from_millis(20);

/// An answer that is to be kept.
#[derive(Clone, Debug)]
pub struct NewAnswer {
    pub key: Key,
    pub tenant: String,
    /// The input file of the line that was answered.
    pub file_id: String,
    pub status: u16,
    /// The model server's own.
    pub request_id: Option<String>,
    /// JSON.
    pub warnings: Option<String>,
    /// How many bytes the answer has.
    pub bytes: usize,
    /// The answer, compressed by the codec.
    pub answer: Vec<u8>,
}

/// An answer that was kept.
#[derive(Clone, Debug)]
pub struct KeptAnswer {
    /// In milliseconds, by the database's clock.
    pub kept_at: i64,
    pub status: u16,
    pub request_id: Option<String>,
    /// JSON.
    pub warnings: Option<String>,
    pub body: Vec<u8>,
}

/// What is kept of one tenant.
#[derive(Clone, Debug, PartialEq, Eq, FromRow)]
pub struct KeptOfTenant {
    pub tenant: String,
    pub answers: i64,
    /// As they are stored.
    pub bytes: i64,
}

/// How many answers, and their stored bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AnswerCount {
    pub answers: i64,
    pub bytes: i64,
}

/// The tenant with the most bytes, and the bytes of all tenants.
#[derive(FromRow)]
struct Most {
    tenant: String,
    answers: i64,
    bytes: i64,
    all_bytes: i64,
}

#[derive(FromRow)]
struct Row {
    key: Vec<u8>,
    kept_at: i64,
    status: i64,
    request_id: Option<String>,
    warnings: Option<String>,
    bytes: i64,
    answer: Vec<u8>,
}

/// What a transaction changes in the totals, by tenant.
#[derive(Default)]
struct Changes(BTreeMap<String, AnswerCount>);

impl Changes {
    fn add(&mut self, tenant: &str, answers: i64, bytes: i64) {
        let count = self.0.entry(tenant.to_owned()).or_default();
        count.answers += answers;
        count.bytes += bytes;
    }

    /// Rows that were removed, each with its tenant and its stored bytes.
    fn removed(&mut self, rows: &[(String, i64)]) {
        for (tenant, bytes) in rows {
            self.add(tenant, -1, -bytes);
        }
    }
}

impl Store {
    /// The answers that were kept under these keys within the last `ttl_ms` milliseconds. None of a
    /// file that was deleted or has expired.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn kept_answers(
        &self,
        keys: &[Key],
        ttl_ms: i64,
    ) -> Result<HashMap<Key, KeptAnswer>> {
        let now = self.now_sql(1);
        let sql = sql!(
            "-- kept_answers
             SELECT a.key, a.kept_at, a.status, a.request_id, a.warnings, a.bytes, a.answer
             FROM answers a JOIN files f ON f.id = a.file_id AND f.state = 'ready'
                AND (f.expires_at IS NULL OR f.expires_at > {now})
             WHERE a.kept_at > {now} - $2 AND a.key IN {keys}",
            now,
            keys = list(3, keys.len())
        );
        let rows: Vec<Row> = on_pool!(self.reader(), |c| {
            let look = sqlx::query_as(sql).persistent(false);
            let look = look.bind(self.offset_ms()).bind(ttl_ms);
            bind_each!(look, keys.iter().map(Key::as_bytes))
                .fetch_all(c)
                .await?
        });
        // One that is damaged is asked for anew, and then replaced.
        let read = rows.into_iter().filter_map(|row| {
            let read = row.read();
            read.inspect_err(|error| tracing::error!(%error, "a kept answer is not used"))
                .ok()
        });
        Ok(read.collect())
    }

    /// Keeps answers, each in the place of one that was kept under its key. An answer whose file is
    /// gone by now is not kept.
    ///
    /// # Errors
    /// When the database fails: then none is kept.
    pub async fn keep_answers(&self, new: &[NewAnswer]) -> Result<()> {
        let mut new: Vec<&NewAnswer> = new.iter().collect();
        new.sort_unstable_by_key(|answer| answer.key);
        if new.is_empty() {
            return Ok(());
        }
        let mut changes = Changes::default();
        let mut tx = self.begin().await?;
        let keys: Vec<Key> = new.iter().map(|answer| answer.key).collect();
        changes.removed(&replaced(&mut tx, &keys).await?);
        for (tenant, bytes) in inserted(&mut tx, self, &new).await? {
            changes.add(&tenant, 1, bytes);
        }
        count(&mut tx, changes).await?;
        tx.commit().await
    }

    /// Removes the oldest answers of whichever tenant has most, in small transactions of one tenant
    /// each, while all together have more than `max_bytes`: so that a tenant with many answers
    /// leaves the others theirs.
    ///
    /// # Errors
    /// When the database fails; some may be removed.
    pub async fn make_room(&self, max_bytes: u64) -> Result<()> {
        let max_bytes = i64::try_from(max_bytes).unwrap_or(i64::MAX);
        let of_tenant = sql!("tenant = $1");
        while let Some(most) = self.most_kept().await? {
            let over = most.all_bytes - max_bytes;
            if over <= 0 {
                break;
            }
            // So many as have these bytes, if all have as many.
            let share = over as f64 / most.bytes as f64;
            let some = (most.answers as f64 * share).ceil() as i64;
            let some = some.clamp(EVICTED_MIN, REMOVED_AT_ONCE);
            let tenant = [&*most.tenant];
            let removed = self.remove_some(&of_tenant, &[], &tenant, some).await?;
            if removed.is_empty() {
                // Others are removing them.
                break;
            }
        }
        Ok(())
    }

    /// The tenant with the most bytes. `None`: nothing is kept.
    async fn most_kept(&self) -> Result<Option<Most>> {
        Ok(on_pool!(self.writer(), |c| {
            sqlx::query_as(
                "-- most_kept
                 SELECT tenant, answers, bytes,
                    CAST(SUM(bytes) OVER () AS BIGINT) AS all_bytes
                 FROM answer_totals WHERE bytes > 0
                 ORDER BY bytes DESC, tenant LIMIT 1",
            )
            .fetch_optional(c)
            .await?
        }))
    }

    /// Removes answers that are no longer used: kept more than `ttl_ms` milliseconds ago.
    ///
    /// # Errors
    /// When the database fails; some may be removed.
    pub async fn remove_old_answers(&self, ttl_ms: i64) -> Result<AnswerCount> {
        let now = self.now_sql(1);
        let old = sql!("kept_at <= {now} - $2", now);
        self.remove_answers(&old, &[self.offset_ms(), ttl_ms], &[])
            .await
    }

    /// Removes all kept answers, or those of one tenant.
    ///
    /// # Errors
    /// When the database fails; some may be removed.
    pub async fn clear_answers(&self, tenant: Option<&str>) -> Result<AnswerCount> {
        match tenant {
            Some(tenant) => {
                let of_tenant = sql!("tenant = $1");
                self.remove_answers(&of_tenant, &[], &[tenant]).await
            }
            None => self.remove_answers(&sql!("TRUE"), &[], &[]).await,
        }
    }

    /// Removes the answers to the lines of these files.
    ///
    /// # Errors
    /// When the database fails; some may be removed.
    pub(in crate::store) async fn remove_answers_of(&self, files: &[&str]) -> Result<()> {
        if files.is_empty() {
            return Ok(());
        }
        let of_files = sql!("file_id IN {files}", files = list(1, files.len()));
        self.remove_answers(&of_files, &[], files).await?;
        Ok(())
    }

    /// What is kept of each tenant, the one with the most bytes first.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn kept_of_tenants(&self) -> Result<Vec<KeptOfTenant>> {
        Ok(on_pool!(self.reader(), |c| {
            sqlx::query_as(
                "-- kept_of_tenants
                 SELECT tenant, answers, bytes FROM answer_totals WHERE answers > 0
                 ORDER BY bytes DESC, tenant",
            )
            .fetch_all(c)
            .await?
        }))
    }

    /// Removes the answers for which a condition holds, in small transactions.
    async fn remove_answers(
        &self,
        condition: &Sql,
        numbers: &[i64],
        texts: &[&str],
    ) -> Result<AnswerCount> {
        let mut removed = AnswerCount::default();
        loop {
            let rows = self
                .remove_some(condition, numbers, texts, REMOVED_AT_ONCE)
                .await?;
            if rows.is_empty() {
                if !self.has_answers(condition, numbers, texts).await? {
                    return Ok(removed);
                }
                // Another process writes them at this moment.
                tokio::time::sleep(LOCKED_PAUSE).await;
                continue;
            }
            removed.answers += rows.len() as i64;
            removed.bytes += rows.iter().map(|(_, bytes)| bytes).sum::<i64>();
        }
    }

    /// Removes the oldest answers for which a condition holds, in one transaction: `at_once` at
    /// most. Returns the tenant and the stored bytes of each.
    async fn remove_some(
        &self,
        condition: &Sql,
        numbers: &[i64],
        texts: &[&str],
        at_once: i64,
    ) -> Result<Vec<(String, i64)>> {
        let mut tx = self.begin().await?;
        let remove = removal(&tx, condition, at_once);
        let rows: Vec<(String, i64)> = in_tx!(&mut tx, |c| {
            let remove = sqlx::query_as(remove).persistent(false);
            let remove = bind_each!(remove, numbers.iter().copied());
            bind_each!(remove, texts.iter().copied())
                .fetch_all(c)
                .await?
        });
        let mut changes = Changes::default();
        changes.removed(&rows);
        count(&mut tx, changes).await?;
        tx.commit().await?;
        Ok(rows)
    }
}

impl Store {
    async fn has_answers(&self, condition: &Sql, numbers: &[i64], texts: &[&str]) -> Result<bool> {
        let sql = sql!(
            "-- has_answers
             SELECT CAST(1 AS BIGINT) FROM answers WHERE {condition} LIMIT 1",
            condition
        );
        let any: Option<(i64,)> = on_pool!(self.writer(), |c| {
            let look = sqlx::query_as(sql).persistent(false);
            let look = bind_each!(look, numbers.iter().copied());
            bind_each!(look, texts.iter().copied())
                .fetch_optional(c)
                .await?
        });
        Ok(any.is_some())
    }
}

impl Row {
    fn read(self) -> Result<(Key, KeptAnswer)> {
        let damaged = |error: String| Error::corrupt("a kept answer", error);
        let key = Key::from_bytes(&self.key).ok_or_else(|| damaged("its key".to_owned()))?;
        let size = usize::try_from(self.bytes).unwrap_or(0);
        let body = codec::decompress(&self.answer, size);
        let answer = KeptAnswer {
            kept_at: self.kept_at,
            status: u16::try_from(self.status).map_err(|error| damaged(error.to_string()))?,
            request_id: self.request_id,
            warnings: self.warnings,
            body: body.map_err(|error| damaged(error.to_string()))?,
        };
        Ok((key, answer))
    }
}

/// Removes some of the answers for which a condition holds, and returns the tenant and the stored
/// bytes of each. Those that another transaction is writing stay.
fn removal(tx: &Tx, condition: &Sql, at_once: i64) -> Sql {
    sql!(
        "-- remove_answers
         WITH chosen AS MATERIALIZED (
            SELECT key FROM answers WHERE {condition} ORDER BY kept_at LIMIT {at_once} {lock})
         DELETE FROM answers WHERE key IN (SELECT key FROM chosen)
         RETURNING tenant, stored_bytes",
        condition,
        at_once,
        lock = tx.engine().skip_locked()
    )
}

/// Removes what was kept under these keys.
async fn replaced(tx: &mut Tx, keys: &[Key]) -> Result<Vec<(String, i64)>> {
    let sql = sql!(
        "-- replace_answers
         WITH chosen AS MATERIALIZED (
            SELECT key FROM answers WHERE key IN {keys} ORDER BY key {lock})
         DELETE FROM answers WHERE key IN (SELECT key FROM chosen)
         RETURNING tenant, stored_bytes",
        keys = list(1, keys.len()),
        lock = tx.engine().for_update()
    );
    Ok(in_tx!(tx, |c| {
        let remove = sqlx::query_as(sql).persistent(false);
        bind_each!(remove, keys.iter().map(Key::as_bytes))
            .fetch_all(c)
            .await?
    }))
}

/// Writes answers, and returns the tenant and the stored bytes of each that was written: not those
/// whose file is gone, and not those that another process has kept just now.
async fn inserted(tx: &mut Tx, store: &Store, new: &[&NewAnswer]) -> Result<Vec<(String, i64)>> {
    let rows = Rows::of(new.iter().map(|answer| {
        [
            ("key", Value::from(answer.key.as_bytes())),
            ("tenant", Value::from(&answer.tenant)),
            ("file_id", Value::from(&answer.file_id)),
            ("status", i64::from(answer.status).into()),
            ("request_id", Value::from(&answer.request_id)),
            ("warnings", Value::from(&answer.warnings)),
            ("bytes", (answer.bytes as i64).into()),
            ("stored_bytes", (answer.answer.len() as i64).into()),
            ("answer", Value::from(&answer.answer)),
        ]
    }));
    let sql = sql!(
        "-- keep_answers
         WITH {new},
         there AS MATERIALIZED (
            SELECT id FROM files WHERE id IN (SELECT file_id FROM v) AND state = 'ready'
            ORDER BY id {lock})
         INSERT INTO answers ({columns}, kept_at)
         SELECT v.*, {now} FROM v WHERE v.file_id IN (SELECT id FROM there)
         ORDER BY v.key
         ON CONFLICT (key) DO NOTHING
         RETURNING tenant, stored_bytes",
        new = rows.table("v", 2, tx.engine()),
        lock = tx.engine().for_share(),
        columns = rows.columns(),
        now = store.now_sql(1)
    );
    Ok(in_tx!(tx, |c| {
        let keep = sqlx::query_as(sql)
            .persistent(false)
            .bind(store.offset_ms());
        bind_rows!(keep, rows).fetch_all(c).await?
    }))
}

/// Adds what a transaction has changed to the totals.
async fn count(tx: &mut Tx, changes: Changes) -> Result<()> {
    if changes.0.is_empty() {
        return Ok(());
    }
    let rows = Rows::of(changes.0.iter().map(|(tenant, count)| {
        [
            ("tenant", Value::from(tenant)),
            ("answers", count.answers.into()),
            ("bytes", count.bytes.into()),
        ]
    }));
    let sql = sql!(
        "-- count_answers
         INSERT INTO answer_totals ({columns}) VALUES {rows}
         ON CONFLICT (tenant) DO UPDATE SET
            answers = answer_totals.answers + excluded.answers,
            bytes = answer_totals.bytes + excluded.bytes",
        columns = rows.columns(),
        rows = rows.parameters(1)
    );
    in_tx!(tx, |c| {
        let count = sqlx::query(sql).persistent(false);
        bind_rows!(count, rows).execute(c).await?;
    });
    Ok(())
}
