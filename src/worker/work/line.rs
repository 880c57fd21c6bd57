//! A line of a unit that is not done.

use std::ops::Range;

use bytes::Bytes;

use crate::domain::line::Envelope;
use crate::domain::{endpoint, line};
use crate::upstream::{Answer, History, LineSize};

/// A line that is not done: its number in the chunk, and where its text stands in the unit's text.
/// Small, because many lines wait.
#[derive(Clone, Debug)]
pub(crate) struct OpenLine {
    pub index: u32,
    /// How many lines may share its call, itself included: fewer each time that a call of several
    /// has failed, so that the line which is the cause comes to fail alone.
    pub together_max: u16,
    pub range: Range<usize>,
}

/// What is needed of a line's text. Read when the line is sent, and not kept while the line waits.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub custom_id: Box<str>,
    /// The path of the endpoint that the line's `url` names.
    pub path: &'static str,
    pub body: Bytes,
}

/// A line that is to be sent, with what is known from earlier attempts.
pub(crate) struct Pending {
    pub line: OpenLine,
    pub history: History,
    /// The last answer, if it was a refusal or said that the line is too long. The line ends with
    /// it if no better answer comes.
    /// Boxed: few lines have one, and a pending line is moved about.
    pub refusal: Option<Box<Answer>>,
    /// It has waited in vain for the answer to an equal line, and waits for none again.
    pub asks_alone: bool,
}

impl OpenLine {
    pub(crate) fn new(index: u32, range: Range<usize>) -> Self {
        Self {
            index,
            together_max: u16::MAX,
            range,
        }
    }

    /// Reads the line's request from its unit's text. `None` if the text holds no request.
    pub(crate) fn read(&self, text: &Bytes) -> Option<Request> {
        Some(Request::new(line::read(self.text(text)?)?, text))
    }

    /// The same with the line's size, by which tokens are reserved.
    pub(crate) fn read_sized(&self, text: &Bytes) -> Option<(Request, LineSize)> {
        let mut size = LineSize::new();
        let envelope = line::read_with_body(self.text(text)?, |key, value| size.note(key, value))?;
        let request = Request::new(envelope, text);
        let size = size.of(request.path, &request.body);
        Some((request, size))
    }

    fn text<'t>(&self, text: &'t Bytes) -> Option<&'t str> {
        std::str::from_utf8(text.get(self.range.clone())?).ok()
    }
}

impl Request {
    fn new(envelope: Envelope<'_>, text: &Bytes) -> Self {
        Self {
            path: endpoint::of_batch(&envelope.url).path,
            body: text.slice_ref(envelope.body.as_bytes()),
            custom_id: envelope.custom_id.into(),
        }
    }
}

impl Pending {
    /// A line that has not been sent yet.
    pub(crate) fn new(line: OpenLine) -> Self {
        Self {
            line,
            history: History::default(),
            refusal: None,
            asks_alone: false,
        }
    }
}
