//! Exit codes of `nightshift run`, as its help explains them.

/// Some requests failed, or the run could not be finished.
pub(super) const FAILED: u8 = 1;
/// The input or the configuration is not valid: nothing was sent.
pub(super) const NOT_VALID: u8 = 3;
/// No upstream answered, or the upstreams refuse every request.
pub(super) const NO_ANSWER: u8 = 4;
