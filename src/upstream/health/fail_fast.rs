//! Giving up: where a person waits who can mend things, calls that all fail alike end the work.

use std::collections::BTreeMap;

use super::breaker::{Change, Closure};
use super::reason::Reason;
use crate::upstream::settings::FailFast;

/// How the calls have failed so far, where all have failed as only a person can mend it.
#[derive(Debug, Default)]
pub(in crate::upstream) struct GivingUp {
    /// Where nobody waits, nothing is given up.
    is_enabled: bool,
    has_succeeded: bool,
    /// By upstream: how many calls, and how the last one failed.
    refused: BTreeMap<usize, (usize, String)>,
    /// After how many calls it is hopeless.
    most: usize,
    /// Why it is hopeless: all calls have failed, or one showed that no other can do better.
    hopeless: Option<String>,
}

impl GivingUp {
    pub(in crate::upstream) fn new(settings: Option<FailFast>) -> Self {
        Self {
            is_enabled: settings.is_some(),
            has_succeeded: settings.is_some_and(|settings| settings.has_succeeded),
            most: settings.map_or(usize::MAX, |settings| settings.calls),
            ..Self::default()
        }
    }

    pub(in crate::upstream) fn hopeless(&self) -> Option<&str> {
        self.hopeless.as_deref()
    }

    /// Whether a line that is refused again ends with that, because other lines succeed.
    pub(in crate::upstream) fn ends_refusals(&self) -> bool {
        self.is_enabled && self.has_succeeded
    }

    /// A call was answered.
    pub(in crate::upstream) fn on_answer(&mut self) {
        self.has_succeeded = true;
    }

    /// There are no more lines than this: it is hopeless when all of them have failed.
    pub(in crate::upstream) fn has_lines(
        &mut self,
        lines: usize,
        in_flight: impl Iterator<Item = usize>,
    ) {
        self.most = self.most.min(lines.max(1));
        self.conclude(in_flight);
    }

    /// Counts a call that has failed; `cause` says how, if it counts. True while that may be so for
    /// all calls: then the failure says nothing of one upstream or line yet. `in_flight`: by
    /// upstream, the call itself included.
    pub(in crate::upstream) fn on_failure(
        &mut self,
        upstream: usize,
        reason: Reason,
        cause: impl FnOnce() -> String,
        in_flight: impl Iterator<Item = usize>,
    ) -> bool {
        if !self.is_enabled || !reason.needs_a_person() || self.has_succeeded {
            return false;
        }
        let refused = self.refused.entry(upstream).or_default();
        refused.0 += 1;
        refused.1 = format!("{}; check {}", cause(), reason.advice());
        self.conclude(in_flight);
        true
    }

    /// Something has closed. What only a person can mend is not waited for.
    pub(in crate::upstream) fn on_change(&mut self, change: &Change) {
        if let Change::Closed(Closure { reason, cause, .. }) = change
            && self.is_enabled
            && reason.needs_a_person()
            && *reason != Reason::Refused
        {
            self.hopeless = Some(format!("{cause}; check {}", reason.advice()));
        }
    }

    /// It is hopeless when so many calls were refused, and none is in flight that could do better.
    fn conclude(&mut self, in_flight: impl Iterator<Item = usize>) {
        let calls: usize = self.refused.values().map(|(calls, _)| calls).sum();
        let mut upstreams = in_flight.enumerate();
        let may_do_better =
            upstreams.any(|(at, in_flight)| in_flight > 0 && !self.refused.contains_key(&at));
        if calls >= self.most && calls > 0 && !self.has_succeeded && !may_do_better {
            let causes: Vec<&str> = self.refused.values().map(|(_, cause)| &**cause).collect();
            self.hopeless = Some(causes.join("; "));
        }
    }
}
