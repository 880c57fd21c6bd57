//! How an answer ends on its connection.

use bytes::Bytes;
use hyper::body::Frame;

/// A piece of an answer, or its end.
pub(super) type FrameOrCut = Result<Frame<Bytes>, Cut>;

/// The connection is cut: what a request asked for, not a fault.
#[derive(Debug, thiserror::Error)]
#[error("the request asked for its connection to be cut")]
pub(super) struct Cut;

/// How a streamed answer ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    Whole,
    /// Nothing more comes from its middle on, until the client leaves.
    Stalls,
    /// The connection is cut in its middle.
    Breaks,
}
