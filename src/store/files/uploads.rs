//! Uploads under way: chunks are written a group at a time, and show to nobody until the file is
//! published.

use super::bytes;
use super::file::StoredFile;
use super::retention::remove_content;
use crate::domain::file::Purpose;
use crate::intake::{ModelReport, Piece};
use crate::store::each::each;
use crate::store::engine::{Rows, Tx, Value, bind_rows, in_tx, on_pool, sql};

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
        let sql = sql!(
            "-- begin_upload
             INSERT INTO files (id, tenant, purpose, filename, bytes, created_at, state, touched_at)
             VALUES ($1, $2, '', '', 0, {now}, 'uploading', {now})",
            now
        );
        on_pool!(self.writer(), |c| {
            sqlx::query(sql)
                .bind(&upload.file_id)
                .bind(&upload.tenant)
                .bind(self.offset_ms())
                .execute(c)
                .await?;
        });
        Ok(())
    }

    /// Writes a group of pieces: one transaction, a statement a table.
    ///
    /// # Errors
    /// [`Error::Stale`] when the upload was swept in the meantime.
    pub async fn add_pieces(&self, file_id: &str, pieces: &[Piece]) -> Result<()> {
        let mut tx = self.begin().await?;
        touch(&mut tx, self, file_id).await?;
        if !pieces.is_empty() {
            bytes::write_pieces(&mut tx, file_id, pieces).await?;
            insert_chunk_models(&mut tx, file_id, pieces).await?;
        }
        tx.commit().await
    }

    /// Says that an upload is alive though it writes nothing.
    ///
    /// # Errors
    /// [`Error::Stale`] when the upload was swept in the meantime.
    pub async fn touch_upload(&self, file_id: &str) -> Result<()> {
        self.add_pieces(file_id, &[]).await
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
        let row = Rows::of([[
            ("purpose", Value::from(upload.purpose.as_str())),
            ("filename", Value::from(&upload.filename)),
            ("bytes", (upload.bytes as i64).into()),
            ("created_at", upload.created_at.into()),
            ("expires_at", upload.expires_at.into()),
            ("requests", (upload.requests as i64).into()),
            ("findings", Value::from(&upload.findings)),
        ]]);
        let sql = sql!(
            "-- publish_upload
             UPDATE files SET state = 'ready', {row} WHERE id = $1 AND state = 'uploading'",
            row = row.assignments(2)
        );
        let published = in_tx!(&mut tx, |c| {
            let publish = sqlx::query(sql).bind(file_id);
            bind_rows!(publish, row).execute(c).await?.rows_affected()
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

    /// Removes an upload that broke off, with all that it wrote. Does nothing if the file was
    /// published after all.
    ///
    /// # Errors
    /// When the database fails; the sweep, or the purge, removes it later.
    pub async fn discard_upload(&self, file_id: &str) -> Result<()> {
        // This comes first: from here on nothing is added to the upload, and it cannot be
        // published.
        let sql = sql!(
            "-- discard_upload
             UPDATE files SET state = 'deleted', touched_at = {now}
             WHERE id = $1 AND state = 'uploading'",
            now = self.now_sql(2)
        );
        let discarded = on_pool!(self.writer(), |c| {
            sqlx::query(sql)
                .bind(file_id)
                .bind(self.offset_ms())
                .execute(c)
                .await?
                .rows_affected()
        });
        if discarded == 0 {
            return Ok(());
        }
        remove_content(self, file_id).await?;
        on_pool!(self.writer(), |c| {
            sqlx::query(
                "-- discarded_upload\nDELETE FROM files WHERE id = $1 AND state = 'deleted'",
            )
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
        let dead: Vec<(String,)> = on_pool!(self.reader(), |c| {
            sqlx::query_as(
                "-- sweep_uploads
                 SELECT id FROM files WHERE state IN ('uploading', 'deleted')
                   AND state = 'uploading' AND touched_at < $1 LIMIT 100",
            )
            .bind(before)
            .fetch_all(c)
            .await?
        });
        each(
            "sweep_uploads",
            &dead,
            |(id,)| id,
            |(id,)| self.discard_upload(id),
        )
        .await
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
    let sql = sql!(
        "-- touch_upload
         UPDATE files SET touched_at = {now} WHERE id = $1 AND state = 'uploading'",
        now = store.now_sql(2)
    );
    let touched = in_tx!(tx, |c| {
        sqlx::query(sql)
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

/// Rows of one INSERT: five parameters each stay far below both engines' limits.
const ROWS_A_STATEMENT: usize = 1_000;

async fn insert_chunk_models(tx: &mut Tx, file_id: &str, pieces: &[Piece]) -> Result<()> {
    let rows: Vec<_> = pieces
        .iter()
        .flat_map(|piece| {
            let models = piece.requests.iter();
            models.map(move |&(model_no, requests)| {
                [
                    ("file_id", Value::from(file_id)),
                    ("chunk_no", piece.chunk_no.into()),
                    ("model_no", i64::from(model_no).into()),
                    ("requests", i64::from(requests).into()),
                    ("chunk_bytes", (piece.chunk_bytes as i64).into()),
                ]
            })
        })
        .collect();
    for rows in rows.chunks(ROWS_A_STATEMENT) {
        let rows = Rows::of(rows.iter().cloned());
        let sql = sql!(
            "-- insert_chunk_models\nINSERT INTO chunk_models ({columns}) VALUES {rows}",
            columns = rows.columns(),
            rows = rows.parameters(1)
        );
        in_tx!(&mut *tx, |c| {
            let insert = sqlx::query(sql).persistent(false);
            bind_rows!(insert, rows).execute(c).await?;
        });
    }
    Ok(())
}

async fn insert_models(tx: &mut Tx, file_id: &str, models: &[ModelReport]) -> Result<()> {
    let mut rows = Vec::with_capacity(models.len());
    for (model_no, model) in (0_i64..).zip(models) {
        let lines = serde_json::to_string(&model.first_lines)
            .map_err(|error| Error::corrupt("list of lines", error))?;
        rows.push([
            ("file_id", Value::from(file_id)),
            ("model_no", model_no.into()),
            ("name", Value::from(&model.name)),
            ("requests", (model.requests as i64).into()),
            ("first_lines", lines.into()),
        ]);
    }
    for rows in rows.chunks(ROWS_A_STATEMENT) {
        let rows = Rows::of(rows.iter().cloned());
        let sql = sql!(
            "-- insert_models\nINSERT INTO file_models ({columns}) VALUES {rows}",
            columns = rows.columns(),
            rows = rows.parameters(1)
        );
        in_tx!(&mut *tx, |c| {
            let insert = sqlx::query(sql).persistent(false);
            bind_rows!(insert, rows).execute(c).await?;
        });
    }
    Ok(())
}
