//! How much at once, and how often: calls, and bytes.

pub(super) mod auto;
pub(super) mod concurrency;
pub(super) mod interval;
pub(super) mod memory;
pub(super) mod rate;
