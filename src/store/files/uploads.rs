//! Uploads under way: chunks are written a group at a time, and show to nobody until the file is
//! published.

use std::borrow::Cow;

use super::bytes;
use super::file::StoredFile;
use super::retention::remove_content;
use super::storage::admit_bytes;
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
    /// How many bytes the tenant's files may have, this one included. `None`: any number.
    pub max_stored: Option<u64>,
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

/// The end of a file: what is not written yet.
#[derive(Clone, Debug)]
pub struct Rest {
    /// Whether the file has a row, and pieces before these.
    pub has_begun: bool,
    /// The last pieces: few enough for one transaction.
    pub pieces: Vec<Piece>,
}

impl Rest {
    /// Whether these pieces are all that the file has, and are one chunk.
    fn is_one_chunk(&self) -> bool {
        let last = self.pieces.last();
        !self.has_begun && last.is_some_and(|piece| piece.chunk_no == 0)
    }
}

impl Store {
    /// Makes the row that an upload's pieces belong to, with the first of the pieces.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn begin_upload(&self, upload: &NewUpload, pieces: &[Piece]) -> Result<()> {
        let now = self.now_sql(3);
        let sql = sql!(
            "-- begin_upload
             INSERT INTO files (id, tenant, purpose, filename, bytes, created_at, state, touched_at)
             VALUES ($1, $2, '', '', 0, {now}, 'uploading', {now})",
            now
        );
        let mut tx = self.begin().await?;
        in_tx!(&mut tx, |c| {
            sqlx::query(sql)
                .bind(&upload.file_id)
                .bind(&upload.tenant)
                .bind(self.offset_ms())
                .execute(c)
                .await?;
        });
        insert_pieces(&mut tx, &upload.file_id, pieces).await?;
        tx.commit().await
    }

    /// Writes a group of pieces: one transaction, a statement a table.
    ///
    /// # Errors
    /// [`Error::Stale`] when the upload was swept in the meantime.
    pub async fn add_pieces(&self, file_id: &str, pieces: &[Piece]) -> Result<()> {
        let mut tx = self.begin().await?;
        touch(&mut tx, self, file_id).await?;
        insert_pieces(&mut tx, file_id, pieces).await?;
        tx.commit().await
    }

    /// Says that an upload is alive though it writes nothing.
    ///
    /// # Errors
    /// [`Error::Stale`] when the upload was swept in the meantime.
    pub async fn touch_upload(&self, file_id: &str) -> Result<()> {
        self.add_pieces(file_id, &[]).await
    }

    /// Writes the end of an uploaded file, makes the file visible, and remembers the answer for its
    /// `Idempotency-Key`.
    ///
    /// # Errors
    /// [`Error::Stale`] when the upload was swept in the meantime. [`Error::StorageFull`] when the
    /// tenant may not have so many bytes.
    pub async fn publish_upload(
        &self,
        NewUpload {
            file_id,
            tenant,
            max_stored,
        }: &NewUpload,
        upload: &PublishedUpload,
        rest: &Rest,
        answer: Option<(&Claim, &str)>,
    ) -> Result<()> {
        let models = list_of_models(&upload.models)?;
        let row = Rows::of([[
            ("purpose", Value::from(upload.purpose.as_str())),
            ("filename", Value::from(&upload.filename)),
            ("bytes", (upload.bytes as i64).into()),
            ("created_at", upload.created_at.into()),
            ("expires_at", upload.expires_at.into()),
            ("requests", (upload.requests as i64).into()),
            ("findings", Value::from(&upload.findings)),
            ("models", Value::from(&models)),
            ("is_one_chunk", i64::from(rest.is_one_chunk()).into()),
            ("state", "ready".into()),
        ]]);
        let mut tx = self.begin().await?;
        if let Some(max) = max_stored {
            admit_bytes(&mut tx, tenant, upload.bytes, *max).await?;
        }
        if rest.has_begun {
            let sql = sql!(
                "-- publish_upload
                 UPDATE files SET {row} WHERE id = $1 AND state = 'uploading'",
                row = row.assignments(2)
            );
            let published = in_tx!(&mut tx, |c| {
                let publish = sqlx::query(sql).bind(file_id);
                bind_rows!(publish, row).execute(c).await?.rows_affected()
            });
            if published != 1 {
                return Err(Error::Stale("the upload"));
            }
        } else {
            let sql = sql!(
                "-- insert_upload
                 WITH {row}
                 INSERT INTO files (id, tenant, touched_at, {columns})
                 SELECT CAST($1 AS TEXT), CAST($2 AS TEXT), {now}, v.* FROM v",
                row = row.table("v", 4, tx.engine()),
                columns = row.columns(),
                now = self.now_sql(3)
            );
            in_tx!(&mut tx, |c| {
                let insert = sqlx::query(sql)
                    .bind(file_id)
                    .bind(tenant)
                    .bind(self.offset_ms());
                bind_rows!(insert, row).execute(c).await?;
            });
        }
        if rest.is_one_chunk() {
            // The list of the file's models says how many requests of each the chunk has.
            bytes::write_pieces(&mut tx, file_id, &rest.pieces).await?;
        } else {
            insert_pieces(&mut tx, file_id, &rest.pieces).await?;
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
            chunk_sizes: None,
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

/// Rows of one INSERT, of five parameters each. What SQLite takes for a statement grows with the
/// square of the parameters: ten times as much a row with 1,000 rows.
const ROWS_A_STATEMENT: usize = 100;

async fn insert_pieces(tx: &mut Tx, file_id: &str, pieces: &[Piece]) -> Result<()> {
    if pieces.is_empty() {
        return Ok(());
    }
    bytes::write_pieces(tx, file_id, pieces).await?;
    insert_chunk_models(tx, file_id, pieces).await
}

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

/// What `files.models` has of each model: its name, the number of its requests, and the first lines
/// of them.
type ListedModel<'a> = (Cow<'a, str>, u64, Cow<'a, [u64]>);

/// The models of a file as `files.models` has them; `None` for a file that names none.
fn list_of_models(models: &[ModelReport]) -> Result<Option<String>> {
    if models.is_empty() {
        return Ok(None);
    }
    let listed = models.iter().map(|model| -> ListedModel<'_> {
        let (name, lines) = (model.name.as_str(), model.first_lines.as_slice());
        (name.into(), model.requests, lines.into())
    });
    let listed: Vec<_> = listed.collect();
    let listed = serde_json::to_string(&listed);
    Ok(Some(listed.map_err(|error| {
        Error::corrupt("list of models", error)
    })?))
}

/// The models that `files.models` lists.
pub(in crate::store) fn models_from(listed: &str) -> serde_json::Result<Vec<ModelReport>> {
    let listed: Vec<ListedModel<'_>> = serde_json::from_str(listed)?;
    let models = listed
        .into_iter()
        .map(|(name, requests, lines)| ModelReport {
            name: name.into_owned(),
            requests,
            first_lines: lines.into_owned(),
        });
    Ok(models.collect())
}
