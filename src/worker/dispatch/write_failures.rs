//! Batches whose answers cannot be written. Answers that are lost are paid for again, so a batch
//! is not leased any more once it has lost a unit a few times. Where two batches in a row cannot
//! be written, the database is at fault: nothing new is sent until it writes again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::shared::SharedLedger;

/// This process does not lease a batch any more that has lost units so often.
const LOSSES_MAX: u32 = 3;

pub(crate) struct WriteFailures {
    state: Mutex<State>,
    ledger: Arc<SharedLedger>,
}

#[derive(Default)]
struct State {
    losses: HashMap<String, Loss>,
    /// The batch that lost a unit last, since something was written.
    last: Option<String>,
    /// Why nothing is sent.
    halted: Option<String>,
}

struct Loss {
    times: u32,
    cause: String,
}

impl WriteFailures {
    pub(super) fn new(ledger: Arc<SharedLedger>) -> Self {
        let state = Mutex::default();
        Self { state, ledger }
    }

    /// The answers of one of a batch's units cannot be written. False if the database is at fault:
    /// then the answers are to be kept, and written later. Else the unit is to be revoked, and its
    /// lines run again.
    pub(crate) fn may_drop(&self, batch_id: &str, cause: &str) -> bool {
        let mut state = self.lock();
        if state.last.as_deref().is_some_and(|last| last != batch_id) {
            if state.halted.is_none() {
                tracing::error!(
                    error = cause,
                    "answers of several batches cannot be written: nothing is sent until that is \
                     mended; what was answered is kept in memory"
                );
            }
            state.halted = Some(cause.to_owned());
            return false;
        }
        state.last = Some(batch_id.to_owned());
        let loss = state.losses.entry(batch_id.to_owned()).or_insert(Loss {
            times: 0,
            cause: String::new(),
        });
        loss.times += 1;
        cause.clone_into(&mut loss.cause);
        if loss.times == LOSSES_MAX {
            tracing::error!(
                batch.id = batch_id,
                error = cause,
                "answers of a batch cannot be written, and were paid for {LOSSES_MAX} times: the \
                 batch is not worked on any more; mend the database, and start this server again"
            );
        }
        true
    }

    /// Answers were written.
    pub(crate) fn on_written(&self) {
        let mut state = self.lock();
        state.last = None;
        if state.halted.take().is_some() {
            drop(state);
            tracing::warn!("answers can be written again: sending goes on");
            self.ledger.notify_scheduler();
        }
    }

    /// Whether a batch is not to be leased.
    pub(crate) fn is_unwritable(&self, batch_id: &str) -> bool {
        let state = self.lock();
        let loss = state.losses.get(batch_id);
        loss.is_some_and(|loss| loss.times >= LOSSES_MAX)
    }

    /// Whether nothing is sent because nothing can be written.
    pub(super) fn is_halted(&self) -> bool {
        self.lock().halted.is_some()
    }

    /// What an operator must mend, in words.
    pub(crate) fn alarms(&self) -> Vec<String> {
        let state = self.lock();
        let halted = state.halted.iter();
        let mut alarms: Vec<String> = halted
            .map(|cause| format!("nothing is sent: answers cannot be written: {cause}"))
            .collect();
        let lost = state.losses.iter();
        let lost = lost.filter(|(_, loss)| loss.times >= LOSSES_MAX);
        alarms.extend(lost.map(|(id, loss)| {
            format!(
                "{id} is not worked on: its answers cannot be written: {}",
                loss.cause
            )
        }));
        alarms.sort();
        alarms
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
