//! The work of running batches: what waits, what is leased, what is finished.

mod backlog;
mod flush;
mod isolation;
mod units;

pub use backlog::Backlog;
pub(in crate::store) use backlog::add_waiting;
pub use flush::{CountsDelta, FlushReply, UnitFlush};
pub use isolation::Deaths;
pub(in crate::store) use isolation::count_death;
pub use units::LeasedUnit;
pub(in crate::store) use units::{count_by_model, keep};
