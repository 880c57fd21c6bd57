//! Isolation of requests that may kill their process. A unit whose owners died is sent with care:
//! what is sent is recorded in the store before, and the fewer at once the more owners have died,
//! until the request that kills is the only one on its way. Other units go on.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Mutex;

use crate::domain::unit::Bitmap;
use crate::store::Deaths;
use crate::worker::work::unit::OpenLine;

/// So many processes died while a request was alone on its way: the request is not sent again.
const DEATHS_ALONE_MAX: i64 = 2;
/// So many more lines are recorded at once, where any number may be on its way: then a record costs
/// little, and says enough.
const RECORDED_AHEAD: u32 = 15;

/// How a unit is sent whose owners died.
#[derive(Debug)]
pub(crate) struct Isolation {
    deaths: Deaths,
    /// Lines that may be on their way at once.
    at_once: usize,
    /// Lines that may have killed the last owner. While one of them is not done, the unit is not
    /// cleared.
    suspects: Vec<u32>,
    /// The line up to which this owner has recorded that it sends.
    recorded: Mutex<Option<u32>>,
    is_cleared: AtomicBool,
}

impl Isolation {
    /// `None` for a unit that nobody has died with. `lines`: those that are not done.
    pub(crate) fn of(deaths: Deaths, lines: &[OpenLine]) -> Option<Self> {
        let at_once = deaths.at_once()?;
        Some(Isolation {
            deaths,
            at_once,
            suspects: suspects(deaths, at_once, lines),
            recorded: Mutex::default(),
            is_cleared: AtomicBool::new(false),
        })
    }

    pub(crate) fn is_cleared(&self) -> bool {
        self.is_cleared.load(Ordering::Relaxed)
    }

    pub(crate) fn clear(&self) {
        self.is_cleared.store(true, Ordering::Relaxed);
    }

    /// Whether no line is left that may have killed an owner.
    pub(crate) fn is_cleared_by(&self, done: &Bitmap) -> bool {
        self.suspects.iter().all(|&line| done.contains(line))
    }

    /// How many lines may be on their way at once.
    pub(crate) fn at_once(&self) -> usize {
        self.at_once
    }

    /// Whether one line at a time is sent, and the next one waits until that one is on disk: the
    /// record of another would hide it.
    pub(crate) fn is_single(&self) -> bool {
        self.at_once == 1
    }

    /// Whether nothing else of this process may be on its way: the last owner died when the line
    /// was alone of its unit, but others of other units were on theirs.
    pub(crate) fn stops_all(&self) -> bool {
        self.is_single() && self.deaths.alone > 0
    }

    /// Whether a line may be sent, as far as the unit itself is concerned. Where lines are sent
    /// singly, only suspects are; the others wait until the unit is cleared.
    pub(crate) fn allows(&self, line: u32) -> bool {
        !self.is_single() || self.suspects.contains(&line)
    }

    /// Puts the line first that was alone on its way when the last owner died; where that has
    /// happened too often, takes it out and returns it: it gets its outcome unsent.
    pub(crate) fn take_killer(&self, lines: &mut Vec<OpenLine>) -> Option<OpenLine> {
        if !self.stops_all() {
            return None;
        }
        let recorded = |line: &OpenLine| Some(i64::from(line.index)) == self.deaths.recorded_line;
        let killer = lines.remove(lines.iter().position(recorded)?);
        if self.deaths.alone >= DEATHS_ALONE_MAX {
            return Some(killer);
        }
        lines.insert(0, killer);
        None
    }

    /// Records with `record` that a line is sent, and perhaps some behind it, unless that is known
    /// already. False if the record was refused.
    pub(crate) async fn record<E>(
        &self,
        line: u32,
        record: impl AsyncFnOnce(u32) -> Result<bool, E>,
    ) -> Result<bool, E> {
        let ahead = if self.at_once == usize::MAX {
            RECORDED_AHEAD
        } else {
            0
        };
        let mut recorded = self.recorded.lock().await;
        let is_known = recorded.is_some_and(|recorded| match self.is_single() {
            true => recorded == line,
            false => recorded >= line,
        });
        if is_known {
            return Ok(true);
        }
        let upto = line.saturating_add(ahead);
        let is_ours = record(upto).await?;
        if is_ours {
            *recorded = Some(upto);
        }
        Ok(is_ours)
    }
}

/// Which lines may have killed the last owner: of those that are open, all up to the one recorded;
/// that one only, if it was alone. At least one, and all where none was recorded.
fn suspects(deaths: Deaths, at_once: usize, lines: &[OpenLine]) -> Vec<u32> {
    if at_once == usize::MAX {
        return Vec::new();
    }
    let may_be = |index: u32| match deaths.recorded_line {
        None => true,
        Some(recorded) if deaths.alone > 0 => i64::from(index) == recorded,
        Some(recorded) => i64::from(index) <= recorded,
    };
    let open = lines.iter().map(|line| line.index);
    let mut suspects: Vec<u32> = open.filter(|&index| may_be(index)).collect();
    if suspects.is_empty() {
        suspects.extend(lines.first().map(|line| line.index));
    }
    suspects
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The suspects among open lines 3, 4, 6 and 9.
    fn suspects_of(owners: i64, recorded_line: Option<i64>, alone: i64) -> Vec<u32> {
        let deaths = Deaths {
            owners,
            recorded_line,
            alone,
        };
        let open = [3, 4, 6, 9].map(|index| OpenLine::new(index, 0..0));
        Isolation::of(deaths, &open).map_or(Vec::new(), |isolation| isolation.suspects)
    }

    #[test]
    fn suspects_are_the_open_lines_that_were_on_their_way_at_the_last_death() {
        assert!(suspects_of(0, None, 0).is_empty());
        assert!(suspects_of(1, Some(6), 0).is_empty());
        assert_eq!(suspects_of(2, Some(6), 0), [3, 4, 6]);
        assert_eq!(suspects_of(3, Some(8), 0), [3, 4, 6]);
    }

    #[test]
    fn a_line_that_was_alone_at_the_last_death_is_the_only_suspect() {
        assert_eq!(suspects_of(4, Some(6), 1), [6]);
    }

    #[test]
    fn a_unit_is_not_cleared_without_a_line_that_ran_alone() {
        assert_eq!(suspects_of(3, Some(1), 0), [3]);
        assert_eq!(suspects_of(4, Some(5), 1), [3]);
        assert_eq!(suspects_of(3, None, 0), [3, 4, 6, 9]);
    }
}
