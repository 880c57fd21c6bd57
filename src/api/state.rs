//! What handlers work with.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::auth::Auth;
use super::configuration::Reload;
use super::engine::Engine;
use super::looks::Looks;
use super::snapshots::Snapshots;
use super::waits::Waits;
use crate::config;
use crate::domain::clock::Clock;
use crate::domain::current::Current;
use crate::domain::endpoint::Endpoints;
use crate::domain::reuse::Terms;
use crate::domain::tenant::CurrentTenants;
use crate::store::Store;
use crate::transfer::UploadBudget;

/// What handlers work with. Cheap to clone.
#[derive(Clone)]
pub struct Api {
    pub store: Store,
    /// What clients look at again and again, in the store.
    pub looks: Arc<Looks>,
    /// Requests that wait for a batch.
    pub waits: Arc<Waits>,
    pub clock: Clock,
    pub limits: Current<config::Limits>,
    /// What can be batched.
    pub endpoints: Endpoints,
    pub retention: Current<config::Retention>,
    pub output: Current<config::Output>,
    /// Which lines may be answered by answers to others.
    pub reuse: Current<Terms>,
    /// What tenants are allowed.
    pub tenants: CurrentTenants,
    pub auth: Arc<Auth>,
    pub engine: Arc<dyn Engine>,
    /// Reads the configuration again.
    pub reload: Arc<dyn Reload>,
    /// What operators look at.
    pub snapshots: Arc<Snapshots>,
    /// What uploads may hold in memory together.
    pub uploads: Arc<UploadBudget>,
    /// The process stops: nothing more is waited for.
    pub stopping: CancellationToken,
    /// Web pages from these origins may use the API.
    pub allowed_origins: Arc<[String]>,
}
