//! Lines that have their outcome, on their way to the store.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::time::Instant;

use super::unit::LoadedUnit;
use crate::codec::segment::Line;
use crate::domain::outcome::Failure;
use crate::store::CountsDelta;
use crate::upstream::{Bill, Reservation};

/// A line with its outcome.
pub(crate) struct FinishedLine {
    pub unit: Arc<LoadedUnit>,
    pub line: Line,
    pub counts: CountsDelta,
    /// What its calls were billed.
    pub bill: Bill,
    /// Why the line failed, if it did.
    pub failure: Option<Failure>,
    /// The answer's part of the memory budget, held until the answer is on disk.
    pub reservation: Option<Reservation>,
}

/// With so many bytes in the queue a flush is due at once.
pub(crate) const FULL_BYTES: usize = 4 << 20;

/// Finished lines that wait for the next flush.
#[derive(Default)]
pub(crate) struct CompletionQueue {
    queued: Mutex<Queued>,
    changed: Notify,
}

#[derive(Default)]
struct Queued {
    lines: Vec<FinishedLine>,
    bytes: usize,
    /// When the first of the lines came.
    first_at: Option<Instant>,
    /// The units of which all lines are queued, where the unit is all that its batch has.
    whole_batches: HashSet<u64>,
}

/// How full the queue is. The flusher is notified when this changes, not for each line.
#[derive(PartialEq, Eq)]
struct Fill {
    has_lines: bool,
    is_full: bool,
    has_whole_batch: bool,
}

impl CompletionQueue {
    pub(crate) fn push(&self, finished: impl IntoIterator<Item = FinishedLine>) {
        let mut queued = self.lock();
        let before = queued.fill();
        for line in finished {
            queued.first_at.get_or_insert_with(Instant::now);
            queued.bytes += line.line.bytes.len();
            queued.lines.push(line);
        }
        let is_changed = queued.fill() != before;
        drop(queued);
        if is_changed {
            self.changed.notify_one();
        }
    }

    /// The last line of a unit was queued that is all that its batch has: somebody may be waiting
    /// for the batch, which ends with the next flush.
    pub(crate) fn batch_finished(&self, unit: &LoadedUnit) {
        let mut queued = self.lock();
        let is_news = queued.whole_batches.is_empty();
        queued.whole_batches.insert(unit.id);
        drop(queued);
        if is_news {
            self.changed.notify_one();
        }
    }

    /// Whether a batch of one unit has all its lines in the queue. Such a batch ends with its
    /// flush.
    pub(crate) fn has_whole_batch(&self) -> bool {
        !self.lock().whole_batches.is_empty()
    }

    /// Takes the lines of batches of one unit that have all their lines in the queue.
    pub(crate) fn take_whole_batches(&self) -> Vec<FinishedLine> {
        let mut queued = self.lock();
        let units = std::mem::take(&mut queued.whole_batches);
        let lines = std::mem::take(&mut queued.lines).into_iter();
        let (taken, left): (Vec<_>, Vec<_>) = lines.partition(|line| units.contains(&line.unit.id));
        queued.bytes = left.iter().map(|line| line.line.bytes.len()).sum();
        if left.is_empty() {
            queued.first_at = None;
        }
        queued.lines = left;
        taken
    }

    /// Takes all lines.
    pub(crate) fn take(&self) -> Vec<FinishedLine> {
        let mut queued = self.lock();
        (queued.bytes, queued.first_at) = (0, None);
        queued.whole_batches.clear();
        // The next flush will have about as many lines.
        let next = Vec::with_capacity(queued.lines.len());
        std::mem::replace(&mut queued.lines, next)
    }

    /// How many lines and bytes wait.
    pub(crate) fn size(&self) -> (usize, usize) {
        let queued = self.lock();
        (queued.lines.len(), queued.bytes)
    }

    /// Since when the first of the lines waits.
    pub(crate) fn first_at(&self) -> Option<Instant> {
        self.lock().first_at
    }

    /// Notifies the flusher that no line is in flight: nothing else is on its way to the queue.
    pub(crate) fn notify(&self) {
        self.changed.notify_one();
    }

    /// Waits until the first line is queued, until a flush is due, or until [`Self::notify`].
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, Queued> {
        self.queued.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queued {
    fn fill(&self) -> Fill {
        Fill {
            has_lines: !self.lines.is_empty(),
            is_full: self.bytes >= FULL_BYTES,
            has_whole_batch: !self.whole_batches.is_empty(),
        }
    }
}
