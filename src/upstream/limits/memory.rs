//! One budget of bytes for a process: requests, answers, and what is not yet flushed.
//!
//! A request's text is read only if it fits ([`Budget::try_reserve`]). The length of an answer is
//! not known beforehand, so the answer's reservation grows with it ([`Reservation::grow`]). If
//! every answer waited for another one to end, none would end. So one growing reservation at a time
//! may overdraw: the one that has waited longest. The overdraft is thus never more than one answer,
//! and the copy of its request that a route may have made.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// How many bytes a process may hold, and who waits for some.
#[derive(Debug)]
pub struct Budget {
    limit: AtomicUsize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    used: usize,
    /// There is a reservation that may overdraw.
    overdrawn: bool,
    /// Answers that wait to grow. Nothing new is reserved before them, because they end and free
    /// what they hold.
    growing: VecDeque<Waiter>,
}

#[derive(Debug)]
struct Waiter {
    bytes: usize,
    grant: oneshot::Sender<Reservation>,
}

impl Budget {
    /// A budget of `limit` bytes.
    #[must_use]
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            limit: AtomicUsize::new(limit),
            state: Mutex::default(),
        })
    }

    /// Reserves `bytes` if they fit and no answer waits, or if nothing else is reserved: so even
    /// what is larger than the whole budget passes, alone.
    pub fn try_reserve(self: &Arc<Self>, bytes: usize) -> Option<Reservation> {
        let mut state = self.lock();
        let fits = state.used.saturating_add(bytes) <= self.limit();
        if !state.growing.is_empty() || !(fits || state.used == 0) {
            return None;
        }
        state.used += bytes;
        drop(state);
        Some(self.reservation_of(bytes))
    }

    /// A reservation of no bytes, to grow as an answer is read.
    pub fn reserve(self: &Arc<Self>) -> Reservation {
        self.reservation_of(0)
    }

    /// How many bytes there are.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.limit.load(Ordering::Relaxed)
    }

    /// There are so many bytes from now on. What is reserved stays so.
    pub(in crate::upstream) fn resize(self: &Arc<Self>, limit: usize) {
        self.limit.store(limit, Ordering::Relaxed);
        self.serve(&mut self.lock());
    }

    /// Bytes reserved now.
    #[must_use]
    pub fn used(&self) -> usize {
        self.lock().used
    }

    /// The budget is used up, or an answer waits for a part of it: send nothing new.
    #[must_use]
    pub fn is_full(&self) -> bool {
        let state = self.lock();
        state.used >= self.limit() || !state.growing.is_empty()
    }

    /// Reserves the growth of an answer if it need not wait. The value says whether the answer may
    /// overdraw from now on.
    fn growth(&self, state: &mut State, may_overdraw: bool, bytes: usize) -> Option<bool> {
        let fits = state.used.saturating_add(bytes) <= self.limit();
        let passes = fits && state.growing.is_empty();
        if !passes && !may_overdraw && state.overdrawn {
            return None;
        }
        state.used += bytes;
        let may_overdraw = may_overdraw || !passes;
        state.overdrawn |= may_overdraw;
        Some(may_overdraw)
    }

    fn reservation_of(self: &Arc<Self>, bytes: usize) -> Reservation {
        Reservation {
            budget: Arc::clone(self),
            bytes,
            may_overdraw: false,
        }
    }

    async fn granted(self: &Arc<Self>, granted: oneshot::Receiver<Reservation>) -> Reservation {
        // An answer that gives up waiting may have stood before others that fit.
        let _served_on = ServeOnDrop(self);
        match granted.await {
            Ok(reservation) => reservation,
            // The queue keeps every sender until it has granted: this does not happen.
            Err(_) => self.reservation_of(0),
        }
    }

    /// Serves the answers that wait and can go on now.
    fn serve(self: &Arc<Self>, state: &mut State) {
        while let Some(first) = state.growing.front() {
            let gave_up = first.grant.is_closed();
            let fits = state.used.saturating_add(first.bytes) <= self.limit();
            if !gave_up && !fits && state.overdrawn {
                return;
            }
            if let Some(waiter) = state.growing.pop_front() {
                self.grant(state, waiter, !fits);
            }
        }
    }

    fn grant(self: &Arc<Self>, state: &mut State, waiter: Waiter, may_overdraw: bool) {
        let reservation = Reservation {
            budget: Arc::clone(self),
            bytes: waiter.bytes,
            may_overdraw,
        };
        match waiter.grant.send(reservation) {
            Ok(()) => {
                state.used += waiter.bytes;
                state.overdrawn |= may_overdraw;
            }
            // Nobody waits any more. The reservation is emptied, because its drop would lock what
            // is locked already.
            Err(mut refused) => drop(refused.take()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct ServeOnDrop<'a>(&'a Arc<Budget>);

impl Drop for ServeOnDrop<'_> {
    fn drop(&mut self) {
        self.0.serve(&mut self.0.lock());
    }
}

/// A part of the budget, given back when dropped.
#[derive(Debug)]
pub struct Reservation {
    budget: Arc<Budget>,
    bytes: usize,
    may_overdraw: bool,
}

impl Reservation {
    /// Reserves so many bytes more: at once if [`try_grow`](Self::try_grow) can. Else the answer
    /// waits, and nothing new is reserved before it.
    pub async fn grow(&mut self, bytes: usize) {
        let granted = {
            let mut state = self.budget.lock();
            if let Some(may_overdraw) = self.budget.growth(&mut state, self.may_overdraw, bytes) {
                self.bytes += bytes;
                self.may_overdraw = may_overdraw;
                return;
            }
            let (grant, granted) = oneshot::channel();
            state.growing.push_back(Waiter { bytes, grant });
            granted
        };
        let (bytes, may_overdraw) = self.budget.granted(granted).await.take();
        self.bytes += bytes;
        self.may_overdraw |= may_overdraw;
    }

    /// Reserves so many bytes more if they fit and nobody waits, or if this is the reservation that
    /// may overdraw. False if they are not reserved.
    pub fn try_grow(&mut self, bytes: usize) -> bool {
        let mut state = self.budget.lock();
        let growth = self.budget.growth(&mut state, self.may_overdraw, bytes);
        if let Some(may_overdraw) = growth {
            self.bytes += bytes;
            self.may_overdraw = may_overdraw;
        }
        growth.is_some()
    }

    /// Gives back all but `bytes`.
    pub fn shrink_to(&mut self, bytes: usize) {
        let excess = self.bytes.saturating_sub(bytes);
        if excess > 0 {
            self.bytes = bytes;
            self.give_back(excess, false);
        }
    }

    /// Takes so many of its bytes into a reservation of their own, as far as it has them.
    #[must_use]
    pub fn split(&mut self, bytes: usize) -> Reservation {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        self.budget.reservation_of(bytes)
    }

    /// Lets another answer overdraw, although this one is kept: for an answer that is kept while
    /// its line waits to be sent again.
    pub(in crate::upstream) fn yield_overdraft(&mut self) {
        if std::mem::take(&mut self.may_overdraw) {
            self.give_back(0, true);
        }
    }

    /// Bytes reserved.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Empties the reservation: its bytes, and whether it may overdraw the budget.
    fn take(&mut self) -> (usize, bool) {
        (
            std::mem::take(&mut self.bytes),
            std::mem::take(&mut self.may_overdraw),
        )
    }

    fn give_back(&self, bytes: usize, overdraft: bool) {
        let mut state = self.budget.lock();
        state.used -= bytes;
        if overdraft {
            state.overdrawn = false;
        }
        if !state.growing.is_empty() {
            self.budget.serve(&mut state);
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let (bytes, may_overdraw) = self.take();
        if bytes > 0 || may_overdraw {
            self.give_back(bytes, may_overdraw);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::poll;

    use super::*;

    #[test]
    fn what_fits_is_reserved_and_given_back() {
        let budget = Budget::new(100);
        let a = budget.try_reserve(60).expect("fits");
        let b = budget.try_reserve(40).expect("fits");
        assert!(budget.is_full() && budget.try_reserve(1).is_none());
        drop((a, b));
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn what_is_larger_than_the_budget_passes_alone() {
        let budget = Budget::new(100);
        let held = budget.try_reserve(1).expect("fits");
        assert!(budget.try_reserve(500).is_none());
        drop(held);
        assert_eq!(budget.try_reserve(500).expect("is alone").bytes(), 500);
    }

    /// A budget of 100 that one answer has overdrawn with 110, and another one with 10 in it.
    fn overdrawn() -> (Arc<Budget>, Reservation, Reservation) {
        let budget = Budget::new(100);
        let (mut over, mut waits) = (budget.reserve(), budget.reserve());
        assert!(waits.try_grow(10) && over.try_grow(110));
        (budget, over, waits)
    }

    #[tokio::test]
    async fn growing_is_first_come_first_served() {
        let (budget, over, mut first) = overdrawn();
        let mut second = budget.reserve();
        let mut large = Box::pin(first.grow(85));
        assert!(poll!(&mut large).is_pending());
        let mut small = Box::pin(second.grow(5));
        assert!(poll!(&mut small).is_pending());
        drop(over);
        assert!(poll!(&mut large).is_ready() && poll!(&mut small).is_ready());
        assert_eq!(budget.used(), 100);
    }

    #[tokio::test]
    async fn who_gives_up_waiting_lets_the_next_pass() {
        let (budget, mut over, mut first) = overdrawn();
        let mut second = budget.reserve();
        let mut large = Box::pin(first.grow(500));
        assert!(poll!(&mut large).is_pending());
        let mut small = Box::pin(second.grow(5));
        assert!(poll!(&mut small).is_pending());
        over.shrink_to(50);
        assert!(
            poll!(&mut small).is_pending(),
            "it would fit, but 500 came first"
        );
        drop(large);
        assert!(poll!(&mut small).is_ready());
        assert_eq!(budget.used(), 65, "the large one left no trace");
    }

    #[tokio::test]
    async fn what_was_granted_but_never_taken_is_given_back() {
        let (budget, over, mut first) = overdrawn();
        let mut waiting = Box::pin(first.grow(50));
        assert!(poll!(&mut waiting).is_pending());
        drop(over);
        assert_eq!(budget.used(), 60, "granted");
        drop(waiting);
        assert_eq!(budget.used(), 10);
    }

    #[tokio::test]
    async fn one_growing_reservation_overdraws_and_the_next_only_after_it() {
        let budget = Budget::new(100);
        let (mut a, mut b) = (budget.reserve(), budget.reserve());
        assert!(a.try_grow(80) && b.try_grow(20));
        assert!(b.try_grow(50), "the first that finds it full overdraws");
        assert!(!a.try_grow(1));
        let mut waiting = Box::pin(a.grow(1));
        assert!(poll!(&mut waiting).is_pending());
        assert_eq!(budget.used(), 150);
        drop(b);
        assert!(poll!(&mut waiting).is_ready());
        drop(waiting);
        assert_eq!(a.bytes(), 81);
    }

    #[tokio::test]
    async fn a_kept_answer_can_hand_on_the_right_to_overdraw() {
        let budget = Budget::new(10);
        let (mut a, mut b) = (budget.reserve(), budget.reserve());
        a.grow(15).await;
        let mut waiting = Box::pin(b.grow(5));
        assert!(poll!(&mut waiting).is_pending());
        a.yield_overdraft();
        waiting.await;
        assert_eq!(budget.used(), 20);
    }

    #[tokio::test]
    async fn nothing_is_reserved_before_an_answer_that_waits() {
        let (budget, mut over, mut first) = overdrawn();
        let mut waiting = Box::pin(first.grow(500));
        assert!(poll!(&mut waiting).is_pending());
        over.shrink_to(10);
        assert!(budget.is_full() && budget.try_reserve(1).is_none());
        drop(waiting);
        assert!(!budget.is_full() && budget.try_reserve(1).is_some());
    }

    #[tokio::test]
    async fn shrinking_lets_others_in() {
        let (budget, mut over, mut first) = overdrawn();
        let mut waiting = Box::pin(first.grow(20));
        assert!(poll!(&mut waiting).is_pending());
        over.shrink_to(70);
        assert!(poll!(&mut waiting).is_ready());
        assert_eq!(budget.used(), 100);
        over.shrink_to(90);
        assert_eq!(over.bytes(), 70, "shrinking never grows");
    }

    #[tokio::test]
    async fn many_answers_larger_than_the_budget_all_end_with_one_overdrawing() {
        const LIMIT: usize = 1000;
        const ANSWER: usize = 7000;
        let budget = Budget::new(LIMIT);
        let mut calls = tokio::task::JoinSet::new();
        for call in 0..30_u64 {
            let budget = Arc::clone(&budget);
            calls.spawn(async move {
                let mut answer = budget.reserve();
                let mut most = 0;
                for _ in 0..10 {
                    tokio::time::sleep(Duration::from_millis(call % 3)).await;
                    answer.grow(ANSWER / 10).await;
                    most = most.max(budget.used());
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
                most
            });
        }
        let most = calls.join_all().await.into_iter().max();
        assert!(
            most > Some(LIMIT) && most <= Some(LIMIT + ANSWER),
            "{most:?}"
        );
        assert_eq!(budget.used(), 0);
        assert!(!budget.is_full());
    }
}
