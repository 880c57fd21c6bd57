//! Which units are ours: what the store has leased to us, and how we let go of it.

use std::collections::HashMap;

use super::Dispatch;
use super::ledger::Ledger;
use crate::domain::unit::{UnitKey, UnitLease};
use crate::worker::work::unit::HeldUnit;

impl Dispatch {
    /// Notes that a unit is leased, before its text is read. If it is in hand from an earlier
    /// lease, that has ended without our knowing.
    pub(crate) fn note_leased(&self, lease: &UnitLease) {
        let UnitLease { key, epoch } = lease;
        let before = self.lock().held_mut().insert(key.clone(), *epoch);
        if let Some(epoch) = before {
            let key = key.clone();
            self.lose_units(&[UnitLease { key, epoch }]);
        }
    }

    /// Forgets a unit whose last flush is written, or that is somebody else's.
    pub(crate) fn forget(&self, lease: &UnitLease) {
        self.lock().forget(lease);
    }

    /// Every unit that the store is taken to have leased to us.
    pub(crate) fn held(&self) -> Vec<UnitLease> {
        let ledger = self.lock();
        let held = ledger.held().iter();
        let lease = |(key, epoch): (&UnitKey, &i64)| UnitLease {
            key: key.clone(),
            epoch: *epoch,
        };
        held.map(lease).collect()
    }

    /// Whether a unit is ours, as far as we know.
    pub(crate) fn holds(&self, lease: &UnitLease) -> bool {
        self.lock().held().get(&lease.key) == Some(&lease.epoch)
    }

    /// A unit is somebody else's now: nothing of it is sent or written any more.
    pub(crate) fn lose(&self, unit: &HeldUnit) {
        self.lock().lose(unit);
    }

    /// The same for several, those included whose text is not read yet.
    pub(crate) fn lose_units(&self, lost: &[UnitLease]) {
        let lost: HashMap<&UnitKey, i64> =
            lost.iter().map(|lease| (&lease.key, lease.epoch)).collect();
        let mut ledger = self.lock();
        let ids: Vec<u64> = ledger
            .units()
            .filter(|active| lost.get(&active.unit.lease.key) == Some(&active.unit.lease.epoch))
            .map(|active| active.unit.id)
            .collect();
        for id in ids {
            if let Some((active, _)) = ledger.release(id) {
                active.unit.cut.cancel();
            }
        }
        ledger
            .held_mut()
            .retain(|key, epoch| lost.get(key) != Some(&*epoch));
    }

    /// A unit was taken over. If nobody has leased it since, it is taken back, which tells the
    /// store that this process has not died of its lines.
    pub(crate) async fn keep_or_lose(&self, unit: &HeldUnit) {
        let lease = std::slice::from_ref(&unit.lease);
        match self.store.reclaim_units(&self.lease.token(), lease).await {
            Ok(lost) if lost.is_empty() => {}
            Ok(_) => self.lose(unit),
            Err(error) => tracing::debug!(%error, "a unit could not be taken back yet"),
        }
    }

    /// Lines of a unit are on disk: others may be sent if one was alone, and the unit runs as any
    /// other from now on if that cleared it.
    pub(crate) fn written(&self, unit: &HeldUnit, cleared: bool) {
        let Some(isolation) = unit.isolation() else {
            return;
        };
        if cleared {
            isolation.clear();
        }
        let mut ledger = self.lock();
        let in_flight = ledger.unit(unit.id).map_or(0, |active| active.in_flight);
        if in_flight == 0 {
            ledger.end_isolation(unit.id);
        }
        drop(ledger);
        self.pump.notify_one();
    }

    /// Lets go of all units.
    pub(crate) fn drop_all(&self) {
        let mut ledger = self.lock();
        let ids: Vec<u64> = ledger.units().map(|active| active.unit.id).collect();
        for id in ids {
            if let Some((active, _)) = ledger.release(id) {
                active.unit.cut.cancel();
            }
        }
        ledger.held_mut().clear();
    }
}

impl Ledger {
    pub(crate) fn lose(&mut self, unit: &HeldUnit) {
        unit.cut.cancel();
        self.release(unit.id);
        self.forget(&unit.lease);
    }

    fn forget(&mut self, lease: &UnitLease) {
        if self.held().get(&lease.key) == Some(&lease.epoch) {
            self.held_mut().remove(&lease.key);
        }
    }
}
