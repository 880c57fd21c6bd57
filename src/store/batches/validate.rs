//! Batches that wait to be validated: found by tenants in turn, and let run or refused many at
//! once.
//!
//! A batch whose input has many units gets these in ranges, each a transaction of its own, while
//! it stays `validating`; what units there are tells how far that is, so any process can go on.
//! None of them can be leased before the batch's last transaction, which writes its backlog.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use sqlx::{AssertSqlSafe, FromRow};

use super::finalize::Step;
use crate::domain::batch::{Counts, Event, Stage, Status};
use crate::domain::file::Purpose;
use crate::domain::findings::{self, Finding, Findings};
use crate::intake::ModelReport;
use crate::store::engine::{Tx, on, typed_values, values, within};
use crate::store::{Error, Result, Store, Who};

/// Batches that are found at once, and settled in one transaction at most.
const ROUND: i64 = 128;
/// Units made in one transaction.
const UNITS_AT_ONCE: i64 = 5_000;
/// No chunk but the last is smaller than this in both, blank lines counted: so a file's chunks can
/// be estimated.
const CHUNK_BYTES: i64 = 64 << 10;
const CHUNK_LINES: i64 = 512;

/// A batch that waits to be validated, with what its input's upload found out.
#[derive(Clone, Debug)]
pub struct Unvalidated {
    pub batch_id: String,
    pub tenant: String,
    pub endpoint: String,
    pub input_file_id: String,
    pub input: Option<Input>,
    /// Where there is no input: the purpose of the tenant's file of that id, if there is one.
    pub other_purpose: Option<String>,
}

#[derive(Clone, Debug)]
pub struct Input {
    pub requests: i64,
    pub bytes: i64,
    pub findings: Findings,
    /// The file's batches share them: there may be many of both.
    pub models: Arc<[ModelReport]>,
}

impl Unvalidated {
    /// How many units the batch has at most.
    #[must_use]
    pub fn units_max(&self) -> i64 {
        let Some(input) = &self.input else { return 0 };
        let chunks = input.bytes / CHUNK_BYTES + input.requests / CHUNK_LINES + 1;
        let models = i64::try_from(input.models.len()).unwrap_or(i64::MAX);
        input.requests.min(chunks.saturating_mul(models))
    }

    /// Whether one transaction can make all its units.
    #[must_use]
    pub fn is_small(&self) -> bool {
        self.units_max() <= UNITS_AT_ONCE
    }
}

/// What validation found of a batch.
#[derive(Clone, Debug)]
pub enum Verdict {
    /// It can run. `model` is the one that all its lines name.
    Accepted { model: Option<String> },
    /// It cannot: a JSON list of findings.
    Rejected { errors: String },
}

/// How far a batch is that gets its units in ranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begun {
    /// It has all its units, and runs.
    Runs,
    /// It has some more than before.
    Grows,
    /// It is not validating any more, or another process is at it.
    Elsewhere,
}

/// What became of a group of batches.
#[derive(Clone, Debug)]
pub struct Settled {
    /// How many were let run or refused.
    pub settled: usize,
    /// Those that run.
    pub batches: Vec<String>,
}

#[derive(FromRow)]
struct WaitingRow {
    id: String,
    tenant: String,
    endpoint: String,
    input_file_id: String,
    purpose: Option<String>,
    requests: Option<i64>,
    bytes: Option<i64>,
    findings: Option<String>,
}

impl Store {
    /// Batches that wait to be validated, by tenants in turn: the oldest of each, then the second
    /// of each, and so on.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn unvalidated(&self) -> Result<Vec<Unvalidated>> {
        // A file that was there when the batch was created counts, even if it was deleted or has
        // expired since.
        let rows: Vec<WaitingRow> = on!(self.reader(), c => {
            sqlx::query_as(
                "-- unvalidated
                 SELECT w.id, w.tenant, w.endpoint, w.input_file_id, f.purpose, f.requests,
                    f.bytes, f.findings
                 FROM (SELECT * FROM
                    (SELECT id, tenant, endpoint, input_file_id, created_at,
                        ROW_NUMBER() OVER (PARTITION BY tenant ORDER BY created_at, id) AS turn
                     FROM batches
                     WHERE status IN ('validating', 'in_progress', 'finalizing', 'cancelling')
                       AND status = 'validating') AS waiting
                    ORDER BY turn, created_at, id LIMIT $1) w
                 LEFT JOIN files f ON f.id = w.input_file_id AND f.tenant = w.tenant
                   AND (f.state = 'ready' OR (f.state = 'deleted' AND f.touched_at >= w.created_at))
                   AND (f.expires_at IS NULL OR f.expires_at > w.created_at)
                 ORDER BY w.turn, w.created_at, w.id",
            )
            .bind(ROUND)
            .fetch_all(c)
            .await?
        });
        let files = rows.iter().filter(|row| row.is_for_batches());
        let models = self
            .models_of(files.map(|row| row.input_file_id.as_str()).collect())
            .await?;
        let mut found = Vec::with_capacity(rows.len());
        for row in rows {
            let id = row.id.clone();
            match row.read(&models) {
                Ok(batch) => found.push(batch),
                // The others need not wait for one that is damaged.
                Err(error) => tracing::error!(batch.id = id, %error, "cannot be validated"),
            }
        }
        Ok(found)
    }

    /// What requests of which models files have. A file of which that cannot be read has the
    /// error.
    async fn models_of(
        &self,
        files: BTreeSet<&str>,
    ) -> Result<HashMap<String, Result<Arc<[ModelReport]>>>> {
        let mut models: HashMap<String, Result<Vec<ModelReport>>> = HashMap::new();
        if files.is_empty() {
            return Ok(HashMap::new());
        }
        let sql = format!(
            "-- input_models
             SELECT file_id, name, requests, first_lines FROM file_models WHERE file_id IN {}
             ORDER BY file_id, model_no",
            values(1, 1, files.len())
        );
        let rows: Vec<(String, String, i64, String)> = on!(self.reader(), c => {
            let mut query = sqlx::query_as(AssertSqlSafe(sql)).persistent(false);
            for file in &files {
                query = query.bind(*file);
            }
            query.fetch_all(c).await?
        });
        for (file_id, name, requests, lines) in rows {
            let model = match serde_json::from_str(&lines) {
                Ok(first_lines) => Ok(ModelReport {
                    name,
                    requests: requests as u64,
                    first_lines,
                }),
                Err(error) => Err(damaged(&file_id, error)),
            };
            let of_file = models.entry(file_id).or_insert_with(|| Ok(Vec::new()));
            match (of_file.as_mut(), model) {
                (Ok(models), Ok(model)) => models.push(model),
                (_, Err(error)) => *of_file = Err(error),
                (Err(_), Ok(_)) => {}
            }
        }
        let of_files = models.into_iter();
        Ok(of_files
            .map(|(file_id, models)| (file_id, models.map(Arc::from)))
            .collect())
    }

    /// Lets batches run or refuses them, all in one transaction: their units, their backlog and
    /// their step. Each has to be [small](Unvalidated::is_small). Those that another process is at
    /// are left to it, and those that are not validating any more are left alone.
    ///
    /// # Errors
    /// When the database fails: then none is settled.
    pub async fn settle_batches(&self, judged: &[(&Unvalidated, &Verdict)]) -> Result<Settled> {
        let mut tx = self.begin().await?;
        let ids: Vec<&str> = judged
            .iter()
            .map(|(batch, _)| batch.batch_id.as_str())
            .collect();
        let ours = lock_validating(&mut tx, self, &ids).await?;
        let (mut accepted, mut rejected) = (Vec::new(), Vec::new());
        for (batch, verdict) in judged {
            if !ours.contains(&batch.batch_id) {
                continue;
            }
            match verdict {
                Verdict::Accepted { model } => accepted.push((*batch, model.as_deref())),
                Verdict::Rejected { errors } => rejected.push((*batch, errors.as_str())),
            }
        }
        if !accepted.is_empty() {
            self.make_units(&mut tx, &accepted).await?;
            self.make_backlog(&mut tx, &accepted).await?;
            self.accept(&mut tx, &accepted).await?;
        }
        if !rejected.is_empty() {
            self.reject(&mut tx, &rejected).await?;
        }
        tx.commit().await?;
        for (batch, _) in &accepted {
            tell(batch, Event::Accepted, None);
        }
        for (batch, errors) in &rejected {
            let errors: Vec<Finding> = serde_json::from_str(errors).unwrap_or_default();
            tell(batch, Event::Rejected, Some(&findings::in_short(&errors)));
        }
        if !accepted.is_empty() {
            self.wake(Who::Supplies);
        }
        Ok(Settled {
            settled: accepted.len() + rejected.len(),
            batches: accepted
                .iter()
                .map(|(batch, _)| batch.batch_id.clone())
                .collect(),
        })
    }

    /// Brings a batch with many units on by a range of them; the last one lets it run.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn begin_batch(&self, batch: &Unvalidated, model: Option<&str>) -> Result<Begun> {
        let mut tx = self.begin().await?;
        if lock_validating(&mut tx, self, &[&batch.batch_id])
            .await?
            .is_empty()
        {
            return Ok(Begun::Elsewhere);
        }
        let (made, next, last) = progress(&mut tx, batch).await?;
        if let Some(next) = next {
            let end = next.saturating_add(batch.chunks_at_once());
            self.make_range(&mut tx, batch, next..end).await?;
            if made.is_some() || last >= Some(end) {
                tx.commit().await?;
                return Ok(Begun::Grows);
            }
        }
        let whole = [(batch, model)];
        if made.is_none() {
            self.make_backlog(&mut tx, &whole).await?;
        } else {
            // No unit is missing. They are counted outside of the transaction: the input never
            // changes, and others want to write.
            tx.commit().await?;
            let waiting = self.units_by_model(&batch.input_file_id).await?;
            tx = self.begin().await?;
            if lock_validating(&mut tx, self, &[&batch.batch_id])
                .await?
                .is_empty()
            {
                return Ok(Begun::Elsewhere);
            }
            insert_backlog(&mut tx, &batch.batch_id, &waiting).await?;
        }
        self.accept(&mut tx, &whole).await?;
        tx.commit().await?;
        tell(batch, Event::Accepted, None);
        self.wake(Who::Supplies);
        Ok(Begun::Runs)
    }

    /// Lets a batch run, however many units it has. False if it is not validating any more.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn accept_batch(&self, batch: &Unvalidated, model: Option<&str>) -> Result<bool> {
        loop {
            match self.begin_batch(batch, model).await? {
                Begun::Runs => return Ok(true),
                Begun::Elsewhere => return Ok(false),
                Begun::Grows => {}
            }
        }
    }

    /// Makes all units of batches.
    async fn make_units(
        &self,
        tx: &mut Tx,
        batches: &[(&Unvalidated, Option<&str>)],
    ) -> Result<()> {
        let sql = format!(
            "-- accept_batch_units
             WITH v(batch_id, file_id) AS (VALUES {})
             INSERT INTO units ({UNIT})
             SELECT v.batch_id, c.chunk_no, c.model_no, 'waiting', 0, 0, 0, c.requests,
                c.chunk_bytes, CAST($1 AS {}), 0, 0
             FROM v JOIN chunk_models c ON c.file_id = v.file_id",
            typed_values(2, batches.len(), &["TEXT"; 2]),
            self.engine().bytes_type()
        );
        within!(tx, c => {
            let mut query = sqlx::query(AssertSqlSafe(sql)).persistent(false).bind(Vec::<u8>::new());
            for (batch, _) in batches {
                query = query.bind(&batch.batch_id).bind(&batch.input_file_id);
            }
            query.execute(c).await?;
        });
        Ok(())
    }

    /// Makes the units of some chunks of a batch. The range has two ends, so that it costs the same
    /// wherever it stands, even where Postgres knows nothing of the table yet.
    async fn make_range(&self, tx: &mut Tx, batch: &Unvalidated, chunks: Range<i64>) -> Result<()> {
        let sql = format!(
            "-- accept_batch_range
             INSERT INTO units ({UNIT})
             SELECT CAST($1 AS TEXT), chunk_no, model_no, 'waiting', 0, 0, 0, requests,
                chunk_bytes, CAST($5 AS {}), 0, 0
             FROM chunk_models WHERE file_id = $2 AND chunk_no >= $3 AND chunk_no < $4",
            self.engine().bytes_type()
        );
        within!(tx, c => {
            sqlx::query(AssertSqlSafe(sql))
                .bind(&batch.batch_id)
                .bind(&batch.input_file_id)
                .bind(chunks.start)
                .bind(chunks.end)
                .bind(Vec::<u8>::new())
                .execute(c)
                .await?;
        });
        Ok(())
    }

    async fn make_backlog(
        &self,
        tx: &mut Tx,
        batches: &[(&Unvalidated, Option<&str>)],
    ) -> Result<()> {
        let sql = format!(
            "-- accept_batch_backlog
             WITH v(batch_id, file_id) AS (VALUES {})
             INSERT INTO backlog (batch_id, model_no, model, waiting)
             SELECT v.batch_id, m.model_no, m.name, COUNT(*)
             FROM v JOIN chunk_models c ON c.file_id = v.file_id
             JOIN file_models m ON m.file_id = c.file_id AND m.model_no = c.model_no
             GROUP BY v.batch_id, m.model_no, m.name",
            typed_values(1, batches.len(), &["TEXT"; 2]),
        );
        within!(tx, c => {
            let mut query = sqlx::query(AssertSqlSafe(sql)).persistent(false);
            for (batch, _) in batches {
                query = query.bind(&batch.batch_id).bind(&batch.input_file_id);
            }
            query.execute(c).await?;
        });
        Ok(())
    }

    /// How many units of each model a batch of a file has, by number, with the model's name.
    async fn units_by_model(&self, file_id: &str) -> Result<Vec<(i64, String, i64)>> {
        Ok(on!(self.reader(), c => {
            sqlx::query_as(
                "-- units_by_model
                 SELECT m.model_no, m.name, c.units
                 FROM (SELECT model_no, COUNT(*) AS units FROM chunk_models WHERE file_id = $1
                    GROUP BY model_no) c
                 JOIN file_models m ON m.file_id = $1 AND m.model_no = c.model_no",
            )
            .bind(file_id)
            .fetch_all(c)
            .await?
        }))
    }

    async fn accept(&self, tx: &mut Tx, batches: &[(&Unvalidated, Option<&str>)]) -> Result<()> {
        let status = after(Event::Accepted).as_str();
        let sql = format!(
            "-- accept_batches
             WITH v(id, total, model) AS (VALUES {})
             UPDATE batches SET status = '{status}', {status}_at = $1, total = v.total,
                model = v.model
             FROM v WHERE batches.id = v.id AND batches.status = 'validating'",
            typed_values(2, batches.len(), &["TEXT", "BIGINT", "TEXT"]),
        );
        let now = self.now_ms();
        let changed = within!(tx, c => {
            let mut query = sqlx::query(AssertSqlSafe(sql)).persistent(false).bind(now);
            for (batch, model) in batches {
                query = query.bind(&batch.batch_id).bind(batch.total()).bind(*model);
            }
            query.execute(c).await?.rows_affected()
        });
        all_of(changed, batches.len())
    }

    async fn reject(&self, tx: &mut Tx, batches: &[(&Unvalidated, &str)]) -> Result<()> {
        let status = after(Event::Rejected).as_str();
        let sql = format!(
            "-- reject_batches
             WITH v(id, errors) AS (VALUES {})
             UPDATE batches SET status = '{status}', {status}_at = $1, errors = v.errors
             FROM v WHERE batches.id = v.id AND batches.status = 'validating'",
            typed_values(2, batches.len(), &["TEXT"; 2]),
        );
        let now = self.now_ms();
        let changed = within!(tx, c => {
            let mut query = sqlx::query(AssertSqlSafe(sql)).persistent(false).bind(now);
            for (batch, errors) in batches {
                query = query.bind(&batch.batch_id).bind(*errors);
            }
            query.execute(c).await?.rows_affected()
        });
        all_of(changed, batches.len())
    }
}

/// The columns of a unit that has only been made.
const UNIT: &str = "batch_id, chunk_no, model_no, state, epoch, flush_no, takeovers, requests,
                chunk_bytes, done, output_bytes, error_bytes";

impl WaitingRow {
    /// Whether the tenant has such a file, and uploaded it for batches.
    fn is_for_batches(&self) -> bool {
        self.purpose.as_deref() == Some(Purpose::Batch.as_str())
    }

    fn read(self, models: &HashMap<String, Result<Arc<[ModelReport]>>>) -> Result<Unvalidated> {
        let is_for_batches = self.is_for_batches();
        let input = match (self.requests, self.bytes) {
            (Some(requests), Some(bytes)) if is_for_batches => {
                let findings = match &self.findings {
                    Some(findings) => serde_json::from_str(findings)
                        .map_err(|error| damaged(&self.input_file_id, error))?,
                    None => Findings::default(),
                };
                let models = match models.get(&self.input_file_id) {
                    Some(Ok(models)) => Arc::clone(models),
                    // The error is told once; the file's other batches fail as well.
                    Some(Err(_)) => {
                        let file = format!("report on {}", self.input_file_id);
                        return Err(Error::corrupt(file, "its models cannot be read"));
                    }
                    None => Arc::default(),
                };
                Some(Input {
                    requests,
                    bytes,
                    findings,
                    models,
                })
            }
            _ => None,
        };
        Ok(Unvalidated {
            batch_id: self.id,
            tenant: self.tenant,
            endpoint: self.endpoint,
            input_file_id: self.input_file_id,
            input,
            other_purpose: self.purpose.filter(|_| !is_for_batches),
        })
    }
}

/// The last chunk of which a batch has its units, the first one of which it has not, and the last
/// one of its input.
async fn progress(
    tx: &mut Tx,
    batch: &Unvalidated,
) -> Result<(Option<i64>, Option<i64>, Option<i64>)> {
    Ok(within!(tx, c => {
        sqlx::query_as(
            "-- begun_units
             SELECT (SELECT MAX(chunk_no) FROM units WHERE batch_id = $1),
                (SELECT MIN(chunk_no) FROM chunk_models WHERE file_id = $2 AND chunk_no >
                    COALESCE((SELECT MAX(chunk_no) FROM units WHERE batch_id = $1), -1)),
                (SELECT MAX(chunk_no) FROM chunk_models WHERE file_id = $2)",
        )
        .bind(&batch.batch_id)
        .bind(&batch.input_file_id)
        .fetch_one(c)
        .await?
    }))
}

impl Unvalidated {
    /// Chunks whose units are made in one transaction.
    fn chunks_at_once(&self) -> i64 {
        let models = self.input.as_ref().map_or(1, |input| input.models.len());
        let models = i64::try_from(models).unwrap_or(i64::MAX);
        UNITS_AT_ONCE / models.clamp(1, CHUNK_LINES)
    }

    fn total(&self) -> i64 {
        self.input.as_ref().map_or(0, |input| input.requests)
    }
}

fn damaged(file_id: &str, error: serde_json::Error) -> Error {
    Error::corrupt(format!("report on {file_id}"), error)
}

/// Takes those of these batches that are validating and that no other process is at.
async fn lock_validating(tx: &mut Tx, store: &Store, ids: &[&str]) -> Result<HashSet<String>> {
    let sql = format!(
        "-- lock_validating
         SELECT id FROM batches WHERE id IN {} AND status = 'validating' ORDER BY id {}",
        values(1, 1, ids.len()),
        store.engine().skip_locked()
    );
    let rows: Vec<(String,)> = within!(tx, c => {
        let mut query = sqlx::query_as(AssertSqlSafe(sql)).persistent(false);
        for id in ids {
            query = query.bind(*id);
        }
        query.fetch_all(c).await?
    });
    Ok(rows.into_iter().map(|(id,)| id).collect())
}

async fn insert_backlog(tx: &mut Tx, batch_id: &str, waiting: &[(i64, String, i64)]) -> Result<()> {
    // A file may name a great many models.
    for waiting in waiting.chunks(1_000) {
        let sql = format!(
            "-- insert_backlog\nINSERT INTO backlog (batch_id, model_no, model, waiting) VALUES {}",
            values(1, waiting.len(), 4)
        );
        within!(&mut *tx, c => {
            let mut query = sqlx::query(AssertSqlSafe(sql)).persistent(false);
            for (model_no, model, units) in waiting {
                query = query.bind(batch_id).bind(model_no).bind(model).bind(units);
            }
            query.execute(c).await?;
        });
    }
    Ok(())
}

/// Where a batch that is validating stands after an event.
fn after(event: Event) -> Status {
    let next = Stage::CREATED.after(event);
    next.map_or(Stage::CREATED.status, |stage| stage.status)
}

fn all_of(changed: u64, batches: usize) -> Result<()> {
    if changed == batches as u64 {
        Ok(())
    } else {
        Err(Error::Stale("the batch"))
    }
}

fn tell(batch: &Unvalidated, event: Event, why: Option<&str>) {
    let to = after(event);
    let counts = (to == Status::InProgress).then(|| Counts {
        total: batch.total(),
        ..Counts::default()
    });
    let from = Stage::CREATED.status;
    Step { from, to }.tell_why(&batch.batch_id, counts.as_ref(), why);
}
