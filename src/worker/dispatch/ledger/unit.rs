//! A unit with lines that are not ended, and the state of each of those lines.

use std::cell::RefCell;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use super::run_queues::{Position, Resting};
use crate::domain::batch::EndReason;
use crate::upstream::{LaneId, LineSize, Routes};
use crate::worker::work::line::{OpenLine, Pending, Request};
use crate::worker::work::unit::LoadedUnit;

/// Which of a unit's ready lines: the two have queues of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Ready {
    /// Lines that have not been sent yet.
    Fresh,
    /// Lines that have failed before, and may be sent again.
    Retry,
}

/// When a line that failed may be sent again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Due {
    pub at: Instant,
    /// The line may be sent from this moment on if a call succeeds where the line failed.
    pub soonest: Option<Instant>,
}

/// A unit with lines that are not ended.
pub(crate) struct ActiveUnit {
    unit: Arc<LoadedUnit>,
    /// `None`: no upstream serves the model, or the lines are not to be sent any more.
    routes: Option<Arc<Routes>>,
    position: Position,
    /// In the order of the file, or of how they begin.
    fresh: VecDeque<Pending>,
    /// The place of the next fresh line: the first but where lines go by how they begin.
    cursor: usize,
    retries: VecDeque<Pending>,
    waiting: BinaryHeap<Waiting>,
    in_flight: usize,
    end_reason: Option<EndReason>,
    /// When calls in flight are cut, once the batch is ending.
    settle_by: Option<Instant>,
    /// A line whose size was asked for.
    sized: RefCell<Option<SizedLine>>,
}

/// A line with its size: one that waits for a rate limit is looked at again and again. Its request
/// was read for that, and is not read again when the line is sent.
struct SizedLine {
    index: u32,
    size: LineSize,
    request: Option<Request>,
}

/// A line that waits for its next attempt. The order makes a heap give the earliest line first.
struct Waiting {
    due: Due,
    pending: Pending,
}

impl PartialEq for Waiting {
    fn eq(&self, other: &Self) -> bool {
        self.due.at == other.due.at
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
        other.due.at.cmp(&self.due.at)
    }
}

/// What anybody may see of a unit.
impl ActiveUnit {
    pub(crate) fn unit(&self) -> &Arc<LoadedUnit> {
        &self.unit
    }

    pub(crate) fn id(&self) -> u64 {
        self.unit.id
    }

    /// By which routes the unit's lines go. `None`: they are not sent.
    pub(crate) fn routes(&self) -> Option<&Arc<Routes>> {
        self.routes.as_ref()
    }

    pub(crate) fn lane(&self) -> Option<LaneId> {
        self.routes.as_ref().map(|routes| routes.lane)
    }

    pub(crate) fn end_reason(&self) -> Option<EndReason> {
        self.end_reason
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Lines that are not in flight and not ended, by their state.
    pub(crate) fn resting(&self) -> Resting {
        Resting {
            fresh: self.fresh.len(),
            retries: self.retries.len(),
            waiting: self.waiting.len(),
        }
    }

    /// The line that is sent next of those that are ready.
    pub(crate) fn first(&self, ready: Ready) -> Option<&Pending> {
        match ready {
            Ready::Fresh => self.fresh.get(self.cursor),
            Ready::Retry => self.retries.front(),
        }
    }

    /// Of its fresh lines the first beginning that is not before this one, or the first of all;
    /// `None`: it has no fresh line, or its lines do not go by how they begin.
    pub(crate) fn beginning_from(&self, beginning: u64) -> Option<u64> {
        let beginnings = self.unit.beginnings()?;
        let next = self.fresh.get(self.place_of(beginning));
        let next = next.or_else(|| self.fresh.front())?;
        Some(beginnings.get(&next.line))
    }

    /// The place of the first fresh line that does not begin before this.
    fn place_of(&self, beginning: u64) -> usize {
        self.unit.beginnings().map_or(0, |beginnings| {
            let is_before = |pending: &Pending| beginnings.get(&pending.line) < beginning;
            self.fresh.partition_point(is_before)
        })
    }

    /// The size of one of the unit's lines, by which rate limits reserve tokens.
    pub(crate) fn size_of(&self, line: &OpenLine) -> LineSize {
        let mut sized = self.sized.borrow_mut();
        if let Some(known) = &*sized
            && known.index == line.index
        {
            return known.size;
        }
        let (request, size) = line.read_sized(&self.unit.text).unzip();
        let size = size.unwrap_or_default();
        *sized = Some(SizedLine {
            index: line.index,
            size,
            request,
        });
        size
    }

    /// The request of a line, if it was read for its size.
    pub(crate) fn take_request(&self, line: &OpenLine) -> Option<Request> {
        let known = self.sized.take()?;
        known.request.filter(|_| known.index == line.index)
    }

    /// Whether no line of the unit is in flight or on its way to the disk.
    pub(crate) fn is_idle(&self) -> bool {
        self.end_reason.is_none() && self.unit.durable().open == self.resting().all()
    }

    /// Whether the unit itself lets its next line be sent.
    pub(crate) fn allows(&self, ready: Ready) -> bool {
        let Some(next) = self.first(ready) else {
            return false;
        };
        self.end_reason.is_none()
            && self.unit.isolation().is_none_or(|isolation| {
                let is_idle = || self.waiting.is_empty() && self.is_idle();
                isolation.allows(next.line.index, self.in_flight, is_idle)
            })
    }

    /// How many lines could be sent if there were permits.
    pub(crate) fn sendable(&self) -> usize {
        match self.unit.isolation() {
            None => self.resting().ready(),
            Some(isolation) => {
                let ready = self.retries.iter().chain(&self.fresh);
                let ready = ready.map(|pending| pending.line.index);
                isolation.sendable(ready, !self.waiting.is_empty())
            }
        }
    }
}

/// What only the ledger does with a unit.
impl ActiveUnit {
    pub(super) fn new(
        unit: Arc<LoadedUnit>,
        routes: Option<Arc<Routes>>,
        position: Position,
    ) -> Self {
        Self {
            unit,
            routes,
            position,
            fresh: VecDeque::new(),
            cursor: 0,
            retries: VecDeque::new(),
            waiting: BinaryHeap::new(),
            in_flight: 0,
            end_reason: None,
            settle_by: None,
            sized: RefCell::new(None),
        }
    }

    /// The unit's lines go by other routes from now on.
    pub(super) fn reroute(&mut self, routes: Option<Arc<Routes>>, position: Position) {
        (self.routes, self.position) = (routes, position);
    }

    pub(super) fn position(&self) -> Position {
        self.position
    }

    pub(super) fn settle_by(&self) -> Option<Instant> {
        self.settle_by
    }

    /// When the first of the waiting lines is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.waiting.peek().map(|waiting| waiting.due.at)
    }

    /// Whether all lines have ended.
    pub(super) fn is_spent(&self) -> bool {
        self.in_flight == 0 && self.resting().all() == 0
    }

    pub(super) fn add(&mut self, lines: Vec<OpenLine>) {
        self.fresh.extend(lines.into_iter().map(Pending::new));
    }

    pub(super) fn seek(&mut self, beginning: u64) {
        self.cursor = self.place_of(beginning);
    }

    pub(super) fn start(&mut self, ready: Ready) -> Option<Pending> {
        let pending = match ready {
            Ready::Fresh => self.fresh.remove(self.cursor)?,
            Ready::Retry => self.retries.pop_front()?,
        };
        if self.cursor >= self.fresh.len() {
            self.cursor = 0;
        }
        self.in_flight += 1;
        Some(pending)
    }

    /// The next lines go with the one that was started, as long as `takes` takes them, `most` at
    /// most.
    pub(super) fn join(
        &mut self,
        ready: Ready,
        most: usize,
        takes: &mut impl FnMut(&OpenLine) -> bool,
    ) -> Vec<Pending> {
        let lines = match ready {
            Ready::Fresh => &mut self.fresh,
            Ready::Retry => &mut self.retries,
        };
        let taken = lines.iter().take(most);
        let count = taken.take_while(|pending| takes(&pending.line)).count();
        self.in_flight += count;
        lines.drain(..count).collect()
    }

    /// So many lines have come back.
    pub(super) fn finish(&mut self, lines: usize) {
        self.in_flight -= lines;
    }

    pub(super) fn wait(&mut self, due: Due, pending: Pending) {
        self.waiting.push(Waiting { due, pending });
    }

    /// Lines that are due may be sent again.
    pub(super) fn wake(&mut self, now: Instant) {
        while self.next_due().is_some_and(|due| due <= now) {
            let due = self.waiting.pop().map(|waiting| waiting.pending);
            self.retries.extend(due);
        }
    }

    /// Lines that wait for a success where they failed are due sooner, if a call has succeeded
    /// there. Lines that failed at something that an operator has mended since are due now.
    pub(super) fn hasten(&mut self, now: Instant) {
        if self.waiting.is_empty() {
            return;
        }
        let lines = std::mem::take(&mut self.waiting).into_iter();
        self.waiting = lines
            .map(|mut line| {
                let history = &line.pending.history;
                if history.is_reset() {
                    line.due.at = line.due.at.min(now);
                } else if let Some(soonest) = line.due.soonest
                    && history.is_hastened()
                {
                    line.due.at = line.due.at.min(soonest);
                    line.due.soonest = None;
                }
                line
            })
            .collect();
    }

    /// All lines that wait are due now, whatever they wait for.
    pub(super) fn hasten_all(&mut self, now: Instant) {
        let lines = std::mem::take(&mut self.waiting).into_iter();
        self.waiting = lines
            .map(|mut line| {
                line.due.at = line.due.at.min(now);
                line
            })
            .collect();
    }

    /// The batch ends: calls in flight may settle until this moment, or until the moment that an
    /// earlier end has set.
    pub(super) fn end(&mut self, end_reason: EndReason, settle_by: Instant) {
        self.end_reason = Some(end_reason);
        self.settle_by.get_or_insert(settle_by);
    }

    /// Cuts the calls in flight if they had their time to settle.
    pub(super) fn cut_settled(&mut self, now: Instant) {
        if self.settle_by.is_some_and(|by| by <= now) {
            self.unit.cut.cancel();
            self.settle_by = None;
        }
    }

    /// Takes all lines that are not in flight.
    pub(super) fn take_resting(&mut self) -> Vec<Pending> {
        let mut taken: Vec<Pending> = self.retries.drain(..).collect();
        taken.extend(self.fresh.drain(..));
        self.cursor = 0;
        taken.extend(self.waiting.drain().map(|waiting| waiting.pending));
        taken
    }
}
