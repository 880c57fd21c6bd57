//! What there is to lease: one row for each live batch and model of which units wait or have
//! waited.

use std::collections::{HashMap, HashSet};

use sqlx::FromRow;

use crate::domain::batch::{BatchState, EndReason};
use crate::domain::file::MODELS_MAX;
use crate::store::batches::from_columns;
use crate::store::each::each;
use crate::store::engine::{Engine, Sql, Tx, bind_each, in_tx, list, on_pool, sql};
use crate::store::files::models_from;
use crate::store::{Error, Result, Store, Who};

/// Models of one batch that are looked at in one round.
const MODELS_A_LOOK: i64 = 16;
/// Batches of one tenant that one list has, and the rows that it has of them.
const LISTED_A_TENANT: i64 = 512;
/// The number of places on a circle on which the models of a batch stand. Each model has a place of
/// its own, because the number is a prime above the largest number of models.
const PLACES: i64 = 10_007;
const _: () = assert!(PLACES as usize > MODELS_MAX);
/// The distance from one model to the next: the golden section of the circle. So the models of
/// every batch stand at nearly equal distances, even if there are few models.
const MODEL_STEP: i64 = 6185;
/// How far each turn moves the place from which models are listed. The places of successive turns
/// stand at nearly equal distances, too. So each model is listed after about as many turns as the
/// number of models divided by [`MODELS_A_LOOK`].
const TURN_STEP: i64 = 4145;
/// Batches of which lines may wait, as the indexes `batches_by_priority` and `batches_in_progress`
/// have them.
const LIVE: &str = "b.status IN ('in_progress', 'finalizing', 'cancelling')";
/// Batches named in one statement.
const NAMED_BATCHES_MAX: usize = 500;

/// Units of one model in one batch that nobody holds.
#[derive(Clone, Debug)]
pub struct Backlog {
    pub batch_id: String,
    pub model_no: i64,
    /// The public name; empty where the lines name none.
    pub model: String,
    pub waiting: i64,
    pub tenant: String,
    /// The key that the batch was created with; `None` where none was needed.
    pub key_id: Option<String>,
    pub endpoint: String,
    pub input_file_id: String,
    /// What is to be done with all lines of the batch.
    pub task: Option<String>,
    /// As the batch says it, as the next.
    pub reuse: Option<String>,
    pub details: Option<i64>,
    pub priority: i64,
    pub created_at: i64,
    pub expires_at: Option<i64>,
    /// Lines of the batch, of all models.
    pub total: i64,
    pub state: BatchState,
}

impl Backlog {
    /// Why these lines are not to be sent any more. `None`: they are to be sent.
    #[must_use]
    pub fn end_reason(&self) -> Option<EndReason> {
        self.state.end_reason
    }
}

#[derive(FromRow)]
struct Row {
    batch_id: String,
    model_no: i64,
    model: String,
    waiting: i64,
    tenant: String,
    key_id: Option<String>,
    endpoint: String,
    input_file_id: String,
    task: Option<String>,
    reuse: Option<String>,
    details: Option<i64>,
    priority: i64,
    created_at: i64,
    expires_at: Option<i64>,
    total: i64,
    status: String,
    ending: Option<String>,
}

impl Row {
    fn key(&self) -> (String, i64) {
        (self.batch_id.clone(), self.model_no)
    }
}

impl Store {
    /// The backlog, to be ranked in memory: a row for each live batch and model, never a row for
    /// each unit. A batch that is paused, or whose time has not come, is not in it. No tenant makes
    /// the others wait by a long list. Of a batch with very many models each `turn` lists only
    /// some. Of a tenant with very many batches each turn lists those of the
    /// highest priority. Every other turn lists the oldest ones or the newest ones, too: the first
    /// may all wait for something that others do not need, and a batch may wait for its end only.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn backlog(&self, turn: i64) -> Result<Vec<Backlog>> {
        let mut rows = self.listed(Order::Priority, turn).await?;
        if turn % 2 == 1 && may_have_more(&rows) {
            let order = if turn % 4 == 1 {
                Order::Oldest
            } else {
                Order::Newest
            };
            let others = self.listed(order, turn).await?.into_iter();
            let listed: HashSet<(String, i64)> = rows.iter().map(Row::key).collect();
            rows.extend(others.filter(|row| !listed.contains(&row.key())));
        }
        rows.into_iter()
            .map(|row| {
                Ok(Backlog {
                    state: from_columns(&row.status, row.ending.as_deref())?,
                    batch_id: row.batch_id,
                    model_no: row.model_no,
                    model: row.model,
                    waiting: row.waiting,
                    tenant: row.tenant,
                    key_id: row.key_id,
                    endpoint: row.endpoint,
                    input_file_id: row.input_file_id,
                    task: row.task,
                    reuse: row.reuse,
                    details: row.details,
                    priority: row.priority,
                    created_at: row.created_at,
                    expires_at: row.expires_at,
                    total: row.total,
                })
            })
            .collect()
    }

    async fn listed(&self, order: Order, turn: i64) -> Result<Vec<Row>> {
        let sql = list_sql(self.engine(), order, &self.now_sql(4));
        Ok(on_pool!(self.reader(), |c| {
            sqlx::query_as(sql)
                .bind(MODEL_STEP)
                .bind(turn % PLACES * TURN_STEP % PLACES)
                .bind(PLACES)
                .bind(self.offset_ms())
                .fetch_all(c)
                .await?
        }))
    }
}

/// Which batches of a tenant a list has.
#[derive(Clone, Copy)]
enum Order {
    /// The highest priority first, and of that the oldest.
    Priority,
    Oldest,
    Newest,
}

impl Order {
    fn by(self) -> &'static str {
        match self {
            Order::Priority => "priority DESC, created_at, id",
            Order::Oldest => "created_at, id",
            Order::Newest => "created_at DESC, id DESC",
        }
    }
}

/// Steps from tenant to tenant, and from batch to batch along an index, so that a batch that is not
/// listed is not read. Numbers stand in the text, so that a planner knows how few rows are wanted.
fn list_sql(engine: Engine, order: Order, now: &Sql) -> Sql {
    let by = order.by();
    let batches = sql!(
        "WHERE b.tenant = tenants.tenant AND {LIVE} AND b.paused_at IS NULL
            AND (b.not_before IS NULL OR b.not_before <= {now} OR b.ending IS NOT NULL) AND EXISTS
            (SELECT 1 FROM backlog w WHERE w.batch_id = b.id AND w.waiting > 0)
         ORDER BY {by} LIMIT {LISTED_A_TENANT}",
        LIVE,
        now,
        by,
        LISTED_A_TENANT
    );
    let models = sql!(
        "WHERE w.batch_id = b.id AND w.waiting > 0
         ORDER BY (w.model_no * $1 + $2) % $3 LIMIT {MODELS_A_LOOK}",
        MODELS_A_LOOK
    );
    sql!(
        "-- backlog
         WITH RECURSIVE tenants(tenant) AS (
            SELECT MIN(b.tenant) FROM batches b WHERE {LIVE}
            UNION ALL
            SELECT (SELECT MIN(b.tenant) FROM batches b
                WHERE {LIVE} AND b.tenant > tenants.tenant)
            FROM tenants WHERE tenants.tenant IS NOT NULL),
         found AS (
            SELECT w.batch_id, w.model_no, w.model, w.waiting, b.id, b.tenant, b.key_id,
                b.endpoint, b.input_file_id, b.task, b.reuse, b.details, b.priority,
                b.created_at, b.expires_at,
                b.total, b.status, b.ending, ROW_NUMBER() OVER (PARTITION BY w.batch_id
                    ORDER BY (w.model_no * $1 + $2) % $3) AS place
            FROM tenants {batches} {models}),
         listed AS (
            SELECT found.*, ROW_NUMBER() OVER (PARTITION BY tenant ORDER BY place, {by}) AS of_tenant
            FROM found)
         SELECT batch_id, model_no, model, waiting, tenant, key_id, endpoint, input_file_id, task,
            reuse, details, priority, created_at, expires_at, total, status, ending
         FROM listed WHERE of_tenant <= {LISTED_A_TENANT}",
        LIVE,
        by,
        LISTED_A_TENANT,
        batches = Sql::first_of_each(engine, "batches", "b", &batches),
        models = Sql::first_of_each(engine, "backlog", "w", &models),
    )
}

/// Whether a tenant may have more rows than the list has.
fn may_have_more(rows: &[Row]) -> bool {
    let mut of_tenants: HashMap<&str, i64> = HashMap::new();
    for row in rows {
        *of_tenants.entry(&row.tenant).or_default() += 1;
    }
    of_tenants.values().any(|rows| *rows >= LISTED_A_TENANT)
}

impl Store {
    /// Whether any unit of these batches waits to be leased.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn any_waits(&self, batches: &[String]) -> Result<bool> {
        for batches in batches.chunks(NAMED_BATCHES_MAX) {
            let sql = sql!(
                "-- any_waits
                 SELECT CAST(1 AS BIGINT) FROM backlog
                 WHERE batch_id IN {batches} AND waiting > 0 LIMIT 1",
                batches = list(1, batches.len())
            );
            let waits: Option<(i64,)> = on_pool!(self.reader(), |c| {
                let look = sqlx::query_as(sql).persistent(false);
                bind_each!(look, batches).fetch_optional(c).await?
            });
            if waits.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Batches whose backlog is looked after in one round.
const REPAIRED_AT_ONCE: i64 = 100;

impl Store {
    /// Writes the backlog of live batches of which units wait and none is in the backlog: otherwise
    /// nobody would lease them. A process of an earlier version leaves such batches, because it
    /// does not know of units that were leased directly. Returns how many batches there were.
    ///
    /// # Errors
    /// When the database fails; the next round goes on. A batch for which that fails does not keep
    /// the others from it.
    pub async fn repair_backlog(&self) -> Result<usize> {
        let missing: Vec<(String, String)> = on_pool!(self.reader(), |c| {
            sqlx::query_as(
                // From batch to batch along the index: as many steps as there are batches that
                // wait, not units.
                "-- missing_backlog
                 WITH RECURSIVE waits(batch_id) AS (
                    SELECT MIN(batch_id) FROM units WHERE state = 'waiting'
                    UNION ALL
                    SELECT (SELECT MIN(batch_id) FROM units
                        WHERE state = 'waiting' AND batch_id > waits.batch_id)
                    FROM waits WHERE waits.batch_id IS NOT NULL)
                 SELECT b.id, b.input_file_id FROM waits JOIN batches b ON b.id = waits.batch_id
                 WHERE b.status IN ('in_progress', 'finalizing', 'cancelling') AND NOT EXISTS
                    (SELECT 1 FROM backlog WHERE batch_id = b.id AND waiting > 0)
                 LIMIT $1",
            )
            .bind(REPAIRED_AT_ONCE)
            .fetch_all(c)
            .await?
        });
        let repaired = each(
            "repair_backlog",
            &missing,
            |(batch_id, _)| batch_id,
            |(batch_id, file_id)| self.repair_backlog_of(batch_id, file_id),
        )
        .await?;
        if repaired > 0 {
            self.wake_all(Who::Supplies);
        }
        Ok(repaired)
    }

    /// Writes the backlog of one batch, whose waiting units are locked before.
    async fn repair_backlog_of(&self, batch_id: &str, file_id: &str) -> Result<()> {
        let count = sql!(
            "-- count_waiting
             WITH waits AS MATERIALIZED (
                SELECT model_no FROM units WHERE batch_id = $1 AND state = 'waiting'
                ORDER BY chunk_no, model_no {lock})
             SELECT model_no, COUNT(*) FROM waits GROUP BY model_no ORDER BY model_no",
            lock = self.engine().for_update()
        );
        let mut tx = self.begin().await?;
        let waiting: Vec<(i64, i64)> = in_tx!(&mut tx, |c| {
            sqlx::query_as(count).bind(batch_id).fetch_all(c).await?
        });
        let listed: Option<(Option<String>,)> = in_tx!(&mut tx, |c| {
            sqlx::query_as("-- models_of_file\nSELECT models FROM files WHERE id = $1")
                .bind(file_id)
                .fetch_optional(c)
                .await?
        });
        let listed = listed.and_then(|(models,)| models);
        let models = listed.as_deref().map(models_from).transpose();
        let models = models
            .map_err(|error| Error::corrupt(format!("models of {file_id}"), error))?
            .unwrap_or_default();
        for (model_no, units) in waiting {
            let model = usize::try_from(model_no).ok();
            let model = model.and_then(|number| models.get(number));
            in_tx!(&mut tx, |c| {
                sqlx::query(
                    "-- repair_backlog
                     INSERT INTO backlog (batch_id, model_no, model, waiting)
                     VALUES ($1, $2, $3, $4)
                     ON CONFLICT (batch_id, model_no)
                        DO UPDATE SET waiting = excluded.waiting WHERE backlog.waiting <= 0",
                )
                .bind(batch_id)
                .bind(model_no)
                .bind(model.map_or("", |model| model.name.as_str()))
                .bind(units)
                .execute(c)
                .await?;
            });
        }
        tx.commit().await
    }
}

/// Adds to the number of units that wait, or subtracts from it. The caller has changed the units
/// themselves before, in the same transaction: all transactions lock units before backlog rows.
///
/// A unit that was leased directly ([`DirectLease`](crate::store::DirectLease)) has never waited,
/// so there may be no row yet. All lines of its batch name the model of the batch.
pub(in crate::store) async fn add_waiting(
    tx: &mut Tx,
    batch_id: &str,
    model_no: i64,
    units: i64,
) -> Result<()> {
    in_tx!(tx, |c| {
        sqlx::query(
            "-- add_waiting
             INSERT INTO backlog (batch_id, model_no, model, waiting)
             SELECT id, CAST($2 AS BIGINT), COALESCE(model, ''), CAST($3 AS BIGINT)
             FROM batches WHERE id = $1
             ON CONFLICT (batch_id, model_no)
                DO UPDATE SET waiting = backlog.waiting + excluded.waiting",
        )
        .bind(batch_id)
        .bind(model_no)
        .bind(units)
        .execute(c)
        .await?;
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::clock::Clock;

    #[tokio::test]
    async fn batches_that_are_not_listed_are_not_read() {
        let directory = tempfile::tempdir().expect("makes a directory");
        let url = format!("sqlite://{}", directory.path().join("a.db").display());
        let store = Store::open(&url, 1, Clock::default()).await.expect("opens");
        for (order, index) in [
            (Order::Priority, "batches_by_priority"),
            (Order::Oldest, "batches_in_progress"),
            (Order::Newest, "batches_in_progress"),
        ] {
            let sql = list_sql(Engine::Sqlite, order, &store.now_sql(4));
            let sql = sql!("EXPLAIN QUERY PLAN {sql}", sql);
            let plan = async || {
                let rows: Vec<(i64, i64, i64, String)> =
                    on_pool!(store.reader(), |c| sqlx::query_as(sql).fetch_all(c).await?);
                Result::Ok(rows)
            };
            let plan = plan().await.expect("is explained");
            let steps: Vec<&str> = plan.iter().map(|(.., step)| step.as_str()).collect();
            let by_index = format!("SEARCH b USING INDEX {index} (tenant=?)");
            let at = steps.iter().position(|step| *step == by_index);
            let at = at.unwrap_or_else(|| panic!("{steps:#?}"));
            // What follows a table's step and says so sorts that table's rows.
            assert!(!steps[at + 1].contains("TEMP B-TREE"), "{steps:#?}");
            for table in ["SCAN b", "SCAN w"] {
                assert!(!steps.contains(&table), "{steps:#?}");
            }
        }
    }
}
