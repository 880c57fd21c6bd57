//! Which of several targets takes the next line. A strategy has a file here, and a line in
//! [`Strategy`], in [`Balancer::new`] and in [`Balancer::choose`].

mod fastest;
mod least_busy;
mod least_recently_used;
mod load;
mod random;
mod round_robin;
pub(super) mod speed;
#[cfg(test)]
mod testing;
mod weighted;

use rand::RngExt as _;
use tokio::time::Instant;

pub(super) use self::load::{Avoid, Candidates, Load};

use self::fastest::Fastest;
use self::least_busy::LeastBusy;
use self::least_recently_used::LeastRecentlyUsed;
use self::random::Random;
use self::round_robin::RoundRobin;
use self::weighted::Weighted;

/// How the lines of a model are spread over its targets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Strategy {
    #[default]
    LeastBusy,
    Weighted,
    RoundRobin,
    LeastRecentlyUsed,
    Fastest,
    Random,
}

impl Strategy {
    pub const ALL: [Strategy; 6] = [
        Strategy::LeastBusy,
        Strategy::Weighted,
        Strategy::RoundRobin,
        Strategy::LeastRecentlyUsed,
        Strategy::Fastest,
        Strategy::Random,
    ];

    /// As the configuration writes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Strategy::LeastBusy => "least_busy",
            Strategy::Weighted => "weighted",
            Strategy::RoundRobin => "round_robin",
            Strategy::LeastRecentlyUsed => "least_recently_used",
            Strategy::Fastest => "fastest",
            Strategy::Random => "random",
        }
    }
}

/// A strategy, and what it remembers from one choice to the next. There is one for each tier of a
/// model's targets.
#[derive(Debug)]
pub(super) enum Balancer {
    LeastBusy(LeastBusy),
    Weighted(Weighted),
    RoundRobin(RoundRobin),
    LeastRecentlyUsed(LeastRecentlyUsed),
    Fastest(Fastest),
    Random(Random),
}

impl Balancer {
    /// For so many targets.
    pub(super) fn new(strategy: Strategy, count: usize) -> Self {
        match strategy {
            Strategy::LeastBusy => Self::LeastBusy(LeastBusy::default()),
            Strategy::Weighted => Self::Weighted(Weighted::new(count)),
            Strategy::RoundRobin => Self::RoundRobin(RoundRobin::default()),
            Strategy::LeastRecentlyUsed => Self::LeastRecentlyUsed(LeastRecentlyUsed::new(count)),
            Strategy::Fastest => Self::Fastest(Fastest::new(count)),
            Strategy::Random => Self::Random(Random::new(count)),
        }
    }

    /// The target that takes the line, by its place in the tier. `None`: no target can take one.
    pub(super) fn choose(&mut self, targets: &impl Candidates, now: Instant) -> Option<usize> {
        match self {
            Self::LeastBusy(balancer) => balancer.choose(targets),
            Self::Weighted(balancer) => balancer.choose(targets),
            Self::RoundRobin(balancer) => balancer.choose(targets),
            Self::LeastRecentlyUsed(balancer) => balancer.choose(targets),
            Self::Fastest(balancer) => balancer.choose(targets, now, below),
            Self::Random(balancer) => balancer.choose(targets, below),
        }
    }
}

/// A random number from 0 to less than this.
fn below(limit: u64) -> u64 {
    rand::rng().random_range(0..limit)
}
