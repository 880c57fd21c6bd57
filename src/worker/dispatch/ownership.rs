//! Which units are this process's: what the store has leased to it, and how a unit is taken back,
//! or lost.

use std::sync::Arc;

use super::shared::SharedLedger;
use crate::domain::unit::UnitLease;
use crate::store::Store;
use crate::worker::lease::Lease;
use crate::worker::work::unit::LoadedUnit;

pub(crate) struct Ownership {
    ledger: Arc<SharedLedger>,
    store: Store,
    lease: Arc<Lease>,
}

impl Ownership {
    pub(super) fn new(ledger: Arc<SharedLedger>, store: Store, lease: Arc<Lease>) -> Self {
        Self {
            ledger,
            store,
            lease,
        }
    }

    /// A unit was leased, and its text is not read yet.
    pub(crate) fn on_leased(&self, lease: &UnitLease) {
        self.ledger.lock().add_lease(lease);
    }

    /// A unit is not this process's any more, or is done: its last flush is written.
    pub(crate) fn forget(&self, lease: &UnitLease) {
        self.ledger.lock().remove_lease(lease);
    }

    /// Every unit that the store is taken to have leased to this process.
    pub(crate) fn leases(&self) -> Vec<UnitLease> {
        self.ledger.lock().leases().collect()
    }

    /// Whether a unit is this process's under that lease, as far as is known.
    pub(crate) fn owns(&self, lease: &UnitLease) -> bool {
        self.ledger.lock().has_lease(lease)
    }

    /// Another process owns these units, or may own them: nothing of them is sent or written any
    /// more.
    pub(crate) fn revoke(&self, lost: &[UnitLease]) {
        self.ledger.lock().revoke(lost);
    }

    /// The same of one unit.
    pub(crate) fn revoke_unit(&self, unit: &LoadedUnit) {
        self.ledger.lock().revoke_unit(unit);
    }

    /// A unit was taken over. If nobody has leased it since, this process takes it back, which
    /// tells the store that the process has not died of the unit's lines.
    pub(crate) async fn reclaim_or_revoke(&self, unit: &LoadedUnit) {
        let lease = std::slice::from_ref(&unit.lease);
        match self.store.reclaim_units(&self.lease.token(), lease).await {
            Ok(lost) if lost.is_empty() => {}
            Ok(_) => self.revoke_unit(unit),
            Err(error) => tracing::debug!(%error, "a unit could not be taken back yet"),
        }
    }

    /// Lines of a unit are on disk. If the unit is isolated, its next line may be sent, and others
    /// beside it. `cleared`: the unit is normal from now on.
    pub(crate) fn on_written(&self, unit: &LoadedUnit, cleared: bool) {
        let Some(isolation) = unit.isolation() else {
            return;
        };
        if cleared {
            isolation.clear();
        }
        let mut ledger = self.ledger.lock();
        if ledger
            .unit(unit.id)
            .is_none_or(|unit| unit.in_flight() == 0)
        {
            ledger.end_exclusive(unit.id);
        }
        drop(ledger);
        self.ledger.notify_scheduler();
    }

    /// This process holds its lease again: lines may be sent.
    pub(crate) fn on_lease_regained(&self) {
        self.ledger.notify_scheduler();
    }
}
