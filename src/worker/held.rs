//! A unit in hand: its text, its lines, and how far the store knows of them.

use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock};

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use crate::domain::endpoint::Endpoint;
use crate::domain::json;
use crate::domain::line::{self, Check};
use crate::domain::unit::{Bitmap, UnitKey};
use crate::observe::ModelFigures;
use crate::store::{Backlog, LeasedUnit};
use crate::upstream::{Charge, Routes};

/// What all units of a batch have in common.
#[derive(Debug)]
pub(super) struct BatchContext {
    pub id: Arc<str>,
    pub tenant: Arc<str>,
    pub endpoint: &'static Endpoint,
    pub priority: i64,
    /// Milliseconds; `i64::MAX` where there is no window.
    pub deadline: i64,
    pub created_at: i64,
    /// Of this process's own making, by which upstreams tell batches apart.
    pub number: u64,
}

/// A number for a batch. Two have the same as good as never, and little depends on it.
pub(super) fn number_of(batch_id: &str) -> u64 {
    let mut hasher = std::hash::DefaultHasher::new();
    std::hash::Hash::hash(batch_id, &mut hasher);
    std::hash::Hasher::finish(&hasher)
}

impl BatchContext {
    pub(super) fn new(backlog: &Backlog, endpoint: &'static Endpoint) -> Self {
        BatchContext {
            id: backlog.batch_id.as_str().into(),
            tenant: backlog.tenant.as_str().into(),
            endpoint,
            priority: backlog.priority,
            deadline: backlog.expires_at.unwrap_or(i64::MAX),
            created_at: backlog.created_at,
            number: number_of(&backlog.batch_id),
        }
    }
}

/// A leased unit with the text of its chunk.
pub(super) struct HeldUnit {
    /// Of this process's own making: tells a unit that was leased twice from itself.
    pub id: u64,
    pub key: UnitKey,
    pub epoch: i64,
    pub batch: Arc<BatchContext>,
    /// `None`: its model is not served, or its lines are not to be sent any more.
    pub routes: Option<Arc<Routes>>,
    /// The name of its model; empty where its lines name none.
    pub model: Box<str>,
    /// Of its model.
    pub figures: Arc<ModelFigures>,
    pub text: Bytes,
    /// Cuts calls in flight: the unit was lost, or they had their time to settle.
    pub cut: CancellationToken,
    /// What the store knows. Only the flusher looks at it.
    pub durable: Mutex<Durable>,
    /// How it is begun; the dispatch knows when it is cleared.
    pub care: Care,
    /// Lines that may kill their process: while one is not done, the unit is not cleared.
    pub suspects: Vec<u32>,
    /// The line noted before this lease, and how many processes have died while it ran alone.
    pub noted_before: Option<i64>,
    pub crashes: i64,
    /// What was noted last, under this lease, before it was sent.
    pub noted: tokio::sync::Mutex<Option<u32>>,
    /// The text's part of the budget.
    _charge: Option<Charge>,
}

/// How a unit is run, so that a line that kills its process is found. What is noted, is noted in
/// the store before the line is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Care {
    /// As any: no process has died with it, or it was cleared since.
    Usual,
    /// One process has died with it: how far its lines are sent is noted.
    Noted,
    /// Two have: the same, and few are sent at a time, so that few are suspects afterwards.
    Few,
    /// Three have: each suspect is noted, and nothing else is sent until it is on disk.
    Alone,
}

impl Care {
    fn of(leased: &LeasedUnit) -> Self {
        match leased.takeovers {
            ..=0 => Care::Usual,
            1 => Care::Noted,
            _ if leased.runs_alone() => Care::Alone,
            _ => Care::Few,
        }
    }
}

/// Which lines may have killed the last process: of those that are open, all up to the one noted;
/// that one only, if it was alone. At least one, and all where none was noted.
fn suspects(leased: &LeasedUnit, care: Care, lines: &[OpenLine]) -> Vec<u32> {
    if !matches!(care, Care::Few | Care::Alone) {
        return Vec::new();
    }
    let may_be = |index: u32| match leased.noted_line {
        None => true,
        Some(noted) if leased.crashes > 0 => i64::from(index) == noted,
        Some(noted) => i64::from(index) <= noted,
    };
    let open = lines.iter().map(|line| line.index);
    let mut suspects: Vec<u32> = open.filter(|&index| may_be(index)).collect();
    if suspects.is_empty() {
        suspects.extend(lines.first().map(|line| line.index));
    }
    suspects
}

pub(super) struct Durable {
    pub flush_no: i64,
    pub done: Bitmap,
    /// Lines that are not done.
    pub open: usize,
}

/// A line that is not done: its place in the chunk, and of its text in the unit's.
#[derive(Clone, Debug)]
pub(super) struct OpenLine {
    pub index: u32,
    pub range: Range<usize>,
    request: OnceLock<Option<Request>>,
}

/// What is needed of a line's text.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub custom_id: Box<str>,
    pub body: Bytes,
}

impl OpenLine {
    fn new(index: u32, range: Range<usize>) -> Self {
        let request = OnceLock::new();
        Self {
            index,
            range,
            request,
        }
    }

    /// Reads the line in its unit's text, the first time; `None` if it holds no request.
    pub(super) fn read(&self, text: &Bytes) -> Option<&Request> {
        let read = || {
            let line = std::str::from_utf8(text.get(self.range.clone())?).ok()?;
            let envelope = line::read(line)?;
            Some(Request {
                custom_id: envelope.custom_id.into(),
                body: text.slice_ref(envelope.body.as_bytes()),
            })
        };
        self.request.get_or_init(read).as_ref()
    }
}

impl HeldUnit {
    /// Finds the lines of the unit's model that are not done.
    pub(super) fn open(
        id: u64,
        leased: LeasedUnit,
        (model, figures): (&str, Arc<ModelFigures>),
        batch: Arc<BatchContext>,
        routes: Option<Arc<Routes>>,
        text: Vec<u8>,
        charge: Option<Charge>,
    ) -> (HeldUnit, Vec<OpenLine>) {
        let text = Bytes::from(text);
        let mut lines = lines_of_model(&text, model, leased.requests);
        lines.retain(|line| !leased.done.contains(line.index));
        let care = Care::of(&leased);
        let suspects = suspects(&leased, care, &lines);
        let durable = Mutex::new(Durable {
            flush_no: leased.flush_no,
            done: leased.done,
            open: lines.len(),
        });
        let unit = HeldUnit {
            id,
            key: leased.key,
            epoch: leased.epoch,
            batch,
            routes,
            model: model.into(),
            figures,
            text,
            cut: CancellationToken::new(),
            durable,
            care,
            suspects,
            noted_before: leased.noted_line,
            crashes: leased.crashes,
            noted: tokio::sync::Mutex::default(),
            _charge: charge,
        };
        (unit, lines)
    }

    /// A line by its place in the chunk, as it was before it was read.
    pub(super) fn line(&self, index: u32) -> Option<OpenLine> {
        lines(&self.text).find(|line| line.index == index)
    }
}

/// All lines of a chunk, blank ones too.
fn lines(text: &[u8]) -> impl Iterator<Item = OpenLine> {
    let mut start = 0;
    (0..).map_while(move |index| {
        let rest = text.get(start..).filter(|rest| !rest.is_empty())?;
        let end = start + memchr::memchr(b'\n', rest).unwrap_or(rest.len());
        let line = OpenLine::new(index, start..end);
        start = end + 1;
        Some(line)
    })
}

/// The lines of a chunk that hold a request of one model. Where the unit has as many requests
/// as the chunk has lines with text, they are all its own and need not be read for it.
fn lines_of_model(text: &[u8], model: &str, requests: i64) -> Vec<OpenLine> {
    let is_blank = |line: &OpenLine| {
        let mut line = text[line.range.clone()].iter();
        line.all(|&byte| json::is_space(byte))
    };
    let mut lines: Vec<OpenLine> = lines(text).filter(|line| !is_blank(line)).collect();
    if lines.len() as i64 != requests {
        lines.retain(|line| match line::check(&text[line.range.clone()]) {
            Check::Request(request) => request.model.as_deref().unwrap_or("") == model,
            _ => false,
        });
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::super::testing;
    use super::*;

    /// The suspects among open lines 3, 4, 6 and 9.
    fn suspects_of(takeovers: i64, noted_line: Option<i64>, crashes: i64) -> Vec<u32> {
        let leased = LeasedUnit {
            crashes,
            ..testing::leased(10, takeovers, noted_line)
        };
        let open = |index| OpenLine::new(index, 0..0);
        suspects(&leased, Care::of(&leased), &[3, 4, 6, 9].map(open))
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
