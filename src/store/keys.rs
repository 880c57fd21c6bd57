//! API keys: stored as hashes only.

use sqlx::FromRow;

use super::engine::on;
use super::{Result, Store};

/// A key, without the key.
#[derive(Clone, Debug, FromRow)]
pub struct ApiKey {
    pub id: String,
    pub tenant: String,
    pub name: String,
    /// SHA-256 of the key, in hex.
    pub hash: String,
    /// The key's first and last characters, for people to tell keys apart.
    pub hint: String,
    pub admin: bool,
    pub created_at: i64,
    pub revoked_at: Option<i64>,
}

impl Store {
    /// Stores a new key.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn add_key(&self, key: &ApiKey) -> Result<()> {
        on!(self.writer(), c => {
            sqlx::query(
                "-- add_key
                 INSERT INTO api_keys (id, tenant, name, hash, hint, admin, created_at)
                 VALUES ($1, $2, $3, $4, $5, $6, $7)",
            )
            .bind(&key.id)
            .bind(&key.tenant)
            .bind(&key.name)
            .bind(&key.hash)
            .bind(&key.hint)
            .bind(key.admin)
            .bind(key.created_at)
            .execute(c)
            .await?;
        });
        Ok(())
    }

    /// All keys, the revoked ones included, the oldest first.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn keys(&self) -> Result<Vec<ApiKey>> {
        Ok(on!(self.reader(), c => {
            sqlx::query_as("-- keys\nSELECT * FROM api_keys ORDER BY created_at, id")
                .fetch_all(c)
                .await?
        }))
    }

    /// The key of that hash, unless it was revoked.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn key_of_hash(&self, hash: &str) -> Result<Option<ApiKey>> {
        Ok(on!(self.reader(), c => {
            sqlx::query_as(
                "-- key_of_hash
                 SELECT * FROM api_keys WHERE hash = $1 AND revoked_at IS NULL",
            )
            .bind(hash)
            .fetch_optional(c)
            .await?
        }))
    }

    /// Revokes a key. False if there is no such key, or it is revoked already.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn revoke_key(&self, id: &str) -> Result<bool> {
        let revoked = on!(self.writer(), c => {
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
