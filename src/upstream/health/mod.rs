//! Whether lines may be sent: breakers, what processes tell each other of them, and probes.

pub(super) mod breaker;
pub(super) mod cooldown;
pub(super) mod probe;
