//! A leased unit whose text is in memory.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::beginnings::Beginnings;
use super::isolation::Isolation;
use super::line::OpenLine;
use super::packing::Packing;
use crate::codec::segment::Encoded;
use crate::domain::endpoint::{Endpoint, Endpoints};
use crate::domain::json;
use crate::domain::line::{self, Check};
use crate::domain::reuse::Choice;
use crate::domain::unit::{Bitmap, UnitLease};
use crate::metrics::ModelMetrics;
use crate::store::{Backlog, LeasedUnit};
use crate::upstream::Reservation;

/// What all units of a batch have in common.
#[derive(Debug)]
pub(crate) struct BatchContext {
    pub id: Arc<str>,
    pub tenant: Arc<str>,
    /// The key that it was created with. Empty where none was needed.
    pub key_id: Arc<str>,
    pub endpoint: &'static Endpoint,
    /// Its input file.
    pub file_id: Arc<str>,
    /// What is to be done with all its lines.
    pub task: Option<Arc<str>>,
    /// What it asks for of reuse.
    pub reuse: Option<Choice>,
    /// Whether its output lines say how they were answered.
    pub details: bool,
    pub priority: i64,
    /// Milliseconds since the epoch. `i64::MAX` for a batch without a window.
    pub deadline: i64,
    pub created_at: i64,
    /// How many lines it has, of all models.
    pub total: i64,
    /// The number by which upstreams tell batches apart.
    pub number: u64,
}

impl BatchContext {
    pub(crate) fn new(backlog: &Backlog, endpoint: &'static Endpoint) -> Self {
        BatchContext {
            id: backlog.batch_id.as_str().into(),
            tenant: backlog.tenant.as_str().into(),
            key_id: backlog.key_id.as_deref().unwrap_or_default().into(),
            endpoint,
            file_id: backlog.input_file_id.as_str().into(),
            task: backlog.task.as_deref().map(Into::into),
            reuse: backlog.reuse.as_deref().and_then(Choice::parse),
            details: backlog.details == Some(1),
            priority: backlog.priority,
            deadline: backlog.expires_at.unwrap_or(i64::MAX),
            created_at: backlog.created_at,
            total: backlog.total,
            number: number_of(&backlog.batch_id),
        }
    }
}

/// A number for a batch. It is very unlikely that two batches have the same number, and little
/// depends on it.
fn number_of(batch_id: &str) -> u64 {
    let mut hasher = std::hash::DefaultHasher::new();
    std::hash::Hash::hash(batch_id, &mut hasher);
    std::hash::Hasher::finish(&hasher)
}

/// A leased unit with the text of its chunk.
pub(crate) struct LoadedUnit {
    /// The number that this process gave the unit. A unit that is leased twice gets two numbers.
    pub id: u64,
    pub lease: UnitLease,
    pub batch: Arc<BatchContext>,
    /// The name of the model. Empty where the lines name none.
    pub model: Box<str>,
    /// The model's metrics.
    pub metrics: Arc<ModelMetrics>,
    pub text: Bytes,
    /// Cuts the unit's calls in flight. Cancelled when the unit is lost, and when its batch has
    /// ended and the calls had their time to settle.
    pub cut: CancellationToken,
    /// Whether the unit is all that its batch has.
    pub is_whole_batch: bool,
    durable: Mutex<Durable>,
    isolation: Option<Isolation>,
    packing: Option<Packing>,
    beginnings: Option<Beginnings>,
    /// The text's part of the memory budget.
    _reservation: Option<Reservation>,
}

/// What the store knows of a unit.
pub(crate) struct Durable {
    pub flush_no: i64,
    pub done: Bitmap,
    /// Lines that are not done.
    pub open: usize,
    /// Finished lines that stand in the unit's row: some kilobytes at most.
    pub tail: Option<Encoded>,
}

impl LoadedUnit {
    /// Loads a unit, and finds the lines of its model that are not done.
    pub(crate) fn load(
        id: u64,
        leased: LeasedUnit,
        (model, metrics): (&str, Arc<ModelMetrics>),
        batch: Arc<BatchContext>,
        text: Vec<u8>,
        reservation: Option<Reservation>,
    ) -> (LoadedUnit, Vec<OpenLine>) {
        let text = Bytes::from(text);
        let mut lines = lines_of_model(&text, model, leased.requests);
        lines.retain(|line| !leased.done.contains(line.index));
        let isolation = Isolation::new(leased.deaths, &lines);
        let durable = Mutex::new(Durable {
            flush_no: leased.flush_no,
            done: leased.done,
            open: lines.len(),
            tail: leased.tail,
        });
        let unit = LoadedUnit {
            id,
            is_whole_batch: leased.requests == batch.total,
            lease: leased.lease,
            batch,
            model: model.into(),
            metrics,
            text,
            cut: CancellationToken::new(),
            durable,
            isolation,
            packing: None,
            beginnings: None,
            _reservation: reservation,
        };
        (unit, lines)
    }

    /// Finds out which of the unit's lines may share calls, and puts these next to each other.
    /// Where few lines of an isolated unit may be in flight they share none.
    pub(crate) fn pack(&mut self, lines: &mut [OpenLine]) {
        let isolation = self.isolation.as_ref();
        if isolation.is_none_or(Isolation::allows_packs) {
            self.packing = Packing::of(&self.text, lines);
        }
    }

    /// Finds out how the unit's lines begin, and puts them in the order of that. Lines of an isolated
    /// unit stay as they stand: as if all began alike.
    pub(crate) fn order(&mut self, lines: &mut [OpenLine]) {
        self.beginnings = Some(match self.isolation {
            None => Beginnings::of(&self.text, lines),
            Some(_) => Beginnings::default(),
        });
    }

    /// How the unit's lines begin, where they are sent in the order of that.
    pub(crate) fn beginnings(&self) -> Option<&Beginnings> {
        self.beginnings.as_ref()
    }

    /// Which of the unit's lines may share calls. `None`: none.
    pub(crate) fn packing(&self) -> Option<&Packing> {
        self.packing.as_ref()
    }

    /// How the unit is isolated, because owners of it have died. `None` for a normal unit, and
    /// once a flush has cleared the unit.
    pub(crate) fn isolation(&self) -> Option<&Isolation> {
        let isolation = self.isolation.as_ref();
        isolation.filter(|isolation| !isolation.is_cleared())
    }

    /// What the store knows of the unit. Only a flush changes it.
    pub(crate) fn durable(&self) -> MutexGuard<'_, Durable> {
        self.durable.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lines of the chunk behind a line, those of other models and blank ones among them.
    pub(crate) fn lines_behind(&self, line: &OpenLine) -> impl Iterator<Item = OpenLine> {
        let from = self.text.len().min(line.range.end + 1);
        let behind = lines(&self.text[from..]);
        let next = line.index + 1;
        behind.map(move |line| {
            let range = line.range.start + from..line.range.end + from;
            OpenLine::new(line.index + next, range)
        })
    }

    /// A line by its number in the chunk.
    pub(crate) fn line(&self, index: u32) -> Option<OpenLine> {
        lines(&self.text).find(|line| line.index == index)
    }
}

/// All lines of a chunk, blank lines included.
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

/// The lines of a chunk that hold a request of one model. Where the unit has as many requests as
/// the chunk has lines that are not blank, all lines are the unit's, and no line is read. Which
/// model a line names does not depend on the endpoints that there are.
fn lines_of_model(text: &[u8], model: &str, requests: i64) -> Vec<OpenLine> {
    let is_blank = |line: &OpenLine| {
        let mut line = text[line.range.clone()].iter();
        line.all(|&byte| json::is_space(byte))
    };
    let mut lines: Vec<OpenLine> = lines(text).filter(|line| !is_blank(line)).collect();
    if lines.len() as i64 != requests {
        lines.retain(
            |line| match line::check(&text[line.range.clone()], Endpoints::USUAL) {
                Check::Request(request) => request.model.as_deref().unwrap_or("") == model,
                _ => false,
            },
        );
    }
    lines
}
