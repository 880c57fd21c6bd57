//! A batch's life: its states, what moves it from one to the next, and its counts.

use std::fmt;

/// The eight states that OpenAI's batches have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    Validating,
    Failed,
    InProgress,
    Finalizing,
    Completed,
    Expired,
    Cancelling,
    Cancelled,
}

impl Status {
    pub const ALL: [Status; 8] = [
        Status::Validating,
        Status::Failed,
        Status::InProgress,
        Status::Finalizing,
        Status::Completed,
        Status::Expired,
        Status::Cancelling,
        Status::Cancelled,
    ];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Validating => "validating",
            Status::Failed => "failed",
            Status::InProgress => "in_progress",
            Status::Finalizing => "finalizing",
            Status::Completed => "completed",
            Status::Expired => "expired",
            Status::Cancelling => "cancelling",
            Status::Cancelled => "cancelled",
        }
    }

    #[must_use]
    pub fn parse(name: &str) -> Option<Status> {
        Self::ALL.into_iter().find(|status| status.as_str() == name)
    }

    /// Whether nothing can happen to the batch any more.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        matches!(
            self,
            Status::Failed | Status::Completed | Status::Expired | Status::Cancelled
        )
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why the lines that have not run will not run any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// The user cancelled the batch.
    Cancelled,
    /// The completion window ended.
    Expired,
}

impl EndReason {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            EndReason::Cancelled => "cancelled",
            EndReason::Expired => "expired",
        }
    }

    #[must_use]
    pub fn parse(name: &str) -> Option<EndReason> {
        [EndReason::Cancelled, EndReason::Expired]
            .into_iter()
            .find(|end_reason| end_reason.as_str() == name)
    }
}

/// What can happen to a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Validation found nothing wrong.
    Accepted,
    /// Validation found something wrong.
    Rejected,
    /// Every line has its outcome.
    Drained,
    /// The output and error files are published.
    Published,
    /// The user asked to cancel.
    CancelRequested,
    /// The completion window ended.
    WindowEnded,
}

/// Where a batch stands: its status, and whether it is being brought to an early end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchState {
    pub status: Status,
    pub end_reason: Option<EndReason>,
}

impl BatchState {
    /// How every batch begins.
    pub const CREATED: BatchState = BatchState {
        status: Status::Validating,
        end_reason: None,
    };

    /// The state after an event, or `None` where the event changes nothing: this is the whole
    /// state machine, and the store's guards are made from it.
    #[must_use]
    pub fn after(self, event: Event) -> Option<BatchState> {
        use Event as E;
        use Status as S;
        let next = |status, end_reason| Some(BatchState { status, end_reason });
        match (self.status, self.end_reason, event) {
            (S::Validating, _, E::Accepted) => next(S::InProgress, None),
            (S::Validating, _, E::Rejected) => next(S::Failed, None),
            // Nothing has run, so there is nothing to settle and there are no files.
            (S::Validating, _, E::CancelRequested) => {
                next(S::Cancelled, Some(EndReason::Cancelled))
            }
            (S::Validating, _, E::WindowEnded) | (S::InProgress, Some(_), E::Published) => {
                next(S::Expired, Some(EndReason::Expired))
            }
            (S::InProgress, None, E::Drained) => next(S::Finalizing, None),
            (S::InProgress, _, E::CancelRequested) => {
                next(S::Cancelling, Some(EndReason::Cancelled))
            }
            (S::InProgress, None, E::WindowEnded) => next(S::InProgress, Some(EndReason::Expired)),
            (S::Finalizing, _, E::Published) => next(S::Completed, None),
            (S::Cancelling, _, E::Published) => next(S::Cancelled, Some(EndReason::Cancelled)),
            _ => None,
        }
    }

    /// Whether the batch can be paused and resumed: lines of it may still be sent.
    #[must_use]
    pub fn can_be_paused(self) -> bool {
        matches!(self.status, Status::Validating | Status::InProgress) && self.end_reason.is_none()
    }

    /// Whether a request to cancel is refused (409), rather than granted or without effect.
    #[must_use]
    pub fn refuses_cancel(self) -> bool {
        matches!(
            self.status,
            Status::Completed | Status::Failed | Status::Expired
        )
    }
}

/// How many lines have which outcome. `completed + failed + cancelled <= total`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub total: i64,
    /// Answered with 2xx.
    pub completed: i64,
    /// Answered with anything else, given up, or expired.
    pub failed: i64,
    /// Never run, because the batch was cancelled. The API shows them in neither count.
    pub cancelled: i64,
}

impl Counts {
    /// Lines that still wait for their outcome.
    #[must_use]
    pub fn open(&self) -> i64 {
        self.total - self.completed - self.failed - self.cancelled
    }
}

/// Priorities that a batch may have: within a tenant, those of higher priority go first.
pub const PRIORITIES: std::ops::RangeInclusive<i64> = -100..=100;

/// The bounds of a completion window, in milliseconds: a minute and 30 days.
const WINDOW_MS: std::ops::RangeInclusive<i64> = 60_000..=30 * 86_400_000;

/// The length in milliseconds of a `completion_window`: a number and one unit of `m`, `h` or
/// `d`, from `1m` to `30d`.
#[must_use]
pub fn window_ms(text: &str) -> Option<i64> {
    let unit_at = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(unit_at);
    if number.starts_with('0') {
        return None; // it is echoed as it was written, so there is one way to write it
    }
    let unit_ms: i64 = match unit {
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    let length = number.parse::<i64>().ok()?.checked_mul(unit_ms)?;
    WINDOW_MS.contains(&length).then_some(length)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn windows_go_from_a_minute_to_thirty_days() {
        for (text, expected) in [
            ("1m", Some(60_000)),
            ("24h", Some(86_400_000)),
            ("30d", Some(2_592_000_000)),
            ("31d", None),
            ("0m", None),
            ("024h", None),
            ("59s", None),
            ("1h30m", None),
            ("24", None),
            ("", None),
            ("h", None),
            ("-1h", None),
            ("99999999999999999999d", None),
            ("9223372036854775807d", None),
        ] {
            assert_eq!(window_ms(text), expected, "{text:?}");
        }
    }

    /// A model of a batch: the state, and counts that only lines change.
    #[derive(Clone, Debug)]
    enum Step {
        Event(Event),
        Line { ok: bool },
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let event = prop_oneof![
            Just(Event::Accepted),
            Just(Event::Rejected),
            Just(Event::Drained),
            Just(Event::Published),
            Just(Event::CancelRequested),
            Just(Event::WindowEnded),
        ];
        let step = prop_oneof![
            event.prop_map(Step::Event),
            any::<bool>().prop_map(|ok| Step::Line { ok }),
        ];
        proptest::collection::vec(step, 0..60)
    }

    proptest! {
        #[test]
        fn no_sequence_of_events_leaves_a_terminal_state_or_loses_a_count(
            total in 1_i64..8,
            steps in steps(),
        ) {
            let mut state = BatchState::CREATED;
            let mut counts = Counts { total, ..Counts::default() };
            for step in steps {
                let before = (state, counts);
                match step {
                    Step::Line { ok } => {
                        let runs = matches!(state.status, Status::InProgress | Status::Cancelling);
                        if runs && counts.open() > 0 {
                            // A line that ends while the batch is being ended was either in
                            // flight (answered) or never ran (expired or cancelled).
                            match (ok, state.end_reason) {
                                (true, _) => counts.completed += 1,
                                (false, Some(EndReason::Cancelled)) => counts.cancelled += 1,
                                (false, _) => counts.failed += 1,
                            }
                        }
                    }
                    // The store raises these two only when no unit is left open.
                    Step::Event(Event::Drained | Event::Published) if counts.open() > 0 => {}
                    Step::Event(event) => state = state.after(event).unwrap_or(state),
                }
                if before.0.status.is_terminal() {
                    prop_assert_eq!(before, (state, counts), "a terminal state is left");
                }
                prop_assert!(counts.open() >= 0 && counts.total == total, "a count is lost");
                let ran = matches!(state.status, Status::Completed | Status::Finalizing);
                prop_assert!(!ran || counts.open() == 0, "completed with open lines");
                prop_assert!(
                    state.end_reason == Some(EndReason::Cancelled) || counts.cancelled == 0,
                    "lines are cancelled in a batch that is not"
                );
            }
        }
    }
}
