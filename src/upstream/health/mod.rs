//! Whether lines may be sent: breakers, what they know, and what brings a target back.

pub(super) mod announce;
pub(super) mod breaker;
pub(super) mod cooldown;
pub(super) mod evidence;
pub(super) mod fail_fast;
pub(super) mod probe;
pub(super) mod reason;
