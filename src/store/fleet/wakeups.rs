//! Wake-ups as the other rooms use them: see [`Who`].

use std::collections::BTreeSet;

use tokio::sync::watch;

use crate::store::{Store, Who};

impl Store {
    /// Wakes tasks of this process.
    pub fn wake(&self, who: Who) {
        self.wake_handle().send_here(who);
    }

    /// Wakes tasks of the other processes.
    pub fn wake_others(&self, who: Who) {
        self.wake_handle().send_abroad(who);
    }

    /// Wakes tasks of this process and of the others.
    pub fn wake_all(&self, who: Who) {
        self.wake(who);
        self.wake_others(who);
    }

    /// Wakes a task of this process, or, where this process has no such task, those of the others:
    /// for work that one process does.
    pub fn wake_one(&self, who: Who) {
        if self.wake_handle().is_heard_here(who) {
            self.wake(who);
        } else {
            self.wake_others(who);
        }
    }

    /// Changes at each wake-up. To miss none, mark the value as seen before looking, and then wait
    /// for the next change.
    #[must_use]
    pub fn wakeups(&self, who: Who) -> watch::Receiver<u64> {
        self.wake_handle().subscribe(who)
    }

    /// Batches of which this process has finished a unit since the last call.
    #[must_use]
    pub fn take_finished(&self) -> BTreeSet<String> {
        self.wake_handle().take_finished()
    }
}
