//! One budget of bytes for what a process's uploads hold in memory beyond the little that each of
//! them needs: lines of more than 1 MiB, and hashes of many ids.
//!
//! Hashes never wait: where they find no room, they go to disk sooner. A long line waits for room,
//! and asks for more as it grows. If growing lines just took what is free, all of them could come
//! to wait for each other. So a line is given more only if afterwards at least one line that holds
//! some could still grow to the longest that a line may be. That line can come to its end, and what
//! it gives back is enough for the next line.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Semaphore, SemaphorePermit, oneshot, watch};

/// The budget of a process. It has room for two lines of 16 MiB (the default limit of a line) at
/// once, or for nine of 1.6 MB, or three of 5 MB. More lines at once would not come in faster,
/// because one core compresses hundreds of MB a second. Requests and answers in flight have as much
/// by default, so that a process stays well below 256 MiB.
const BYTES: usize = 64 << 20;
/// Hashes may have this part of the budget; the rest is for lines alone.
const HASHES_PART: usize = 4;
/// So many decoders may hold a window of up to 8 MiB at once, beyond the budget. A decoder reads
/// from the store and never from a client, so it does not hold its window for long.
const HEAVY_DECODERS: usize = 4;
/// A long line is held as it came, and then once more, compressed.
const COPIES: usize = 2;

/// How many bytes there are for uploads, who holds them, and who waits for some.
///
/// A process has one budget. Tenants that hold less go before those that hold more.
#[derive(Debug)]
pub struct UploadBudget {
    total: usize,
    state: Mutex<State>,
    heavy_decoders: Semaphore,
    /// Whether a line waits.
    waits: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    hashes: usize,
    /// The parts of all files, whether they hold some or not, by their number.
    lines: BTreeMap<u64, Line>,
    /// In the order in which they came.
    waiting: Vec<Waiter>,
}

/// What the long lines of one file hold.
#[derive(Debug)]
struct Line {
    tenant: String,
    held: usize,
    /// What the longest line that is allowed needs.
    most: usize,
}

#[derive(Debug)]
struct Waiter {
    line: u64,
    /// What the line holds once this is granted.
    bytes: usize,
    grant: oneshot::Sender<()>,
}

impl UploadBudget {
    /// The budget of a process whose lines may have `max_line_bytes`. It always has room for the
    /// longest line.
    #[must_use]
    pub fn new(max_line_bytes: usize) -> Arc<Self> {
        Self::of(BYTES.max(cost(max_line_bytes).saturating_mul(2)))
    }

    /// A budget of so many bytes.
    pub(super) fn of(total: usize) -> Arc<Self> {
        Arc::new(Self {
            total,
            state: Mutex::default(),
            heavy_decoders: Semaphore::new(HEAVY_DECODERS),
            waits: watch::Sender::new(false),
        })
    }

    /// A part of the budget, of no bytes so far, for the lines of one file.
    pub(super) fn part(self: &Arc<Self>, tenant: &str, max_line_bytes: usize) -> Part {
        let mut state = self.lock();
        let number = state.next;
        state.next += 1;
        let line = Line {
            tenant: tenant.to_owned(),
            held: 0,
            most: cost(max_line_bytes),
        };
        state.lines.insert(number, line);
        drop(state);
        Part {
            budget: Arc::clone(self),
            number,
        }
    }

    /// A part of the budget, of no bytes so far, for the hashes of one file.
    pub(super) fn hashes(self: &Arc<Self>) -> Hashes {
        Hashes {
            budget: Arc::clone(self),
            held: 0,
        }
    }

    /// Waits until one more decoder may hold a large window. The decoder has it until the permit is
    /// dropped.
    pub(super) async fn heavy_decoder(&self) -> Option<SemaphorePermit<'_>> {
        // The semaphore is never closed.
        self.heavy_decoders.acquire().await.ok()
    }

    /// Bytes that are held now.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        let state = self.lock();
        state.held() + state.hashes
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state, and then grants what can be granted.
    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        change(&mut state);
        state.serve(self.total);
        let waits = !state.waiting.is_empty();
        self.waits.send_if_modified(|before| {
            let changes = *before != waits;
            *before = waits;
            changes
        });
    }
}

impl State {
    fn held(&self) -> usize {
        self.lines.values().map(|line| line.held).sum()
    }

    fn held_by(&self, tenant: &str) -> usize {
        let lines = self.lines.values().filter(|line| line.tenant == tenant);
        lines.map(|line| line.held).sum()
    }

    /// Grants, one after another, all that waits and has room now.
    fn serve(&mut self, total: usize) {
        while let Some(place) = self.next_to_serve(total) {
            let Waiter { line, bytes, grant } = self.waiting.remove(place);
            if let Some(line) = self.lines.get_mut(&line) {
                line.held = bytes;
            }
            // The file that waited may be given up. Then the drop of its part gives this back.
            let _ = grant.send(());
        }
    }

    /// The place of the next waiter that there is room for. The tenant that holds least goes first,
    /// and of its lines those first that hold some already.
    fn next_to_serve(&self, total: usize) -> Option<usize> {
        let mut order: Vec<_> = (self.waiting.iter().enumerate())
            .filter_map(|(place, waiter)| {
                let line = self.lines.get(&waiter.line)?;
                let begins = line.held == 0;
                Some((self.held_by(&line.tenant), begins, place))
            })
            .collect();
        order.sort_unstable();
        let mut one_begins = false;
        for (_, begins, place) in order {
            // No line begins before a line whose turn it is: otherwise that line would find the
            // room taken again and again.
            if begins && one_begins {
                continue;
            }
            one_begins |= begins;
            let waiter = self.waiting.get(place)?;
            if self.may_hold(waiter.line, waiter.bytes, total) {
                return Some(place);
            }
        }
        None
    }

    /// Whether a line may hold so many bytes: afterwards at least one line must still be able to
    /// come to its end. If no other line holds anything, the line may always.
    fn may_hold(&self, number: u64, bytes: usize, total: usize) -> bool {
        let others = self.lines.iter().filter(|(other, _)| **other != number);
        let others: usize = others.map(|(_, line)| line.held).sum();
        if others == 0 {
            return true;
        }
        let Some(free) = total.checked_sub(self.hashes + others + bytes) else {
            return false;
        };
        let needs = self.lines.iter().filter_map(|(other, line)| {
            let held = if *other == number { bytes } else { line.held };
            (held > 0).then(|| line.most.saturating_sub(held))
        });
        needs.min().is_none_or(|need| need <= free)
    }

    /// Whether there is room for so many bytes of hashes in all.
    fn has_room_for_hashes(&self, hashes: usize, total: usize) -> bool {
        let Some(free) = total.checked_sub(hashes + self.held()) else {
            return false;
        };
        let lines = self.lines.values().filter(|line| line.held > 0);
        let need = lines.map(|line| line.most.saturating_sub(line.held)).min();
        self.waiting.is_empty()
            && hashes <= total / HASHES_PART
            && need.is_none_or(|need| need <= free)
    }
}

/// What the long lines of one file hold. It is given back when this is dropped.
#[derive(Debug)]
pub(super) struct Part {
    budget: Arc<UploadBudget>,
    number: u64,
}

impl Part {
    /// Waits until this part holds room for a line of so many bytes. If it holds more already, it
    /// keeps that.
    pub async fn grow(&self, line_bytes: usize) {
        let (grant, granted) = oneshot::channel();
        let _waits = Waits(self);
        self.budget.change(|state| {
            let Some(line) = state.lines.get(&self.number) else {
                return;
            };
            let bytes = cost(line_bytes).min(line.most);
            if bytes > line.held {
                state.waiting.push(Waiter {
                    line: self.number,
                    bytes,
                    grant,
                });
            }
        });
        // Where the part held enough, the sender is dropped, and this returns at once.
        let _ = granted.await;
    }

    /// Gives all of it back: the line has ended, and is written.
    pub fn give_back(&self) {
        if self.holds_some() {
            self.budget.change(|state| {
                if let Some(line) = state.lines.get_mut(&self.number) {
                    line.held = 0;
                }
            });
        }
    }

    pub fn holds_some(&self) -> bool {
        let state = self.budget.lock();
        let line = state.lines.get(&self.number);
        line.is_some_and(|line| line.held > 0)
    }

    /// Waits until another file waits for what this one holds.
    pub async fn is_needed(&self) {
        let mut waits = self.budget.waits.subscribe();
        // The sender is in the budget, which is held here.
        let _ = waits.wait_for(|waits| *waits).await;
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let number = self.number;
        self.budget.change(|state| {
            state.lines.remove(&number);
        });
    }
}

/// Removes a file from those that wait, if the wait is given up.
struct Waits<'a>(&'a Part);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        let number = self.0.number;
        let waits = self
            .0
            .budget
            .lock()
            .waiting
            .iter()
            .any(|w| w.line == number);
        if waits {
            let budget = &self.0.budget;
            budget.change(|state| state.waiting.retain(|waiter| waiter.line != number));
        }
    }
}

/// What the hashes of one file hold. It is given back when this is dropped.
#[derive(Debug)]
pub(super) struct Hashes {
    budget: Arc<UploadBudget>,
    held: usize,
}

impl Hashes {
    /// Whether the hashes may take so many bytes in all. If so, they are counted as taking them.
    pub fn may_hold(&mut self, bytes: usize) -> bool {
        let more = bytes.saturating_sub(self.held);
        let mut state = self.budget.lock();
        let hashes = state.hashes + more;
        let may = more == 0 || state.has_room_for_hashes(hashes, self.budget.total);
        if may {
            state.hashes = hashes;
            self.held += more;
        }
        may
    }
}

impl Drop for Hashes {
    fn drop(&mut self) {
        let held = self.held;
        if held > 0 {
            self.budget.change(|state| state.hashes -= held);
        }
    }
}

/// What a line of so many bytes takes of the budget.
fn cost(line_bytes: usize) -> usize {
    line_bytes.saturating_mul(COPIES)
}

#[cfg(test)]
mod tests;
