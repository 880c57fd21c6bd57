//! The audit: looks for what must never be stored. It only reads, holds little in memory, and may
//! run beside a server.
//!
//! What a transaction changes together is read in one snapshot (a batch) or by one statement (rows
//! that belong to nothing). So nothing that is merely in motion looks like a fault. What a task
//! will repair in a moment (the units of a process that died, content that is to be removed) is a
//! fault only if servers run and do not repair it.

mod batch;
mod files;
mod lines;
mod motion;
mod orphans;
mod report;
mod run;
mod running;
mod window;

pub use report::{AuditFinding, AuditSettings, Audited};
