//! A unit in hand: its text, its lines, and how far the store knows of them.

use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock};

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use crate::domain::endpoint::Endpoint;
use crate::domain::json;
use crate::domain::line::{self, Check};
use crate::domain::unit::{Bitmap, UnitLease};
use crate::metrics::ModelMetrics;
use crate::store::{Backlog, LeasedUnit};
use crate::upstream::{Charge, Routes};
use crate::worker::work::isolation::Isolation;

/// What all units of a batch have in common.
#[derive(Debug)]
pub(crate) struct BatchContext {
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
pub(crate) fn number_of(batch_id: &str) -> u64 {
    let mut hasher = std::hash::DefaultHasher::new();
    std::hash::Hash::hash(batch_id, &mut hasher);
    std::hash::Hasher::finish(&hasher)
}

impl BatchContext {
    pub(crate) fn new(backlog: &Backlog, endpoint: &'static Endpoint) -> Self {
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
pub(crate) struct HeldUnit {
    /// Of this process's own making: tells a unit that was leased twice from itself.
    pub id: u64,
    pub lease: UnitLease,
    pub batch: Arc<BatchContext>,
    /// `None`: its model is not served, or its lines are not to be sent any more.
    pub routes: Option<Arc<Routes>>,
    /// The name of its model; empty where its lines name none.
    pub model: Box<str>,
    /// Of its model.
    pub metrics: Arc<ModelMetrics>,
    pub text: Bytes,
    /// Cuts calls in flight: the unit was lost, or they had their time to settle.
    pub cut: CancellationToken,
    /// What the store knows. Only the flusher looks at it.
    pub durable: Mutex<Durable>,
    /// How its lines are sent, where owners of it have died.
    isolation: Option<Isolation>,
    /// The text's part of the budget.
    _charge: Option<Charge>,
}

pub(crate) struct Durable {
    pub flush_no: i64,
    pub done: Bitmap,
    /// Lines that are not done.
    pub open: usize,
}

/// A line that is not done: its place in the chunk, and of its text in the unit's.
#[derive(Clone, Debug)]
pub(crate) struct OpenLine {
    pub index: u32,
    pub range: Range<usize>,
    request: OnceLock<Option<Request>>,
}

/// What is needed of a line's text.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub custom_id: Box<str>,
    /// The path of the endpoint that its `url` names.
    pub path: Option<&'static str>,
    pub body: Bytes,
}

impl OpenLine {
    pub(crate) fn new(index: u32, range: Range<usize>) -> Self {
        let request = OnceLock::new();
        Self {
            index,
            range,
            request,
        }
    }

    /// Reads the line in its unit's text, the first time; `None` if it holds no request.
    pub(crate) fn read(&self, text: &Bytes) -> Option<&Request> {
        let read = || {
            let line = std::str::from_utf8(text.get(self.range.clone())?).ok()?;
            let envelope = line::read(line)?;
            Some(Request {
                custom_id: envelope.custom_id.into(),
                path: envelope.endpoint.map(|endpoint| endpoint.path),
                body: text.slice_ref(envelope.body.as_bytes()),
            })
        };
        self.request.get_or_init(read).as_ref()
    }
}

impl HeldUnit {
    /// Finds the lines of the unit's model that are not done.
    pub(crate) fn open(
        id: u64,
        leased: LeasedUnit,
        (model, metrics): (&str, Arc<ModelMetrics>),
        batch: Arc<BatchContext>,
        routes: Option<Arc<Routes>>,
        text: Vec<u8>,
        charge: Option<Charge>,
    ) -> (HeldUnit, Vec<OpenLine>) {
        let text = Bytes::from(text);
        let mut lines = lines_of_model(&text, model, leased.requests);
        lines.retain(|line| !leased.done.contains(line.index));
        let isolation = Isolation::of(leased.deaths, &lines);
        let durable = Mutex::new(Durable {
            flush_no: leased.flush_no,
            done: leased.done,
            open: lines.len(),
        });
        let unit = HeldUnit {
            id,
            lease: leased.lease,
            batch,
            routes,
            model: model.into(),
            metrics,
            text,
            cut: CancellationToken::new(),
            durable,
            isolation,
            _charge: charge,
        };
        (unit, lines)
    }

    /// How its lines are sent, while it is not cleared.
    pub(crate) fn isolation(&self) -> Option<&Isolation> {
        let isolation = self.isolation.as_ref();
        isolation.filter(|isolation| !isolation.is_cleared())
    }

    /// A line by its place in the chunk, as it was before it was read.
    pub(crate) fn line(&self, index: u32) -> Option<OpenLine> {
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
