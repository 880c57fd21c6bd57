//! Looks the whole store over for what must never be: reads only, holds little, and may run
//! beside a server.
//!
//! What a transaction changes together is read in one snapshot (a batch), or by one statement
//! (rows that belong to nothing), so that nothing is taken for a fault that is merely in motion.
//! What a duty will have mended in a moment (the units of a process that died, what is to be
//! removed) is a fault only if servers run and do not mend it.

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
