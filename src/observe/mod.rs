//! What can be seen of a process from outside: its figures, for Prometheus, and the names under
//! which its spans are exported.
//!
//! As with the log there is one of it in a process, so that whatever happens can be counted where
//! it happens. Counting is an addition to an atomic: labels are resolved before, once for each
//! upstream, model or unit, never for a line.

mod figures;
mod handles;
mod lately;
mod process;
mod readings;
pub mod trace;

pub use figures::{Catalogue, Figures, catalogue, figures};
pub use handles::{CallOutcome, CallSeconds, Lines, ModelFigures, UpstreamFigures};
pub use readings::{
    ClosedReading, Database, Lane, ProcessReading, QueueOfModel, Readings, UpstreamReading,
    exposition,
};

/// Stands for every model that no configuration and no upstream names: what users write must not
/// become labels without end.
pub const OTHER: &str = "other";
