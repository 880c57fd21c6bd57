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
    pub id: String,
    pub tenant: Arc<str>,
    pub endpoint: &'static Endpoint,
    pub priority: i64,
    /// Milliseconds; `i64::MAX` where there is no window.
    pub deadline: i64,
    pub created_at: i64,
}

impl BatchContext {
    pub(super) fn new(backlog: &Backlog, endpoint: &'static Endpoint) -> Self {
        BatchContext {
            id: backlog.batch_id.clone(),
            tenant: backlog.tenant.as_str().into(),
            endpoint,
            priority: backlog.priority,
            deadline: backlog.expires_at.unwrap_or(i64::MAX),
            created_at: backlog.created_at,
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
    /// Of its model.
    pub figures: Arc<ModelFigures>,
    pub text: Bytes,
    /// Cuts calls in flight: the unit was lost, or they had their time to settle.
    pub cut: CancellationToken,
    /// What the store knows. Only the flusher looks at it.
    pub durable: Mutex<Durable>,
    pub care: Care,
    /// What was noted last, under this lease, before it was sent: a line, or any.
    pub noted: tokio::sync::Mutex<Option<Option<u32>>>,
    /// The text's part of the budget.
    _charge: Option<Charge>,
}

/// What is noted in the store before lines are sent, so that one that kills its process is found.
#[derive(Clone, Copy, Debug)]
pub(super) enum Care {
    /// Nothing: no process has died with the unit, or it has got on since.
    Usual,
    /// That lines are sent at all: so that the unit is not suspected if this process dies first.
    Begin,
    /// Each line, and then nothing else is sent until it is back: the unit is suspected.
    Alone {
        /// The line noted last, and how many processes have died since.
        noted: Option<i64>,
        crashes: i64,
    },
}

impl Care {
    fn of(leased: &LeasedUnit) -> Self {
        if leased.runs_alone() {
            Care::Alone {
                noted: leased.noted_line,
                crashes: leased.crashes,
            }
        } else if leased.takeovers > 0 {
            Care::Begin
        } else {
            Care::Usual
        }
    }
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
            figures,
            text,
            cut: CancellationToken::new(),
            durable,
            care,
            noted: tokio::sync::Mutex::default(),
            _charge: charge,
        };
        (unit, lines)
    }
}

/// The lines of a chunk that hold a request of one model. Where the unit has as many requests
/// as the chunk has lines with text, they are all its own and need not be read for it.
fn lines_of_model(text: &[u8], model: &str, requests: i64) -> Vec<OpenLine> {
    let mut lines = Vec::new();
    let mut start = 0;
    let mut index = 0;
    while start < text.len() {
        let end = memchr::memchr(b'\n', &text[start..]).map_or(text.len(), |at| start + at);
        if !text[start..end].iter().all(|&byte| json::is_space(byte)) {
            lines.push(OpenLine {
                index,
                range: start..end,
                request: OnceLock::new(),
            });
        }
        (start, index) = (end + 1, index + 1);
    }
    if lines.len() as i64 != requests {
        lines.retain(|line| match line::check(&text[line.range.clone()]) {
            Check::Request(request) => request.model.as_deref().unwrap_or("") == model,
            _ => false,
        });
    }
    lines
}
