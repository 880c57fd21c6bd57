//! What lines that go by how they begin save: the order in which the lines in hand are chosen,
//! against the best one that there is.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use rand::SeedableRng as _;
use rand::rngs::StdRng;

use super::ledger::Ledger;
use super::ledger::run_queues::LaneLimit;
use super::order::{self, Chosen};
use crate::metrics::metrics;
use crate::upstream::{Pool, testing};
use crate::worker::testing as units;
use crate::worker::work::unit::{BatchContext, LoadedUnit};

/// How the lines of a unit begin.
type Lines = Vec<u8>;

/// Lines in hand, of which one after the other is chosen.
struct Hand {
    pool: Arc<Pool>,
    ledger: Ledger,
    /// Of each unit, by its number.
    units: Vec<Lines>,
    goes_by_beginning: bool,
}

impl Hand {
    fn new(goes_by_beginning: bool) -> Self {
        Self {
            pool: testing::pool(1, &[("m", None)]),
            ledger: Ledger::default(),
            units: Vec::new(),
            goes_by_beginning,
        }
    }

    /// Takes a unit of a batch in hand.
    fn admit(&mut self, batch: usize, lines: &[u8]) {
        let number = self.units.len();
        self.units.push(lines.to_vec());
        let context = BatchContext {
            id: format!("batch-{batch}").into(),
            number: batch as u64,
            ..units::batch()
        };
        let count = u32::try_from(lines.len()).expect("are few");
        let mut leased = units::leased(count, 0, None);
        leased.lease.key.batch_id = context.id.to_string();
        leased.lease.key.chunk_no = i64::try_from(number).expect("are few");
        let text: String = lines
            .iter()
            .enumerate()
            .map(|(line, begins)| {
                let system = format!("You are number {begins}. ").repeat(9);
                let body = serde_json::json!({
                    "model": "m",
                    "messages": [{"role": "system", "content": system}, {"content": line}],
                });
                let line = serde_json::json!({
                    "custom_id": line.to_string(), "method": "POST",
                    "url": "/v1/chat/completions", "body": body,
                });
                format!("{line}\n")
            })
            .collect();
        let (mut unit, mut lines) = LoadedUnit::load(
            number as u64,
            leased,
            ("m", metrics().model("m")),
            Arc::new(context),
            text.into_bytes(),
            None,
        );
        if self.goes_by_beginning {
            unit.order(&mut lines);
        }
        let routes = self.pool.resolve("m").expect("is served");
        let limit = LaneLimit::of(&self.pool, routes.lane);
        self.ledger
            .admit(Arc::new(unit), Some(routes), lines, limit);
    }

    /// The next line: its batch, and how it begins. `None`: there is none.
    fn next(&mut self) -> Option<(String, u8)> {
        let Chosen {
            unit,
            pending,
            permit,
            counted,
            ..
        } = order::next(&mut self.ledger, 0, &self.pool)?;
        drop(permit);
        self.ledger.finish(&unit, counted, Some(Duration::ZERO));
        self.ledger.remove_if_spent(unit.id);
        let lines = &self.units[usize::try_from(unit.id).expect("are few")];
        Some((
            unit.batch.id.to_string(),
            lines[pending.line.index as usize],
        ))
    }

    fn units_in_hand(&self) -> usize {
        self.ledger.units().count()
    }
}

/// A cache of the beginnings that came last.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Cache(VecDeque<u8>);

impl Cache {
    /// Whether it has a beginning, which comes last from then on.
    fn hits(&mut self, beginning: u8, entries: usize) -> bool {
        let place = self.0.iter().position(|one| *one == beginning);
        if let Some(place) = place {
            self.0.remove(place);
        }
        self.0.push_back(beginning);
        if self.0.len() > entries {
            self.0.pop_front();
        }
        place.is_some()
    }
}

/// How many lines find their beginning in the cache, where so many units are in hand at once.
fn hits(units: &[Lines], in_hand: usize, entries: usize) -> usize {
    let mut hand = Hand::new(true);
    let (mut waiting, mut cache, mut hits) = (units.iter(), Cache::default(), 0);
    loop {
        while hand.units_in_hand() < in_hand
            && let Some(unit) = waiting.next()
        {
            hand.admit(0, unit);
        }
        let Some((_, beginning)) = hand.next() else {
            return hits;
        };
        hits += usize::from(cache.hits(beginning, entries));
    }
}

/// The most that any order gets, which knows what comes: every order is tried. Of each unit in hand
/// what is left is counted, and nothing else of the code under test is used.
struct Best<'a> {
    units: &'a [Lines],
    in_hand: usize,
    entries: usize,
    known: HashMap<(Vec<Lines>, usize, Cache), usize>,
}

impl Best<'_> {
    fn hits(&mut self, mut hand: Vec<Lines>, mut next: usize, cache: &Cache) -> usize {
        hand.retain(|unit| !unit.is_empty());
        while hand.len() < self.in_hand && next < self.units.len() {
            let mut unit = self.units[next].clone();
            unit.sort_unstable();
            hand.push(unit);
            next += 1;
        }
        hand.sort_unstable();
        let key = (hand.clone(), next, cache.clone());
        if let Some(known) = self.known.get(&key) {
            return *known;
        }
        let mut best = 0;
        for place in 0..hand.len() {
            let beginnings: BTreeSet<u8> = hand[place].iter().copied().collect();
            for beginning in beginnings {
                let mut left = hand.clone();
                let at = left[place].iter().position(|one| *one == beginning);
                left[place].remove(at.expect("is there"));
                let mut cache = cache.clone();
                let hit = usize::from(cache.hits(beginning, self.entries));
                best = best.max(hit + self.hits(left, next, &cache));
            }
        }
        self.known.insert(key, best);
        best
    }
}

proptest! {
    /// Each beginning has to be computed once. Where all lines are in hand, no order does better,
    /// however few beginnings the engine keeps.
    #[test]
    fn all_lines_in_hand_that_begin_alike_go_one_after_the_other(
        units in proptest::collection::vec(proptest::collection::vec(0_u8..12, 1..40), 1..6),
        entries in 1_usize..4,
    ) {
        let lines: usize = units.iter().map(Vec::len).sum();
        let beginnings: BTreeSet<u8> = units.iter().flatten().copied().collect();
        prop_assert_eq!(hits(&units, units.len(), entries), lines - beginnings.len());
    }

    /// Which batch has its turn does not depend on how its lines begin.
    #[test]
    fn batches_have_the_same_turns_as_without(
        units in proptest::collection::vec(
            (0_usize..3, proptest::collection::vec(0_u8..4, 1..12)),
            1..8,
        ),
    ) {
        let turns = |goes_by_beginning| {
            let mut hand = Hand::new(goes_by_beginning);
            for (batch, lines) in &units {
                hand.admit(*batch, lines);
            }
            std::iter::from_fn(|| hand.next().map(|(batch, _)| batch)).collect::<Vec<String>>()
        };
        prop_assert_eq!(turns(true), turns(false));
    }
}

/// Units come in hand as others are done, so the best order is one that knows what comes.
#[test]
fn with_units_that_come_one_after_the_other_it_is_within_a_tenth_of_the_best_order() {
    let mut random = StdRng::seed_from_u64(16);
    let (mut ours, mut best) = (0, 0);
    for _ in 0..60 {
        let (in_hand, entries) = (random.random_range(1..3), random.random_range(1..3));
        let unit = |_| {
            let lines = 0..random.random_range(3..6);
            lines.map(|_| random.random_range(0..3)).collect()
        };
        let units: Vec<Lines> = (0..4).map(unit).collect();
        ours += hits(&units, in_hand, entries);
        let mut oracle = Best {
            units: &units,
            in_hand,
            entries,
            known: HashMap::new(),
        };
        best += oracle.hits(Vec::new(), 0, &Cache::default());
    }
    assert!(ours <= best, "{ours} of {best}: the oracle is none");
    assert!(ours * 10 >= best * 9, "{ours} of {best}");
}
