//! OpenAI's HTTP: extract, ask the store, answer.
//!
//! One file a resource. A new endpoint is a handler and a line in `routes.rs`, and its
//! documentation comes with it. This room knows no SQL, and nothing of the worker: the two meet in
//! the store.

pub mod admin;
pub mod auth;
mod azure;
pub mod batch_object;
pub mod batch_output;
pub mod batch_request;
mod batch_wait;
pub mod batches;
pub mod cache;
pub mod configuration;
pub mod content;
mod cors;
pub mod drain;
pub mod engine;
pub mod error;
pub mod expiry;
pub mod files;
mod headers;
pub mod health;
pub mod idempotency;
mod integer;
pub mod json;
pub mod looks;
pub mod metrics;
pub mod model_object;
pub mod models;
mod multipart;
pub mod openapi;
mod origin;
pub mod page;
pub mod path;
pub mod progress;
mod range;
mod reload;
mod request_log;
mod routes;
pub mod server;
pub mod snapshots;
mod state;
#[cfg(test)]
mod tests;
pub mod upload;
pub mod upstreams;
pub mod usage;
pub mod waits;
mod welcome;

pub use routes::{document, router, worker_router};
pub use state::Api;
