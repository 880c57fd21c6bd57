//! Whether an upstream may be sent lines: a state machine fed with what calls and probes showed.
//!
//! * **Up**: it may.
//! * **Down**: nobody answered, or 503. Probed without users' lines until something answers.
//! * **Aside**: the key or the account was refused (401, 402, 403). One line at a time is let
//!   through now and then, to see whether somebody has mended it.
//!
//! Each transition begins a new era, and a failure counts only in the era in which its call began:
//! of a hundred calls that fail together one takes the upstream down, and what arrives late says
//! nothing about how things are now.

use std::time::Duration;

use tokio::time::Instant;

use super::retry::doubled;

/// How patiently upstreams in trouble are looked at.
#[derive(Clone, Debug)]
pub struct Pace {
    /// Until the first probe of an upstream that went down; doubled with each failure in a row.
    pub probe_first: Duration,
    pub probe_longest: Duration,
    /// Until the first line is tried at an upstream that was set aside; doubled likewise.
    pub trial_first: Duration,
    pub trial_longest: Duration,
    /// Between two looks at what models an upstream has.
    pub discovery: Duration,
    /// How long the first validation waits for upstreams to tell their models.
    pub first_discovery_max: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            probe_first: Duration::from_millis(500),
            probe_longest: Duration::from_secs(30),
            trial_first: Duration::from_secs(30),
            trial_longest: Duration::from_mins(10),
            discovery: Duration::from_secs(60),
            first_discovery_max: Duration::from_secs(5),
        }
    }
}

/// How an upstream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpstreamState {
    Up,
    /// Not reachable, or not ready (503).
    Down,
    /// It refuses our key, or our account cannot pay.
    Aside,
}

impl UpstreamState {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            UpstreamState::Up => "up",
            UpstreamState::Down => "down",
            UpstreamState::Aside => "aside",
        }
    }
}

/// What a call showed of its upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// 2xx.
    Succeeded,
    /// An answer that only a caller whose key is accepted gets, such as 404.
    KeyWorks,
    /// 429, with the wait that the server asked for: the key works, the model's gate closes.
    Limited(Option<Duration>),
    /// Nothing is known: a timeout, a connection cut, a 500.
    Unclear,
    /// Not reachable, or 503, with the wait that the server asked for.
    Unavailable(Option<Duration>),
    /// 401, 402 or 403.
    Refused,
}

#[derive(Debug)]
pub(super) struct Health {
    state: UpstreamState,
    era: u32,
    /// Failures since the last success, or since it was set aside: how patient to be.
    failures: u32,
    /// Down: when to probe. Aside: when a line may be tried.
    due: Instant,
    /// Aside: a line is being tried.
    trying: bool,
    /// A call has succeeded once.
    proven: bool,
}

impl Health {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            state: UpstreamState::Up,
            era: 0,
            failures: 0,
            due: now,
            trying: false,
            proven: false,
        }
    }

    pub(super) fn state(&self) -> UpstreamState {
        self.state
    }

    /// The era that a call begun now belongs to.
    pub(super) fn era(&self) -> u32 {
        self.era
    }

    /// A call has succeeded once.
    pub(super) fn is_proven(&self) -> bool {
        self.proven
    }

    /// When the next probe (down) or trial (aside, none under way) is due.
    pub(super) fn due(&self) -> Option<Instant> {
        let waits = self.state != UpstreamState::Up && !self.trying;
        waits.then_some(self.due)
    }

    /// Whether a line may be sent.
    pub(super) fn is_open(&self, now: Instant) -> bool {
        match self.state {
            UpstreamState::Up => true,
            UpstreamState::Down => false,
            UpstreamState::Aside => !self.trying && self.due <= now,
        }
    }

    /// A line is sent.
    pub(super) fn begin(&mut self) {
        self.trying = self.state == UpstreamState::Aside;
    }

    /// A line was taken back before it showed anything.
    pub(super) fn abandon(&mut self, era: u32) {
        if era == self.era {
            self.trying = false;
        }
    }

    /// Takes in what a call of `era` showed; the new state if that changed it. `random` in 0..1.
    pub(super) fn record(
        &mut self,
        event: Event,
        era: u32,
        now: Instant,
        pace: &Pace,
        random: f64,
    ) -> Option<UpstreamState> {
        let before = self.state;
        self.proven |= event == Event::Succeeded;
        match (self.state, event) {
            (UpstreamState::Up, Event::Succeeded) => self.failures = 0,
            (UpstreamState::Down, Event::Succeeded) => self.come_up(),
            _ if era != self.era => return None,
            (UpstreamState::Up, Event::Unavailable(told)) => {
                self.enter(UpstreamState::Down);
                self.failures = self.failures.saturating_add(1);
                let wait = self.probe_wait(pace, random).max(told.unwrap_or_default());
                self.due = now + wait;
            }
            (UpstreamState::Up, Event::Refused) => {
                self.enter(UpstreamState::Aside);
                self.failures = 1;
                self.due = now + pace.trial_first;
            }
            (UpstreamState::Aside, Event::Succeeded | Event::KeyWorks | Event::Limited(_)) => {
                self.come_up();
            }
            (UpstreamState::Aside, _) => {
                self.trying = false;
                let wait = doubled(pace.trial_first, self.failures).min(pace.trial_longest);
                self.failures = self.failures.saturating_add(1);
                self.due = now + wait;
            }
            (UpstreamState::Up | UpstreamState::Down, _) => {}
        }
        (self.state != before).then_some(self.state)
    }

    /// Takes in a probe of an upstream that was down. It comes up on trust: until a call succeeds,
    /// the next time it goes down it is left alone for longer. True if it came up.
    pub(super) fn probed(&mut self, answers: bool, now: Instant, pace: &Pace, random: f64) -> bool {
        if self.state != UpstreamState::Down {
            return false;
        }
        if answers {
            self.enter(UpstreamState::Up);
        } else {
            self.failures = self.failures.saturating_add(1);
            self.due = now + self.probe_wait(pace, random);
        }
        answers
    }

    fn come_up(&mut self) {
        self.enter(UpstreamState::Up);
        self.failures = 0;
    }

    fn enter(&mut self, state: UpstreamState) {
        self.state = state;
        self.era = self.era.wrapping_add(1);
        self.trying = false;
    }

    fn probe_wait(&self, pace: &Pace, random: f64) -> Duration {
        let wait = doubled(pace.probe_first, self.failures.saturating_sub(1));
        wait.min(pace.probe_longest).mul_f64(1.0 + random / 4.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOWN: Event = Event::Unavailable(None);

    struct Case {
        health: Health,
        now: Instant,
        pace: Pace,
    }

    impl Case {
        fn new() -> Self {
            let now = Instant::now();
            let health = Health::new(now);
            let pace = Pace::default();
            Self { health, now, pace }
        }

        /// A call that begins and ends now.
        fn call(&mut self, event: Event) -> Option<UpstreamState> {
            assert!(self.health.is_open(self.now), "a line may be sent");
            let era = self.health.era();
            self.health.begin();
            self.late(event, era)
        }

        fn late(&mut self, event: Event, era: u32) -> Option<UpstreamState> {
            self.health.record(event, era, self.now, &self.pace, 0.0)
        }

        fn probe(&mut self, answers: bool) -> bool {
            self.health.probed(answers, self.now, &self.pace, 0.0)
        }

        /// Milliseconds until the next probe or trial.
        fn wait(&self) -> u128 {
            let due = self.health.due().expect("something is due");
            due.duration_since(self.now).as_millis()
        }
    }

    #[test]
    fn an_upstream_that_is_down_is_probed_ever_more_patiently() {
        let mut case = Case::new();
        assert_eq!(case.call(DOWN), Some(UpstreamState::Down));
        let mut waits = vec![case.wait()];
        for _ in 0..8 {
            assert!(!case.probe(false));
            waits.push(case.wait());
        }
        let expected = [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000, 30_000];
        assert_eq!(waits, expected);
        assert!(!case.health.is_open(case.now + Duration::from_hours(1)));
        assert!(case.probe(true) && case.health.is_open(case.now));
    }

    #[test]
    fn patience_grows_until_a_call_succeeds_not_until_a_probe_does() {
        let mut case = Case::new();
        for wait in [500, 1000, 2000] {
            assert_eq!(case.call(DOWN), Some(UpstreamState::Down));
            assert_eq!(case.wait(), wait);
            assert!(case.probe(true));
            assert_eq!(case.call(Event::Unclear), None);
        }
        assert_eq!(case.call(Event::Succeeded), None);
        case.call(DOWN);
        assert_eq!(case.wait(), 500);
    }

    #[test]
    fn the_wait_that_a_503_asks_for_is_kept() {
        let mut case = Case::new();
        case.call(Event::Unavailable(Some(Duration::from_secs(7))));
        assert_eq!(case.wait(), 7000);
    }

    #[test]
    fn calls_that_fail_together_count_once_and_late_failures_not_at_all() {
        let mut case = Case::new();
        let era = case.health.era();
        assert_eq!(case.late(DOWN, era), Some(UpstreamState::Down));
        assert_eq!(case.late(DOWN, era), None);
        assert_eq!(case.late(Event::Refused, era), None);
        assert_eq!(case.wait(), 500);
        assert!(case.probe(true));
        assert_eq!(case.late(DOWN, era), None, "it began before");
        assert_eq!(case.health.state(), UpstreamState::Up);
    }

    #[test]
    fn a_success_that_arrives_late_brings_it_up_unless_the_key_was_refused_since() {
        let mut case = Case::new();
        let era = case.health.era();
        case.late(DOWN, era);
        assert_eq!(case.late(Event::Succeeded, era), Some(UpstreamState::Up));
        let era = case.health.era();
        case.late(Event::Refused, era);
        assert_eq!(case.late(Event::Succeeded, era), None);
        assert_eq!(case.health.state(), UpstreamState::Aside);
    }

    #[test]
    fn an_upstream_set_aside_is_tried_with_one_line_ever_more_rarely() {
        let mut case = Case::new();
        assert_eq!(case.call(Event::Refused), Some(UpstreamState::Aside));
        let failures = [Event::Refused, Event::Unclear, DOWN, Event::Refused, DOWN];
        let mut waits = vec![case.wait()];
        for event in failures {
            assert!(!case.health.is_open(case.now));
            case.now += Duration::from_millis(u64::try_from(case.wait()).expect("small"));
            assert_eq!(case.call(event), None);
            waits.push(case.wait());
        }
        assert_eq!(waits, [30_000, 60_000, 120_000, 240_000, 480_000, 600_000]);
        case.now += Duration::from_mins(10);
        let era = case.health.era();
        case.health.begin();
        assert!(!case.health.is_open(case.now), "one at a time");
        assert_eq!(case.health.due(), None);
        case.health.abandon(era);
        assert_eq!(case.call(Event::KeyWorks), Some(UpstreamState::Up));
        assert!(!case.health.is_proven());
    }
}
