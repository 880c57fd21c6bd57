//! API keys: stored as hashes only.

use std::collections::HashMap;

use sqlx::FromRow;

use crate::domain::scope::Scopes;
use crate::store::engine::{Rows, Value, bind_each, bind_rows, list, on_pool, sql};
use crate::store::{Error, Result, Store};

/// How many keys one statement notes the use of.
const NOTED_AT_ONCE: usize = 1000;

/// A key, without the key. Times are in milliseconds.
#[derive(Clone, Debug)]
pub struct ApiKey {
    pub id: String,
    /// Empty where the key belongs to no tenant: see [`Scopes::open_the_api`].
    pub tenant: String,
    pub name: String,
    /// SHA-256 of the key, in hex.
    pub hash: String,
    /// The key's first and last characters, for people to tell keys apart.
    pub hint: String,
    pub scopes: Scopes,
    pub created_at: i64,
    pub expires_at: Option<i64>,
    /// To a minute or so.
    pub last_used_at: Option<i64>,
    pub revoked_at: Option<i64>,
}

impl ApiKey {
    /// Whether the key has expired. `now_ms`: the database's time.
    #[must_use]
    pub fn has_expired(&self, now_ms: i64) -> bool {
        self.expires_at.is_some_and(|at| at <= now_ms)
    }

    /// Whether the key opens anything. `now_ms`: the database's time.
    #[must_use]
    pub fn is_active(&self, now_ms: i64) -> bool {
        self.revoked_at.is_none() && !self.has_expired(now_ms)
    }
}

/// What the store knows of a key that somebody has sent.
#[derive(Clone, Debug)]
pub enum KnownKey {
    Active(ApiKey),
    Expired(ApiKey),
    /// There is no such key, or it was revoked.
    None,
}

#[derive(FromRow)]
struct KeyRow {
    id: String,
    tenant: String,
    name: String,
    hash: String,
    hint: String,
    scopes: String,
    created_at: i64,
    expires_at: Option<i64>,
    last_used_at: Option<i64>,
    revoked_at: Option<i64>,
}

impl TryFrom<KeyRow> for ApiKey {
    type Error = Error;

    fn try_from(row: KeyRow) -> Result<Self> {
        let unknown = || Error::corrupt("scopes of a key", &row.scopes);
        Ok(ApiKey {
            scopes: Scopes::stored(&row.scopes).ok_or_else(unknown)?,
            id: row.id,
            tenant: row.tenant,
            name: row.name,
            hash: row.hash,
            hint: row.hint,
            created_at: row.created_at,
            expires_at: row.expires_at,
            last_used_at: row.last_used_at,
            revoked_at: row.revoked_at,
        })
    }
}

impl Store {
    /// Stores a new key.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn add_key(&self, key: &ApiKey) -> Result<()> {
        on_pool!(self.writer(), |c| {
            sqlx::query(
                "-- add_key
                 INSERT INTO api_keys
                    (id, tenant, name, hash, hint, scopes, created_at, expires_at)
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
            )
            .bind(&key.id)
            .bind(&key.tenant)
            .bind(&key.name)
            .bind(&key.hash)
            .bind(&key.hint)
            .bind(key.scopes.to_string())
            .bind(key.created_at)
            .bind(key.expires_at)
            .execute(c)
            .await?;
        });
        Ok(())
    }

    /// All keys, those that were revoked or have expired included, the oldest first.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn keys(&self) -> Result<Vec<ApiKey>> {
        let rows: Vec<KeyRow> = on_pool!(self.reader(), |c| {
            sqlx::query_as("-- keys\nSELECT * FROM api_keys ORDER BY created_at, id")
                .fetch_all(c)
                .await?
        });
        rows.into_iter().map(ApiKey::try_from).collect()
    }

    /// The keys of these hashes, by hash, but for those that were revoked. The database's clock
    /// says whether they have expired.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn keys_of_hashes(&self, hashes: &[String]) -> Result<HashMap<String, KnownKey>> {
        if hashes.is_empty() {
            return Ok(HashMap::new());
        }
        let sql = sql!(
            "-- keys_of_hashes
             SELECT *, COALESCE(expires_at <= {now}, FALSE) AS has_expired
             FROM api_keys WHERE hash IN {hashes} AND revoked_at IS NULL",
            now = self.now_sql(1),
            hashes = list(2, hashes.len())
        );
        let is_usual = hashes.len() == 1;
        let rows: Vec<FoundRow> = on_pool!(self.reader(), |c| {
            let read = sqlx::query_as(sql)
                .persistent(is_usual)
                .bind(self.offset_ms());
            bind_each!(read, hashes).fetch_all(c).await?
        });
        let known = rows.into_iter().map(|row| {
            let key = ApiKey::try_from(row.key)?;
            let hash = key.hash.clone();
            let known = if row.has_expired {
                KnownKey::Expired(key)
            } else {
                KnownKey::Active(key)
            };
            Ok((hash, known))
        });
        known.collect()
    }

    /// Notes when keys were used last, by id, in one statement for a thousand of them. A use that
    /// another process has noted since stays. The rows are locked in the order of their ids:
    /// otherwise two processes that note uses at the same time could wait for each other.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn note_use_of_keys(&self, uses: &[(String, i64)]) -> Result<()> {
        for uses in uses.chunks(NOTED_AT_ONCE) {
            let rows = Rows::of(
                uses.iter()
                    .map(|(id, at)| [("id", Value::from(id)), ("at", (*at).into())]),
            );
            let sql = sql!(
                "-- note_use_of_keys
                 WITH {used},
                 due AS (
                    SELECT api_keys.id, used.at FROM api_keys JOIN used ON api_keys.id = used.id
                    WHERE COALESCE(api_keys.last_used_at, 0) < used.at
                    ORDER BY api_keys.id {lock}
                 )
                 UPDATE api_keys SET last_used_at = due.at FROM due WHERE api_keys.id = due.id",
                used = rows.table("used", 1, self.engine()),
                lock = self.engine().for_update()
            );
            on_pool!(self.writer(), |c| {
                bind_rows!(sqlx::query(sql), rows).execute(c).await?;
            });
        }
        Ok(())
    }

    /// Revokes a key. False if there is no such key, or it is revoked already.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn revoke_key(&self, id: &str) -> Result<bool> {
        let revoked = on_pool!(self.writer(), |c| {
            sqlx::query(
                "-- revoke_key
                 UPDATE api_keys SET revoked_at = $2 WHERE id = $1 AND revoked_at IS NULL",
            )
            .bind(id)
            .bind(self.now_ms())
            .execute(c)
            .await?
            .rows_affected()
        });
        Ok(revoked == 1)
    }
}

/// A row of `keys_of_hashes`.
#[derive(FromRow)]
struct FoundRow {
    #[sqlx(flatten)]
    key: KeyRow,
    has_expired: bool,
}
