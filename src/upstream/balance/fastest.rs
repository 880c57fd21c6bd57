//! Fastest: of two targets drawn by chance the one that takes less time. Drawing two keeps a target
//! that has just become the fastest from getting every line at once.
//!
//! A target that fails more than a fifth of its calls is not drawn while another does not. Targets
//! of which too little is known, and those that were not chosen for long, get a bounded share of
//! the lines: else nobody would learn that they are fast, or that they work again.

use std::cmp::Ordering;

use tokio::time::Instant;

use super::least_busy::is_less_busy;
use super::load::{Avoid, Candidates, Load};
use super::speed::{OUTDATED_AFTER, Speed};

/// One choice in so many explores.
const EXPLORES_EVERY: u64 = 20;

#[derive(Debug)]
pub(in crate::upstream) struct Fastest {
    /// By target: when it was chosen last.
    chosen: Box<[Option<Instant>]>,
    made: u64,
}

/// A target that can take the line.
#[derive(Clone, Copy)]
struct Candidate {
    index: usize,
    load: Load,
    speed: Speed,
    /// When it was chosen last.
    chosen: Option<Instant>,
}

impl Candidate {
    /// Who comes later, whatever the speed.
    fn rank(&self) -> (Avoid, bool) {
        (self.load.avoid, self.speed.is_failing())
    }

    /// Whether too little is known of it to judge by.
    fn is_unknown(&self, now: Instant) -> bool {
        let is_recent = |last: Instant| now.duration_since(last) < OUTDATED_AFTER;
        self.speed.is_unexplored() || !self.chosen.is_some_and(is_recent)
    }

    fn is_better_than(&self, other: &Candidate) -> bool {
        let busy = |one: &Self, other: &Self| !is_less_busy(one.load, other.load);
        let order = self.speed.compare(&other.speed);
        // As long as nothing is known, lines spread.
        let order = order.then(busy(self, other).cmp(&busy(other, self)));
        order.then(self.chosen.cmp(&other.chosen)) == Ordering::Less
    }
}

/// Two of those that were offered, each pair as likely as any other, of those that rank first.
#[derive(Default)]
struct Draw {
    two: [Option<Candidate>; 2],
    offered: u64,
}

impl Draw {
    fn offer(&mut self, candidate: Candidate, below: impl FnOnce(u64) -> u64) {
        if let Some(drawn) = self.two[0] {
            match candidate.rank().cmp(&drawn.rank()) {
                Ordering::Less => *self = Self::default(),
                Ordering::Equal => {}
                Ordering::Greater => return,
            }
        }
        self.offered += 1;
        let place = match self.offered {
            1 => 0,
            2 => 1,
            offered => below(offered),
        };
        if let Some(place) = self.two.get_mut(place as usize) {
            *place = Some(candidate);
        }
    }

    fn better(&self) -> Option<Candidate> {
        let [first, second] = self.two;
        let first = first?;
        Some(match second {
            Some(second) if second.is_better_than(&first) => second,
            _ => first,
        })
    }
}

impl Fastest {
    pub(super) fn new(count: usize) -> Self {
        Self {
            chosen: vec![None; count].into(),
            made: 0,
        }
    }

    /// `below`: a random number from 0 to less than what it is given.
    pub(super) fn choose(
        &mut self,
        targets: &impl Candidates,
        now: Instant,
        below: impl Fn(u64) -> u64,
    ) -> Option<usize> {
        let explores = (self.made + 1).is_multiple_of(EXPLORES_EVERY);
        let mut draw = Draw::default();
        let mut unknown: Option<Candidate> = None;
        for index in 0..targets.count() {
            let Some(load) = targets.load(index) else {
                continue;
            };
            let candidate = Candidate {
                index,
                load,
                speed: targets.speed(index),
                chosen: self.chosen[index],
            };
            draw.offer(candidate, &below);
            if explores && candidate.is_unknown(now) {
                let order = |one: &Candidate| (one.load.avoid, one.chosen);
                if unknown.is_none_or(|other| order(&candidate) < order(&other)) {
                    unknown = Some(candidate);
                }
            }
        }
        let better = draw.better()?;
        let unknown = unknown.filter(|unknown| unknown.load.avoid <= better.load.avoid);
        let chosen = unknown.unwrap_or(better).index;
        self.made += 1;
        self.chosen[chosen] = Some(now);
        Some(chosen)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::time::Duration;

    use proptest::prelude::*;
    use rand::SeedableRng as _;
    use rand::rngs::StdRng;

    use super::super::testing::Field;
    use super::*;

    /// Targets that take so long, and that fail so many of a hundred calls.
    struct Race {
        field: Field,
        took_ms: Vec<u64>,
        fails: Vec<u32>,
        balancer: Fastest,
        random: RefCell<StdRng>,
        now: Instant,
    }

    impl Race {
        fn new(targets: &[(u64, u32)], seed: u64) -> Self {
            Self {
                field: Field::new(&vec![1; targets.len()], usize::MAX),
                took_ms: targets.iter().map(|(took, _)| *took).collect(),
                fails: targets.iter().map(|(_, fails)| *fails).collect(),
                balancer: Fastest::new(targets.len()),
                random: RefCell::new(StdRng::seed_from_u64(seed)),
                now: Instant::now(),
            }
        }

        fn choose(&mut self) -> Option<usize> {
            let random = &self.random;
            let below = |limit| random.borrow_mut().random_range(0..limit);
            self.balancer.choose(&self.field, self.now, below)
        }

        /// Sends so many lines, each answered before the next; how many each target got.
        fn run(&mut self, lines: usize) -> Vec<usize> {
            let mut taken = vec![0; self.took_ms.len()];
            for _ in 0..lines {
                let chosen = self.choose().expect("a place");
                taken[chosen] += 1;
                let fails = self.random.borrow_mut().random_range(0..100) < self.fails[chosen];
                let took = Duration::from_millis(self.took_ms[chosen]);
                self.now += Duration::from_millis(1);
                let speed = &mut self.field.speeds[chosen];
                if fails {
                    speed.failed(self.now);
                } else {
                    speed.succeeded(took, 10, self.now);
                }
            }
            taken
        }
    }

    proptest! {
        #[test]
        fn the_slowest_gets_no_more_than_the_share_of_the_unknown(
            others in prop::collection::vec(10..100_u64, 2..6),
            seed: u64,
        ) {
            let targets: Vec<_> = others.iter().map(|&took| (took, 0)).chain([(1_000, 0)]).collect();
            let mut race = Race::new(&targets, seed);
            race.run(5 * 20 * targets.len());
            let taken = race.run(2_000);
            let slowest = taken[others.len()];
            prop_assert!(slowest <= 2_000 / 20, "{taken:?}");
        }

        #[test]
        fn what_never_answers_gets_no_more_than_the_share_of_the_unknown(seed: u64) {
            let mut race = Race::new(&[(10, 0), (20, 0), (1, 0)], seed);
            for target in 0..2 {
                let took = Duration::from_millis(race.took_ms[target]);
                race.field.speeds[target].succeeded(took, 10, race.now);
            }
            let mut taken = [0; 3];
            for _ in 0..1_000 {
                taken[race.choose().expect("a place")] += 1;
            }
            prop_assert!((1..=1_000 / 20).contains(&taken[2]), "{taken:?}");
        }

        #[test]
        fn a_target_that_fails_is_left_to_those_that_do_not(
            others in prop::collection::vec(100..1_000_u64, 1..5),
            fails in 60..=100_u32,
            seed: u64,
        ) {
            // It would be the fastest by far.
            let targets: Vec<_> = others.iter().map(|&took| (took, 0)).chain([(1, fails)]).collect();
            let mut race = Race::new(&targets, seed);
            race.run(5 * 20 * targets.len());
            let taken = race.run(2_000);
            prop_assert!(taken[others.len()] <= 2_000 / 20, "{taken:?}");
        }

        #[test]
        fn it_comes_back_when_it_works_again(seed: u64) {
            let mut race = Race::new(&[(100, 0), (100, 0), (1, 100)], seed);
            race.run(500);
            race.fails[2] = 0;
            for _ in 0..20 {
                race.now += OUTDATED_AFTER;
                race.run(40);
            }
            let taken = race.run(1_000);
            prop_assert!(taken[2] > 500, "{taken:?}");
        }

        #[test]
        fn among_those_that_all_fail_the_lines_go_on(seed: u64) {
            let mut race = Race::new(&[(10, 100), (10, 100)], seed);
            let taken = race.run(200);
            prop_assert!(taken.iter().all(|taken| *taken > 20), "{taken:?}");
        }
    }

    #[test]
    fn the_fastest_of_two_takes_all_lines_but_for_what_explores() {
        let mut race = Race::new(&[(10, 0), (20, 0)], 1);
        race.run(200);
        let taken = race.run(1_000);
        assert!(taken[0] >= 950, "{taken:?}");
        assert!(taken[1] <= 50, "{taken:?}");
    }

    #[test]
    fn every_two_of_three_are_drawn_as_often() {
        let mut drawn = [0; 3];
        for number in 0..3 {
            let mut draw = Draw::default();
            for index in 0..3 {
                let load = Field::new(&[1; 3], 1).load(index).expect("a place");
                let candidate = Candidate {
                    index,
                    load,
                    speed: Speed::default(),
                    chosen: None,
                };
                draw.offer(candidate, |limit| {
                    assert_eq!(limit, 3);
                    number
                });
            }
            for candidate in draw.two.into_iter().flatten() {
                drawn[candidate.index] += 1;
            }
        }
        assert_eq!(drawn, [2, 2, 2]);
    }

    #[test]
    fn the_target_of_the_last_failure_comes_last_also_where_it_is_unknown() {
        let mut race = Race::new(&[(1, 0), (100, 0)], 1);
        race.field.failed_at = Some(0);
        for _ in 0..100 {
            assert_eq!(race.choose(), Some(1));
        }
        race.field.in_flight[1] = usize::MAX;
        assert_eq!(race.choose(), Some(0));

        let mut race = Race::new(&[(1, 0), (1, 0), (1, 0)], 1);
        race.field.failed_at = Some(0);
        race.field.speeds[2].succeeded(Duration::from_millis(1), 10, race.now);
        let taken = [(); 20].map(|()| race.choose());
        assert!(
            taken.contains(&Some(1)),
            "another one that is unknown is explored"
        );
        assert!(!taken.contains(&Some(0)));
    }
}
