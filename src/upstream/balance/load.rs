//! What a strategy looks at.

/// What a strategy knows of a target that can take a line now.
#[derive(Clone, Copy, Debug)]
pub(in crate::upstream) struct Load {
    /// The line's last attempt failed here: the target comes last.
    pub(in crate::upstream) avoid: bool,
    pub(in crate::upstream) in_flight: usize,
    /// At least 1.
    pub(in crate::upstream) weight: u32,
}
