//! Finished lines on their way to the store.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

use crate::codec::segment::Line;
use crate::store::CountsDelta;
use crate::upstream::Charge;
use crate::worker::work::unit::HeldUnit;

/// A line with its outcome.
pub(crate) struct Finished {
    pub unit: Arc<HeldUnit>,
    pub line: Line,
    pub counts: CountsDelta,
    /// The answer's part of the budget, held until it is on disk.
    pub charge: Option<Charge>,
}

/// With so much, a flush is due at once.
pub(crate) const FULL_BYTES: usize = 4 << 20;

/// Where slots leave finished lines and the flusher takes them.
#[derive(Default)]
pub(crate) struct Inbox {
    queue: Mutex<Queue>,
    arrived: Notify,
}

#[derive(Default)]
struct Queue {
    lines: Vec<Finished>,
    bytes: usize,
}

impl Inbox {
    pub(crate) fn push(&self, finished: impl IntoIterator<Item = Finished>) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let before = queue.stage();
        for line in finished {
            queue.bytes += line.line.bytes.len();
            queue.lines.push(line);
        }
        let is_news = queue.stage() != before;
        drop(queue);
        if is_news {
            self.arrived.notify_one();
        }
    }

    pub(crate) fn take(&self) -> Vec<Finished> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.bytes = 0;
        // The next flush will have about as many.
        let next = Vec::with_capacity(queue.lines.len());
        std::mem::replace(&mut queue.lines, next)
    }

    /// How many lines and bytes wait.
    pub(crate) fn size(&self) -> (usize, usize) {
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        (queue.lines.len(), queue.bytes)
    }

    /// Tells the flusher that nothing else is on its way to here.
    pub(crate) fn nudge(&self) {
        self.arrived.notify_one();
    }

    /// Waits until there is something, or so much that a flush is due; not for each line.
    pub(crate) async fn arrived(&self) {
        self.arrived.notified().await;
    }
}

impl Queue {
    /// What the flusher is told of when it changes.
    fn stage(&self) -> (bool, bool) {
        (!self.lines.is_empty(), self.bytes >= FULL_BYTES)
    }
}
