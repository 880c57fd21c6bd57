//! Isolation of requests that may kill their process.
//!
//! Once owners of a unit have died, its lines are sent with care: what is sent is recorded in the
//! store beforehand, and the more owners have died, the fewer lines are in flight at once. In the
//! end the request that kills is the only one in flight. Other units go on.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Mutex;

use super::line::OpenLine;
use crate::domain::unit::Bitmap;
use crate::store::Deaths;

/// A request is not sent again once so many processes have died while it was alone in flight.
const DEATHS_ALONE_MAX: i64 = 2;
/// Where any number of lines may be in flight, so many more lines are recorded at once at most. A
/// record then costs little, and still says enough.
const RECORDED_AHEAD: u32 = 15;

/// How the lines of a unit are sent whose owners have died.
#[derive(Debug)]
pub(crate) struct Isolation {
    deaths: Deaths,
    level: Level,
    /// Lines that may have killed the last owner. The unit is not cleared while one of them is not
    /// done.
    suspects: Vec<u32>,
    recorded: Mutex<Record>,
    is_cleared: AtomicBool,
}

/// What this owner has recorded.
#[derive(Debug, Default)]
struct Record {
    /// The line up to which it sends.
    upto: Option<u32>,
    /// How many lines are recorded ahead next. The first record is for the line alone, and each is
    /// for twice as many as the one before. So about as many lines are suspected as were sent:
    /// where calls are slow, or a unit has few permits, that is a line or two.
    ahead: u32,
}

/// How much care the lines need. A unit that nobody has died with has no level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    /// Any number of lines may be in flight. What is sent is recorded ahead.
    Recorded,
    /// So many lines may be in flight. Each of them is recorded.
    Throttled(usize),
    /// One line at a time, and only suspects. The next line waits until the last one is on disk,
    /// because the record of another line would hide it.
    Isolated,
}

impl Level {
    fn of(deaths: Deaths) -> Option<Level> {
        Some(match deaths.at_once()? {
            1 => Level::Isolated,
            usize::MAX => Level::Recorded,
            lines => Level::Throttled(lines),
        })
    }

    /// How many lines may be in flight.
    fn max_in_flight(self) -> usize {
        match self {
            Level::Recorded => usize::MAX,
            Level::Throttled(lines) => lines,
            Level::Isolated => 1,
        }
    }
}

impl Isolation {
    /// `None` for a unit that nobody has died with. `lines`: the lines that are not done.
    pub(super) fn new(deaths: Deaths, lines: &[OpenLine]) -> Option<Self> {
        let level = Level::of(deaths)?;
        Some(Isolation {
            deaths,
            level,
            suspects: suspects(deaths, level, lines),
            recorded: Mutex::default(),
            is_cleared: AtomicBool::new(false),
        })
    }

    pub(crate) fn is_cleared(&self) -> bool {
        self.is_cleared.load(Ordering::Relaxed)
    }

    /// A flush has written the last suspect. The unit is normal from now on.
    pub(crate) fn clear(&self) {
        self.is_cleared.store(true, Ordering::Relaxed);
    }

    /// Whether these lines include every suspect.
    pub(crate) fn is_cleared_by(&self, done: &Bitmap) -> bool {
        self.suspects.iter().all(|&line| done.contains(line))
    }

    /// Whether any number of lines may be in flight, and so several may share a call.
    pub(crate) fn allows_packs(&self) -> bool {
        self.level == Level::Recorded
    }

    /// Whether nothing else of this process may be in flight. The last owner died while one line
    /// of the unit was alone in flight, but lines of other units may have been in flight as well.
    pub(crate) fn needs_the_process(&self) -> bool {
        self.level == Level::Isolated && self.deaths.alone > 0
    }

    /// Whether a line may be sent now, as far as the unit itself is concerned. `is_idle`: no other
    /// line of the unit is in flight, waits for its next attempt, or is on its way to the disk.
    pub(crate) fn allows(
        &self,
        line: u32,
        in_flight: usize,
        is_idle: impl FnOnce() -> bool,
    ) -> bool {
        in_flight < self.level.max_in_flight()
            && self.may_send(line)
            && (self.level != Level::Isolated || is_idle())
    }

    /// Of the lines that are ready, how many could be sent if there were permits.
    pub(crate) fn sendable(&self, ready: impl Iterator<Item = u32>, has_waiting: bool) -> usize {
        match self.level {
            Level::Recorded | Level::Throttled(_) => ready.count().min(self.level.max_in_flight()),
            // While a suspect waits for its next attempt, no other line is sent.
            Level::Isolated if has_waiting => 0,
            Level::Isolated => ready.filter(|&line| self.may_send(line)).count(),
        }
    }

    /// In an isolated unit only suspects are sent. The other lines wait until the unit is cleared.
    fn may_send(&self, line: u32) -> bool {
        self.level != Level::Isolated || self.suspects.contains(&line)
    }

    /// Puts the line first that was alone in flight when the last owner died. Where that has
    /// happened too often, the line is taken out and returned: it ends without being sent.
    pub(crate) fn take_killer(&self, lines: &mut Vec<OpenLine>) -> Option<OpenLine> {
        if !self.needs_the_process() {
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

    /// Records with `record` that a line is sent, and perhaps some lines behind it, unless the
    /// record covers the line already. False if the record was refused.
    pub(crate) async fn record<E>(
        &self,
        line: u32,
        record: impl AsyncFnOnce(u32) -> Result<bool, E>,
    ) -> Result<bool, E> {
        let mut recorded = self.recorded.lock().await;
        let is_covered = recorded.upto.is_some_and(|upto| match self.level {
            Level::Isolated => upto == line,
            Level::Recorded | Level::Throttled(_) => upto >= line,
        });
        if is_covered {
            return Ok(true);
        }
        let ahead = match self.level {
            Level::Recorded => recorded.ahead,
            Level::Throttled(_) | Level::Isolated => 0,
        };
        let upto = line.saturating_add(ahead);
        let is_ours = record(upto).await?;
        if is_ours {
            *recorded = Record {
                upto: Some(upto),
                ahead: (2 * ahead + 1).min(RECORDED_AHEAD),
            };
        }
        Ok(is_ours)
    }
}

/// Which lines may have killed the last owner: of the open lines, all up to the recorded line. If
/// the recorded line was alone, it is the only suspect. If nothing was recorded, all open lines
/// are suspects. There is at least one suspect.
fn suspects(deaths: Deaths, level: Level, lines: &[OpenLine]) -> Vec<u32> {
    if level == Level::Recorded {
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
        Isolation::new(deaths, &open).map_or(Vec::new(), |isolation| isolation.suspects)
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

    #[tokio::test]
    async fn about_as_many_lines_are_recorded_as_are_sent() {
        let records = async |owners| {
            let deaths = Deaths {
                owners,
                ..Deaths::default()
            };
            let open: Vec<OpenLine> = (0..64).map(|index| OpenLine::new(index, 0..0)).collect();
            let isolation = Isolation::new(deaths, &open).expect("an owner has died");
            let mut records = Vec::new();
            for line in 0..40 {
                let is_ours = isolation.record(line, async |upto| {
                    records.push(upto);
                    Ok::<bool, ()>(true)
                });
                assert_eq!(is_ours.await, Ok(true));
            }
            records
        };
        assert_eq!(records(1).await, [0, 2, 6, 14, 30, 46]);
        assert_eq!(records(2).await, (0..40).collect::<Vec<u32>>());
    }
}
