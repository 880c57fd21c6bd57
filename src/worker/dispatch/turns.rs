//! Whose turn it is: the units in hand, in the order in which their lines are sent. Kept, and not
//! found out for each line: a hundred tenants may have hundreds of units.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::sync::Arc;

use super::state::{Entry, State};

/// What one tenant has in hand.
#[derive(Default)]
pub(super) struct Tenant {
    /// Its lines in flight.
    pub(super) in_flight: usize,
    /// Its units, the next one first.
    turns: BTreeSet<Turn>,
}

/// When a unit has its turn: before others of a later class; within a class, first the tenant
/// that has the least in flight; then by place.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Turn {
    class: Class,
    place: Place,
}

/// One that runs alone goes before all others; then by priority.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Class {
    has_company: bool,
    priority: Reverse<i64>,
}

/// By deadline, age, and its place in the file.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    deadline: i64,
    created_at: i64,
    batch_id: String,
    chunk_no: i64,
    unit_id: u64,
}

impl Turn {
    fn of(entry: &Entry) -> Self {
        let batch = &entry.unit.batch;
        Turn {
            class: Class {
                has_company: !entry.runs_alone(),
                priority: Reverse(batch.priority),
            },
            place: Place {
                deadline: batch.deadline,
                created_at: batch.created_at,
                batch_id: batch.id.clone(),
                chunk_no: entry.unit.key.chunk_no,
                unit_id: entry.unit.id,
            },
        }
    }
}

impl State {
    /// The unit whose turn it is among those that may have one.
    pub(super) fn next_turn(&self, may: impl Fn(&Entry) -> bool) -> Option<u64> {
        let turns = self.tenants.values().filter_map(|tenant| {
            let may = |turn: &&Turn| self.entries.get(&turn.place.unit_id).is_some_and(&may);
            Some((tenant, tenant.turns.iter().find(may)?))
        });
        let (_, turn) =
            turns.min_by_key(|&(tenant, turn)| (&turn.class, tenant.in_flight, &turn.place))?;
        Some(turn.place.unit_id)
    }

    /// Takes a unit in hand.
    pub(super) fn put_in(&mut self, entry: Entry) {
        let tenant = Arc::clone(&entry.unit.batch.tenant);
        let turns = &mut self.tenants.entry(tenant).or_default().turns;
        turns.insert(Turn::of(&entry));
        self.entries.insert(entry.unit.id, entry);
    }

    /// Takes a unit out of those in hand.
    pub(super) fn take_out(&mut self, id: u64) -> Option<Entry> {
        let entry = self.entries.remove(&id)?;
        if let Some(tenant) = self.tenants.get_mut(&entry.unit.batch.tenant) {
            tenant.turns.remove(&Turn::of(&entry));
        }
        self.forget_tenant(&entry.unit.batch.tenant);
        Some(entry)
    }

    /// A line of the tenant's is on its way.
    pub(super) fn departed(&mut self, tenant: &Arc<str>) {
        if let Some(of) = self.tenants.get_mut(tenant) {
            of.in_flight += 1;
        }
    }

    /// It has come back.
    pub(super) fn arrived(&mut self, tenant: &Arc<str>) {
        if let Some(of) = self.tenants.get_mut(tenant) {
            of.in_flight -= 1;
            if of.in_flight == 0 {
                self.forget_tenant(tenant);
            }
        }
    }

    /// Forgets a tenant that has nothing in hand.
    fn forget_tenant(&mut self, tenant: &Arc<str>) {
        let has_none = |of: &Tenant| of.in_flight == 0 && of.turns.is_empty();
        if self.tenants.get(tenant).is_some_and(has_none) {
            self.tenants.remove(tenant);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::super::held::{BatchContext, Care};
    use super::*;
    use crate::domain::endpoint::ENDPOINTS;
    use crate::worker::testing;

    /// A unit of one of a few tenants and batches; with many takeovers it runs alone.
    fn entry(id: u64, (tenant, rank, takeovers): (u8, [i64; 4], i64)) -> Entry {
        let [priority, deadline, created_at, chunk_no] = rank;
        let batch = BatchContext {
            id: format!("batch-{tenant}-{priority}-{deadline}-{created_at}"),
            tenant: format!("tenant-{tenant}").into(),
            endpoint: &ENDPOINTS[0],
            priority,
            deadline,
            created_at,
        };
        let mut leased = testing::leased(1, takeovers, None);
        leased.key.batch_id.clone_from(&batch.id);
        leased.key.chunk_no = chunk_no;
        let (unit, lines) = testing::unit_of(id, batch, leased);
        Entry::new(&unit, lines)
    }

    /// Whose turn it is, found out by looking at every unit.
    fn by_looking(state: &State, may: impl Fn(&Entry) -> bool) -> Option<u64> {
        let in_hand = state.entries.values().filter(|entry| may(entry));
        let first = in_hand.min_by_key(|entry| {
            let batch = &entry.unit.batch;
            (
                !entry.runs_alone(),
                -batch.priority,
                state.tenants[&batch.tenant].in_flight,
                (batch.deadline, batch.created_at, batch.id.clone()),
                (entry.unit.key.chunk_no, entry.unit.id),
            )
        });
        first.map(|entry| entry.unit.id)
    }

    proptest! {
        #[test]
        fn the_order_that_is_kept_is_the_one_that_is_meant(
            units in proptest::collection::vec(
                (0_u8..3, proptest::array::uniform4(0_i64..2), 0_i64..5), 1..20),
            steps in proptest::collection::vec((0_u8..4, any::<proptest::sample::Index>()), 0..40),
            barred in 0_u64..20,
        ) {
            let mut state = State::default();
            let ids: Vec<u64> = (0..units.len() as u64).collect();
            for (&id, &unit) in ids.iter().zip(&units) {
                state.put_in(entry(id, unit));
            }
            for (step, which) in steps {
                let id = *which.get(&ids);
                let tenant: Arc<str> = format!("tenant-{}", units[id as usize].0).into();
                let in_flight = state.tenants.get(&tenant).map_or(0, |of| of.in_flight);
                match step {
                    0 => state.departed(&tenant),
                    1 if in_flight > 0 => state.arrived(&tenant),
                    2 => drop(state.take_out(id)),
                    3 => if let Some(mut entry) = state.take_out(id) {
                        entry.care = Care::Usual;
                        state.put_in(entry);
                    }
                    _ => {}
                }
                let may = |entry: &Entry| entry.unit.id != barred;
                prop_assert_eq!(state.next_turn(may), by_looking(&state, may));
            }
            for id in ids {
                state.take_out(id);
            }
            prop_assert!(state.tenants.values().all(|tenant| tenant.in_flight > 0));
        }
    }
}
