use proptest::prelude::*;

use super::*;

const TERM_MS: i64 = 1_000;
const RECLAIM_MS: i64 = 5_000;
const LIMIT: &str = "model:m";

#[test]
fn a_limit_is_divided_equally_among_those_who_want_more() {
    assert_eq!(divide(64, &[64, 64]), [32, 32]);
    assert_eq!(divide(10, &[10, 10, 10]), [4, 3, 3], "the first has more");
    assert_eq!(
        divide(10, &[2, 10, 10]),
        [2, 4, 4],
        "who wants less leaves it"
    );
    assert_eq!(divide(64, &[0, 64, 0]), [0, 64, 0]);
    assert_eq!(divide(2, &[9, 9, 9]), [1, 1, 0], "some have none");
    assert_eq!(divide(0, &[1, 1]), [0, 0]);
}

#[test]
fn where_there_is_enough_everybody_keeps_an_equal_part_at_least() {
    assert_eq!(divide(64, &[0]), [64]);
    assert_eq!(divide(64, &[0, 0, 0]), [22, 21, 21]);
    assert_eq!(
        divide(64, &[10, 0]),
        [32, 32],
        "a little work moves nothing"
    );
    assert_eq!(divide(64, &[50, 0, 4]), [50, 7, 7]);
    assert_eq!(divide(1, &[0, 0]), [1, 0]);
}

proptest! {
    #[test]
    fn the_whole_limit_is_divided_and_no_more(
        limit in 0_u64..200,
        wants in proptest::collection::vec(0_u64..200, 1..8),
    ) {
        let parts = divide(limit, &wants);
        prop_assert_eq!(parts.iter().sum::<u64>(), limit);
        // Who has less than another, and less than it wants, is at most one behind.
        for (part, wants) in parts.iter().zip(&wants) {
            for other in &parts {
                prop_assert!(part >= wants || part + 1 >= *other);
            }
        }
    }
}

/// A process, as far as a limit is concerned.
#[derive(Debug)]
struct Process {
    token: String,
    share: u64,
    /// Since and until when it has had its turns in time.
    since: i64,
    until: i64,
    wants: u64,
    in_flight: u64,
}

/// Processes, and what is written of them.
#[derive(Debug, Default)]
struct World {
    limit: u64,
    now: i64,
    joined: usize,
    processes: Vec<Process>,
    book: BTreeMap<String, (i64, i64, Share)>,
}

#[derive(Clone, Debug)]
enum Event {
    Join,
    Turn(usize),
    Want(usize, u64),
    Call(usize, u64),
    Answer(usize, u64),
    Leave(usize),
    Vanish(usize),
    Pass(i64),
}

impl World {
    fn process(&mut self, number: usize) -> Option<&mut Process> {
        let count = self.processes.len();
        (count > 0).then(|| &mut self.processes[number % count])
    }

    fn holders(&self) -> Vec<Holder> {
        let holders = self
            .book
            .iter()
            .map(|(token, (joined_at, until, share))| Holder {
                token: token.clone(),
                joined_at: *joined_at,
                left_ms: until - self.now,
                shares: BTreeMap::from([(LIMIT.to_owned(), *share)]),
            });
        holders.collect()
    }

    fn turn(&mut self, number: usize) {
        let (limit, now, holders) = (self.limit, self.now, self.holders());
        let Some(process) = self.process(number) else {
            return;
        };
        if process.until <= now {
            (process.share, process.since) = (0, now);
        }
        let mut mine = Share {
            allowed: limit,
            wants: process.wants,
            held: process.share.max(process.in_flight),
        };
        let written = holders.iter().find(|holder| holder.token == process.token);
        let joined_at = written.map_or(i64::MAX, |holder| holder.joined_at);
        let part = part(
            LIMIT,
            (joined_at, &process.token),
            mine,
            &holders,
            (now - process.since >= TERM_MS).then_some(RECLAIM_MS),
        );
        (process.share, process.until) = (part.share, now + TERM_MS);
        mine.held = part.share.max(process.in_flight);
        let token = process.token.clone();
        let joined_at = if joined_at == i64::MAX {
            now
        } else {
            joined_at
        };
        self.book.insert(token, (joined_at, now + TERM_MS, mine));
        for token in part.forgotten {
            self.book.remove(&token);
        }
    }

    fn apply(&mut self, event: &Event) {
        let now = self.now;
        match *event {
            Event::Join => {
                self.joined += 1;
                self.processes.push(Process {
                    // In no order.
                    token: format!("{}-{}", self.joined * 7 % 10, self.joined),
                    share: 0,
                    since: now,
                    until: now,
                    wants: 0,
                    in_flight: 0,
                });
            }
            Event::Turn(number) => self.turn(number),
            Event::Want(number, wants) => {
                let wants = wants.min(self.limit);
                if let Some(process) = self.process(number) {
                    process.wants = wants;
                }
            }
            Event::Call(number, calls) => {
                if let Some(process) = self.process(number)
                    && now < process.until
                {
                    let free = process.share.saturating_sub(process.in_flight);
                    process.in_flight += calls.min(free);
                }
            }
            Event::Answer(number, calls) => {
                if let Some(process) = self.process(number) {
                    process.in_flight = process.in_flight.saturating_sub(calls);
                }
            }
            Event::Leave(number) | Event::Vanish(number) => {
                let count = self.processes.len();
                if count > 0 {
                    let gone = self.processes.remove(number % count);
                    if matches!(event, Event::Leave(_)) {
                        self.book.remove(&gone.token);
                    }
                }
            }
            Event::Pass(ms) => {
                self.now += ms;
                // Calls of one that was silent for so long are over by now.
                for process in &mut self.processes {
                    if process.until <= self.now {
                        process.in_flight = 0;
                    }
                }
            }
        }
    }

    /// Lets time pass in which everybody has many turns.
    fn live(&mut self, ms: i64) {
        let end = self.now + ms;
        while self.now < end {
            self.now = end.min(self.now + TERM_MS / 2);
            self.everybody_turns();
        }
    }

    fn everybody_turns(&mut self) {
        for number in 0..self.processes.len() {
            self.turn(number);
        }
    }
}

fn event() -> impl Strategy<Value = Event> {
    let number = 0_usize..8;
    prop_oneof![
        1 => Just(Event::Join),
        6 => number.clone().prop_map(Event::Turn),
        3 => (number.clone(), 0_u64..20).prop_map(|(number, wants)| Event::Want(number, wants)),
        4 => (number.clone(), 0_u64..20).prop_map(|(number, calls)| Event::Call(number, calls)),
        3 => (number.clone(), 0_u64..20).prop_map(|(number, calls)| Event::Answer(number, calls)),
        1 => number.clone().prop_map(Event::Leave),
        1 => number.prop_map(Event::Vanish),
        2 => (0_i64..3_000).prop_map(Event::Pass),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]
    #[test]
    fn whatever_happens_all_together_never_exceed_the_limit(
        limit in 1_u64..20,
        events in proptest::collection::vec(event(), 0..120),
    ) {
        let mut world = World { limit, ..World::default() };
        for event in &events {
            world.apply(event);
            let held: u64 = world.book.values().map(|(_, _, share)| share.held).sum();
            prop_assert!(held <= limit, "{held} are held of {limit} after {event:?}: {world:?}");
            let in_flight: u64 = world.processes.iter().map(|process| process.in_flight).sum();
            prop_assert!(in_flight <= limit, "{in_flight} calls after {event:?}: {world:?}");
        }
        // And when nothing happens any more, everybody gets what is due.
        for number in 0..world.processes.len() {
            world.apply(&Event::Answer(number, limit));
        }
        world.live(3 * TERM_MS + RECLAIM_MS);
        let held: u64 = world.processes.iter().map(|process| process.share).sum();
        prop_assert_eq!(held, if world.processes.is_empty() { 0 } else { limit });
        let mut in_order: Vec<(&(i64, i64, Share), u64)> = Vec::new();
        for process in &world.processes {
            in_order.push((&world.book[&process.token], process.share));
        }
        prop_assert!(in_order.iter().all(|(written, share)| written.2.held == *share));
    }
}

/// Processes that have each had their turns.
fn settled(limit: u64, wants: &[u64]) -> World {
    let mut world = World {
        limit,
        ..World::default()
    };
    for (number, &wants) in wants.iter().enumerate() {
        world.apply(&Event::Join);
        world.apply(&Event::Want(number, wants));
        world.turn(number);
        world.now += 1;
    }
    for _ in 0..3 {
        world.everybody_turns();
    }
    world
}

fn shares(world: &World) -> Vec<u64> {
    world
        .processes
        .iter()
        .map(|process| process.share)
        .collect()
}

#[test]
fn the_ends_of_calls_beyond_a_share_are_awaited_only_by_who_has_not_what_is_due() {
    let alone = Share {
        allowed: 4,
        wants: 4,
        held: 8,
    };
    let mine = part(LIMIT, (1, "a"), alone, &[], None);
    assert_eq!(
        (mine.share, mine.is_overcommitted(8)),
        (4, false),
        "it shrank"
    );
    for (wants, held, is_awaited) in [(0, 0, false), (4, 2, false), (4, 0, true)] {
        let other = Share {
            allowed: 4,
            wants,
            held,
        };
        let other = Holder {
            token: "b".to_owned(),
            joined_at: 2,
            left_ms: TERM_MS,
            shares: BTreeMap::from([(LIMIT.to_owned(), other)]),
        };
        let mine = part(LIMIT, (1, "a"), alone, &[other], None);
        assert_eq!(mine.is_overcommitted(8), is_awaited, "{wants} {held}");
        assert!(!mine.is_overcommitted(mine.share), "nothing is beyond it");
    }
}

#[test]
fn a_share_grows_only_when_another_has_let_go() {
    let mut world = settled(4, &[4]);
    world.apply(&Event::Call(0, 4));
    world.apply(&Event::Join);
    world.apply(&Event::Want(1, 4));
    world.everybody_turns();
    world.everybody_turns();
    assert_eq!(shares(&world), [2, 0], "all four calls are in flight yet");
    world.apply(&Event::Answer(0, 1));
    world.everybody_turns();
    assert_eq!(shares(&world), [2, 1]);
    world.apply(&Event::Answer(0, 1));
    world.everybody_turns();
    assert_eq!(shares(&world), [2, 2]);
}

#[test]
fn what_a_vanished_process_held_is_held_back_while_another_can_work() {
    let mut world = settled(4, &[4, 4]);
    world.apply(&Event::Vanish(1));
    world.live(TERM_MS + RECLAIM_MS - 10);
    assert_eq!(shares(&world), [2]);
    world.live(20);
    assert_eq!(shares(&world), [4]);
}

#[test]
fn what_a_vanished_process_held_is_given_out_where_nobody_else_has_any() {
    let mut world = settled(4, &[4, 0, 0]);
    assert_eq!(shares(&world), [4, 0, 0]);
    world.apply(&Event::Vanish(0));
    world.apply(&Event::Want(0, 4));
    world.everybody_turns();
    assert_eq!(shares(&world), [0, 0], "its lease holds yet");
    world.live(TERM_MS + 10);
    assert_eq!(shares(&world), [4, 0]);
}

#[test]
fn after_an_outage_who_is_back_first_does_not_take_what_the_others_held() {
    let mut world = settled(4, &[4, 4]);
    world.apply(&Event::Pass(10 * RECLAIM_MS));
    world.turn(0);
    assert_eq!(shares(&world), [2, 2]);
    world.everybody_turns();
    assert_eq!(shares(&world), [2, 2]);
}

#[test]
fn the_smallest_limit_holds_where_configurations_differ() {
    let share = |allowed, held| Share {
        allowed,
        wants: 10,
        held,
    };
    let holder = Holder {
        token: "other".to_owned(),
        joined_at: 1,
        left_ms: 1,
        shares: BTreeMap::from([(LIMIT.to_owned(), share(4, 0))]),
    };
    let part = part(LIMIT, (2, "me"), share(10, 10), &[holder], None);
    assert_eq!((part.target, part.share, part.is_awaited), (2, 2, true));
}
