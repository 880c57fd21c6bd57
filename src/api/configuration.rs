//! The configuration that a process runs by, as handlers know it.

use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What the process that answers runs by. Times are in Unix seconds.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct Loaded {
    /// Tells configurations apart by what all processes have in common: not by where each listens,
    /// its name, its database and its log, and by no secret.
    pub hash: String,
    /// When it was read.
    pub loaded_at: i64,
    /// Keys whose values have changed since the process started, and that need a restart.
    #[serde(default)]
    pub needs_restart: Vec<String>,
    /// What was wrong when the configuration was read last. If anything was, nothing was changed
    /// then.
    #[serde(default)]
    pub faults: Vec<String>,
    /// When that was.
    #[serde(default)]
    pub failed_at: Option<i64>,
}

/// Reads the configuration again. `app` makes it.
pub trait Reload: Send + Sync {
    /// What the process runs by.
    fn loaded(&self) -> Loaded;

    /// Reads the configuration again. The error has all faults, in words.
    fn reload(&self) -> BoxFuture<'static, Result<Loaded, Vec<String>>>;
}
