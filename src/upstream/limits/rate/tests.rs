use std::collections::VecDeque;

use proptest::prelude::*;

use super::book::{Ask, Book};
use super::estimate::{Learned, LineSize, Tokens};
use super::exchange::{Exchanged, Grant, Turn, exchange};
use super::meter::{Charge, Meter, Used, Verdict};
use super::terms::{LATE_MS, Terms};

const START_MS: i64 = 1_800_000_000_000;
const VALID_MS: i64 = 5_000;
const STEP_MS: i64 = 10;

/// A call as the model sees it: it knows no parts, only when each call was sent.
#[derive(Clone, Copy, Debug)]
struct Sent {
    at: i64,
    charged: u64,
    used: u64,
}

/// Processes with one limit, in simulated time.
struct Fleet {
    terms: Terms,
    book: Book,
    grants: Vec<Grant>,
    processes: Vec<Process>,
    sent: Vec<Sent>,
    now: i64,
}

struct Process {
    token: String,
    meter: Meter,
    seq: i64,
    had_grant: bool,
    exchanged_at: i64,
    calls: Vec<(i64, Charge, u64)>,
    /// What its lines need, over and over: (reserved, used, how long).
    lines: VecDeque<(u64, u64, i64)>,
    is_alive: bool,
    /// One reply in so many is lost.
    loses: Option<u32>,
    /// One turn in so many comes to nothing: nothing of it is stored.
    fails: Option<u32>,
    exchanges: u32,
}

impl Process {
    fn new(name: usize, terms: Terms, lines: &[(u64, u64, i64)]) -> Self {
        Self {
            token: format!("p{name}"),
            meter: Meter::new(terms),
            seq: 1,
            had_grant: false,
            exchanged_at: 0,
            calls: Vec::new(),
            lines: lines.iter().copied().collect(),
            is_alive: true,
            loses: None,
            fails: None,
            exchanges: 0,
        }
    }
}

impl Fleet {
    fn new(terms: Terms, lines: &[&[(u64, u64, i64)]]) -> Self {
        let processes = lines.iter().enumerate();
        Self {
            terms,
            book: Book::default(),
            grants: Vec::new(),
            processes: processes
                .map(|(name, lines)| Process::new(name, terms, lines))
                .collect(),
            sent: Vec::new(),
            now: START_MS,
        }
    }

    fn run_for(&mut self, ms: i64) {
        let end = self.now + ms;
        while self.now < end {
            for index in 0..self.processes.len() {
                self.step(index);
            }
            self.now += STEP_MS;
        }
    }

    fn step(&mut self, index: usize) {
        let now = self.now;
        let process = &mut self.processes[index];
        if !process.is_alive {
            return;
        }
        let (ended, open) = std::mem::take(&mut process.calls)
            .into_iter()
            .partition(|(ends, ..)| *ends <= now);
        process.calls = open;
        let ended: Vec<(i64, Charge, u64)> = ended;
        for (_, charge, used) in ended {
            process.meter.settle(now, charge, Used::Amount(used));
        }
        while let Some(&(amount, used, takes)) = process.lines.front() {
            match process.meter.verdict(now, 0, amount) {
                Verdict::Fits => {
                    let charge = process.meter.take(now, 0, amount);
                    process.calls.push((now + takes, charge, used));
                    process.lines.rotate_left(1);
                    self.sent.push(Sent {
                        at: now,
                        charged: amount,
                        used,
                    });
                }
                Verdict::Later(_) | Verdict::Ungranted => {
                    process.meter.refuse(now, 0, amount);
                    break;
                }
                Verdict::Never => {
                    process.lines.pop_front();
                }
            }
        }
        let since = now - process.exchanged_at;
        let is_due = process.meter.needs_exchange() && since >= 1_000;
        let opens = process.meter.grant_opens_ms(now, 1);
        let may_bring = opens.is_some_and(|at| at <= now);
        let is_asked = process.meter.runs_short() && may_bring && since >= self.terms.pause_ms();
        if is_due || is_asked {
            self.exchange(index, false);
        }
    }

    fn exchange(&mut self, index: usize, is_last: bool) {
        let process = &mut self.processes[index];
        process.exchanged_at = self.now;
        process.exchanges += 1;
        let told = process.meter.tell(self.now, is_last).clone();
        let ask = process.meter.ask(self.now);
        let turn = Turn {
            token: &process.token,
            now_ms: self.now,
            valid_until_ms: self.now + VALID_MS,
            told: &told,
            ask: if is_last { Ask::default() } else { ask },
            seq: process.seq,
            had_grant: process.had_grant,
        };
        // As it is stored.
        let mut book = Book::read(&self.book.stored()).expect("a book");
        let Exchanged {
            mine,
            elsewhere,
            was_written_off,
            forgotten,
        } = exchange(&mut book, self.terms, &self.grants, turn);
        let is_one_in = |one_in: u32| process.exchanges.is_multiple_of(one_in);
        if process.fails.is_some_and(is_one_in) {
            return;
        }
        self.book = book.clone();
        self.grants.retain(|grant| grant.token != process.token);
        self.grants.push(mine.clone());
        self.grants
            .retain(|grant| !forgotten.contains(&grant.token));
        if process.loses.is_some_and(is_one_in) {
            return;
        }
        process.seq += 1;
        process.had_grant = true;
        process.meter.told(
            book,
            mine.amount,
            elsewhere,
            turn.valid_until_ms,
            was_written_off,
        );
    }

    /// Lets all calls end and all processes leave.
    fn end(&mut self) {
        for process in &mut self.processes {
            process.lines.clear();
        }
        self.run_for(30_000);
        for index in 0..self.processes.len() {
            if self.processes[index].is_alive {
                self.processes[index].loses = None;
                self.processes[index].fails = None;
                // The first may be told again what was told before.
                self.exchange(index, true);
                self.exchange(index, true);
            }
        }
    }

    /// The most that was used in any window of the period, however laid.
    fn most_in_a_window(&self, period: i64, of: impl Fn(&Sent) -> u64) -> u64 {
        let (mut first, mut sum, mut most) = (0, 0, 0);
        for sent in &self.sent {
            sum += of(sent);
            while self.sent[first].at <= sent.at - period {
                sum -= of(&self.sent[first]);
                first += 1;
            }
            most = most.max(sum);
        }
        most
    }

    /// The least that was used in any of the minutes that end between these moments.
    fn least_in_a_minute(&self, from: i64, to: i64) -> u64 {
        let ends = (from..=to).step_by(100);
        let used = ends.map(|end| self.used_between(end - 60_000, end));
        used.min().unwrap_or(0)
    }

    fn used_between(&self, from: i64, to: i64) -> u64 {
        let within = |sent: &&Sent| sent.at >= START_MS + from && sent.at < START_MS + to;
        self.sent.iter().filter(within).map(|sent| sent.used).sum()
    }
}

fn minute(limit: u64) -> Terms {
    Terms {
        limit,
        period_ms: 60_000,
    }
}

/// Lines whose use is what was reserved.
fn exact(amounts: &[u64]) -> Vec<(u64, u64, i64)> {
    let lines = amounts.iter().enumerate();
    lines
        .map(|(n, amount)| (*amount, *amount, 300 + 700 * (n as i64 % 7)))
        .collect()
}

fn share(used: u64, limit: u64, windows: f64) -> f64 {
    used as f64 / (limit as f64 * windows)
}

#[test]
fn requests_reach_the_limit_and_never_pass_it() {
    for limit in [1, 7, 20, 35, 60, 89, 600, 10_000] {
        let lines = exact(&[1; 7]);
        let mut fleet = Fleet::new(minute(limit), &[&lines]);
        fleet.run_for(300_000);
        let most = fleet.most_in_a_window(60_000 + LATE_MS, |sent| sent.used);
        assert!(most <= limit, "{most} of {limit}");
        let used = fleet.used_between(60_000, 300_000);
        let share = share(used, limit, 4.0);
        let rounds = 1.0 / (limit as f64 * 4.0);
        assert!(share + rounds >= 0.95, "{limit}: {share}");
    }
}

#[test]
fn a_busy_caller_is_paced_and_reaches_the_limit_with_lines_of_any_length() {
    for amounts in [
        [80, 900, 40],
        [1_200, 1_300, 1_100],
        [2_400, 2_500, 2_000],
        [2_900, 10, 2_600],
    ] {
        let lines = exact(&amounts);
        let mut fleet = Fleet::new(minute(60_000), &[&lines]);
        fleet.run_for(300_000);
        let used = fleet.used_between(60_000, 300_000);
        assert!(share(used, 60_000, 4.0) >= 0.95, "{amounts:?}: {used}");
        let at_once = fleet.most_in_a_window(1_000, |sent| sent.charged);
        let largest = *amounts.iter().max().expect("some");
        assert!(
            at_once <= 3_000.max(largest + 1_100),
            "{amounts:?}: {at_once}"
        );
        let most = fleet.most_in_a_window(60_000 + LATE_MS, |sent| sent.used);
        assert!(most <= 60_000, "{amounts:?}: {most}");
    }
}

#[test]
fn two_processes_together_reach_the_limit_and_one_goes_on_when_the_other_vanishes() {
    for (limit, amounts) in [(600, vec![1; 7]), (60_000, vec![80, 900, 40, 1_200])] {
        let lines = exact(&amounts);
        let mut fleet = Fleet::new(minute(limit), &[&lines, &lines]);
        fleet.run_for(120_000);
        fleet.processes[1].is_alive = false;
        fleet.run_for(120_000);
        let most = fleet.most_in_a_window(60_000 + LATE_MS, |sent| sent.used);
        assert!(most <= limit, "{most} of {limit}");
        let after = fleet.used_between(140_000, 240_000);
        let least = fleet.least_in_a_minute(60_000, 120_000);
        assert!(share(least, limit, 1.0) >= 0.95, "{limit}: {least}");
        assert!(
            share(after, limit, 100.0 / 60.0) >= 0.95,
            "{limit}: {after}"
        );
    }
}

#[test]
fn neither_short_lines_nor_long_ones_of_another_process_keep_a_process_from_sending() {
    let (long, short) = (exact(&[2_900]), exact(&[40]));
    let mut fleet = Fleet::new(minute(60_000), &[&long, &short]);
    fleet.run_for(180_000);
    let of_long = |sent: &&Sent| sent.charged == 2_900;
    let long: u64 = fleet.sent.iter().filter(of_long).map(|one| one.used).sum();
    let all: u64 = fleet.sent.iter().map(|one| one.used).sum();
    assert!(
        (0.1..0.9).contains(&(long as f64 / all as f64)),
        "{long} of {all}"
    );
    let used = fleet.used_between(60_000, 180_000);
    assert!(share(used, 60_000, 2.0) >= 0.95, "{used}");
}

#[test]
fn what_a_call_did_not_need_is_used_by_others() {
    let lines: Vec<_> = exact(&[1_000; 7])
        .into_iter()
        .map(|(amount, _, takes)| (amount, 100, takes / 10))
        .collect();
    let mut fleet = Fleet::new(minute(60_000), &[&lines]);
    fleet.run_for(240_000);
    let used = fleet.used_between(60_000, 240_000);
    assert!(share(used, 60_000, 3.0) >= 0.9, "{used}");
}

#[test]
fn what_calls_needed_beyond_their_reservation_is_paid_back() {
    let lines: Vec<_> = exact(&[1_000; 7])
        .into_iter()
        .map(|(amount, used, takes)| (amount, used * 3, takes))
        .collect();
    let mut fleet = Fleet::new(minute(60_000), &[&lines]);
    fleet.run_for(600_000);
    let used = fleet.used_between(0, 600_000);
    assert!(share(used, 60_000, 11.0) <= 1.0, "{used}");
    assert!(share(used, 60_000, 10.0) >= 0.9, "{used}");
    fleet.end();
    fleet.run_for(600_000);
    fleet.exchange(0, true);
    fleet.run_for(62_000);
    fleet.exchange(0, true);
    fleet.run_for(62_000);
    fleet.exchange(0, true);
    assert_eq!(fleet.book.owed(), 0);
}

#[test]
fn a_limit_of_a_day_may_be_used_within_minutes_and_then_waits_for_tomorrow() {
    let terms = Terms {
        limit: 1_000,
        period_ms: 86_400_000,
    };
    let lines = exact(&[1; 7]);
    let mut fleet = Fleet::new(terms, &[&lines]);
    fleet.run_for(180_000);
    assert_eq!(fleet.used_between(0, 180_000), 1_000);
    let opens = fleet.processes[0].meter.grant_opens_ms(fleet.now, 1);
    let waits = opens.expect("known") - fleet.now;
    assert!((86_000_000..=87_841_000).contains(&waits), "{waits}");
}

#[test]
fn capacity_accrues_to_the_oldest_line_that_does_not_fit() {
    let terms = minute(6_000);
    let mut fleet = Fleet::new(terms, &[&[]]);
    let mut long_ones = 0;
    for _ in 0..24_000 {
        let now = fleet.now;
        let meter = &mut fleet.processes[0].meter;
        for (queue, amount) in [(1, 10), (2, 3_000)] {
            if meter.verdict(now, queue, amount) == Verdict::Fits {
                let charge = meter.take(now, queue, amount);
                meter.settle(now, charge, Used::Unknown);
                long_ones += usize::from(queue == 2);
            } else {
                meter.refuse(now, queue, amount);
            }
        }
        if now - fleet.processes[0].exchanged_at >= 200 {
            fleet.exchange(0, false);
        }
        fleet.now += STEP_MS;
    }
    assert!(long_ones >= 4, "{long_ones} in four minutes");
}

#[test]
fn what_a_provider_says_lowers_the_budget_and_never_raises_it() {
    let lines = exact(&[1; 3]);
    let mut fleet = Fleet::new(minute(600), &[&lines]);
    fleet.run_for(5_000);
    fleet.exchange(0, false);
    let now = fleet.now;
    let meter = &mut fleet.processes[0].meter;
    meter.hear(now, 0, now + 30_000);
    let Verdict::Later(opens) = meter.verdict(now, 0, 1) else {
        panic!("it may send what the provider refuses");
    };
    assert!(
        (now + 10..now + 1_000).contains(&opens),
        "a six hundredth of it"
    );
    meter.hear(now, 1_000_000, now + 30_000);
    assert!(meter.verdict(now, 0, 601) == Verdict::Never);
    assert!(meter.verdict(now, 0, 500) != Verdict::Fits);
}

#[test]
fn what_is_refused_during_a_turn_is_asked_for_in_the_next() {
    let mut meter = Meter::new(minute(600));
    meter.refuse(START_MS, 0, 5);
    meter.tell(START_MS, false);
    assert!(meter.ask(START_MS).wants >= 5);
    meter.refuse(START_MS, 0, 7);
    meter.told(Book::default(), 0, 0, START_MS + VALID_MS, false);
    assert!(meter.needs_exchange() && meter.runs_short());
    meter.tell(START_MS, false);
    assert!(meter.ask(START_MS).wants >= 7);
}

#[test]
fn what_is_larger_than_the_limit_never_fits() {
    let meter = Meter::new(minute(100));
    assert_eq!(meter.verdict(START_MS, 0, 101), Verdict::Never);
    assert_ne!(meter.verdict(START_MS, 0, 100), Verdict::Never);
}

#[test]
fn what_needs_nothing_of_a_limit_fits_though_nothing_is_granted() {
    let mut meter = Meter::new(minute(100));
    assert_eq!(meter.verdict(START_MS, 0, 0), Verdict::Fits);
    meter.refuse(START_MS, 1, 5);
    assert_eq!(meter.verdict(START_MS, 0, 0), Verdict::Fits);
}

#[test]
fn estimates_begin_with_the_bytes_and_follow_what_answers_report() {
    let size = LineSize {
        bytes: 4_000,
        ..LineSize::default()
    };
    let mut learned = Learned::default();
    let first = learned.estimate(size);
    assert_eq!((first.input, first.output), (1_000, 512));
    for n in 0..1_000 {
        let used = Tokens {
            input: 1_400,
            output: if n % 20 == 0 { 2_000 } else { 100 },
        };
        learned.learn(size, used);
    }
    let then = learned.estimate(size);
    assert!((1_400..1_500).contains(&then.input), "{then:?}");
    assert!((100..110).contains(&then.output), "{then:?}");
    let stated = LineSize {
        max_output: Some(7),
        ..size
    };
    assert_eq!(learned.estimate(stated).output, 7);
    let embedding = LineSize {
        is_input_only: true,
        ..size
    };
    assert_eq!(learned.estimate(embedding).output, 0);
}

#[test]
fn what_was_sent_after_a_turn_that_came_to_nothing_is_not_given_back() {
    let terms = minute(600);
    let (mut book, mut meter) = (Book::default(), Meter::new(terms));
    let grant = |token: &str, amount| Grant {
        token: token.to_owned(),
        amount,
        wants: 0,
        valid_until_ms: START_MS + VALID_MS,
        seq: 1,
    };
    let grants = [grant("a", 40), grant("b", 540)];
    meter.told(book.clone(), 40, 540, START_MS + VALID_MS, false);
    meter.take(START_MS, 0, 10);
    // Nothing of this turn is stored, and so the process tells the same again in the next.
    meter.tell(START_MS, false);
    meter.take(START_MS, 0, 10);
    meter.refuse(START_MS, 0, 300);
    assert!(meter.runs_short(), "it needs more than it has");
    let told = meter.tell(START_MS, false).clone();
    let turn = Turn {
        token: "a",
        now_ms: START_MS,
        valid_until_ms: START_MS + VALID_MS,
        told: &told,
        ask: meter.ask(START_MS),
        seq: 2,
        had_grant: true,
    };
    let mine = exchange(&mut book, terms, &grants, turn).mine;
    assert_eq!(mine.amount, 10, "of 40, what was sent and not told yet");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn no_window_however_laid_has_more_than_the_limit(
        limit in 20_u64..3_000,
        period_ms in prop_oneof![Just(5_000_i64), Just(60_000), Just(61_234)],
        lines in prop::collection::vec((1_u64..200, 0.0_f64..=1.0, 10_i64..9_000), 1..9),
        processes in 1_usize..4,
        killed_at in prop::option::of(1_000_i64..90_000),
        comes_back: bool,
        loses in prop::option::of(2_u32..6),
        fails in prop::option::of(2_u32..6),
    ) {
        let terms = Terms { limit, period_ms };
        let lines: Vec<_> = lines
            .into_iter()
            .map(|(amount, part, takes)| (amount, (amount as f64 * part) as u64, takes))
            .collect();
        let of_each = vec![&*lines; processes];
        let mut fleet = Fleet::new(terms, &of_each);
        fleet.processes[0].loses = loses;
        fleet.processes[0].fails = fails;
        fleet.run_for(killed_at.unwrap_or(90_000));
        let is_silent = killed_at.is_some() && (processes > 1 || comes_back);
        if is_silent {
            fleet.processes[0].is_alive = false;
        }
        fleet.run_for(20_000);
        if comes_back {
            // It was silent for longer than its grant holds, and takes it that it has one.
            fleet.processes[0].is_alive = true;
        }
        fleet.run_for(100_000);
        let most = fleet.most_in_a_window(period_ms, |sent| sent.used);
        prop_assert!(most <= limit, "{} of {}", most, limit);
        fleet.end();
        for process in fleet.processes.iter().filter(|process| process.is_alive) {
            prop_assert_eq!(process.meter.reserved(), 0);
        }
        let left: u64 = fleet.grants.iter().map(|grant| grant.amount).sum();
        prop_assert_eq!(left, 0, "each grant goes back or is written off");
        // What is booked is what the model knows of, and what a vanished process was granted.
        let booked = fleet.book.used(terms, fleet.now);
        let counted = terms.ends_counting(terms.part(START_MS)) - START_MS;
        let known: u64 = fleet
            .sent
            .iter()
            .filter(|sent| terms.part(sent.at) >= terms.first_counted(fleet.now))
            .map(|sent| sent.used)
            .sum();
        prop_assert!(booked >= known, "{} booked, {} used", booked, known);
        if !is_silent && counted > 0 {
            prop_assert_eq!(booked, known);
        }
    }

    #[test]
    fn debts_are_paid_from_the_next_windows(
        limit in 500_u64..3_000,
        lines in prop::collection::vec((1_u64..100, 1_u64..300, 10_i64..9_000), 1..9),
        processes in 1_usize..3,
    ) {
        let terms = minute(limit);
        let of_each = vec![&*lines; processes];
        let mut fleet = Fleet::new(terms, &of_each);
        for minutes in 1..=6 {
            fleet.run_for(60_000);
            let used: u64 = fleet.sent.iter().map(|sent| sent.used).sum();
            let in_flight: u64 = fleet
                .processes
                .iter()
                .flat_map(|process| &process.calls)
                .map(|(_, charge, used)| used.saturating_sub(charge.amount))
                .sum();
            // What is owed is on top of what the windows so far allow, and nothing else is.
            let allowed = limit * (minutes + 1);
            let owed = fleet.book.owed() + in_flight + 2_000;
            prop_assert!(used <= allowed + owed, "{} of {} and {}", used, allowed, owed);
        }
    }

    #[test]
    fn in_a_sixtieth_there_is_at_most_three_times_its_part(
        limit in 1_u64..20_000,
        lines in prop::collection::vec((1_u64..100, 10_i64..9_000), 1..9),
    ) {
        let lines: Vec<_> = lines.into_iter().map(|(n, takes)| (n, n, takes)).collect();
        let mut fleet = Fleet::new(minute(limit), &[&lines]);
        fleet.run_for(100_000);
        let at_once = fleet.most_in_a_window(1_000, |sent| sent.charged) as f64;
        let part = limit as f64 / 60.0;
        let largest = lines.iter().map(|line| line.0).filter(|n| *n <= limit).max();
        let alone = largest.unwrap_or(0) as f64 + 1.1 * part;
        prop_assert!(at_once <= (3.0 * part + 1.0).max(alone), "{} of {}", at_once, part);
    }
}

#[test]
fn the_grant_of_a_process_that_vanished_counts_as_spent() {
    let lines = exact(&[1; 3]);
    let mut fleet = Fleet::new(minute(600), &[&lines, &lines]);
    fleet.run_for(10_000);
    // It spends all that it has, and tells nobody.
    let granted = fleet.grants.iter().find(|grant| grant.token == "p0");
    let granted = granted.expect("it was granted some").amount;
    assert!(granted > 0);
    fleet.processes[0].is_alive = false;
    let booked = fleet.book.used(fleet.terms, fleet.now);
    fleet.processes[1].lines.clear();
    fleet.run_for(VALID_MS + 100);
    fleet.exchange(1, true);
    fleet.exchange(1, true);
    assert!(fleet.book.used(fleet.terms, fleet.now) >= booked + granted);
    assert!(fleet.grants.iter().all(|grant| grant.token != "p0"));
}
