//! What a strategy looks at.

use super::speed::Speed;

/// How much a line avoids a target, for what it has been through. What it avoids less comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::upstream) enum Avoid {
    No,
    /// The last attempt failed at another model of the upstream.
    SameUpstream,
    /// The last attempt failed here.
    SameTarget,
    /// The line's model is not here.
    ModelMissing,
}

impl Avoid {
    pub(super) const ALL: [Avoid; 4] = [
        Avoid::No,
        Avoid::SameUpstream,
        Avoid::SameTarget,
        Avoid::ModelMissing,
    ];
}

/// What a strategy knows of a target that can take a line now.
#[derive(Clone, Copy, Debug)]
pub(in crate::upstream) struct Load {
    pub(in crate::upstream) avoid: Avoid,
    pub(in crate::upstream) in_flight: usize,
    /// At least 1.
    pub(in crate::upstream) weight: u32,
}

/// The targets that a strategy chooses from: those of one tier, by their place in it.
pub(in crate::upstream) trait Candidates {
    /// How many there are.
    fn count(&self) -> usize;

    /// `None`: the target cannot take a line now.
    fn load(&self, index: usize) -> Option<Load>;

    /// How fast the target has answered.
    fn speed(&self, index: usize) -> Speed;
}
