//! What is in hand: units and their lines, and how many are in flight, by lane and tenant.

use std::collections::{BTreeMap, BinaryHeap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use super::super::held::{Care, HeldUnit, OpenLine};
use super::super::line::Pending;
use super::turns::Tenant;
use crate::domain::batch::Ending;
use crate::domain::unit::UnitKey;
use crate::upstream::{LaneId, Routes};

#[derive(Default)]
pub(super) struct State {
    pub(super) entries: BTreeMap<u64, Entry>,
    pub(super) lanes: BTreeMap<LaneId, Lane>,
    /// Those that have something in hand.
    pub(super) tenants: HashMap<Arc<str>, Tenant>,
    /// Every unit that the store says is ours, until its last flush is accepted.
    pub(super) held: HashMap<UnitKey, i64>,
    pub(super) in_flight: usize,
    /// No line that waits is due before; none waits where there is none. Kept, so that choosing a
    /// line need not look at every unit.
    pub(super) wake_at: Option<Instant>,
    /// The unit that has its line on its way or not on disk yet, and nothing else may be sent.
    pub(super) alone: Option<u64>,
    /// What there is to lease, as the supply has seen it: routes that are open, each once.
    pub(super) offered: Vec<Arc<Routes>>,
    pub(super) closed: bool,
}

#[derive(Default)]
pub(super) struct Lane {
    /// This process's share of it, kept here so that choosing need not ask.
    pub(super) limit: usize,
    pub(super) in_flight: usize,
    pub(super) waiting: usize,
    /// Lines that could be sent now, as far as permits and gates allow.
    pub(super) ready: usize,
    /// Below so many ready lines the supply is told, once, if it has more to lease.
    pub(super) low: usize,
    pub(super) more: bool,
    /// Lines that were ever answered: the supply tells the rate from it.
    pub(super) answered: u64,
}

/// A unit with lines that are not ended.
pub(super) struct Entry {
    pub(super) unit: Arc<HeldUnit>,
    /// As it was begun, or usual since it was cleared.
    pub(super) care: Care,
    pub(super) lane: Option<LaneId>,
    pub(super) ready: VecDeque<Pending>,
    pub(super) waiting: BinaryHeap<Waiting>,
    pub(super) in_flight: usize,
    pub(super) ending: Option<Ending>,
    /// When calls in flight are cut, once the batch is ending.
    pub(super) settle_by: Option<Instant>,
}

impl Entry {
    /// A unit that is taken in hand, with all its open lines ready.
    pub(super) fn new(unit: &Arc<HeldUnit>, lines: Vec<OpenLine>) -> Self {
        let ready = lines.into_iter().map(|line| Pending {
            line,
            attempts: 0,
            avoid: None,
            answer: None,
        });
        Self {
            care: unit.care,
            unit: Arc::clone(unit),
            lane: unit.routes.as_ref().map(|routes| routes.lane),
            ready: ready.collect(),
            waiting: BinaryHeap::new(),
            in_flight: 0,
            ending: None,
            settle_by: None,
        }
    }
}

/// A line that waits for its next attempt. Ordered so that a heap gives the earliest first.
pub(super) struct Waiting {
    pub(super) due: Instant,
    pub(super) pending: Pending,
}

impl PartialEq for Waiting {
    fn eq(&self, other: &Self) -> bool {
        self.due == other.due
    }
}
impl Eq for Waiting {}
impl PartialOrd for Waiting {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Waiting {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        other.due.cmp(&self.due)
    }
}

impl State {
    /// Takes a line that has come back off the counts of what is in flight.
    pub(super) fn landed(&mut self, unit: &HeldUnit, ended: bool) {
        self.in_flight -= 1;
        self.arrived(&unit.batch.tenant);
        let lane = unit
            .routes
            .as_ref()
            .and_then(|routes| self.lanes.get_mut(&routes.lane));
        if let Some(lane) = lane {
            lane.in_flight -= 1;
            lane.answered += u64::from(ended);
        }
        if let Some(entry) = self.entries.get_mut(&unit.id) {
            entry.in_flight -= 1;
        }
    }

    pub(super) fn remove(&mut self, id: u64) -> Option<Entry> {
        self.not_alone(id);
        let entry = self.take_out(id)?;
        if let Some(lane) = entry.lane.and_then(|lane| self.lanes.get_mut(&lane)) {
            lane.waiting -= entry.waiting.len();
            lane.ready -= entry.ready.len();
        }
        Some(entry)
    }

    /// Lets go of a unit all of whose lines have ended; the flusher does the rest.
    pub(super) fn remove_if_spent(&mut self, id: u64) {
        let spent = self.entries.get(&id).is_some_and(|entry| {
            entry.in_flight == 0 && entry.ready.is_empty() && entry.waiting.is_empty()
        });
        if spent {
            self.take_out(id);
        }
    }

    /// Takes the lines of a batch that have not been sent, by unit.
    pub(super) fn end_batch(
        &mut self,
        batch_id: &str,
        ending: Ending,
        settle_by: Instant,
    ) -> Vec<(Arc<HeldUnit>, Vec<Pending>)> {
        let mut taken = Vec::new();
        for entry in self.entries.values_mut() {
            if entry.unit.batch.id != batch_id || entry.ending == Some(ending) {
                continue;
            }
            entry.ending = Some(ending);
            entry.settle_by.get_or_insert(settle_by);
            let mut unsent: Vec<Pending> = entry.ready.drain(..).collect();
            let ready = unsent.len();
            unsent.extend(entry.waiting.drain().map(|waiting| waiting.pending));
            if let Some(lane) = entry.lane.and_then(|lane| self.lanes.get_mut(&lane)) {
                lane.ready -= ready;
                lane.waiting -= unsent.len() - ready;
            }
            taken.push((entry.unit.clone(), unsent));
        }
        for (unit, _) in &taken {
            self.remove_if_spent(unit.id);
        }
        taken
    }

    /// Cuts calls whose batch has ended and that had their time to settle.
    pub(super) fn cut_settled(&mut self, now: Instant) {
        for entry in self.entries.values_mut() {
            if entry.settle_by.is_some_and(|by| by <= now) {
                entry.unit.cut.cancel();
                entry.settle_by = None;
            }
        }
    }

    /// Has a line of a unit wait until then. If the unit is not in hand any more, the line is not
    /// ours either.
    pub(super) fn wait(&mut self, id: u64, due: Instant, pending: Pending) {
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        entry.waiting.push(Waiting { due, pending });
        if let Some(lane) = entry.lane.and_then(|lane| self.lanes.get_mut(&lane)) {
            lane.waiting += 1;
        }
        self.wake_at = Some(self.wake_at.map_or(due, |at| at.min(due)));
    }

    /// Lines whose wait is over go before the others of their unit.
    pub(super) fn wake_due(&mut self, now: Instant) {
        if self.wake_at.is_none_or(|at| at > now) {
            return;
        }
        self.wake_at = None;
        for entry in self.entries.values_mut() {
            while entry.waiting.peek().is_some_and(|first| first.due <= now) {
                let Some(waiting) = entry.waiting.pop() else {
                    break;
                };
                entry.ready.push_front(waiting.pending);
                if let Some(lane) = entry.lane.and_then(|lane| self.lanes.get_mut(&lane)) {
                    lane.waiting -= 1;
                    lane.ready += 1;
                }
            }
            let next = entry.waiting.peek().map(|first| first.due);
            self.wake_at = self.wake_at.into_iter().chain(next).min();
        }
    }

    /// When the next line that waits may be sent, or the next call be cut.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let settle = self.entries.values().filter_map(|e| e.settle_by);
        settle.chain(self.wake_at).min()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::worker::testing;

    #[test]
    fn lines_of_any_unit_wake_when_they_are_due_and_not_before() {
        let mut state = State::default();
        let begun = Instant::now();
        let after = |seconds| begun + Duration::from_secs(seconds);
        // Two lines of each unit; the unit that comes last has the line that is due first.
        for (id, due) in [(1, [40, 20]), (2, [30, 10])] {
            let leased = testing::leased(2, 0, None);
            let batch = testing::batch();
            let (unit, lines) = testing::unit_of(id, batch, leased);
            state.put_in(Entry::new(&unit, lines));
            for seconds in due {
                let entry = state.entries.get_mut(&id).unwrap();
                let pending = entry.ready.pop_front().unwrap();
                state.wait(id, after(seconds), pending);
            }
        }
        for (now, [of_one, of_two], next) in [
            (9, [0, 0], Some(10)),
            (10, [0, 1], Some(20)),
            (25, [1, 1], Some(30)),
            (40, [2, 2], None),
        ] {
            state.wake_due(after(now));
            let ready = |id| state.entries[&id].ready.len();
            assert_eq!((ready(1), ready(2)), (of_one, of_two), "after {now} s");
            assert_eq!(state.next_due(), next.map(after), "after {now} s");
        }
    }
}
