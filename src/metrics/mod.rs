//! What can be seen of a process from outside: its metrics, for Prometheus, and the names under
//! which its spans are exported.
//!
//! As with the log there is one of it in a process, so that whatever happens can be counted where
//! it happens. Counting is an addition to an atomic: labels are resolved before, once for each
//! upstream, model or unit, never for a line.

mod first_token;
mod handles;
mod labels;
mod process;
mod rate_meter;
mod registry;
mod snapshot;
pub mod trace;

pub use first_token::FirstTokenSeconds;
pub use handles::{
    CallSeconds, LineCounts, ModelMetrics, PackMetrics, ReuseMetrics, UpstreamMetrics,
};
pub use labels::OTHER;
pub use rate_meter::RateMeter;
pub use registry::metrics;
pub use snapshot::{
    ClosedSnapshot, Database, KeySnapshot, Lane, LateSnapshot, ProcessSnapshot, QueueOfModel,
    RateSnapshot, RouteSnapshot, Snapshot, SwitchSnapshot, TenantSnapshot, UpstreamSnapshot,
    WindowSnapshot, catalogue, exposition,
};
