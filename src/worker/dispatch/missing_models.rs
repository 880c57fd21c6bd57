//! Models that a batch names and nobody has. Once enough of a batch's lines were answered so, its
//! other lines of the model get the same answer without a call.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::result;
use super::shared::SharedLedger;
use crate::domain::outcome::Form;
use crate::domain::usage::Usage;
use crate::upstream::{Answer, Bill, Pool};
use crate::worker::work::finished::{CompletionQueue, FinishedLine};
use crate::worker::work::line::OpenLine;
use crate::worker::work::unit::LoadedUnit;

/// So many lines of a batch must have been answered that their model is not there.
const ANSWERS_MIN: u32 = 20;
/// Batches and models that are remembered.
const REMEMBERED_MAX: usize = 1_024;

pub(super) struct MissingModels {
    /// How lines were answered, by batch and model.
    seen: Mutex<HashMap<(Arc<str>, i64), Seen>>,
    /// How many entries there are, so that no line takes a lock while there are none.
    entries: AtomicUsize,
    ledger: Arc<SharedLedger>,
    completions: Arc<CompletionQueue>,
    pool: Arc<Pool>,
}

struct Seen {
    times: u32,
    answer: KnownAnswer,
}

/// What the server said.
#[derive(Clone)]
pub(super) struct KnownAnswer {
    status: u16,
    body: Bytes,
    form: Form,
    usage: Option<Usage>,
}

impl MissingModels {
    pub(super) fn new(
        ledger: Arc<SharedLedger>,
        completions: Arc<CompletionQueue>,
        pool: Arc<Pool>,
    ) -> Self {
        Self {
            seen: Mutex::default(),
            entries: AtomicUsize::new(0),
            ledger,
            completions,
            pool,
        }
    }

    /// Takes in an answer. If it is the one that shows that nobody has the model, the batch's
    /// lines of the model that are not in flight get the same answer.
    pub(super) fn on_answer(&self, unit: &Arc<LoadedUnit>, answer: &Answer) {
        if !answer.is_model_missing {
            if (200..300).contains(&answer.status) && !self.is_empty() {
                let mut seen = self.lock();
                seen.remove(&key(unit));
                self.count(&seen);
            }
            return;
        }
        let known = KnownAnswer {
            status: answer.status,
            body: answer.body.clone(),
            form: answer.form,
            usage: answer.usage,
        };
        let mut seen = self.lock();
        if seen.len() >= REMEMBERED_MAX {
            seen.clear();
        }
        let of_model = seen.entry(key(unit)).or_insert_with(|| Seen {
            times: 0,
            answer: known.clone(),
        });
        of_model.times += 1;
        let is_enough = of_model.times == ANSWERS_MIN;
        self.count(&seen);
        drop(seen);
        if is_enough {
            tracing::warn!(
                batch.id = &*unit.batch.id,
                "no upstream has the model of a batch: its other lines of the model get the same \
                 answer without a call"
            );
            let model_no = unit.lease.key.model_no;
            let unsent = self.ledger.lock().end_model(&unit.batch.id, model_no);
            for (unit, pending) in unsent {
                let lines = pending.into_iter().map(|pending| pending.line);
                self.finish(&unit, lines, &known);
            }
        }
    }

    /// The answer that the lines of a unit get without a call, if nobody has their model.
    pub(super) fn known(&self, unit: &LoadedUnit) -> Option<KnownAnswer> {
        if self.is_empty() {
            return None;
        }
        let seen = self.lock();
        let of_model = seen.get(&key(unit))?;
        (of_model.times >= ANSWERS_MIN).then(|| of_model.answer.clone())
    }

    /// Finishes lines of a unit with an answer that is known.
    pub(super) fn finish(
        &self,
        unit: &Arc<LoadedUnit>,
        lines: impl IntoIterator<Item = OpenLine>,
        known: &KnownAnswer,
    ) {
        let lines = lines.into_iter();
        let finished = lines.map(|line| self.finished(unit, &line, known));
        let finished: Vec<FinishedLine> = finished.collect();
        self.completions.push(finished);
    }

    /// A line with an answer that is known.
    pub(super) fn finished(
        &self,
        unit: &Arc<LoadedUnit>,
        line: &OpenLine,
        known: &KnownAnswer,
    ) -> FinishedLine {
        let answer = Answer {
            status: known.status,
            request_id: None,
            body: known.body.clone(),
            form: known.form,
            usage: known.usage,
            warnings: Vec::new(),
            is_model_missing: true,
            reservation: self.pool.budget().reserve(),
        };
        result::answered(
            unit,
            line,
            &result::custom_id(unit, line),
            answer,
            Bill::default(),
        )
    }

    /// Forgets all: another configuration may have the models.
    pub(super) fn forget(&self) {
        let mut seen = self.lock();
        seen.clear();
        self.count(&seen);
    }

    fn is_empty(&self) -> bool {
        self.entries.load(Ordering::Relaxed) == 0
    }

    fn count(&self, seen: &HashMap<(Arc<str>, i64), Seen>) {
        self.entries.store(seen.len(), Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(Arc<str>, i64), Seen>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key(unit: &LoadedUnit) -> (Arc<str>, i64) {
    (unit.batch.id.clone(), unit.lease.key.model_no)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::testing;
    use crate::worker::testing as units;

    #[test]
    fn a_model_that_nobody_had_may_be_there_after_another_configuration() {
        let pool = testing::pool(1, &[("model", None)]);
        let (ledger, completions) = (Arc::default(), Arc::default());
        let models = MissingModels::new(ledger, completions, Arc::clone(&pool));
        let (unit, _) = units::unit(1, 0, None);
        let missing = Answer {
            status: 404,
            request_id: None,
            body: Bytes::new(),
            form: Form::Json,
            usage: None,
            warnings: Vec::new(),
            is_model_missing: true,
            reservation: pool.budget().reserve(),
        };
        for _ in 0..ANSWERS_MIN {
            assert!(models.known(&unit).is_none());
            models.on_answer(&unit, &missing);
        }
        assert!(models.known(&unit).is_some());
        models.forget();
        assert!(models.known(&unit).is_none());
    }
}
