//! The nouns and rules of batching: pure, no I/O, no async.
//!
//! This room knows nothing of HTTP, SQL or model servers. Time comes in as an argument; the one
//! place that reads the system's clock is [`clock`].

pub mod asked;
pub mod batch;
pub mod beginning;
pub mod clock;
pub mod current;
pub mod divide;
pub mod endpoint;
pub mod file;
pub mod findings;
pub mod id;
pub mod json;
pub mod jsonl;
pub mod line;
pub mod outcome;
pub mod pack;
pub mod price;
pub mod reuse;
pub mod scope;
pub mod share;
pub mod tenant;
pub mod totals;
pub mod unit;
pub mod usage;
