//! OpenAI's HTTP: extract, ask the store, answer.
//!
//! One file a resource. This room knows no SQL, and nothing of the worker: the two meet in the
//! store.

pub mod auth;
pub mod error;

use std::sync::Arc;

use crate::config;
use crate::domain::clock::Clock;
use crate::store::Store;

/// What handlers work with. Cheap to clone.
#[derive(Clone)]
pub struct Api {
    pub store: Store,
    pub clock: Clock,
    pub limits: Arc<config::Limits>,
}
