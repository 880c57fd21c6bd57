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

/// What each target was found to be for one line. Kept, so that a choice allocates nothing.
#[derive(Debug)]
pub(super) struct Loads(Box<[Option<Load>]>);

impl Loads {
    /// For so many targets.
    pub(super) fn new(count: usize) -> Self {
        Self(vec![None; count].into())
    }

    /// The targets that the line avoids least of those that can take it, by their place. Each
    /// target is looked at once.
    pub(super) fn least_avoided(
        &mut self,
        targets: &impl Candidates,
    ) -> impl Iterator<Item = (usize, Load)> + Clone {
        for (index, load) in self.0.iter_mut().enumerate() {
            *load = targets.load(index);
        }
        let loads = self.0.iter().enumerate();
        let loads = loads.filter_map(|(index, load)| Some((index, (*load)?)));
        let least = loads.clone().map(|(_, load)| load.avoid).min();
        loads.filter(move |(_, load)| Some(load.avoid) == least)
    }
}
