//! Whether lines may be sent to an upstream at all: by the configuration, and by its operators.

use tokio::time::Instant;

/// What an operator has set for an upstream while it was in use. It counts while the configuration
/// says what it said then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Switch {
    /// The upstream's name.
    pub upstream: String,
    /// Whether lines are sent there.
    pub enabled: bool,
    /// What the configuration said then.
    pub configured: bool,
    /// Who has set it, for people.
    pub by: String,
    /// When, in milliseconds of Unix time. Each change of an upstream has a later one.
    pub at_ms: i64,
}

/// Whether lines may be sent to one upstream, and who says so.
#[derive(Debug)]
pub(in crate::upstream) struct Switched {
    configured: bool,
    set: Option<Switch>,
    /// Since when no line is sent; `None`: lines are sent.
    disabled_since: Option<Instant>,
}

impl Default for Switched {
    fn default() -> Self {
        Self {
            configured: true,
            set: None,
            disabled_since: None,
        }
    }
}

impl Switched {
    /// What the configuration says from now on, and what operators have set: see
    /// [`follow`](Self::follow).
    pub(super) fn configure(
        &mut self,
        configured: bool,
        set: Option<&Switch>,
        now: Instant,
    ) -> bool {
        self.configured = configured;
        self.follow(set, now)
    }

    /// Since when no line is sent.
    pub(in crate::upstream) fn disabled_since(&self) -> Option<Instant> {
        self.disabled_since
    }

    pub(in crate::upstream) fn is_disabled(&self) -> bool {
        self.disabled_since.is_some()
    }

    /// What the configuration says.
    pub(in crate::upstream) fn configured(&self) -> bool {
        self.configured
    }

    /// What an operator has set, where that counts.
    pub(in crate::upstream) fn set(&self) -> Option<&Switch> {
        let set = self.set.as_ref();
        set.filter(|set| set.configured == self.configured)
    }

    /// Why no line is sent, in words.
    pub(in crate::upstream) fn cause(&self) -> Option<String> {
        self.disabled_since?;
        Some(match self.set() {
            Some(set) => format!("disabled by {}", set.by),
            None => "disabled in the configuration".to_owned(),
        })
    }

    /// Takes in what operators have set. True if lines may be sent now and could not be before, or
    /// the reverse.
    pub(super) fn follow(&mut self, set: Option<&Switch>, now: Instant) -> bool {
        if self.set.as_ref() != set {
            self.set = set.cloned();
        }
        let enabled = self.set().map_or(self.configured, |set| set.enabled);
        let changes = enabled == self.is_disabled();
        if changes {
            self.disabled_since = (!enabled).then_some(now);
        }
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(enabled: bool, configured: bool) -> Switch {
        Switch {
            upstream: "gpu".to_owned(),
            enabled,
            configured,
            by: "key_1".to_owned(),
            at_ms: 1,
        }
    }

    #[test]
    fn what_an_operator_sets_holds_until_the_configuration_says_something_else() {
        let now = Instant::now();
        for (configured, set, disabled) in [
            (true, None, false),
            (false, None, true),
            (true, Some(set(false, true)), true),
            (false, Some(set(true, false)), false),
            // The file was changed since.
            (false, Some(set(false, true)), true),
            (true, Some(set(true, false)), false),
            (true, Some(set(false, false)), false),
            (false, Some(set(true, true)), true),
        ] {
            let mut switched = Switched::default();
            switched.configure(configured, None, now);
            let before = switched.is_disabled();
            let changes = switched.follow(set.as_ref(), now);
            assert_eq!(switched.is_disabled(), disabled, "{configured} {set:?}");
            assert_eq!(changes, before != disabled);
            assert!(!switched.follow(set.as_ref(), now), "nothing is new");
            let changes = switched.configure(!configured, set.as_ref(), now);
            let counts = set.as_ref().filter(|set| set.configured != configured);
            let enabled = counts.map_or(!configured, |set| set.enabled);
            assert_eq!(switched.is_disabled(), !enabled, "reloaded");
            assert_eq!(changes, disabled != switched.is_disabled());
        }
    }

    #[test]
    fn who_has_disabled_it_is_said() {
        let mut switched = Switched::default();
        assert_eq!(switched.cause(), None);
        switched.follow(Some(&set(false, true)), Instant::now());
        assert_eq!(switched.cause().as_deref(), Some("disabled by key_1"));
        switched.configure(false, None, Instant::now());
        let cause = switched.cause();
        assert_eq!(cause.as_deref(), Some("disabled in the configuration"));
    }
}
