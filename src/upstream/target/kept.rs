//! Places that are kept for lines that can go nowhere else.
//!
//! A line that some of its routes cannot take waits for a place at the others. Where lines that
//! may go anywhere keep these full, the line would find a place by luck alone. So the next place
//! that becomes free there is kept for lines like it, until the line is back from its pause.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::backend::Backend;
use crate::upstream::route::{LaneId, Target};

/// The longest pause of a line for which a place is kept. A place that becomes free idles for no
/// longer than until the line is back; and where its batch has ended meanwhile, for as long again.
pub(super) const PAUSE_MAX: Duration = Duration::from_secs(4);
/// A place is kept for twice that and so much more: others may be sent before the line.
const MARGIN: Duration = Duration::from_secs(1);

/// The places that are kept at one upstream: one for each target at most.
#[derive(Debug, Default)]
pub(super) struct KeptPlaces(Vec<KeptPlace>);

#[derive(Debug)]
struct KeptPlace {
    /// By the first key: which of the model's limits and breakers the place counts for.
    backend: Arc<Backend>,
    lane: LaneId,
    limit: Option<usize>,
    window: Option<usize>,
    until: Instant,
}

/// How many places are kept from a line at a target, of each limit: none or one.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Kept {
    pub(super) of_upstream: usize,
    pub(super) of_backend: usize,
    pub(super) of_lane: usize,
    pub(super) of_route: usize,
    pub(super) of_window: usize,
}

impl KeptPlaces {
    /// What is kept from a line that may go anywhere.
    pub(super) fn beside(&self, target: &Target, now: Instant) -> Kept {
        let mut kept = Kept::default();
        for place in self.0.iter().filter(|place| place.until > now) {
            let is_of_route = place.limit.is_some() && place.limit == target.limit;
            let is_of_window = place.window.is_some() && place.window == target.window;
            kept.of_upstream = 1;
            kept.of_backend |= usize::from(Arc::ptr_eq(&place.backend, first(target)));
            kept.of_lane |= usize::from(place.lane == target.lane);
            kept.of_route |= usize::from(is_of_route);
            kept.of_window |= usize::from(is_of_window);
        }
        kept
    }

    /// The next place at a target is kept for a line that pauses, and comes back within
    /// [`PAUSE_MAX`]. False if one is kept for another line, which comes back in time.
    pub(super) fn keep(&mut self, target: &Target, now: Instant) -> bool {
        self.0.retain(|place| {
            place.until > now && (!place.is_at(target) || place.is_waited_for(now))
        });
        if self.0.iter().any(|place| place.is_at(target)) {
            return false;
        }
        self.0.push(KeptPlace {
            backend: Arc::clone(first(target)),
            lane: target.lane,
            limit: target.limit,
            window: target.window,
            until: now + 2 * PAUSE_MAX + MARGIN,
        });
        true
    }

    /// A line that can go nowhere else has a place at a target.
    pub(super) fn take(&mut self, target: &Target) {
        self.0.retain(|place| !place.is_at(target));
    }
}

impl KeptPlace {
    /// Whether the pause of the line may last yet for which the place is kept.
    fn is_waited_for(&self, now: Instant) -> bool {
        self.until > now + PAUSE_MAX + MARGIN
    }

    fn is_at(&self, target: &Target) -> bool {
        let is_same = (self.lane, self.limit, self.window);
        is_same == (target.lane, target.limit, target.window)
            && Arc::ptr_eq(&self.backend, first(target))
    }
}

fn first(target: &Target) -> &Arc<Backend> {
    &target.by_key[0].backend
}
