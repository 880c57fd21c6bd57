//! Batches that wait to be validated, found by tenants in turn, with what their inputs' uploads
//! found out.

use std::collections::HashMap;
use std::sync::Arc;

use sqlx::FromRow;

use crate::domain::batch::{BatchState, Counts, Status};
use crate::domain::file::{CHUNK_LINES_MAX, CHUNK_REQUESTS_MAX, Purpose};
use crate::domain::findings::Findings;
use crate::domain::tenant::{Allowance, Enqueued};
use crate::intake::ModelReport;
use crate::store::engine::{on_pool, sql};
use crate::store::files::models_from;
use crate::store::{Backlog, Error, Result, Store};

/// Batches that are found at once, and so settled in one transaction at most.
const ROUND: i64 = 128;
/// Every chunk but the last has at least so many bytes or so many requests, so the number of a
/// file's chunks can be estimated. The chunk with the fewest bytes is one of blank lines: a byte a
/// line.
const CHUNK_BYTES: i64 = CHUNK_LINES_MAX as i64;
const CHUNK_REQUESTS: i64 = CHUNK_REQUESTS_MAX as i64;
/// By which the tokens of an input are estimated.
const BYTES_PER_TOKEN: i64 = 4;
/// Units made in one transaction.
const UNITS_AT_ONCE: i64 = 5_000;

/// A batch that waits to be validated, with what its input's upload found out.
#[derive(Clone, Debug)]
pub struct Unvalidated {
    pub batch_id: String,
    pub tenant: String,
    /// The key that it was created with; `None` where none was needed.
    pub key_id: Option<String>,
    pub endpoint: String,
    pub input_file_id: String,
    /// What is to be done with all its lines.
    pub task: Option<String>,
    /// As the batch says it, as the next.
    pub reuse: Option<String>,
    pub details: Option<i64>,
    pub priority: i64,
    /// In milliseconds, as the next.
    pub created_at: i64,
    pub expires_at: Option<i64>,
    /// No line of it is to be sent at present: it is paused, or its time has not come.
    pub is_held: bool,
    pub input: Option<Input>,
    /// Where there is no input: the purpose of the tenant's file of that id, if there is one.
    pub other_purpose: Option<String>,
    /// What its tenant is allowed, where that bounds what the tenant's batches may have together.
    /// For whoever lets the batch run.
    pub allowance: Option<Arc<Allowance>>,
}

#[derive(Clone, Debug)]
pub struct Input {
    pub requests: i64,
    pub bytes: i64,
    /// Shared by the file's batches, as the next: there may be many batches, and much to say of a
    /// file.
    pub findings: Arc<Findings>,
    pub models: Arc<[ModelReport]>,
    /// Whether the file is one chunk. Then the batch has a unit for each model.
    pub is_one_chunk: bool,
}

impl Unvalidated {
    /// How many batches one look finds at most.
    pub const AT_ONCE: usize = ROUND as usize;

    /// How many units the batch has at most.
    #[must_use]
    pub fn units_max(&self) -> i64 {
        let Some(input) = &self.input else { return 0 };
        if input.is_one_chunk {
            return i64::try_from(input.models.len()).unwrap_or(i64::MAX);
        }
        let chunks = input.bytes / CHUNK_BYTES + input.requests / CHUNK_REQUESTS + 1;
        let models = i64::try_from(input.models.len()).unwrap_or(i64::MAX);
        input.requests.min(chunks.saturating_mul(models))
    }

    /// Whether one transaction can make all its units.
    #[must_use]
    pub fn is_small(&self) -> bool {
        self.units_max() <= UNITS_AT_ONCE
    }

    /// Chunks whose units are made in one transaction.
    pub(super) fn chunks_at_once(&self) -> i64 {
        let models = self.input.as_ref().map_or(1, |input| input.models.len());
        let models = i64::try_from(models).unwrap_or(i64::MAX);
        UNITS_AT_ONCE / models.clamp(1, CHUNK_REQUESTS)
    }

    /// The name of the one model that all lines name, if the batch has one unit.
    #[must_use]
    pub fn only_model(&self) -> Option<&str> {
        match &*self.only_chunk()?.models {
            [model] => Some(&model.name),
            _ => None,
        }
    }

    /// The row that the backlog would have for the batch's first model, once no unit waits.
    #[must_use]
    pub fn as_backlog(&self) -> Backlog {
        Backlog {
            batch_id: self.batch_id.clone(),
            model_no: 0,
            model: self.model_name(0).to_owned(),
            waiting: 0,
            tenant: self.tenant.clone(),
            key_id: self.key_id.clone(),
            endpoint: self.endpoint.clone(),
            input_file_id: self.input_file_id.clone(),
            task: self.task.clone(),
            reuse: self.reuse.clone(),
            details: self.details,
            priority: self.priority,
            created_at: self.created_at,
            expires_at: self.expires_at,
            total: self.total(),
            state: BatchState {
                status: Status::InProgress,
                end_reason: None,
            },
        }
    }

    /// The chunk that the whole input is, if the input is one chunk.
    pub(super) fn only_chunk(&self) -> Option<&Input> {
        self.input.as_ref().filter(|input| input.is_one_chunk)
    }

    /// The name of a model by its number; empty where lines name none.
    pub(super) fn model_name(&self, model_no: i64) -> &str {
        let number = usize::try_from(model_no).unwrap_or(usize::MAX);
        let models = self.input.as_ref().map(|input| &input.models);
        let model = models.and_then(|models| models.get(number));
        model.map_or("", |model| &model.name)
    }

    /// The batch's counts before any line has run.
    pub(super) fn fresh_counts(&self) -> Counts {
        Counts {
            total: self.total(),
            ..Counts::default()
        }
    }

    /// What the batch adds to what its tenant has enqueued.
    #[must_use]
    pub(super) fn enqueued(&self) -> Enqueued {
        let count = |number: i64| u64::try_from(number).unwrap_or(0);
        Enqueued {
            requests: count(self.total()),
            tokens: count(self.estimated_tokens()),
        }
    }

    /// About how many tokens of input the batch has: a token for each four bytes.
    pub(super) fn estimated_tokens(&self) -> i64 {
        let bytes = self.input.as_ref().map_or(0, |input| input.bytes);
        bytes.saturating_add(BYTES_PER_TOKEN - 1) / BYTES_PER_TOKEN
    }

    /// How many lines the batch has.
    #[must_use]
    pub fn total(&self) -> i64 {
        self.input.as_ref().map_or(0, |input| input.requests)
    }
}

#[derive(FromRow)]
struct WaitingRow {
    id: String,
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
    is_held: i64,
    purpose: Option<String>,
    requests: Option<i64>,
    bytes: Option<i64>,
    is_one_chunk: Option<i64>,
    /// Only with the first batch of each file, as the next: there may be many batches, and much
    /// to say of a file.
    findings: Option<String>,
    models: Option<String>,
}

/// What an upload found out, for all batches of its file.
#[derive(Clone, Debug, Default)]
struct Report {
    findings: Arc<Findings>,
    models: Arc<[ModelReport]>,
}

/// The reports on files by the files' ids. An error for a file whose report cannot be read.
type Reports = HashMap<String, serde_json::Result<Report>>;

impl Store {
    /// Batches that wait to be validated, by tenants in turn: the oldest of each, then the second
    /// of each, and so on.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn unvalidated(&self) -> Result<Vec<Unvalidated>> {
        // A file that was there when the batch was created counts, even if it was deleted or has
        // expired since.
        // Findings and models are looked up once for each file, behind the sorting: SQLite would keep
        // a copy of them for each batch.
        let sql = sql!(
            "-- unvalidated
                 SELECT l.*,
                    CASE WHEN l.of_file = 1 THEN
                        (SELECT m.findings FROM files m WHERE m.id = l.file_id) END AS findings,
                    CASE WHEN l.of_file = 1 THEN
                        (SELECT m.models FROM files m WHERE m.id = l.file_id) END AS models
                 FROM (SELECT w.id, w.tenant, w.key_id, w.endpoint, w.input_file_id, w.task,
                    w.reuse, w.details,
                    w.priority, w.created_at, w.expires_at, w.is_held, w.turn, f.id AS file_id,
                    f.purpose, f.requests, f.bytes, f.is_one_chunk, ROW_NUMBER() OVER
                        (PARTITION BY f.id ORDER BY w.turn, w.created_at, w.id) AS of_file
                 FROM (SELECT * FROM
                    (SELECT id, tenant, key_id, endpoint, input_file_id, task, reuse, details,
                        priority,
                        created_at, expires_at,
                        CAST(CASE WHEN paused_at IS NOT NULL OR not_before > {now}
                            THEN 1 ELSE 0 END AS BIGINT) AS is_held,
                        ROW_NUMBER() OVER (PARTITION BY tenant ORDER BY created_at, id) AS turn
                     FROM batches
                     WHERE status IN ('validating', 'in_progress', 'finalizing', 'cancelling')
                       AND status = 'validating') AS waiting
                    ORDER BY turn, created_at, id LIMIT $1) w
                 LEFT JOIN files f ON f.id = w.input_file_id AND f.tenant = w.tenant
                   AND (f.state = 'ready' OR (f.state = 'deleted' AND f.touched_at >= w.created_at))
                   AND (f.expires_at IS NULL OR f.expires_at > w.created_at)) l
                 ORDER BY l.turn, l.created_at, l.id",
            now = self.now_sql(2)
        );
        let mut rows: Vec<WaitingRow> = on_pool!(self.reader(), |c| {
            sqlx::query_as(sql)
                .bind(ROUND)
                .bind(self.offset_ms())
                .fetch_all(c)
                .await?
        });
        let reports = reports_of(&mut rows);
        let mut found = Vec::with_capacity(rows.len());
        for row in rows {
            let id = row.id.clone();
            match row.read(&reports) {
                Ok(batch) => found.push(batch),
                // A batch whose input is damaged does not delay the others.
                Err(error) => tracing::error!(batch.id = id, %error, "cannot be validated"),
            }
        }
        Ok(found)
    }
}

/// The reports on the files of waiting batches.
fn reports_of(rows: &mut [WaitingRow]) -> Reports {
    let reports = rows.iter_mut().filter_map(|row| {
        let (findings, models) = (row.findings.take(), row.models.take());
        if findings.is_none() && models.is_none() {
            return None;
        }
        let report = Report::read(findings.as_deref(), models.as_deref());
        Some((row.input_file_id.clone(), report))
    });
    reports.collect()
}

impl Report {
    fn read(findings: Option<&str>, models: Option<&str>) -> serde_json::Result<Self> {
        let findings: Option<Findings> = findings.map(serde_json::from_str).transpose()?;
        let models = models.map(models_from).transpose()?;
        Ok(Self {
            findings: Arc::new(findings.unwrap_or_default()),
            models: models.unwrap_or_default().into(),
        })
    }
}

impl WaitingRow {
    /// Whether the tenant has such a file, and uploaded it for batches.
    fn is_for_batches(&self) -> bool {
        self.purpose.as_deref() == Some(Purpose::Batch.as_str())
    }

    fn read(self, reports: &Reports) -> Result<Unvalidated> {
        let is_for_batches = self.is_for_batches();
        let input = match (self.requests, self.bytes) {
            (Some(requests), Some(bytes)) if is_for_batches => {
                let Report { findings, models } = match reports.get(&self.input_file_id) {
                    Some(Ok(report)) => report.clone(),
                    // All of the file's batches fail.
                    Some(Err(error)) => {
                        let file = format!("report on {}", self.input_file_id);
                        return Err(Error::corrupt(file, error.to_string()));
                    }
                    None => Report::default(),
                };
                Some(Input {
                    requests,
                    bytes,
                    findings,
                    models,
                    is_one_chunk: self.is_one_chunk == Some(1),
                })
            }
            _ => None,
        };
        Ok(Unvalidated {
            batch_id: self.id,
            tenant: self.tenant,
            key_id: self.key_id,
            endpoint: self.endpoint,
            input_file_id: self.input_file_id,
            task: self.task,
            reuse: self.reuse,
            details: self.details,
            priority: self.priority,
            created_at: self.created_at,
            expires_at: self.expires_at,
            is_held: self.is_held == 1,
            input,
            other_purpose: self.purpose.filter(|_| !is_for_batches),
            allowance: None,
        })
    }
}
