//! Batches whose answers cannot be written. What is lost is paid for again, so a batch is not
//! leased any more once it has lost a unit a few times; and where two batches in a row cannot be
//! written, the database is at fault: nothing new is sent until it writes again.

use std::collections::HashMap;
use std::sync::PoisonError;

use super::Dispatch;
use crate::worker::work::unit::HeldUnit;

/// A batch that has lost units so often is not leased any more by this process.
const LOSSES_MAX: u32 = 3;

#[derive(Default)]
pub(crate) struct Unwritable {
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

impl Dispatch {
    /// Answers of a unit cannot be written. False if that is the database's fault: then they are
    /// to be kept, and tried again. Else the unit is let go, and its lines run again.
    pub(crate) fn may_let_go(&self, unit: &HeldUnit, cause: &str) -> bool {
        let mut unwritable = self.unwritable();
        let id = &*unit.batch.id;
        if unwritable.last.as_deref().is_some_and(|last| last != id) {
            if unwritable.halted.is_none() {
                tracing::error!(
                    error = cause,
                    "answers of several batches cannot be written: nothing is sent until that is \
                     mended; what was answered is kept in memory"
                );
            }
            unwritable.halted = Some(cause.to_owned());
            return false;
        }
        unwritable.last = Some(id.to_owned());
        let loss = unwritable.losses.entry(id.to_owned()).or_insert(Loss {
            times: 0,
            cause: String::new(),
        });
        loss.times += 1;
        cause.clone_into(&mut loss.cause);
        if loss.times == LOSSES_MAX {
            tracing::error!(
                batch.id = id,
                error = cause,
                "answers of a batch cannot be written, and were paid for {LOSSES_MAX} times: the \
                 batch is not worked on any more; mend the database, and start this server again"
            );
        }
        true
    }

    /// Answers were written.
    pub(crate) fn has_written(&self) {
        let mut unwritable = self.unwritable();
        unwritable.last = None;
        if unwritable.halted.take().is_some() {
            drop(unwritable);
            tracing::warn!("answers can be written again: sending goes on");
            self.pump.notify_one();
        }
    }

    /// Whether a batch is not to be leased.
    pub(crate) fn is_unwritable(&self, batch_id: &str) -> bool {
        let unwritable = self.unwritable();
        let loss = unwritable.losses.get(batch_id);
        loss.is_some_and(|loss| loss.times >= LOSSES_MAX)
    }

    /// Whether nothing is sent because nothing can be written.
    pub(crate) fn is_halted(&self) -> bool {
        self.unwritable().halted.is_some()
    }

    /// What an operator must mend, in words.
    pub(crate) fn alarms(&self) -> Vec<String> {
        let unwritable = self.unwritable();
        let halted = unwritable.halted.iter();
        let mut alarms: Vec<String> = halted
            .map(|cause| format!("nothing is sent: answers cannot be written: {cause}"))
            .collect();
        let lost = unwritable.losses.iter();
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

    fn unwritable(&self) -> std::sync::MutexGuard<'_, Unwritable> {
        self.unwritable
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
