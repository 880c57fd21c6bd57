//! Care for lines that may kill their process: what is noted in the store before they are sent, and
//! what is sent beside them.

use std::sync::Arc;

use super::super::held::{Care, HeldUnit, OpenLine};
use super::super::line::{self, Job};
use super::Dispatch;
use super::ledger::ActiveUnit;

/// A line is sent no more when so many processes have died while it was the only one on its way.
const CRASHES_MAX: i64 = 2;
/// Lines of a unit that are on their way at once when two processes have died with it.
const FEW: usize = 8;
/// So many lines are noted at once when one has: then a note costs little, and says enough.
const NOTED_AHEAD: u32 = 15;

impl Dispatch {
    /// Notes in the store what is about to be sent, where that must be known if this process dies
    /// of it. False if it could not be noted: then it must not be sent.
    pub(super) async fn note(&self, job: &Job) -> bool {
        let (unit, line) = (&job.unit, job.pending.line.index);
        let upto = match job.care {
            Care::Usual => return true,
            Care::Noted => line.saturating_add(NOTED_AHEAD),
            Care::Few | Care::Alone => line,
        };
        let mut noted = unit.noted.lock().await;
        let is_known = noted.is_some_and(|noted| match job.care {
            Care::Alone => noted == line,
            _ => noted >= line,
        });
        if is_known {
            return true;
        }
        let token = self.lease.token();
        let done = self
            .store
            .note_sending(&token, &unit.key, unit.epoch, upto)
            .await;
        match done {
            Ok(true) => {
                *noted = Some(upto);
                true
            }
            Ok(false) => {
                self.keep_or_lose(unit).await;
                false
            }
            Err(error) => {
                tracing::debug!(%error, "a line waits until it can be noted that it is sent");
                false
            }
        }
    }

    /// A unit was taken over. If nobody has leased it since, it is taken back, which tells the
    /// store that this process has not died of its lines.
    async fn keep_or_lose(&self, unit: &HeldUnit) {
        let lease = [(unit.key.clone(), unit.epoch)];
        match self.store.reclaim_units(&self.lease.token(), &lease).await {
            Ok(lost) if lost.is_empty() => {}
            Ok(_) => self.lose(unit),
            Err(error) => tracing::debug!(%error, "a unit could not be taken back yet"),
        }
    }

    /// Lines of a unit are on disk: others may be sent if one was alone, and the unit runs as any
    /// other from now on if that cleared it.
    pub(in super::super) fn written(&self, unit: &HeldUnit, cleared: bool) {
        if unit.care == Care::Usual {
            return;
        }
        let mut ledger = self.lock();
        if cleared {
            ledger.clear(unit.id);
        }
        let in_flight = ledger.unit(unit.id).map_or(0, |active| active.in_flight);
        if in_flight == 0 {
            ledger.end_isolation(unit.id);
        }
        drop(ledger);
        self.pump.notify_one();
    }
}

/// Puts the line first that was alone when its process died. If that has happened too often it is
/// taken out, and gets its outcome unsent.
pub(super) fn take_care(
    unit: &Arc<HeldUnit>,
    lines: &mut Vec<OpenLine>,
) -> Option<super::Finished> {
    if unit.care != Care::Alone || unit.crashes == 0 {
        return None;
    }
    let noted = |line: &OpenLine| Some(i64::from(line.index)) == unit.noted_before;
    let at = lines.iter().position(noted)?;
    let suspect = lines.remove(at);
    if unit.crashes < CRASHES_MAX {
        lines.insert(0, suspect);
        return None;
    }
    tracing::error!(
        unit.key = %unit.key,
        unit.line = suspect.index,
        crashes = unit.crashes,
        "a request is not sent again: processes died whenever it was on its way"
    );
    Some(line::crashed(unit, &suspect))
}

impl ActiveUnit {
    /// Whether its next line may be sent beside those that are on their way or wait.
    pub(super) fn care_allows(&self, next: u32) -> bool {
        match self.care {
            Care::Usual | Care::Noted => true,
            Care::Few => self.in_flight < FEW,
            // Until it has its outcome: the note of another would hide it. When the last suspect
            // has, the others wait until it is on disk.
            Care::Alone => self.waiting.is_empty() && self.unit.suspects.contains(&next),
        }
    }

    fn ready(&self) -> usize {
        self.fresh.len() + self.retries.len()
    }

    /// Lines that could be sent if there were permits.
    pub(super) fn sendable(&self) -> usize {
        match self.care {
            Care::Usual | Care::Noted => self.ready(),
            Care::Few => self.ready().min(FEW),
            // While they wait, others are sent.
            Care::Alone => {
                let ready = self.retries.iter().chain(&self.fresh);
                let next = ready.map(|pending| pending.line.index);
                next.filter(|&next| self.care_allows(next)).count()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::super::ledger::Ledger;
    use super::*;
    use crate::worker::testing;

    /// Ten lines, of which the first four are suspects where there are any.
    fn ledger(takeovers: i64) -> Ledger {
        let (unit, lines) = testing::unit(10, takeovers, Some(3));
        let mut ledger = Ledger::default();
        ledger.admit(&unit, lines, (64, 0));
        ledger
    }

    fn sendable(ledger: &Ledger) -> (Care, usize) {
        let active = ledger.unit(1).expect("is in hand");
        (active.care, active.sendable())
    }

    #[test]
    fn only_lines_that_care_allows_count_as_work_in_hand() {
        let of = |takeovers| sendable(&ledger(takeovers));
        assert_eq!(of(0), (Care::Usual, 10));
        assert_eq!(of(1), (Care::Noted, 10));
        assert_eq!(of(2), (Care::Few, 8));
        assert_eq!(of(3), (Care::Alone, 4));
    }

    #[test]
    fn while_a_suspect_waits_its_unit_is_no_work_in_hand() {
        let mut ledger = ledger(3);
        let (_, pending) = ledger.start(1, false, 0).expect("is sent");
        ledger.retry_at(1, (Instant::now(), None), pending);
        assert_eq!(sendable(&ledger), (Care::Alone, 0));
    }
}
