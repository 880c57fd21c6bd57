//! Outages by schedule: for how long the simulator is away, and how that shows.

use std::time::Duration;

/// How a server that is away behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutageKind {
    /// Nobody listens: connections are refused, and those that are open are cut.
    Refuse,
    /// Nothing is answered. When the outage ends, the calls that have waited are cut.
    Hang,
    /// Everything is answered with this status.
    Status(u16),
}

/// A time in which the simulator is away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outage {
    pub kind: OutageKind,
    /// From when until when, counted from the simulator's start.
    pub from: Duration,
    pub to: Duration,
}

/// The outage of a moment, `since` the simulator's start. Of several the first counts.
pub(super) fn at(outages: &[Outage], since: Duration) -> Option<Outage> {
    let mut outages = outages.iter();
    let now = outages.find(|outage| (outage.from..outage.to).contains(&since));
    now.copied()
}

/// The next time in which connections are refused, or the present one.
pub(super) fn next_refusal(outages: &[Outage], since: Duration) -> Option<Outage> {
    let refusals = outages.iter().filter(|one| one.kind == OutageKind::Refuse);
    let ahead = refusals.filter(|outage| outage.to > since);
    ahead.min_by_key(|outage| outage.from).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_lasts_from_its_beginning_up_to_its_end() {
        let outage = |kind, from, to| Outage {
            kind,
            from: Duration::from_secs(from),
            to: Duration::from_secs(to),
        };
        let first = outage(OutageKind::Status(503), 10, 20);
        let second = outage(OutageKind::Refuse, 40, 45);
        let third = outage(OutageKind::Refuse, 60, 61);
        let all = [third, first, second];
        let at = |seconds| at(&all, Duration::from_secs(seconds));
        assert_eq!(at(9), None);
        assert_eq!(at(10), Some(first));
        assert_eq!(at(19), Some(first));
        assert_eq!(at(20), None);
        assert_eq!(at(44), Some(second));
        let next = |seconds| next_refusal(&all, Duration::from_secs(seconds));
        assert_eq!(next(0), Some(second));
        assert_eq!(next(44), Some(second));
        assert_eq!(next(45), Some(third));
        assert_eq!(next(61), None);
    }
}
