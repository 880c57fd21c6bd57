//! What calls go to: the state of upstreams and of models there, and the two ends of a call.
//!
//! | file | is for |
//! |---|---|
//! | `upstream` | the state of one upstream: what a call's begin and end do to it |
//! | `backend` | a model at an upstream, with a breaker of its own |
//! | `targets` | all of them, under one lock |
//! | `acquire`, `permit`, `finish` | before, during and after a call |
//! | `kept` | places that are kept for lines that can go nowhere else |
//! | `switch` | whether lines may be sent to an upstream, by its operators |
//! | `rates` | what rate limits have to do with calls |
//! | `windows` | what windows that are found out have to do with calls |
//! | `reports` | what probes, other processes and people say |
//! | `questions` | what is open, what works |

mod acquire;
pub(super) mod backend;
mod finish;
mod kept;
mod permit;
mod questions;
mod rates;
mod reports;
pub(super) mod switch;
mod targets;
pub(super) mod upstream;
mod windows;

pub use acquire::Acquired;
pub(super) use acquire::Reach;
pub(super) use finish::Ended;
pub use permit::Permit;
pub use switch::Switch;
pub use targets::Targets;
