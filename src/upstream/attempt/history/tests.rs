use super::*;
use crate::upstream::backoff::backoff;
use crate::upstream::target::backend::Backends;
use crate::upstream::tests::upstream;

const CONFIG: RetrySettings = RetrySettings {
    max_attempts: 5,
    initial_backoff: Duration::from_millis(500),
    max_backoff: Duration::from_mins(1),
    longest_wait: Duration::from_mins(10),
};

fn one_upstream() -> Backends {
    let backends = Backends::default();
    backends.configure([(0, &upstream("gpu", "http://gpu/v1"))].into_iter());
    backends
}

/// A line at a backend, and how the others fare there.
struct Case {
    backend: Arc<Backend>,
    evidence: Evidence,
    history: History,
    now: Instant,
}

impl Case {
    fn new() -> Self {
        Self {
            backend: one_upstream().get(0, 0, &"m".into()),
            evidence: Evidence::default(),
            history: History::default(),
            now: Instant::now(),
        }
    }

    fn others_succeed(&mut self, times: usize) {
        self.now += Duration::from_millis(1);
        for _ in 0..times {
            self.evidence.succeeded(self.now, self.now);
        }
    }

    fn others_fail(&mut self, times: usize) {
        (0..times).for_each(|_| self.evidence.failed());
    }

    fn fails(&mut self) -> Assessment {
        self.now += Duration::from_millis(1);
        let assessment = self.history.failed(&self.backend, &self.evidence, self.now);
        self.evidence.failed();
        assessment
    }

    fn refused(&mut self) -> Next {
        let assessment = self.fails();
        self.history.refused(&assessment, &CONFIG, 1.0)
    }

    fn limited(&mut self) -> Next {
        let assessment = self.fails();
        self.history.turned_away(&assessment, None, &CONFIG, 1.0)
    }

    fn broken(&mut self) -> Next {
        let assessment = self.fails();
        self.history.attempted(&assessment, &CONFIG, 1.0)
    }
}

fn after(next: Next) -> u128 {
    match next {
        Next::Again { after, .. } => after.as_millis(),
        Next::End => panic!("it has ended"),
    }
}

#[test]
fn a_refusal_is_the_lines_own_once_a_line_that_was_sent_later_has_succeeded() {
    let mut case = Case::new();
    case.others_succeed(5);
    for _ in 0..100 {
        assert_ne!(case.refused(), Next::End, "nobody has succeeded since");
    }
    // One that was on its way before says nothing of the key as it is now.
    let long_ago = case
        .now
        .checked_sub(Duration::from_secs(1))
        .expect("an instant");
    case.evidence.succeeded(long_ago, case.now);
    assert_ne!(case.refused(), Next::End);
    case.others_succeed(1);
    assert_eq!(case.refused(), Next::End);
}

#[test]
fn a_line_that_is_turned_away_among_lines_that_pass_ends_soon() {
    let mut case = Case::new();
    let mut times = 0;
    loop {
        case.others_succeed(100);
        times += 1;
        if case.limited() == Next::End {
            break;
        }
    }
    assert_eq!(times, CONFIG.max_attempts);
}

#[test]
fn a_line_that_is_turned_away_as_often_as_others_is_not_given_up() {
    let mut case = Case::new();
    for _ in 0..100 {
        case.others_succeed(10);
        case.others_fail(90);
        assert_ne!(case.limited(), Next::End);
    }
}

#[test]
fn a_line_that_is_turned_away_alone_is_not_given_up_but_not_tried_for_ever() {
    let mut case = Case::new();
    let calls = (1..100_000).find(|_| case.limited() == Next::End);
    assert_eq!(calls, Some(FREE_CALLS_MAX));
}

#[test]
fn the_failures_of_a_line_say_nothing_of_the_server_where_others_succeed() {
    let mut case = Case::new();
    assert!(case.fails().is_signal(), "the first one does");
    assert!(case.fails().is_signal(), "nobody has succeeded since");
    case.others_succeed(50);
    assert!(!case.fails().is_signal());
    case.others_fail(500);
    assert!(case.fails().is_signal(), "others fail as well");
}

#[test]
fn attempts_are_spread_over_minutes_while_the_server_does_not_succeed() {
    let mut case = Case::new();
    let waits: Vec<u128> = (0..4).map(|_| after(case.broken())).collect();
    assert_eq!(waits, [5_000, 20_000, 60_000, 60_000]);
    assert_eq!(case.broken(), Next::End);

    // What was on its way when the line failed shows less than what was sent since.
    let mut case = Case::new();
    let before = case.now;
    assert_eq!(after(case.broken()), 5_000);
    case.evidence
        .succeeded(before, case.now + Duration::from_millis(1));
    let waits: Vec<u128> = (0..3).map(|_| after(case.broken())).collect();
    assert_eq!(waits, [6_000, 12_000, 24_000]);

    let mut case = Case::new();
    assert_eq!(after(case.broken()), 5_000);
    case.others_succeed(1);
    let waits: Vec<u128> = (0..3).map(|_| after(case.broken())).collect();
    assert_eq!(waits, [1_000, 2_000, 4_000]);
    assert_eq!(case.broken(), Next::End);
}

#[test]
fn a_line_that_costs_nothing_waits_for_longer_each_time() {
    let mut case = Case::new();
    let waits: Vec<u128> = (0..9).map(|_| after(case.limited())).collect();
    let expected = [
        500, 1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000,
    ];
    assert_eq!(waits, expected);
    let assessment = case.fails();
    let wait = Some(Duration::from_secs(90));
    let next = case.history.turned_away(&assessment, wait, &CONFIG, 1.0);
    assert_eq!(after(next), 90_000, "the server asked for more");
}

#[test]
fn a_model_is_missing_when_nobody_has_it() {
    let backends = one_upstream();
    let [a, b] = ["a", "b"].map(|model| backends.get(0, 0, &model.into()));
    let mut history = History::default();
    let now = Instant::now();
    history.failed(&a, &Evidence::default(), now);
    assert!(!history.is_missing_at(&a, [&a, &b].into_iter()));
    history.failed(&b, &Evidence::default(), now);
    assert!(history.is_missing_at(&b, [&a, &b].into_iter()));
}

#[test]
fn backoff_doubles_up_to_its_cap_with_full_jitter() {
    for (attempt, ceiling) in [(0, 500), (1, 500), (2, 1000), (3, 2000), (7, 32_000)] {
        let at = |random| backoff(attempt, &CONFIG, random).as_millis();
        assert_eq!(at(1.0), ceiling, "{attempt}");
        assert_eq!(at(0.5), ceiling / 2, "{attempt}");
    }
    for attempt in [8, 20, 33, 64, u32::MAX] {
        assert_eq!(
            backoff(attempt, &CONFIG, 1.0),
            CONFIG.max_backoff,
            "{attempt}"
        );
    }
    assert_eq!(backoff(3, &CONFIG, 0.0), Duration::ZERO);
}
