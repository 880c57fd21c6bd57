//! Nightshift: a self-hosted server that speaks OpenAI's Batch API.
//!
//! One room, one purpose; imports point down only (see ARCHITECTURE.md, and
//! `tests/it/architecture.rs`, which keeps it so).

pub mod api;
pub mod app;
pub mod cli;
pub mod codec;
pub mod config;
pub mod domain;
pub mod intake;
pub mod observe;
pub mod shutdown;
pub mod simulate;
pub mod store;
pub mod telemetry;
pub mod transfer;
pub mod upstream;
pub mod worker;
