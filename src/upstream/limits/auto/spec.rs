//! A window, as the configuration asks for it.

use super::window::START;

/// A window: of a model at an upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::upstream) struct WindowSpec {
    /// `UPSTREAM > MODEL`
    pub(in crate::upstream) name: String,
    /// The upstream's number and name.
    pub(in crate::upstream) upstream: usize,
    pub(in crate::upstream) upstream_name: String,
    /// What the upstream calls the model, or the pattern that its models have in common.
    pub(in crate::upstream) model: String,
    /// Calls at once: the window is never larger.
    pub(in crate::upstream) most: usize,
    /// Whether others have the right of way at the upstream.
    pub(in crate::upstream) yields: bool,
}

impl WindowSpec {
    /// The same as stored windows have it.
    pub(super) fn most(&self) -> u32 {
        u32::try_from(self.most).unwrap_or(u32::MAX)
    }

    /// The window before anything is known.
    pub(in crate::upstream) fn first(&self) -> usize {
        (START as usize).min(self.most)
    }
}
