//! Whether this process may send: its lease and its shares of limits are its own at this moment.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::Lease;
use super::clock::Uptime;
use crate::upstream::Pool;

/// What this process may act on now.
pub(crate) struct Authority {
    lease: Arc<Lease>,
    pool: Arc<Pool>,
    /// Until when the shares of limits are this process's. `None`: no share was granted yet.
    shares_until: Mutex<Option<Uptime>>,
}

impl Authority {
    pub(crate) fn new(lease: Arc<Lease>, pool: Arc<Pool>) -> Self {
        Self {
            lease,
            pool,
            shares_until: Mutex::new(None),
        }
    }

    /// Whether units and shares are this process's now, so that lines may be sent.
    pub(crate) fn may_send(&self) -> bool {
        self.lease.is_held() && self.holds_shares()
    }

    /// Whether this process's shares of the limits are still its own. A process that has not
    /// completed an exchange for too long has lost them to others.
    pub(crate) fn holds_shares(&self) -> bool {
        self.holds_shares_for(Duration::ZERO)
    }

    /// Whether they are its own for so long yet.
    pub(crate) fn holds_shares_for(&self, time: Duration) -> bool {
        if !self.pool.limits().are_shared() {
            return true;
        }
        let until = self.shares_until.lock();
        let until = *until.unwrap_or_else(PoisonError::into_inner);
        until.is_some_and(|until| Uptime::now() + time < until)
    }

    /// The shares of an exchange are this process's until this moment.
    pub(crate) fn grant_shares(&self, until: Uptime) {
        let held = self.shares_until.lock();
        *held.unwrap_or_else(PoisonError::into_inner) = Some(until);
    }
}
