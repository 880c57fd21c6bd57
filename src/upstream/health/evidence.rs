//! What is known of the calls to one backend.

use tokio::time::Instant;

/// How the calls to one backend have gone.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::upstream) struct Evidence {
    pub(in crate::upstream) successes: u64,
    pub(in crate::upstream) failures: u64,
    /// The latest moment at which a call began that has succeeded.
    pub(in crate::upstream) success_begun: Option<Instant>,
    /// When the last success was there.
    pub(in crate::upstream) success_at: Option<Instant>,
    /// When an operator said that it is mended.
    pub(in crate::upstream) reset_at: Option<Instant>,
}

impl Evidence {
    pub(in crate::upstream) fn succeeded(&mut self, begun: Instant, now: Instant) {
        self.successes += 1;
        self.success_begun = self.success_begun.max(Some(begun));
        self.success_at = Some(now);
    }

    pub(in crate::upstream) fn failed(&mut self) {
        self.failures += 1;
    }

    pub(in crate::upstream) fn reset(&mut self, now: Instant) {
        self.reset_at = Some(now);
    }

    pub(in crate::upstream) fn has_failed(&self) -> bool {
        self.failures > 0
    }

    pub(in crate::upstream) fn has_succeeded(&self) -> bool {
        self.successes > 0
    }
}
