//! Answers that come as streams of events, put together as they come: so an answer takes no more
//! memory than one that comes whole, however much its events repeat.

#[cfg(test)]
pub(super) mod testing;

use std::convert::Infallible;
use std::fmt;

use bytes::Bytes;
use futures::channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded};
use futures::{FutureExt as _, StreamExt as _};
use sse_stream::SseByteStream;

use super::tree::Tree;

/// Ends a stream of most servers.
const DONE: &str = "[DONE]";

/// What a provider's events make together: the body that the server would have answered with, had
/// it not been asked for a stream.
pub(super) trait Fold: fmt::Debug + Send {
    /// Takes an event.
    fn add(&mut self, event: Tree<'_>) -> Added;

    /// The body. `is_done`: the mark `[DONE]` has come, or an event was the [last](Added::Last).
    /// `None`: the events are not a whole answer.
    fn whole(&mut self, is_done: bool) -> Option<String>;
}

/// What an event adds.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Added {
    Part {
        /// So many bytes more are held.
        held: usize,
        /// The model has written something.
        is_content: bool,
    },
    /// The answer is whole.
    Last,
    /// The server sent an error in place of the rest.
    Error {
        /// The status that the error would have had in place of a stream, where it tells one.
        status: Option<u16>,
        body: String,
    },
    /// The event does not go with those before, or is of another kind.
    Unfit,
}

impl Added {
    /// Says nothing of the answer.
    pub(super) const NOTHING: Self = Self::Part {
        held: 0,
        is_content: false,
    };
}

/// What has come of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::upstream) enum Gathered {
    /// The answer, as if it had not been streamed.
    Answer(Bytes),
    /// The error that the server sent in place of an answer, as if it had not been streamed.
    Error { status: Option<u16>, body: Bytes },
    /// There were no events.
    Empty,
    /// The events are not a whole answer.
    Incomplete,
}

/// A stream that is being put together.
pub(in crate::upstream) struct Assembly {
    bytes: UnboundedSender<Result<Bytes, Infallible>>,
    events: SseByteStream<UnboundedReceiver<Result<Bytes, Infallible>>>,
    fold: Box<dyn Fold>,
    /// How many bytes have come since the last event.
    unread: usize,
    held: usize,
    has_events: bool,
    has_begun: bool,
    end: Option<End>,
}

/// Why nothing more of a stream is read.
#[derive(Debug)]
enum End {
    Done,
    Error { status: Option<u16>, body: String },
    Unfit,
}

impl Assembly {
    pub(super) fn new(fold: Box<dyn Fold>) -> Self {
        let (bytes, received) = unbounded();
        Self {
            bytes,
            events: SseByteStream::new(received),
            fold,
            unread: 0,
            held: 0,
            has_events: false,
            has_begun: false,
            end: None,
        }
    }

    /// Takes the next bytes, wherever they begin and end.
    pub(in crate::upstream) fn feed(&mut self, bytes: Bytes) {
        if self.is_over() {
            return;
        }
        self.unread += bytes.len();
        // The other end is here.
        let _ = self.bytes.unbounded_send(Ok(bytes));
        // All bytes that there are were sent, so no event has to be waited for.
        while let Some(Some(event)) = self.events.next().now_or_never() {
            self.unread = 0;
            match event {
                Ok(event) => self.take(event.data.as_deref()),
                Err(_) => self.end = Some(End::Unfit),
            }
            if self.is_over() {
                return;
            }
        }
    }

    fn take(&mut self, data: Option<&str>) {
        let Some(data) = data else { return };
        let data = data.trim();
        if data.is_empty() {
            return;
        }
        if data == DONE {
            self.end = Some(End::Done);
            return;
        }
        self.has_events = true;
        let added = match Tree::read(data) {
            Some(event @ Tree::Object(_)) => self.fold.add(event),
            _ => Added::Unfit,
        };
        match added {
            Added::Part { held, is_content } => {
                self.held += held;
                self.has_begun |= is_content;
            }
            Added::Last => self.end = Some(End::Done),
            Added::Error { status, body } => self.end = Some(End::Error { status, body }),
            Added::Unfit => self.end = Some(End::Unfit),
        }
    }

    /// How many bytes are held of the answer.
    pub(in crate::upstream) fn held(&self) -> usize {
        self.held + self.unread
    }

    /// Whether the model has written something.
    pub(in crate::upstream) fn has_begun(&self) -> bool {
        self.has_begun
    }

    /// Whether what is still to come says nothing of the answer.
    pub(in crate::upstream) fn is_over(&self) -> bool {
        self.end.is_some()
    }

    /// What has come: the stream has ended.
    pub(in crate::upstream) fn finish(mut self) -> Gathered {
        // The last event may lack the blank line behind it.
        self.feed(Bytes::from_static(b"\n\n"));
        let is_done = match self.end {
            Some(End::Error { status, body }) => {
                let body = Bytes::from(body);
                return Gathered::Error { status, body };
            }
            Some(End::Unfit) => return Gathered::Incomplete,
            Some(End::Done) => true,
            None => false,
        };
        if !self.has_events {
            return Gathered::Empty;
        }
        match self.fold.whole(is_done) {
            Some(body) => Gathered::Answer(Bytes::from(body)),
            None => Gathered::Incomplete,
        }
    }
}

impl fmt::Debug for Assembly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Assembly")
            .field("held", &self.held())
            .field("end", &self.end)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Puts the texts of events behind each other.
    #[derive(Debug, Default)]
    struct Texts(String);

    impl Fold for Texts {
        fn add(&mut self, event: Tree<'_>) -> Added {
            let text = event.get("text").and_then(Tree::text).unwrap_or_default();
            self.0.push_str(&text);
            Added::Part {
                held: text.len(),
                is_content: true,
            }
        }

        fn whole(&mut self, is_done: bool) -> Option<String> {
            is_done.then(|| std::mem::take(&mut self.0))
        }
    }

    fn texts() -> Box<dyn Fold> {
        Box::new(Texts::default())
    }

    fn answered(text: &str) -> Gathered {
        Gathered::Answer(Bytes::copy_from_slice(text.as_bytes()))
    }

    #[test]
    fn events_are_read_however_they_are_written() {
        let done = "data: [DONE]\n\n";
        for (stream, text) in [
            ("data: {\"text\":\"a\"}\n\ndata: {\"text\":\"ü\"}\n\n", "aü"),
            ("\u{feff}data:{\"text\":\"a\"}\r\n\r\n", "a"),
            ("data: {\"text\":\rdata:\"a\"}\r\r", "a"),
            // Data in several lines, a comment, and fields that nobody needs.
            (
                "event: x\nid: 1\n: hm\ndata: {\ndata: \"text\":\"a\"\ndata: }\n\n",
                "a",
            ),
            // Events without data, and a mark with white space behind it.
            ("data:\n\ndata: {\"text\":\"a\"}\n\ndata: \n\n", "a"),
            ("data: {\"text\":\"a\"}\n\ndata: [DONE] \n\n", "a"),
            (
                ": wait\n\n: wait\n\n\n\nretry: 5\n\ndata: {\"text\":\"a\"}\n\n",
                "a",
            ),
        ] {
            let stream = format!("{stream}{done}");
            assert_eq!(
                testing::gathered(texts, &stream),
                answered(text),
                "{stream:?}"
            );
        }
        let unended = "data: {\"text\":\"a\"}\n\ndata: [DONE]";
        assert_eq!(testing::gathered(texts, unended), answered("a"));
    }

    #[test]
    fn what_is_no_event_of_json_is_no_answer() {
        for stream in [
            "data: {\n\n",
            "data: [1]\n\n",
            "data: 1\n\n",
            "data: x\n\ndata: [DONE]\n\n",
        ] {
            assert_eq!(
                testing::gathered(texts, stream),
                Gathered::Incomplete,
                "{stream:?}"
            );
        }
        let mut assembly = Assembly::new(texts());
        assembly.feed(Bytes::from_static(b"data: \"\xFF\"\n\n"));
        assert_eq!(assembly.finish(), Gathered::Incomplete);
        assert_eq!(testing::gathered(texts, ": wait\n\n"), Gathered::Empty);
    }

    #[test]
    fn what_is_held_is_what_the_answer_needs_and_the_event_that_is_not_whole() {
        let mut assembly = Assembly::new(texts());
        let event = format!(
            "data: {{\"text\":\"ab\",\"more\":\"{}\"}}\n\n",
            "x".repeat(100)
        );
        for _ in 0..10 {
            assembly.feed(Bytes::from(event.clone()));
        }
        assert_eq!(assembly.held(), 20);
        assembly.feed(Bytes::from_static(b"data: {\"text\":"));
        assert_eq!(assembly.held(), 34);
        assert!(assembly.has_begun() && !assembly.is_over());
    }
}
