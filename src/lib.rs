//! Nightshift: a self-hosted server that speaks OpenAI's Batch API, for any model server.
//!
//! This page is for whoever opens the code for the first time. `ARCHITECTURE.md` is the map,
//! `docs/internals` has a page for each part of the engine, `docs/glossary.md` has the words.
//!
//! # Five nouns
//!
//! A client uploads a *file*, which is stored in *chunks* of about 512 lines. A *batch* runs the
//! lines of a file. A *unit*, the lines of one model in one chunk of one batch, is the piece of
//! work that a process leases. Finished lines of a unit are appended as *segments*; a few wait in
//! the unit's row until they are worth one. A line is never a row.
//!
//! # The way of a line
//!
//! 1. [`api`] receives an upload; [`transfer`] and [`intake`] cut, check and compress its lines,
//!    and [`store`] writes the chunks.
//! 2. `POST /v1/batches` makes a batch. In [`worker`], `validate` makes its units from what the
//!    upload found out.
//! 3. `supply` leases units and reads their text. `dispatch` chooses a line and sends it, through
//!    the [`upstream::Pool`], which says what the answer means: an outcome, or another attempt.
//! 4. `flush` writes what finished anywhere in the process, in one transaction.
//! 5. `finalize` publishes the output and the error file when no unit is open;
//!    [`transfer::content()`] streams a file from the batch's segments.
//!
//! # Rooms
//!
//! Each module here is a room with one purpose. Imports point down only, and
//! `tests/it/architecture.rs` keeps it so. From the bottom up:
//!
//! | room | is for |
//! |---|---|
//! | [`domain`] | nouns and rules; pure, and the only clock |
//! | [`metrics`] | metrics, and names of spans |
//! | [`codec`] | how bytes stand in the store |
//! | [`intake`] | an upload's bytes into chunks and a report |
//! | [`store`] | the only SQL, for SQLite and Postgres |
//! | [`upstream`] | calling model servers |
//! | [`transfer`] | bytes into the store and out of it |
//! | [`config`] | TOML, environment and flags, as settings of the rooms below |
//! | [`api`] | OpenAI's HTTP |
//! | [`worker`] | the working half: loops that may be killed at any line |
//! | [`simulate`] | a stand-in model server |
//! | [`app`], [`cli`], [`shutdown`], [`telemetry`] | build everything, start it, stop it |
//!
//! [`api`] and [`worker`] do not know each other: they meet in the [`store`] and its wake-ups.
//!
//! # Add an endpoint
//!
//! Write an async function in the file of its resource in [`api`], with `#[utoipa::path(…)]` above
//! it, and add it to `routes` in `api/routes.rs`. It takes [`api::auth::Caller`] to be open to a
//! tenant's keys, asks `api.store`, and returns [`api::error::Result`]. Each error is a function of
//! [`api::error`]. `api/models.rs` is the smallest one to copy. A test holds
//! `openapi/openapi.json` in step: `cargo run -q -- openapi > openapi/openapi.json`.
//!
//! # Add a task
//!
//! A task is a file in `worker/tasks/` with a struct that implements `Task`: its name, how long it
//! may go without a look, by whose wake-ups it is notified, and a `round` that does what there is
//! to do. `worker/tasks/expire.rs` is the smallest one to copy. Start it in
//! `worker::Worker::start`. A round takes no input, may be cut off at any point, and does no harm
//! when it is repeated. What must not be done twice is decided by the statement that does it. One
//! process looks by itself, for all (`worker/tasks/housekeeping.rs`).
//!
//! # Add a provider
//!
//! A provider is a file in `upstream/provider/` that implements `Provider`: where a line's path
//! stands behind the base URL, how a call is encoded and signed, how an answer is decoded, what a
//! failure means, how models are listed. Add a variant with its name to `ProviderKind`
//! (`upstream/provider/kind.rs`), and a line to `provider::of`. No other code is needed.
//! `upstream/provider/gemini.rs` is the one to copy. The provider makes one `CallResult` of each
//! answer. All else follows from that result: whose fault a failure is, what it costs the line, and
//! whether the upstream is left alone.
//!
//! # Add a metric, a key, a migration
//!
//! `ARCHITECTURE.md` has a table, "Where do I add …", for these and more.

mod api;
mod app;
pub mod cli;
mod codec;
mod config;
mod domain;
mod intake;
mod metrics;
mod shutdown;
mod simulate;
mod store;
mod telemetry;
mod transfer;
mod upstream;
mod worker;

/// What the tests and the benchmark use beside the binary. A list, so that the compiler warns of
/// all else that nobody uses.
#[doc(hidden)]
pub mod internals {
    pub mod api {
        pub use crate::api::{auth::new_key, document, server::serve};
    }
    pub mod app {
        pub use crate::app::{App, open_store};
    }
    pub mod codec {
        pub use crate::codec::{compress, decompress, segment};
    }
    pub mod config {
        pub use crate::config::{Config, Environment, Overrides};
    }
    pub mod domain {
        pub use crate::domain::{
            batch, clock, endpoint, file, id, line, price, scope, share, totals, unit, usage,
        };
    }
    pub mod intake {
        pub use crate::intake::{Contents, Intake, Limits, Piece};
    }
    pub mod metrics {
        pub use crate::metrics::catalogue;
    }
    pub mod simulate {
        pub use crate::simulate::{ApiKey, Dialect, Options, RateKind, RateLimit, Simulator};
    }
    pub mod store {
        pub use crate::store::{
            ApiKey, AuditFinding, AuditSettings, Audited, Batch, Begun, Cancel, Claim, Claimed,
            CooldownRow, CountsDelta, Deaths, DirectLease, Engine, Error, Incumbent, LeasedUnit,
            NewBatch, NewUpload, PublishedUpload, Purged, Replica, Rest, Settings, ShareBook,
            ShareEntry, Steering, Store, StoredFile, UnitFlush, Unvalidated, UsageBy, UsageKey,
            UsageQuery, UsageRow, Used, Verdict, Who,
        };
    }
    pub mod transfer {
        pub use crate::transfer::{Finish, Ingest, UploadBudget};
    }
    pub mod upstream {
        pub use crate::upstream::{Acquired, History, Options, Pool, Routes};
    }
}
