//! What labels are called that stand for more than themselves.

/// Stands for every model that no configuration and no upstream names: what users write must not
/// become labels without end.
pub const OTHER: &str = "other";
