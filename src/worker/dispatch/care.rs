//! Care for lines that may kill their process: what is noted in the store before they are sent.

use std::sync::Arc;

use super::super::held::{Care, HeldUnit};
use super::super::line::{self, Pending};
use super::Dispatch;
use super::state::Entry;

/// A line is sent no more when so many processes have died while it was the only one on its way.
const CRASHES_MAX: i64 = 2;

impl Dispatch {
    /// Notes in the store what is about to be sent, where that must be known if this process dies
    /// of it. False if it could not be noted: then it must not be sent.
    pub(super) async fn note(&self, unit: &Arc<HeldUnit>, pending: &Pending) -> bool {
        let line = match unit.care {
            Care::Usual => return true,
            Care::Begin => None,
            Care::Alone { .. } => Some(pending.line.index),
        };
        let mut noted = unit.noted.lock().await;
        if *noted == Some(line) {
            return true;
        }
        let token = self.lease.token();
        let done = self
            .store
            .note_sending(&token, &unit.key, unit.epoch, line)
            .await;
        match done {
            Ok(true) => {
                *noted = Some(line);
                true
            }
            Ok(false) => {
                self.lose(unit);
                false
            }
            Err(error) => {
                tracing::debug!(%error, "a line waits until it can be noted that it is sent");
                false
            }
        }
    }
}

impl Entry {
    /// Puts the line first that was on its way when its process died. If that has happened too
    /// often it is taken out, and gets its outcome unsent.
    pub(super) fn take_care(&mut self) -> Option<super::Finished> {
        let Care::Alone { noted, crashes } = self.unit.care else {
            return None;
        };
        let noted = |pending: &Pending| Some(i64::from(pending.line.index)) == noted;
        let at = self.ready.iter().position(noted)?;
        let suspect = self.ready.remove(at)?;
        if crashes < CRASHES_MAX {
            self.ready.push_front(suspect);
            return None;
        }
        tracing::error!(
            unit.key = %self.unit.key,
            unit.line = suspect.line.index,
            crashes,
            "a request is not sent again: processes died whenever it was on its way"
        );
        Some(line::crashed(&self.unit, &suspect.line))
    }

    /// Whether its lines are sent one at a time, with nothing else on its way.
    pub(super) fn runs_alone(&self) -> bool {
        matches!(self.unit.care, Care::Alone { .. })
    }
}
