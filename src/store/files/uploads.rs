//! Uploads under way: chunks are written a group at a time, and show to nobody until the file is
//! published.

use sqlx::AssertSqlSafe;

use super::file::StoredFile;
use crate::domain::file::Purpose;
use crate::intake::{Chunk, ModelReport};
use crate::store::engine::{Tx, on, values, within};
use crate::store::files::each;
use crate::store::{Claim, Error, Result, Store};

/// An upload that begins.
#[derive(Clone, Debug)]
pub struct NewUpload {
    pub file_id: String,
    pub tenant: String,
}

/// What is known of an upload at its end.
#[derive(Clone, Debug)]
pub struct PublishedUpload {
    pub purpose: Purpose,
    pub filename: String,
    pub bytes: u64,
    pub created_at: i64,
    pub expires_at: Option<i64>,
    pub requests: u64,
    /// JSON of `domain::findings::Findings`; `None` where the purpose is not `batch`.
    pub findings: Option<String>,
    pub models: Vec<ModelReport>,
}

impl Store {
    /// Makes the row that an upload's chunks belong to.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn begin_upload(&self, upload: &NewUpload) -> Result<()> {
        let now = self.now_sql(3);
        let sql = format!(
            "-- begin_upload
             INSERT INTO files (id, tenant, purpose, filename, bytes, created_at, state, touched_at)
             VALUES ($1, $2, '', '', 0, {now}, 'uploading', {now})"
        );
        on!(self.writer(), c => {
            sqlx::query(AssertSqlSafe(sql))
            .bind(&upload.file_id)
            .bind(&upload.tenant)
            .bind(self.offset_ms())
            .execute(c)
            .await?;
        });
        Ok(())
    }

    /// Writes a group of chunks: one transaction, a statement a table.
    ///
    /// # Errors
    /// [`Error::Stale`] when the upload was swept in the meantime.
    pub async fn add_chunks(&self, file_id: &str, chunks: &[Chunk]) -> Result<()> {
        let mut tx = self.begin().await?;
        touch(&mut tx, self, file_id).await?;
        if !chunks.is_empty() {
            insert_chunks(&mut tx, file_id, chunks).await?;
            insert_chunk_models(&mut tx, file_id, chunks).await?;
        }
        tx.commit().await
    }

    /// Says that an upload is alive though it writes nothing.
    ///
    /// # Errors
    /// [`Error::Stale`] when the upload was swept in the meantime.
    pub async fn touch_upload(&self, file_id: &str) -> Result<()> {
        self.add_chunks(file_id, &[]).await
    }

    /// Makes an uploaded file visible, and remembers the answer for its `Idempotency-Key`.
    ///
    /// # Errors
    /// [`Error::Stale`] when the upload was swept in the meantime.
    pub async fn publish_upload(
        &self,
        file_id: &str,
        upload: &PublishedUpload,
        answer: Option<(&Claim, &str)>,
    ) -> Result<()> {
        let mut tx = self.begin().await?;
        let published = within!(&mut tx, c => {
            sqlx::query(
                "-- publish_upload
                 UPDATE files SET state = 'ready', purpose = $2, filename = $3, bytes = $4,
                        created_at = $5, expires_at = $6, requests = $7, findings = $8
                 WHERE id = $1 AND state = 'uploading'",
            )
            .bind(file_id)
            .bind(upload.purpose.as_str())
            .bind(&upload.filename)
            .bind(upload.bytes as i64)
            .bind(upload.created_at)
            .bind(upload.expires_at)
            .bind(upload.requests as i64)
            .bind(&upload.findings)
            .execute(c)
            .await?
            .rows_affected()
        });
        if published != 1 {
            return Err(Error::Stale("the upload"));
        }
        if !upload.models.is_empty() {
            insert_models(&mut tx, file_id, &upload.models).await?;
        }
        if let Some((claim, body)) = answer {
            crate::store::tenants::remember(&mut tx, claim, 200, body, self.now_ms()).await?;
        }
        tx.commit().await
    }

    /// Removes an upload that came to nothing, with all it wrote. Nothing where the file was
    /// published after all.
    ///
    /// # Errors
    /// When the database fails; the sweep, or the purge, removes it later.
    pub async fn discard_upload(&self, file_id: &str) -> Result<()> {
        // First of all: from here on nothing is added to it, and it cannot be published.
        let sql = format!(
            "-- discard_upload
             UPDATE files SET state = 'deleted', touched_at = {}
             WHERE id = $1 AND state = 'uploading'",
            self.now_sql(2)
        );
        let discarded = on!(self.writer(), c => {
            sqlx::query(AssertSqlSafe(sql))
            .bind(file_id)
            .bind(self.offset_ms())
            .execute(c)
            .await?
            .rows_affected()
        });
        if discarded == 0 {
            return Ok(());
        }
        self.remove_content(file_id).await?;
        on!(self.writer(), c => {
            sqlx::query("-- discarded_upload\nDELETE FROM files WHERE id = $1 AND state = 'deleted'")
                .bind(file_id)
                .execute(c)
                .await?;
        });
        Ok(())
    }

    /// Removes uploads that have shown no sign of life since `before`: their process died.
    /// Returns how many there were.
    ///
    /// # Errors
    /// When the database fails; the next sweep goes on. An upload that cannot be removed does not
    /// keep the others from it.
    pub async fn sweep_uploads(&self, before: i64) -> Result<usize> {
        let dead: Vec<(String,)> = on!(self.reader(), c => {
            sqlx::query_as(
                "-- sweep_uploads
                 SELECT id FROM files WHERE state IN ('uploading', 'deleted')
                   AND state = 'uploading' AND touched_at < $1 LIMIT 100",
            )
            .bind(before)
            .fetch_all(c)
            .await?
        });
        each("sweep_uploads", &dead, |id| self.discard_upload(id)).await
    }
}

/// A file as the API shows it right after publishing.
impl PublishedUpload {
    #[must_use]
    pub fn into_file(self, file_id: &str, tenant: &str) -> StoredFile {
        StoredFile {
            id: file_id.to_owned(),
            tenant: tenant.to_owned(),
            purpose: self.purpose.as_str().to_owned(),
            filename: self.filename,
            bytes: self.bytes as i64,
            created_at: self.created_at,
            expires_at: self.expires_at,
            batch_id: None,
            kind: None,
        }
    }
}

async fn touch(tx: &mut Tx, store: &Store, file_id: &str) -> Result<()> {
    let sql = format!(
        "-- touch_upload\nUPDATE files SET touched_at = {} WHERE id = $1 AND state = 'uploading'",
        store.now_sql(2)
    );
    let touched = within!(tx, c => {
        sqlx::query(AssertSqlSafe(sql))
        .bind(file_id)
        .bind(store.offset_ms())
        .execute(c)
        .await?
        .rows_affected()
    });
    if touched == 1 {
        Ok(())
    } else {
        Err(Error::Stale("the upload"))
    }
}

async fn insert_chunks(tx: &mut Tx, file_id: &str, chunks: &[Chunk]) -> Result<()> {
    let sql = format!(
        "-- insert_chunks
         INSERT INTO chunks
            (file_id, chunk_no, piece_no, byte_offset, bytes, first_line, lines, data)
         VALUES {}",
        values(1, chunks.len(), 8)
    );
    within!(tx, c => {
        let mut query = sqlx::query(AssertSqlSafe(sql)).persistent(false);
        for chunk in chunks {
            query = query
                .bind(file_id)
                .bind(chunk.no)
                .bind(chunk.piece)
                .bind(chunk.offset as i64)
                .bind(i64::from(chunk.bytes))
                .bind(chunk.first_line as i64)
                .bind(i64::from(chunk.lines))
                .bind(&chunk.data);
        }
        query.execute(c).await?;
    });
    Ok(())
}

/// Rows of one INSERT: five parameters each stay far below both engines' limits.
const ROWS_A_STATEMENT: usize = 1_000;

async fn insert_chunk_models(tx: &mut Tx, file_id: &str, chunks: &[Chunk]) -> Result<()> {
    let rows: Vec<(i64, i64, i64, i64)> = chunks
        .iter()
        .flat_map(|chunk| {
            chunk.requests.iter().map(|&(model_no, requests)| {
                (
                    chunk.no,
                    i64::from(model_no),
                    i64::from(requests),
                    chunk.chunk_bytes as i64,
                )
            })
        })
        .collect();
    for rows in rows.chunks(ROWS_A_STATEMENT) {
        let sql = format!(
            "-- insert_chunk_models
             INSERT INTO chunk_models (file_id, chunk_no, model_no, requests, chunk_bytes)
             VALUES {}",
            values(1, rows.len(), 5)
        );
        within!(&mut *tx, c => {
            let mut query = sqlx::query(AssertSqlSafe(sql)).persistent(false);
            for (chunk_no, model_no, requests, bytes) in rows {
                query = query.bind(file_id).bind(chunk_no).bind(model_no).bind(requests).bind(bytes);
            }
            query.execute(c).await?;
        });
    }
    Ok(())
}

async fn insert_models(tx: &mut Tx, file_id: &str, models: &[ModelReport]) -> Result<()> {
    let rows: Vec<(i64, &ModelReport)> = (0..).zip(models).collect();
    for rows in rows.chunks(ROWS_A_STATEMENT) {
        let sql = format!(
            "-- insert_models
             INSERT INTO file_models (file_id, model_no, name, requests, first_lines) VALUES {}",
            values(1, rows.len(), 5)
        );
        within!(&mut *tx, c => {
            let mut query = sqlx::query(AssertSqlSafe(sql)).persistent(false);
            for (model_no, model) in rows {
                let lines = serde_json::to_string(&model.first_lines)
                    .map_err(|error| Error::corrupt("list of lines", error))?;
                query = query
                    .bind(file_id)
                    .bind(model_no)
                    .bind(&model.name)
                    .bind(model.requests as i64)
                    .bind(lines);
            }
            query.execute(c).await?;
        });
    }
    Ok(())
}
