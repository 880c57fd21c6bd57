//! Batches that wait to be validated, found by tenants in turn, with what their inputs' uploads
//! found out.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use sqlx::FromRow;

use crate::domain::file::{CHUNK_LINES_MAX, CHUNK_REQUESTS_MAX, Purpose};
use crate::domain::findings::Findings;
use crate::intake::ModelReport;
use crate::store::engine::{bind_each, list, on_pool, sql};
use crate::store::{Error, Result, Store};

/// Batches that are found at once, and so settled in one transaction at most.
const ROUND: i64 = 128;
/// Every chunk but the last has at least so many bytes or so many requests, so the number of a
/// file's chunks can be estimated. The chunk with the fewest bytes is one of blank lines: a byte a
/// line.
const CHUNK_BYTES: i64 = CHUNK_LINES_MAX as i64;
const CHUNK_REQUESTS: i64 = CHUNK_REQUESTS_MAX as i64;
/// Units made in one transaction.
const UNITS_AT_ONCE: i64 = 5_000;

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
    /// Shared by the file's batches: there may be many batches and many models.
    pub models: Arc<[ModelReport]>,
}

impl Unvalidated {
    /// How many units the batch has at most.
    #[must_use]
    pub fn units_max(&self) -> i64 {
        let Some(input) = &self.input else { return 0 };
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

    /// How many lines the batch has.
    pub(super) fn total(&self) -> i64 {
        self.input.as_ref().map_or(0, |input| input.requests)
    }
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
        let rows: Vec<WaitingRow> = on_pool!(self.reader(), |c| {
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
                // A batch whose input is damaged does not delay the others.
                Err(error) => tracing::error!(batch.id = id, %error, "cannot be validated"),
            }
        }
        Ok(found)
    }

    /// The models that files name, with the number of requests of each. An error for a file whose
    /// models cannot be read.
    async fn models_of(
        &self,
        files: BTreeSet<&str>,
    ) -> Result<HashMap<String, Result<Arc<[ModelReport]>>>> {
        let mut models: HashMap<String, Result<Vec<ModelReport>>> = HashMap::new();
        if files.is_empty() {
            return Ok(HashMap::new());
        }
        let sql = sql!(
            "-- input_models
             SELECT file_id, name, requests, first_lines FROM file_models WHERE file_id IN {files}
             ORDER BY file_id, model_no",
            files = list(1, files.len())
        );
        let rows: Vec<(String, String, i64, String)> = on_pool!(self.reader(), |c| {
            let read = sqlx::query_as(sql).persistent(false);
            bind_each!(read, files.iter().copied()).fetch_all(c).await?
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
}

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
                    // The whole error is logged once. The file's other batches fail as well.
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

fn damaged(file_id: &str, error: serde_json::Error) -> Error {
    Error::corrupt(format!("report on {file_id}"), error)
}
