//! Numbers for what a configuration names, by which the state of each is found at once. What keeps
//! its name keeps its number, and with it its state, when another configuration takes the place of
//! the one before.

use std::sync::{Arc, Mutex, PoisonError, Weak};

/// The numbers of all that was configured and may still be in use.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    kinds: Mutex<Kinds>,
}

#[derive(Debug, Default)]
struct Kinds {
    upstreams: Slots,
    lanes: Slots,
    tiers: Slots,
    routes: Slots,
    rates: Slots,
    windows: Slots,
    /// The numbers of each configuration that something still goes by.
    in_use: Vec<Weak<InUse>>,
}

/// Who has which number.
#[derive(Debug, Default)]
struct Slots {
    names: Vec<Option<String>>,
}

/// The numbers of one configuration. Routes hold it. So no number is another's while a line may go
/// by it or come back.
#[derive(Debug)]
pub(super) struct InUse {
    upstreams: Box<[usize]>,
    lanes: Box<[usize]>,
    tiers: Box<[usize]>,
    routes: Box<[usize]>,
    rates: Box<[usize]>,
    windows: Box<[usize]>,
}

/// What is to be numbered, by names of which no two of a kind are alike.
#[derive(Debug, Default)]
pub(super) struct Names {
    pub(super) upstreams: Vec<String>,
    pub(super) lanes: Vec<String>,
    pub(super) tiers: Vec<String>,
    /// Routes with a limit of their own.
    pub(super) routes: Vec<String>,
    pub(super) rates: Vec<String>,
    pub(super) windows: Vec<String>,
}

/// What a name goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Number {
    pub(super) at: usize,
    /// Nothing that is kept at this number is the name's.
    pub(super) is_new: bool,
}

/// The numbers of all that was named, in the same order.
#[derive(Debug)]
pub(super) struct Numbered {
    pub(super) upstreams: Vec<Number>,
    pub(super) lanes: Vec<Number>,
    pub(super) tiers: Vec<Number>,
    pub(super) routes: Vec<Number>,
    pub(super) rates: Vec<Number>,
    pub(super) windows: Vec<Number>,
    /// To be held by whatever goes by these numbers.
    pub(super) in_use: Arc<InUse>,
}

impl Numbers {
    /// Numbers what a configuration names.
    pub(super) fn of(&self, names: &Names) -> Numbered {
        let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        let kinds = &mut *kinds;
        kinds.in_use.retain(|one| one.strong_count() > 0);
        let alive: Vec<Arc<InUse>> = kinds.in_use.iter().filter_map(Weak::upgrade).collect();
        let number = |slots: &mut Slots, names: &[String], of: fn(&InUse) -> &[usize]| {
            slots.number(names, |number| {
                let mut alive = alive.iter();
                alive.any(|one| of(one).contains(&number))
            })
        };
        let upstreams = number(&mut kinds.upstreams, &names.upstreams, |one| &one.upstreams);
        let lanes = number(&mut kinds.lanes, &names.lanes, |one| &one.lanes);
        let tiers = number(&mut kinds.tiers, &names.tiers, |one| &one.tiers);
        let routes = number(&mut kinds.routes, &names.routes, |one| &one.routes);
        let rates = number(&mut kinds.rates, &names.rates, |one| &one.rates);
        let windows = number(&mut kinds.windows, &names.windows, |one| &one.windows);
        let in_use = Arc::new(InUse {
            upstreams: places(&upstreams),
            lanes: places(&lanes),
            tiers: places(&tiers),
            routes: places(&routes),
            rates: places(&rates),
            windows: places(&windows),
        });
        kinds.in_use.push(Arc::downgrade(&in_use));
        Numbered {
            upstreams,
            lanes,
            tiers,
            routes,
            rates,
            windows,
            in_use,
        }
    }
}

impl Slots {
    /// The number of each of these names, in their order: its own, or the lowest that nobody has.
    /// A name that is not there any more keeps its number for as long as the number `is_used`.
    fn number(&mut self, names: &[String], is_used: impl Fn(usize) -> bool) -> Vec<Number> {
        for (number, slot) in self.names.iter_mut().enumerate() {
            let is_named = slot.as_ref().is_some_and(|name| names.contains(name));
            if !is_named && !is_used(number) {
                *slot = None;
            }
        }
        names.iter().map(|name| self.number_of(name)).collect()
    }

    fn number_of(&mut self, name: &str) -> Number {
        let known = |slot: &Option<String>| slot.as_deref() == Some(name);
        if let Some(at) = self.names.iter().position(known) {
            return Number { at, is_new: false };
        }
        let free = self.names.iter().position(Option::is_none);
        let at = free.unwrap_or(self.names.len());
        if at == self.names.len() {
            self.names.push(None);
        }
        self.names[at] = Some(name.to_owned());
        Number { at, is_new: true }
    }
}

fn places(numbers: &[Number]) -> Box<[usize]> {
    numbers.iter().map(|number| number.at).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upstreams(numbers: &Numbers, names: &[&str]) -> Numbered {
        numbers.of(&Names {
            upstreams: names.iter().map(|&name| name.to_owned()).collect(),
            ..Names::default()
        })
    }

    #[test]
    fn a_name_keeps_its_number_and_a_number_is_free_once_nobody_goes_by_it() {
        let numbers = Numbers::default();
        let old = |at| Number { at, is_new: false };
        let new = |at| Number { at, is_new: true };
        let first = upstreams(&numbers, &["a", "b", "c"]);
        assert_eq!(first.upstreams, [new(0), new(1), new(2)]);
        let second = upstreams(&numbers, &["d", "c"]);
        assert_eq!(second.upstreams, [new(3), old(2)], "the first is in use");
        drop(first);
        let third = upstreams(&numbers, &["c", "b", "d", "e"]);
        assert_eq!(third.upstreams, [old(2), old(1), old(3), new(0)]);
        for turn in 0..1_000 {
            let name = format!("new-{turn}");
            let one = upstreams(&numbers, &["c", &name]);
            assert_eq!(one.upstreams, [old(2), new(4)], "numbers are used again");
        }
    }
}
