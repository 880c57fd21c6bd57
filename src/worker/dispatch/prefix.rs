//! What lines that go by how they begin save: the order in which the lines in hand are chosen,
//! against the best one that there is.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
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
            pool: testing::pool(2, &[("m", None)]),
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

/// How many of the lines in hand find their beginning in the cache, until none is left.
fn hits(hand: &mut Hand, cache: &mut Cache, entries: usize) -> usize {
    let mut hits = 0;
    while let Some((_, beginning)) = hand.next() {
        hits += usize::from(cache.hits(beginning, entries));
    }
    hits
}

/// The most lines of a window that find their beginning in the cache, in any order: every order is
/// tried. Of each beginning what is left is counted, and nothing else of the code under test is used.
fn best(left: &BTreeMap<u8, usize>, cache: &Cache, entries: usize, known: &mut Known) -> usize {
    let key = (left.clone(), cache.clone());
    if let Some(known) = known.get(&key) {
        return *known;
    }
    let mut most = 0;
    for &beginning in left.keys() {
        let (mut left, mut cache) = (left.clone(), cache.clone());
        let others = left[&beginning] - 1;
        left.insert(beginning, others);
        left.retain(|_, count| *count > 0);
        let hit = usize::from(cache.hits(beginning, entries));
        most = most.max(hit + best(&left, &cache, entries, known));
    }
    known.insert(key, most);
    most
}

/// What was found to be the most, by what is left and what the cache has.
type Known = HashMap<(BTreeMap<u8, usize>, Cache), usize>;

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
        let (mut hand, mut cache) = (Hand::new(true), Cache::default());
        for unit in &units {
            hand.admit(0, unit);
        }
        let hits = hits(&mut hand, &mut cache, entries);
        prop_assert_eq!(hits, lines - beginnings.len());
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

/// One window of lines after another: what the engine keeps of the last one counts for the next.
#[test]
fn of_each_window_in_hand_as_many_beginnings_are_found_as_in_the_best_order() {
    let mut random = StdRng::seed_from_u64(16);
    for _ in 0..60 {
        let entries = random.random_range(1..4);
        let (mut hand, mut cache) = (Hand::new(true), Cache::default());
        // A line in flight: the batch is in hand between two windows, too.
        hand.admit(0, &[99]);
        let in_flight = order::next(&mut hand.ledger, 0, &hand.pool);
        drop(in_flight.expect("a line").permit);
        for _ in 0..4 {
            let mut left = BTreeMap::new();
            for _ in 0..random.random_range(1..4) {
                let lines = 0..random.random_range(1..4);
                let lines: Lines = lines.map(|_| random.random_range(0..4)).collect();
                for beginning in &lines {
                    *left.entry(*beginning).or_insert(0) += 1;
                }
                hand.admit(0, &lines);
            }
            let best = best(&left, &cache, entries, &mut Known::new());
            let ours = hits(&mut hand, &mut cache, entries);
            assert!(ours <= best, "{ours} of {best}: the oracle is none");
            assert!(
                ours * 10 >= best * 9,
                "{ours} of {best} with {entries} kept: {left:?}"
            );
        }
    }
}
