//! What a worker is told when it starts. The configuration makes it; this room reads no
//! configuration.

use std::time::Duration;

use crate::domain::current::Current;
use crate::domain::reuse::Terms;
use crate::domain::tenant::CurrentTenants;
use crate::store::Configuration;

/// What may be another while a worker works.
#[derive(Clone, Debug)]
pub struct Rules {
    /// How long a line waits for its next attempt, at least.
    pub initial_backoff: Duration,
    /// How long the bytes of a hidden file stay, for those who are reading it.
    pub removal_grace: Duration,
    /// For how long it is known what was used; `None`: for good.
    pub usage_kept: Option<Duration>,
    /// Requests that a batch may have.
    pub max_requests: u64,
    pub reuse: Terms,
}

/// How a worker works.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The replica's name. A process that is started again under this name takes over what the
    /// process before it held. `None`: a random name.
    pub name: Option<String>,
    /// How long the process may be silent before others take its units.
    pub lease: Duration,
    /// How long the share of a limit that a vanished process held is held back.
    pub reclaim_after: Duration,
    /// How long calls in flight may go on once their batch has ended.
    pub settle_timeout: Duration,
    /// How long calls in flight may go on once the process stops.
    pub shutdown_grace: Duration,
    /// By which the process runs at its start.
    pub configuration: Configuration,
    pub rules: Current<Rules>,
    /// What tenants are allowed.
    pub tenants: CurrentTenants,
    /// No other process can hold a lease on this store. What is leased at the start was left by a
    /// process that is dead.
    pub exclusive: bool,
}
