//! What can be seen of a process from outside: its metrics, for Prometheus, and the names under
//! which its spans are exported.
//!
//! As with the log there is one of it in a process, so that whatever happens can be counted where
//! it happens. Counting is an addition to an atomic: labels are resolved before, once for each
//! upstream, model or unit, never for a line.

mod handles;
mod process;
mod rate_meter;
mod registry;
mod snapshot;
pub mod trace;

pub use handles::{CallSeconds, LineCounts, ModelMetrics, UpstreamMetrics};
pub use registry::{catalogue, metrics};
pub use snapshot::{
    ClosedSnapshot, Database, Lane, ProcessSnapshot, QueueOfModel, Snapshot, UpstreamSnapshot,
    exposition,
};

/// Stands for every model that no configuration and no upstream names: what users write must not
/// become labels without end.
pub const OTHER: &str = "other";
