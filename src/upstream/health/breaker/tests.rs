use super::*;

const RETRY: RetrySettings = RetrySettings {
    max_attempts: 5,
    initial_backoff: Duration::from_millis(500),
    max_backoff: Duration::from_secs(4),
    longest_wait: Duration::from_mins(10),
};
const LIMIT: usize = 64;

/// A breaker with a clock of its own.
struct Case {
    breaker: Breaker,
    now: Instant,
    pace: Pace,
    /// Of the lines that fail.
    batch: u64,
    /// Whether these had not failed before.
    is_fresh: bool,
}

impl Case {
    fn new() -> Self {
        Self {
            breaker: Breaker::default(),
            now: Instant::now(),
            pace: Pace::default(),
            batch: 0,
            is_fresh: true,
        }
    }

    /// One that has worked before.
    fn that_worked() -> Self {
        let mut case = Self::new();
        let call = case.start();
        assert!(case.succeed(call).is_none());
        case
    }

    fn start(&mut self) -> u32 {
        let room = self.breaker.room(self.now);
        assert!(matches!(room, Room::Open { .. }), "{room:?}");
        self.breaker.start(self.now)
    }

    /// As many calls as there is room for, up to so many.
    fn fill(&mut self, most: usize) -> Vec<u32> {
        let mut calls = Vec::new();
        while calls.len() < most && matches!(self.breaker.room(self.now), Room::Open { .. }) {
            calls.push(self.breaker.start(self.now));
        }
        calls
    }

    fn succeed(&mut self, call: u32) -> Option<Change> {
        self.breaker.succeed(call, (self.now, self.now), 0, LIMIT)
    }

    fn fail(&mut self, call: u32, reason: Reason) -> Option<Change> {
        self.fail_with(call, reason, None)
    }

    fn fail_with(&mut self, call: u32, reason: Reason, wait: Option<u64>) -> Option<Change> {
        let failure = Failure {
            reason,
            wait: wait.map(Duration::from_millis),
            is_capped: false,
            is_fresh: self.is_fresh,
            batch: self.batch,
        };
        let paces = (&self.pace, &RETRY);
        self.breaker
            .fail(failure, call, self.now, paces, 0.0, "it said no")
    }

    fn is_closed(&self) -> bool {
        matches!(self.breaker.room(self.now), Room::Closed { .. })
    }

    /// Milliseconds for which it is closed yet.
    fn wait(&self) -> u128 {
        let closure = self.breaker.closure().expect("is closed");
        closure
            .until
            .saturating_duration_since(self.now)
            .as_millis()
    }

    fn pass(&mut self, ms: u128) {
        self.now += Duration::from_millis(u64::try_from(ms).expect("is short"));
    }
}

#[test]
fn a_server_that_takes_four_calls_at_once_keeps_four() {
    let mut case = Case::new();
    let calls = case.fill(64);
    assert_eq!(calls.len(), 64, "the first wave is whole");
    for &call in &calls[4..] {
        assert!(case.fail(call, Reason::Limited).is_none());
    }
    // From here on, five at once are one too many.
    let (mut sent, mut refused) = (0, 0);
    let mut in_flight: Vec<u32> = calls[..4].to_vec();
    for _ in 0..1_000 {
        let call = in_flight.remove(0);
        case.succeed(call);
        for call in case.fill(64) {
            sent += 1;
            if in_flight.len() < 4 {
                in_flight.push(call);
            } else {
                refused += 1;
                assert!(case.fail(call, Reason::Limited).is_none());
            }
        }
        assert_eq!(in_flight.len(), 4, "all places are used");
    }
    assert!(refused * 10 <= sent, "{refused} of {sent}");
    assert!(refused > 0, "it is tried whether more are taken");
}

#[test]
fn a_window_grows_back_while_few_lines_fail_for_reasons_of_their_own() {
    let mut case = Case::that_worked();
    for call in case.fill(64).into_iter().skip(8) {
        case.fail(call, Reason::Limited);
    }
    let mut in_flight = 8;
    for number in 0..50_000 {
        in_flight += case.fill(64 - in_flight).len();
        in_flight -= 1;
        let call = case.breaker.generation;
        if number % 20 == 0 {
            case.fail(call, Reason::Limited);
        } else {
            case.succeed(call);
        }
    }
    let size = case.breaker.window.map_or(LIMIT, |window| window.size);
    assert!(size > LIMIT / 2, "{size}");
}

#[test]
fn one_line_that_always_fails_closes_nothing_while_others_succeed() {
    for reason in [
        Reason::Limited,
        Reason::Unavailable,
        Reason::Refused,
        Reason::KeyRefused,
        Reason::Unpaid,
        Reason::Misdirected,
    ] {
        // One place, so that no other is on its way.
        let mut case = Case::that_worked();
        for _ in 0..100 {
            let call = case.start();
            assert!(case.fail(call, reason).is_none(), "{reason:?}");
            let call = case.start();
            assert!(case.succeed(call).is_none());
        }
    }
}

#[test]
fn two_failures_in_a_row_close_and_then_one_line_tries() {
    let mut case = Case::that_worked();
    let call = case.start();
    case.fail(call, Reason::Refused);
    let call = case.start();
    let change = case.fail(call, Reason::Refused);
    assert!(matches!(change, Some(Change::Closed(_))), "{change:?}");
    let mut waits = vec![case.wait()];
    for _ in 0..11 {
        assert!(case.is_closed());
        case.pass(case.wait());
        let trial = case.fill(64);
        assert_eq!(trial.len(), 1, "one line tries");
        let change = case.fail(trial[0], Reason::Refused);
        assert!(matches!(change, Some(Change::StillClosed)), "{change:?}");
        waits.push(case.wait());
    }
    let expected = [
        1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000, 60_000, 60_000, 60_000, 60_000,
    ];
    assert_eq!(waits, expected);
    case.pass(60_000);
    let trial = case.start();
    let change = case.succeed(trial);
    let Some(Change::Opened(closure)) = change else {
        panic!("{change:?}");
    };
    assert_eq!(closure.failures, 12);
    assert_eq!(case.fill(64).len(), 64, "whoever mended it has mended it");
}

#[test]
fn what_has_never_worked_closes_with_its_first_wave() {
    let mut case = Case::new();
    let calls = case.fill(3);
    assert!(case.fail(calls[0], Reason::KeyRefused).is_none());
    assert!(case.fail(calls[1], Reason::KeyRefused).is_none());
    let change = case.fail(calls[2], Reason::KeyRefused);
    assert!(matches!(change, Some(Change::Closed(_))));
}

#[test]
fn a_server_that_asks_for_time_gets_it_and_then_a_ramp() {
    let mut case = Case::that_worked();
    let calls = case.fill(64);
    let change = case.fail_with(calls[0], Reason::Limited, Some(9_000));
    assert!(matches!(change, Some(Change::Closed(_))));
    assert_eq!(case.wait(), 9_000);
    for &call in &calls[1..] {
        case.fail_with(call, Reason::Limited, Some(9_000));
    }
    case.pass(9_000);
    let first = case.fill(64);
    assert_eq!(first.len(), FIRST_WINDOW_MIN, "all were refused");
    for call in first {
        drop(case.succeed(call));
    }
    assert_eq!(
        case.fill(64).len(),
        2 * FIRST_WINDOW_MIN,
        "and more as they succeed"
    );
}

#[test]
fn a_wait_is_never_shortened_and_zero_is_no_wait() {
    let mut case = Case::new();
    let calls = case.fill(2);
    case.fail_with(calls[0], Reason::Limited, Some(9_000));
    case.fail_with(calls[1], Reason::Limited, Some(1));
    assert_eq!(case.wait(), 9_000);

    let mut case = Case::new();
    let call = case.start();
    case.fail_with(call, Reason::Limited, Some(0));
    assert_eq!(case.wait(), 250, "a wait of our own");
}

#[test]
fn without_a_word_it_waits_longer_with_each_round_of_429s_until_one_succeeds() {
    let mut case = Case::new();
    let mut waits = Vec::new();
    for _ in 0..6 {
        for call in case.fill(64) {
            case.fail(call, Reason::Limited);
        }
        waits.push(case.wait());
        case.pass(case.wait());
    }
    assert_eq!(waits, [250, 500, 1_000, 2_000, 2_000, 2_000]);
    let call = case.start();
    case.succeed(call);
    for _ in 0..2 {
        for call in case.fill(64) {
            case.fail(call, Reason::Limited);
        }
    }
    assert_eq!(case.wait(), 250);
}

#[test]
fn first_failures_of_many_lines_in_a_row_are_the_servers_fault() {
    let mut case = Case::that_worked();
    let calls = case.fill(FRESH_FAILURES_IN_A_ROW as usize);
    let (last, others) = calls.split_last().expect("some");
    for &call in others {
        assert!(case.fail(call, Reason::Failing).is_none());
    }
    assert!(matches!(
        case.fail(*last, Reason::Failing),
        Some(Change::Closed(_))
    ));
    case.pass(case.wait());
    let trial = case.fill(64);
    assert_eq!(trial.len(), 1);
    case.succeed(trial[0]);
    assert_eq!(case.fill(64).len(), LIMIT / 2);

    // Each success in between begins the count anew; and what never worked
    // is not closed so.
    let mut case = Case::that_worked();
    for _ in 0..10 {
        for _ in 1..FRESH_FAILURES_IN_A_ROW {
            let call = case.start();
            assert!(case.fail(call, Reason::Failing).is_none());
        }
        let call = case.start();
        case.succeed(call);
    }
    let mut case = Case::new();
    for _ in 0..100 {
        let call = case.start();
        assert!(case.fail(call, Reason::Failing).is_none());
    }
}

#[test]
fn what_works_again_takes_half_of_its_calls_for_a_second_however_fast_it_answers() {
    let mut case = Case::that_worked();
    let call = case.start();
    case.fail(call, Reason::Unreachable);
    case.pass(10_000);
    case.breaker
        .probed(true, case.now, &case.pace, 0.0, LIMIT)
        .expect("it opens");
    let mut in_flight = case.fill(LIMIT);
    for _ in 0..999 {
        case.pass(1);
        // All are answered at once, and as many are sent again.
        for call in std::mem::take(&mut in_flight) {
            case.succeed(call);
        }
        in_flight = case.fill(LIMIT);
        assert_eq!(in_flight.len(), LIMIT / 2);
    }
    for _ in 0..2 {
        case.pass(1);
        for call in std::mem::take(&mut in_flight) {
            case.succeed(call);
        }
        in_flight = case.fill(LIMIT);
    }
    assert_eq!(in_flight.len(), LIMIT, "then it soon takes all");
}

#[test]
fn the_failures_of_lines_that_have_failed_before_are_not_counted() {
    let mut case = Case::that_worked();
    for _ in 0..100 {
        let call = case.start();
        let failure = Failure {
            reason: Reason::Failing,
            wait: None,
            is_capped: false,
            is_fresh: false,
            batch: 0,
        };
        let paces = (&case.pace, &RETRY);
        let change = case
            .breaker
            .fail(failure, call, case.now, paces, 0.0, "it said no");
        assert!(change.is_none());
    }
}

#[test]
fn what_cannot_be_reached_is_probed_ever_more_patiently() {
    let mut case = Case::new();
    let call = case.start();
    assert!(matches!(
        case.fail(call, Reason::Unreachable),
        Some(Change::Closed(_))
    ));
    let probe = |case: &mut Case, answers| {
        case.breaker
            .probed(answers, case.now, &case.pace, 0.0, LIMIT)
            .is_some()
    };
    let mut waits = vec![case.wait()];
    for _ in 0..3 {
        assert!(!probe(&mut case, false));
        waits.push(case.wait());
    }
    assert_eq!(waits, [500, 1000, 2000, 2000]);
    case.pass(3_600_000);
    assert!(case.is_closed(), "no line is its probe");
    assert!(probe(&mut case, true));
    assert_eq!(case.fill(64).len(), LIMIT / 2);
    // Patience grows until a call succeeds, not until a probe does.
    let call = case.breaker.generation;
    case.fail(call, Reason::Unreachable);
    assert_eq!(case.wait(), 2000);
}

#[test]
fn what_fails_is_tried_again_after_a_part_of_the_time_that_it_has_failed() {
    for reason in [Reason::Unavailable, Reason::Failing] {
        let mut case = Case::new();
        let call = case.start();
        case.fail(call, Reason::Unavailable);
        let (mut failed_for, mut trials, mut last) = (0, 0, 0);
        while failed_for < 600_000 {
            last = case.wait();
            let part = (failed_for / 8).clamp(500, 30_000);
            assert!(last.abs_diff(part) <= 1, "{last} ms after {failed_for} ms");
            // It is given in whole milliseconds.
            case.pass(last + 1);
            failed_for += last + 1;
            trials += 1;
            let trial = case.start();
            case.fail(trial, reason);
        }
        assert_eq!(last, 30_000);
        assert!(trials < 70, "{reason:?}: {trials} lines were trials");
    }
}

#[test]
fn what_arrives_late_says_nothing_of_how_things_are_now() {
    let mut case = Case::that_worked();
    let calls = case.fill(4);
    case.fail(calls[0], Reason::Unreachable);
    assert!(case.succeed(calls[1]).is_none(), "it began before");
    assert!(case.fail(calls[2], Reason::Unreachable).is_none());
    assert!(case.is_closed());
    assert_eq!(case.wait(), 500);
    let cause = &case.breaker.closure().expect("is closed").cause;
    assert_eq!(cause, "it said no", "the cause stays");
}

/// Closed by 429s so often that the next closing of their kind would be long; its next trial is
/// due.
fn limited_often() -> Case {
    let mut case = Case::that_worked();
    let call = case.start();
    case.fail_with(call, Reason::Limited, Some(500));
    for _ in 0..6 {
        case.pass(case.wait());
        let trial = case.start();
        case.fail(trial, Reason::Limited);
    }
    case.pass(case.wait());
    case
}

#[test]
fn a_line_that_is_refused_in_a_trial_does_not_hide_that_another_has_succeeded() {
    let mut case = limited_often();
    let (refused, other) = (case.start(), case.start());
    case.fail(refused, Reason::Unpaid);
    assert!(case.is_closed());
    assert!(case.succeed(other).is_none(), "it was closed since");
    assert!(!case.is_closed(), "the next line is tried at once");
    let next = case.start();
    assert!(matches!(case.succeed(next), Some(Change::Opened(_))));
}

#[test]
fn a_refusal_behind_many_429s_is_waited_for_as_for_a_first_one() {
    let mut case = limited_often();
    let trial = case.start();
    case.fail(trial, Reason::Unpaid);
    assert_eq!(case.wait(), case.pace.trial_first.as_millis());
}

#[test]
fn a_trial_that_is_broken_off_lets_another_line_try() {
    let mut case = Case::new();
    let call = case.start();
    case.fail(call, Reason::Refused);
    case.pass(case.wait());
    let trial = case.start();
    assert_eq!(case.breaker.room(case.now), Room::Full);
    case.breaker.abandon(trial);
    let trial = case.start();
    assert!(matches!(
        case.breaker.answer(trial),
        Some(Change::Opened(_))
    ));
}

#[test]
fn an_operator_opens_what_is_closed() {
    let mut case = Case::that_worked();
    let calls = case.fill(64);
    case.fail_with(calls[0], Reason::Limited, Some(600_000));
    assert!(case.is_closed());
    assert!(matches!(
        case.breaker.reset(case.now),
        Some(Change::Opened(_))
    ));
    assert_eq!(case.fill(64).len(), 64);
}

#[test]
fn another_process_may_know_that_it_is_closed() {
    let mut case = Case::that_worked();
    let until = case.now + Duration::from_secs(5);
    case.breaker.follow_cooldown(until, case.now, "a cooldown");
    assert_eq!(case.wait(), 5_000);
    case.pass(5_000);
    assert_eq!(case.fill(64).len(), FIRST_WINDOW_MIN);
}

#[test]
fn a_batch_of_lines_that_always_fail_closes_nothing_while_another_succeeds() {
    for reason in [
        Reason::Failing,
        Reason::Limited,
        Reason::Unavailable,
        Reason::Refused,
    ] {
        // The other batch's calls are long: few of them end meanwhile.
        let mut case = Case::that_worked();
        case.batch = 1;
        let mut long = case.fill(32).len();
        for _ in 0..200 {
            for call in case.fill(1) {
                assert!(case.fail(call, reason).is_none(), "{reason:?}");
            }
            let generation = case.breaker.generation;
            let times = (case.now, case.now);
            case.breaker.succeed(generation, times, 0, LIMIT);
            long -= 1;
            // Its place goes to either.
            long += case.fill(1).len();
        }
        assert!(long >= 24, "{reason:?}: {long} places are left");
    }
}

#[test]
fn a_trial_that_takes_long_lets_more_be_sent() {
    let mut case = Case::new();
    let call = case.start();
    case.fail(call, Reason::Unavailable);
    case.pass(case.wait());
    assert_eq!(case.fill(64).len(), 1);
    case.pass(60_000);
    assert_eq!(case.fill(64).len(), 12);
}

/// The quota was spent right after the other batch had its answers.
#[test]
fn a_batch_is_not_at_fault_where_none_of_another_has_succeeded_since_it_fails() {
    let mut case = Case::that_worked();
    case.batch = 1;
    let calls = case.fill(64);
    let closed = calls.iter().filter_map(|&call| {
        case.pass(10);
        case.fail(call, Reason::Unpaid)
    });
    assert_eq!(closed.count(), 1);
    assert!(case.is_closed());
}

#[test]
fn one_line_that_is_refused_again_and_again_closes_nothing_while_others_are_in_flight() {
    let mut case = Case::that_worked();
    let others = case.fill(8);
    (case.batch, case.is_fresh) = (1, false);
    for _ in 0..20 {
        let call = case.start();
        assert!(case.fail(call, Reason::Unpaid).is_none());
        case.pass(5_000);
    }
    assert!(!case.is_closed());
    for call in others {
        case.succeed(call);
    }
    assert!(!case.is_closed());
}
