use std::cmp::Reverse;
use std::collections::BinaryHeap;

use proptest::prelude::*;
use rand::SeedableRng as _;
use rand::rngs::StdRng;

use super::*;
use crate::upstream::testing;

/// A tier: calls at once, and how long a call takes.
#[derive(Clone, Copy, Debug)]
struct Tier {
    places: usize,
    call_ms: u64,
    /// By how much of it a call may be longer or shorter.
    spread: f64,
}

impl Tier {
    fn took(&self, rng: &mut StdRng) -> u64 {
        let factor = 1.0 + self.spread * (2.0 * rng.random::<f64>() - 1.0);
        ((self.call_ms as f64 * factor) as u64).max(1)
    }

    /// Lines that it can answer in a time, on the average.
    fn lines_in(&self, ms: u64) -> f64 {
        self.places as f64 * ms as f64 / self.call_ms as f64
    }

    /// Lines that it answers in a time in the world of this seed, where a line always waits for it:
    /// its calls may happen to be shorter or longer than on the average.
    fn answers_in(&self, ms: u64, seed: u64) -> f64 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut free: BinaryHeap<Reverse<u64>> = (0..self.places).map(|_| Reverse(0)).collect();
        let mut answers = 0;
        while let Some(Reverse(begins)) = free.pop() {
            let ends = begins + self.took(&mut rng);
            if ends <= ms {
                answers += 1;
                free.push(Reverse(ends));
            }
        }
        f64::from(answers)
    }
}

#[derive(Clone, Copy, Debug)]
struct Batch {
    lines: usize,
    at_ms: u64,
    window_ms: u64,
}

/// One process, whose own tier may be away for a while.
#[derive(Clone, Debug)]
struct World {
    own: Tier,
    paid: Tier,
    batches: Vec<Batch>,
    away: Option<(u64, u64)>,
    seed: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Outcome {
    spilled: usize,
    ended_ms: u64,
    in_time: usize,
}

/// When it lands, its number, the batch, whether the line has spilled, and how long it took.
type Flight = (u64, u64, usize, bool, u64);

/// Runs a world: the earliest deadline first, as a tenant's batches are rescued.
fn run(world: &World) -> Vec<Outcome> {
    // What the own tier takes does not hang on what is paid for.
    let (mut of_own, mut of_paid) = (
        StdRng::seed_from_u64(world.seed),
        StdRng::seed_from_u64(!world.seed),
    );
    let (lane, tenant): (_, Arc<str>) = (lane(), "tenant".into());
    let (begun, mut lateness) = (Instant::now(), Lateness::default());
    let ids: Vec<Arc<str>> = (0..world.batches.len())
        .map(|number| number.to_string().into())
        .collect();
    let mut left: Vec<usize> = world.batches.iter().map(|batch| batch.lines).collect();
    let mut outcomes = vec![
        Outcome {
            spilled: 0,
            ended_ms: 0,
            in_time: 0
        };
        left.len()
    ];
    let mut flights: BinaryHeap<Reverse<Flight>> = BinaryHeap::new();
    let mut in_flight = [0, 0];
    let (mut now, mut look_at, mut numbers) = (0, 0, 0);
    let deadline = |number: usize| world.batches[number].at_ms + world.batches[number].window_ms;
    let mut order: Vec<usize> = (0..left.len()).collect();
    order.sort_by_key(|&number| deadline(number));
    while left.iter().any(|&lines| lines > 0) || !flights.is_empty() {
        while let Some(&Reverse((at, _, number, is_spilled, took))) = flights.peek()
            && at <= now
        {
            flights.pop();
            in_flight[usize::from(is_spilled)] -= 1;
            lateness.on_finish(lane, &tenant, Duration::from_millis(took), is_spilled);
            outcomes[number].ended_ms = at;
            outcomes[number].in_time += usize::from(at <= deadline(number));
        }
        let is_there =
            |&number: &usize| world.batches[number].at_ms <= now && now < deadline(number);
        for &number in &order {
            if now >= deadline(number) {
                left[number] = 0;
            }
        }
        let is_away = world
            .away
            .is_some_and(|(from, to)| (from..to).contains(&now));
        let mut start = |number: usize, tier: &Tier, is_spilled: bool| {
            numbers += 1;
            let took = tier.took(if is_spilled {
                &mut of_paid
            } else {
                &mut of_own
            });
            flights.push(Reverse((now + took, numbers, number, is_spilled, took)));
        };
        for &number in order.iter().filter(|number| is_there(number)) {
            while left[number] > 0 && in_flight[0] < world.own.places && !is_away {
                left[number] -= 1;
                in_flight[0] += 1;
                start(number, &world.own, false);
            }
        }
        for &number in order.iter().filter(|number| is_there(number)) {
            while left[number] > 0
                && in_flight[1] < world.paid.places
                && lateness.allows(lane, &tenant, &ids[number])
            {
                left[number] -= 1;
                in_flight[1] += 1;
                lateness.on_spill(lane, &tenant, &ids[number]);
                outcomes[number].spilled += 1;
                start(number, &world.paid, true);
            }
        }
        if now >= look_at {
            let open = order
                .iter()
                .filter(|number| is_there(number) && left[**number] > 0);
            let open = open.map(|&number| OpenBatch {
                id: Arc::clone(&ids[number]),
                lines: left[number] as f64,
                left: Duration::from_millis(deadline(number) - now),
            });
            let open: Vec<OpenBatch> = open.collect();
            let moment = Moment {
                now: begun + Duration::from_millis(now),
                is_waiting: !open.is_empty(),
                in_flight: in_flight[0],
            };
            lateness.judge(lane, &tenant, open, moment);
            look_at = now + u64::try_from(lateness.judged_every().as_millis()).expect("is short");
            // What is allowed now is sent now.
            continue;
        }
        let landing = flights.peek().map(|Reverse((at, ..))| *at);
        now = landing
            .into_iter()
            .chain([look_at])
            .min()
            .unwrap_or(look_at)
            .max(now + 1);
    }
    outcomes
}

fn lane() -> LaneId {
    testing::pool(1, &[("m", None)])
        .resolve("m")
        .expect("is served")
        .lane
}

fn own() -> impl Strategy<Value = Tier> {
    (4_usize..200, 100_u64..2_000, 0.0..0.6).prop_map(|(places, call_ms, spread)| Tier {
        places,
        call_ms,
        spread,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The heart of it: what the own tier cannot do in time is paid for, at most a tenth more, and
    /// the batch makes its window.
    #[test]
    fn a_batch_that_would_be_late_pays_for_what_is_needed(
        own in own(),
        over in 0.3_f64..1.0,
        flights in 60_u64..400,
        paid_ms in 100_u64..2_000,
        seed: u64,
    ) {
        let window_ms = (own.call_ms * flights).max(60_000);
        let in_window = own.lines_in(window_ms);
        let lines = (in_window * (1.0 + over)) as usize;
        let needed = lines as f64 - own.answers_in(window_ms, seed);
        let paid = Tier { places: own.places * 40, call_ms: paid_ms, spread: 0.3 };
        let batches = vec![Batch { lines, at_ms: 0, window_ms }];
        let outcome = run(&World { own, paid, batches, away: None, seed })[0];
        prop_assert_eq!(outcome.in_time, lines, "{:?}", outcome);
        let spilled = outcome.spilled as f64;
        // The own tier answers as much as it can, but for the last calls.
        prop_assert!(spilled <= needed * 1.1 + 2.0 * own.places as f64, "{outcome:?}: {needed}");
    }

    /// One that would make it pays for nothing.
    #[test]
    fn a_batch_that_makes_it_pays_for_nothing(
        own in own(),
        part in 0.05_f64..0.85,
        flights in 60_u64..400,
        seed: u64,
    ) {
        let window_ms = (own.call_ms * flights).max(60_000);
        let lines = (own.lines_in(window_ms) * part) as usize;
        let paid = Tier { places: 1_000, call_ms: 500, spread: 0.0 };
        let batches = vec![Batch { lines, at_ms: 0, window_ms }];
        let outcome = run(&World { own, paid, batches, away: None, seed })[0];
        prop_assert_eq!(outcome.spilled, 0);
        prop_assert_eq!(outcome.in_time, lines);
    }

    /// A batch with time pays nothing for one that has none, and two that are late together pay for
    /// what both of them need.
    #[test]
    fn batches_of_a_tenant_are_judged_together(
        own in own(),
        first in 0.2_f64..0.8,
        second in 0.2_f64..1.5,
        seed: u64,
    ) {
        let window_ms = (own.call_ms * 200).max(60_000);
        let paid = Tier { places: own.places * 40, call_ms: 300, spread: 0.3 };
        let lines = |part: f64, ms: u64| (own.lines_in(ms) * part) as usize;
        let batches = vec![
            Batch { lines: lines(first, window_ms), at_ms: 0, window_ms },
            Batch { lines: lines(second, window_ms), at_ms: 0, window_ms: 2 * window_ms },
        ];
        let all = batches[0].lines + batches[1].lines;
        let needed = (all as f64 - own.answers_in(2 * window_ms, seed)).max(0.0);
        let margin = 2.0 * own.places as f64 + own.lines_in(2_000);
        let outcomes = run(&World { own, paid, batches, away: None, seed });
        prop_assert_eq!(outcomes[0].in_time + outcomes[1].in_time, all);
        prop_assert_eq!(outcomes[0].spilled, 0, "the first is rescued, not paid for");
        if all as f64 <= own.lines_in(2 * window_ms) * 0.9 {
            prop_assert_eq!(outcomes[1].spilled, 0);
        }
        let spilled = outcomes[1].spilled as f64;
        prop_assert!(spilled <= needed * 1.1 + margin, "{outcomes:?}: {needed}");
    }

    /// An outage of the own tier is paid for as far as its end leaves too little time, whenever it
    /// comes.
    #[test]
    fn an_outage_is_paid_for_as_far_as_it_matters(
        own in own(),
        part in 0.3_f64..0.6,
        from in 0.1_f64..0.3,
        away in 0.5_f64..0.8,
        seed: u64,
    ) {
        let window_ms = (own.call_ms * 200).max(60_000);
        let of_window = |part: f64| (window_ms as f64 * part) as u64;
        let lines = (own.lines_in(window_ms) * part) as usize;
        let paid = Tier { places: own.places * 40, call_ms: 300, spread: 0.3 };
        let batches = vec![Batch { lines, at_ms: 0, window_ms }];
        let away = Some((of_window(from), of_window(from + away)));
        let outcome = run(&World { own, paid, batches, away, seed })[0];
        prop_assert_eq!(outcome.in_time, lines, "{:?}", outcome);
    }
}

/// Lines that the lowest tier cannot answer in the time that is left go at once, however few they
/// are and whatever the rate is.
#[test]
fn what_no_call_can_make_any_more_goes_at_once() {
    let (lane, tenant): (_, Arc<str>) = (lane(), "tenant".into());
    let (now, mut lateness) = (Instant::now(), Lateness::default());
    for seconds in 1..=100 {
        lateness.on_finish(lane, &tenant, Duration::from_secs(seconds), false);
    }
    let judge = |lateness: &mut Lateness, left: u64, at: u64| {
        let open = vec![OpenBatch {
            id: "batch".into(),
            lines: 3.0,
            left: Duration::from_secs(left),
        }];
        let moment = Moment {
            now: now + Duration::from_secs(at),
            is_waiting: true,
            in_flight: 1,
        };
        let changed = lateness.judge(lane, &tenant, open, moment);
        changed
            .into_iter()
            .map(|verdict| verdict.is_late)
            .collect::<Vec<_>>()
    };
    assert!(judge(&mut lateness, 96, 0).is_empty(), "a call may make it");
    assert!(!lateness.allows(lane, &tenant, "batch"));
    assert_eq!(
        judge(&mut lateness, 95, 1),
        [true],
        "but 19 of 20 would not"
    );
    for _ in 0..3 {
        assert!(lateness.allows(lane, &tenant, "batch"));
        lateness.on_spill(lane, &tenant, "batch");
    }
    assert!(
        !lateness.allows(lane, &tenant, "batch"),
        "and no more than there are"
    );
}

/// Two processes that each have a part of the places and of the lines pay together for what one
/// with all of them would pay for.
#[test]
fn two_processes_pay_together_what_one_would() {
    let tier = |places, call_ms| Tier {
        places,
        call_ms,
        spread: 0.3,
    };
    let world = |places, lines, seed| World {
        own: tier(places, 400),
        paid: tier(200, 300),
        batches: vec![Batch {
            lines,
            at_ms: 0,
            window_ms: 120_000,
        }],
        away: None,
        seed,
    };
    // 100 lines a second for two minutes, and half as many more.
    let alone = run(&world(40, 18_000, 1))[0];
    let parts = [run(&world(30, 13_500, 2))[0], run(&world(10, 4_500, 3))[0]];
    let together = parts[0].spilled + parts[1].spilled;
    assert_eq!(alone.in_time, 18_000);
    assert_eq!(parts[0].in_time + parts[1].in_time, 18_000);
    let difference = alone.spilled.abs_diff(together);
    assert!(difference <= 6_000 / 20, "{alone:?}, {parts:?}");
}

/// A batch that is a little over its time does not turn to and fro.
#[test]
fn a_verdict_has_hysteresis() {
    let (lane, tenant): (_, Arc<str>) = (lane(), "tenant".into());
    let (begun, mut lateness) = (Instant::now(), Lateness::default());
    let mut verdicts = Vec::new();
    // Ten lines a second for 100 s: 990 can be answered in time, and between 960 and 1,020 are
    // open.
    for second in 0..60_u64 {
        for _ in 0..10 {
            lateness.on_finish(lane, &tenant, Duration::from_millis(1), false);
        }
        let lines = if second % 2 == 0 { 960.0 } else { 1_020.0 };
        let open = vec![OpenBatch {
            id: "batch".into(),
            lines,
            left: Duration::from_secs(100),
        }];
        let moment = Moment {
            now: begun + Duration::from_secs(second),
            is_waiting: true,
            in_flight: 1,
        };
        verdicts.extend(lateness.judge(lane, &tenant, open, moment));
    }
    assert!(verdicts.is_empty(), "it is within the margin");
}
