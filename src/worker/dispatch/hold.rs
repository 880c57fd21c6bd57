//! Which units are ours: what the store has leased to us, and how we let go of it.

use std::collections::HashMap;

use super::super::held::HeldUnit;
use super::Dispatch;
use super::state::State;
use crate::domain::unit::UnitKey;

impl Dispatch {
    /// Notes that a unit is leased, before its text is read. If it is in hand from an earlier
    /// lease, that has ended without our knowing.
    pub(in super::super) fn note_leased(&self, key: &UnitKey, epoch: i64) {
        let before = self.lock().held.insert(key.clone(), epoch);
        if let Some(before) = before {
            self.lose_units(&[(key.clone(), before)]);
        }
    }

    /// Forgets a unit whose last flush is written, or that is somebody else's.
    pub(in super::super) fn forget(&self, key: &UnitKey, epoch: i64) {
        self.lock().forget(key, epoch);
    }

    /// Every unit that the store is taken to have leased to us, with its epoch.
    pub(in super::super) fn held(&self) -> Vec<(UnitKey, i64)> {
        let state = self.lock();
        let held = state.held.iter();
        held.map(|(key, epoch)| (key.clone(), *epoch)).collect()
    }

    /// Whether a unit is ours, as far as we know.
    pub(in super::super) fn holds(&self, key: &UnitKey, epoch: i64) -> bool {
        self.lock().held.get(key) == Some(&epoch)
    }

    /// A unit is somebody else's now: nothing of it is sent or written any more.
    pub(in super::super) fn lose(&self, unit: &HeldUnit) {
        self.lock().lose(unit);
    }

    /// The same for several, those included whose text is not read yet.
    pub(in super::super) fn lose_units(&self, lost: &[(UnitKey, i64)]) {
        let lost: HashMap<&UnitKey, i64> = lost.iter().map(|(key, epoch)| (key, *epoch)).collect();
        let mut state = self.lock();
        let entries = state.entries.values();
        let ids: Vec<u64> = entries
            .filter(|entry| lost.get(&entry.unit.key) == Some(&entry.unit.epoch))
            .map(|entry| entry.unit.id)
            .collect();
        for id in ids {
            if let Some(entry) = state.remove(id) {
                entry.unit.cut.cancel();
            }
        }
        state
            .held
            .retain(|key, epoch| lost.get(key) != Some(&*epoch));
    }

    /// Lets go of all units; returns those that the store says are ours.
    pub(in super::super) fn drop_all(&self) -> Vec<(UnitKey, i64)> {
        let mut state = self.lock();
        let ids: Vec<u64> = state.entries.keys().copied().collect();
        for id in ids {
            if let Some(entry) = state.remove(id) {
                entry.unit.cut.cancel();
            }
        }
        state.held.drain().collect()
    }
}

impl State {
    pub(super) fn lose(&mut self, unit: &HeldUnit) {
        unit.cut.cancel();
        self.remove(unit.id);
        self.forget(&unit.key, unit.epoch);
    }

    fn forget(&mut self, key: &UnitKey, epoch: i64) {
        if self.held.get(key) == Some(&epoch) {
            self.held.remove(key);
        }
    }
}
