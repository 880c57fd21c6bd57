//! The ledger behind its lock, and who is notified of what.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::ledger::Ledger;

pub(crate) struct SharedLedger {
    ledger: Mutex<Ledger>,
    scheduler: Notify,
    supply: Notify,
    idle: Notify,
    left: Mutex<Left>,
}

/// What the supply has left, as it last saw it.
#[derive(Debug)]
pub(crate) struct Left {
    /// Tenants with units that could be leased and were not.
    pub tenants: HashSet<Arc<str>>,
    /// Whether there are units of batches that are being ended.
    pub ended: bool,
    /// Whether there are leased units for whose text there is no room.
    pub unread: bool,
}

impl Default for SharedLedger {
    fn default() -> Self {
        SharedLedger {
            ledger: Mutex::default(),
            scheduler: Notify::new(),
            supply: Notify::new(),
            idle: Notify::new(),
            // Until the supply has looked for the first time, there may be units of all kinds.
            left: Mutex::new(Left {
                tenants: HashSet::new(),
                ended: true,
                unread: true,
            }),
        }
    }
}

impl Left {
    /// Whether the supply has left anything.
    pub(crate) fn is_any(&self) -> bool {
        self.ended || self.unread || !self.tenants.is_empty()
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

    /// Takes in what the supply has left.
    pub(crate) fn set_left(&self, left: Left) {
        *self.left() = left;
    }

    /// What the supply has left. For a short look.
    pub(crate) fn left(&self) -> MutexGuard<'_, Left> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
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
    use super::{Left, SharedLedger};

    #[test]
    fn units_may_wait_until_the_supply_has_looked() {
        let ledger = SharedLedger::default();
        assert!(ledger.left().is_any());
        ledger.set_left(Left {
            tenants: [].into(),
            ended: false,
            unread: false,
        });
        assert!(!ledger.left().is_any());
    }
}
