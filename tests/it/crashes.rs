//! Servers that die, fall silent or are cut off in the middle of a batch.

mod handovers;
mod kills;
mod names;
pub(super) mod outages;
mod poison;
mod refused;
