//! Giving up: where a person waits who can mend things, calls that all fail alike end the work.

use std::collections::{BTreeMap, BTreeSet};

use super::breaker::{Change, Closure};
use super::reason::Reason;
use crate::upstream::settings::FailFast;

/// How the calls have failed so far, where all have failed as only a person can mend it.
#[derive(Debug, Default)]
pub(in crate::upstream) struct GivingUp {
    /// Where nobody waits, nothing is given up.
    is_enabled: bool,
    has_succeeded: bool,
    /// By upstream and key: how many calls, and how the last one failed.
    refused: BTreeMap<(usize, usize), (usize, String)>,
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
    pub(in crate::upstream) fn has_lines(&mut self, lines: usize) {
        self.most = self.most.min(lines.max(1));
    }

    /// Counts a call that has failed, by a key of an upstream; `cause` says how, if it counts. True
    /// while that may be so for all calls: then the failure says nothing of one upstream or line
    /// yet.
    pub(in crate::upstream) fn on_failure(
        &mut self,
        way: (usize, usize),
        reason: Reason,
        cause: impl FnOnce() -> String,
    ) -> bool {
        if !self.is_enabled || !reason.needs_a_person() || self.has_succeeded {
            return false;
        }
        let refused = self.refused.entry(way).or_default();
        refused.0 += 1;
        refused.1 = format!("{}; check {}", cause(), reason.advice());
        true
    }

    /// Whether calls by a key of an upstream have failed so.
    pub(in crate::upstream) fn was_refused(&self, way: (usize, usize)) -> bool {
        self.refused.contains_key(&way)
    }

    /// Whether so many calls have failed alike that it is hopeless, unless a call elsewhere does
    /// better.
    pub(in crate::upstream) fn is_due(&self) -> bool {
        let calls: usize = self.refused.values().map(|(calls, _)| calls).sum();
        calls >= self.most && calls > 0 && !self.has_succeeded && self.hopeless.is_none()
    }

    /// All calls have failed alike, and no other can do better.
    pub(in crate::upstream) fn give_up(&mut self) {
        let causes: BTreeSet<&str> = self.refused.values().map(|(_, cause)| &**cause).collect();
        let causes: Vec<&str> = causes.into_iter().collect();
        self.hopeless = Some(causes.join("; "));
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
}
