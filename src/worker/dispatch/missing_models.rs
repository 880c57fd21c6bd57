//! Models that a batch names and nobody has. When so many of its lines have been told so, one after
//! the other, the rest get the same answer without a call.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};

use bytes::Bytes;

use super::Dispatch;
use super::result;
use crate::domain::outcome::Reading;
use crate::upstream::Answer;
use crate::worker::work::completions::Finished;
use crate::worker::work::unit::{HeldUnit, OpenLine};

/// Lines of a batch that must have been told that their model is not there.
const TOLD_MIN: u32 = 20;
/// Batches and models that are remembered.
const REMEMBERED_MAX: usize = 1_024;

/// By batch and model, what its lines were told.
pub(super) type Missing = HashMap<(Arc<str>, i64), Told>;

pub(super) struct Told {
    times: u32,
    answer: Known,
}

/// What the server said.
#[derive(Clone)]
pub(super) struct Known {
    status: u16,
    body: Bytes,
    reading: Reading,
}

impl Dispatch {
    /// Takes note of an answer, if it says that the model is not there; else of a model that is.
    pub(super) fn note_missing(&self, unit: &Arc<HeldUnit>, answer: &Answer) {
        let key = || (unit.batch.id.clone(), unit.lease.key.model_no);
        let mut missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        if !answer.is_model_missing {
            if !missing.is_empty() && (200..300).contains(&answer.status) {
                missing.remove(&key());
            }
            return;
        }
        if missing.len() >= REMEMBERED_MAX {
            missing.clear();
        }
        let known = Known {
            status: answer.status,
            body: answer.body.clone(),
            reading: answer.reading,
        };
        let told = missing.entry(key()).or_insert_with(|| Told {
            times: 0,
            answer: known.clone(),
        });
        told.times += 1;
        let is_enough = told.times == TOLD_MIN;
        drop(missing);
        if is_enough {
            tracing::warn!(
                batch.id = &*unit.batch.id,
                "no upstream has the model of a batch: its other lines of the model get the same \
                 answer without a call"
            );
            let unsent = self
                .lock()
                .take_lines(&unit.batch.id, unit.lease.key.model_no);
            for (unit, pending) in unsent {
                let lines = pending.into_iter().map(|pending| pending.line);
                self.answer_unsent(&unit, lines, &known);
            }
        }
    }

    /// What the lines of a unit are to be told without a call, if it is known that nobody has
    /// their model.
    pub(super) fn known_missing(&self, unit: &HeldUnit) -> Option<Known> {
        let missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        if missing.is_empty() {
            return None;
        }
        let told = missing.get(&(unit.batch.id.clone(), unit.lease.key.model_no))?;
        (told.times >= TOLD_MIN && unit.routes.is_some()).then(|| told.answer.clone())
    }

    pub(super) fn answer_unsent(
        &self,
        unit: &Arc<HeldUnit>,
        lines: impl IntoIterator<Item = OpenLine>,
        known: &Known,
    ) {
        let finished = lines.into_iter().map(|line| {
            let answer = Answer {
                status: known.status,
                request_id: None,
                body: known.body.clone(),
                reading: known.reading,
                is_model_missing: true,
                charge: self.pool.budget().open(),
            };
            result::answered(unit, &line, answer)
        });
        let finished: Vec<Finished> = finished.collect();
        self.inbox.push(finished);
    }
}
