//! Files that are visible: found, listed, deleted.

use sqlx::FromRow;

use crate::domain::file::{Kind, Purpose};
use crate::store::engine::{on_pool, sql};
use crate::store::{Result, Store};

/// A file, without its content.
#[derive(Clone, Debug, FromRow)]
pub struct StoredFile {
    pub id: String,
    pub tenant: String,
    pub purpose: String,
    pub filename: String,
    pub bytes: i64,
    pub created_at: i64,
    pub expires_at: Option<i64>,
    /// The batch whose segments are the content; `None` for an uploaded file.
    pub batch_id: Option<String>,
    pub kind: Option<String>,
    /// Of an output or error file: how many bytes each chunk gave, as it is stored. `None`: not
    /// read.
    #[sqlx(default)]
    pub(in crate::store) chunk_sizes: Option<Vec<u8>>,
}

impl StoredFile {
    /// The purpose. `None` for a purpose that this program does not know.
    #[must_use]
    pub fn purpose(&self) -> Option<Purpose> {
        Purpose::parse(&self.purpose)
    }

    /// The batch and which of its two files this is, where a batch made it.
    #[must_use]
    pub fn made_by(&self) -> Option<(&str, Kind)> {
        let kind = if self.kind.as_deref()? == "output" {
            Kind::Output
        } else {
            Kind::Error
        };
        Some((self.batch_id.as_deref()?, kind))
    }
}

/// The direction of a list by creation time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    Ascending,
    Descending,
}

/// One page of a list.
#[derive(Clone, Debug)]
pub struct Page<T> {
    pub items: Vec<T>,
    /// Whether the list goes on behind this page.
    pub more: bool,
}

impl<T> Page<T> {
    /// The page of the first `limit` items; there is one more item exactly if the list goes on.
    pub(in crate::store) fn cut(mut items: Vec<T>, limit: i64) -> Self {
        let limit = usize::try_from(limit).unwrap_or(0);
        let more = items.len() > limit;
        items.truncate(limit);
        Page { items, more }
    }
}

const COLUMNS: &str =
    "id, tenant, purpose, filename, bytes, created_at, expires_at, batch_id, kind";
const COLUMNS_TO_READ: &str =
    "id, tenant, purpose, filename, bytes, created_at, expires_at, batch_id, kind, chunk_sizes";

impl Store {
    /// A tenant's file. A file past its expiry is gone at once, though its bytes go later.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn file(&self, tenant: &str, id: &str) -> Result<Option<StoredFile>> {
        self.find_file(tenant, id, COLUMNS).await
    }

    /// The same with what reading its content begins with, by one statement.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn file_to_read(&self, tenant: &str, id: &str) -> Result<Option<StoredFile>> {
        self.find_file(tenant, id, COLUMNS_TO_READ).await
    }

    async fn find_file(
        &self,
        tenant: &str,
        id: &str,
        columns: &'static str,
    ) -> Result<Option<StoredFile>> {
        let sql = sql!(
            "-- file
             SELECT {columns} FROM files
             WHERE id = $1 AND tenant = $2 AND state = 'ready'
               AND (expires_at IS NULL OR expires_at > $3)",
            columns
        );
        Ok(on_pool!(self.reader(), |c| {
            sqlx::query_as(sql)
                .bind(id)
                .bind(tenant)
                .bind(self.now_ms())
                .fetch_optional(c)
                .await?
        }))
    }

    /// Where in its tenant's list a file stands or stood: deleted files keep their place.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn file_position(&self, tenant: &str, id: &str) -> Result<Option<(i64, String)>> {
        Ok(on_pool!(self.reader(), |c| {
            sqlx::query_as(
                "-- file_position
                 SELECT created_at, id FROM files
                 WHERE id = $1 AND tenant = $2 AND state <> 'uploading'",
            )
            .bind(id)
            .bind(tenant)
            .fetch_optional(c)
            .await?
        }))
    }

    /// A page of a tenant's files, by creation and id, behind the position `after`.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn files(
        &self,
        tenant: &str,
        purpose: Option<Purpose>,
        order: Order,
        after: Option<(i64, String)>,
        limit: i64,
    ) -> Result<Page<StoredFile>> {
        let (compare, direction, start) = match order {
            Order::Ascending => (">", "ASC", (i64::MIN, String::new())),
            // Behind every id: `~` sorts after all that ids are made of.
            Order::Descending => ("<", "DESC", (i64::MAX, "~".to_owned())),
        };
        let (created_at, id) = after.unwrap_or(start);
        let sql = sql!(
            "-- files
             SELECT {columns} FROM files
             WHERE tenant = $1 AND (created_at, id) {compare} ($2, $3) AND state = 'ready'
               AND (expires_at IS NULL OR expires_at > $4)
               AND (CAST($5 AS TEXT) IS NULL OR purpose = $5)
             ORDER BY created_at {direction}, id {direction} LIMIT $6",
            columns = COLUMNS,
            compare,
            direction
        );
        let items = on_pool!(self.reader(), |c| {
            sqlx::query_as(sql)
                .bind(tenant)
                .bind(created_at)
                .bind(id)
                .bind(self.now_ms())
                .bind(purpose.map(Purpose::as_str))
                .bind(limit + 1)
                .fetch_all(c)
                .await?
        });
        Ok(Page::cut(items, limit))
    }

    /// Hides a tenant's file at once; its bytes go later. False if there is no such file.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn delete_file(&self, tenant: &str, id: &str) -> Result<bool> {
        let now = self.now_sql(3);
        let sql = sql!(
            "-- delete_file
             UPDATE files SET state = 'deleted', touched_at = {now}
             WHERE id = $1 AND tenant = $2 AND state = 'ready'
               AND (expires_at IS NULL OR expires_at > {now})",
            now
        );
        let deleted = on_pool!(self.writer(), |c| {
            sqlx::query(sql)
                .bind(id)
                .bind(tenant)
                .bind(self.offset_ms())
                .execute(c)
                .await?
                .rows_affected()
        });
        Ok(deleted == 1)
    }
}
