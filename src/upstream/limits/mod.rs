//! How much at once: calls, and bytes.

pub(super) mod concurrency;
pub(super) mod memory;
