//! How many requests may wait for a change at once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A request that waits holds its connection, and a process has 1,024 connections.
const WAITS_MAX: usize = 256;
const WAITS_A_TENANT_MAX: usize = 64;

/// How many requests wait, by tenant.
#[derive(Debug, Default)]
pub struct Waits(Arc<Mutex<HashMap<String, usize>>>);

/// The place of a request that waits. It is given back when it is dropped.
pub(super) struct Place {
    waits: Arc<Mutex<HashMap<String, usize>>>,
    tenant: String,
}

impl Waits {
    /// A place, unless the process or the tenant has as many as it may have.
    pub(super) fn place(&self, tenant: &str) -> Option<Place> {
        let mut waits = lock(&self.0);
        let of_tenant = waits.get(tenant).copied().unwrap_or(0);
        if of_tenant >= WAITS_A_TENANT_MAX || waits.values().sum::<usize>() >= WAITS_MAX {
            return None;
        }
        waits.insert(tenant.to_owned(), of_tenant + 1);
        Some(Place {
            waits: self.0.clone(),
            tenant: tenant.to_owned(),
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut waits = lock(&self.waits);
        if let Some(of_tenant) = waits.get_mut(&self.tenant) {
            *of_tenant -= 1;
            if *of_tenant == 0 {
                waits.remove(&self.tenant);
            }
        }
    }
}

fn lock(waits: &Mutex<HashMap<String, usize>>) -> MutexGuard<'_, HashMap<String, usize>> {
    waits.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_that_waits_for_much_leaves_places_for_others() {
        let waits = Waits::default();
        let mut places: Vec<Place> = (0..64).filter_map(|_| waits.place("many")).collect();
        assert_eq!(places.len(), 64);
        assert!(waits.place("many").is_none());
        for tenant in ["a", "b", "c"] {
            places.extend((0..64).filter_map(|_| waits.place(tenant)));
        }
        assert!(waits.place("d").is_none(), "the process has no place left");
        places.clear();
        assert!(waits.place("many").is_some());
    }
}
