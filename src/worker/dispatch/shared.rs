//! The ledger behind its lock, and who is notified of what.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::ledger::Ledger;

pub(crate) struct SharedLedger {
    ledger: Mutex<Ledger>,
    scheduler: Notify,
    supply: Notify,
    idle: Notify,
    has_more: AtomicBool,
}

impl Default for SharedLedger {
    fn default() -> Self {
        SharedLedger {
            ledger: Mutex::default(),
            scheduler: Notify::new(),
            supply: Notify::new(),
            idle: Notify::new(),
            // Until the supply has looked for the first time, there may be units.
            has_more: AtomicBool::new(true),
        }
    }
}

impl SharedLedger {
    /// The ledger, for a short step: nothing waits while it is locked.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something changed that may let lines be sent: the scheduler is to look.
    pub(crate) fn notify_scheduler(&self) {
        self.scheduler.notify_one();
    }

    /// Waits until the scheduler is to look.
    pub(crate) async fn scheduler_notified(&self) {
        self.scheduler.notified().await;
    }

    /// Units may run short: the supply is to lease more.
    pub(crate) fn notify_supply(&self) {
        self.supply.notify_one();
    }

    /// Waits until the supply is to lease more.
    pub(crate) async fn supply_notified(&self) {
        self.supply.notified().await;
    }

    /// Takes in whether units wait that could be leased and were not, as the supply has seen it.
    pub(crate) fn set_has_more(&self, has_more: bool) {
        self.has_more.store(has_more, Ordering::Relaxed);
    }

    /// Whether the supply has left units that could be leased.
    pub(crate) fn has_more(&self) -> bool {
        self.has_more.load(Ordering::Relaxed)
    }

    /// Nothing is in flight, or nothing new is sent any more.
    pub(crate) fn notify_idle(&self) {
        self.idle.notify_waiters();
    }

    /// Whether nothing is in flight now.
    pub(crate) fn is_idle(&self) -> bool {
        self.lock().in_flight() == 0
    }

    /// Waits until nothing is in flight.
    pub(crate) async fn idle(&self) {
        loop {
            let idle = self.idle.notified();
            if self.is_idle() {
                return;
            }
            idle.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::SharedLedger;

    #[test]
    fn units_may_wait_until_the_supply_has_looked() {
        let ledger = SharedLedger::default();
        assert!(ledger.has_more());
        ledger.set_has_more(false);
        assert!(!ledger.has_more());
    }
}
