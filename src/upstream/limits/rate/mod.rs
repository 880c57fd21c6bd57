//! How many requests and tokens there may be in any window of time, over all processes.
//!
//! | file | has |
//! |---|---|
//! | `terms` | the numbers of a limit, and its pace |
//! | `book` | what is booked over all processes |
//! | `exchange` | one turn of a process at the book |
//! | `meter` | a process's side: what it was granted, and what it spends |
//! | `estimate` | how many tokens a call will need |
//! | `limits` | all limits of this process, by where their calls go |
//!
//! All but `limits` are pure: the time is an argument.

mod book;
mod estimate;
mod exchange;
mod limits;
mod meter;
mod terms;
#[cfg(test)]
mod tests;

pub use estimate::LineSize;
pub(in crate::upstream) use estimate::{Learned, MAX_OUTPUT, Tokens};
pub use exchange::Grant;
pub(in crate::upstream) use limits::{Charges, Gate, Remaining, Spec, Standing};
pub use limits::{RateBook, RateLimits, RateRequest, RateStatus, RateTurn, TenantMeters};
pub(in crate::upstream) use meter::Used;
