//! How a call went: the one answer to that question, and what each part of the program wants to
//! know of it. Providers make it of what their servers answered, and the client of what went wrong
//! before there was an answer.

use crate::domain::outcome::ErrorCode;
use crate::upstream::health::reason::Reason;

/// How a call went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallResult {
    /// 2xx: the line's answer.
    Succeeded,
    /// The line's answer, which says what is wrong with the line.
    Rejected,
    /// The server does not have the line's model.
    ModelMissing,
    /// The key is missing or wrong.
    KeyRefused,
    /// The key may not use this model.
    Refused,
    /// The account asks to be paid, or its quota is spent.
    Unpaid,
    /// A redirect, or a path that the server does not know.
    Misdirected,
    /// Too much for this model now.
    Limited,
    /// The server is overloaded, or a gateway says that it does not answer.
    Unavailable,
    /// This side had no file descriptor left: the request was not sent.
    NoDescriptor,
    /// This side had no port left for a connection to the server: the request was not sent.
    NoPort,
    /// No connection: the request was not sent.
    Unreachable,
    /// Another failure of the server that may pass.
    ServerError,
    /// A success whose body is no JSON, and does not claim to be, or has an error in place of an
    /// answer.
    Garbled,
    /// A success without an answer: the model broke off, or wrote what is not what was asked for.
    Unusable,
    /// A success of the model server itself, which no JSON reader can read. To compute the answer
    /// again would bring the same.
    Malformed,
    /// A success whose content coding cannot be undone. The same holds for it.
    Undecodable,
    /// The connection was lost, or no HTTP came from it.
    Broken,
    /// No whole answer came within the upstream's `timeout`.
    TimedOut,
    /// Nothing came of a streamed answer for the upstream's `idle_timeout`.
    Stalled,
    /// The answer is larger than the upstream's `max_response_bytes`. The next one would be, too.
    TooLarge,
    /// The provider cannot take what the line asks for: the request was not sent. Another provider
    /// may.
    Unsupported,
    /// The line's answer, which says that the line is longer than the model takes here. The same
    /// model elsewhere may take more.
    ContextTooLong,
}

/// What a failed call costs its line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::upstream) enum Cost {
    /// Nothing, until it is known that the refusal is the line's own.
    Refusal,
    /// Nothing, until it is all but certain that it is the line's own fault.
    TurnedAway,
    /// One of its attempts.
    Attempt,
}

/// How lines that have shared a call which failed are sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Regroup {
    /// Together: it was no fault of theirs.
    Stay,
    /// In two calls: one of them may be the cause.
    Halves {
        /// The server may be the cause as well, and is given time.
        waits: bool,
    },
    /// Each has a call of its own: each is told what is wrong.
    Alone,
}

impl CallResult {
    /// All of them, in order: by `result as usize`.
    pub(in crate::upstream) const ALL: [CallResult; 23] = [
        CallResult::Succeeded,
        CallResult::Rejected,
        CallResult::ModelMissing,
        CallResult::KeyRefused,
        CallResult::Refused,
        CallResult::Unpaid,
        CallResult::Misdirected,
        CallResult::Limited,
        CallResult::Unavailable,
        CallResult::NoDescriptor,
        CallResult::NoPort,
        CallResult::Unreachable,
        CallResult::ServerError,
        CallResult::Garbled,
        CallResult::Unusable,
        CallResult::Malformed,
        CallResult::Undecodable,
        CallResult::Broken,
        CallResult::TimedOut,
        CallResult::Stalled,
        CallResult::TooLarge,
        CallResult::Unsupported,
        CallResult::ContextTooLong,
    ];

    /// For metrics and spans. Several results share a label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            CallResult::Succeeded
            | CallResult::Rejected
            | CallResult::ModelMissing
            | CallResult::ContextTooLong => "answered",
            CallResult::Malformed | CallResult::Undecodable | CallResult::Unusable => "malformed",
            CallResult::KeyRefused | CallResult::Refused => "refused",
            CallResult::Unpaid => "unpaid",
            CallResult::Misdirected => "misdirected",
            CallResult::Limited => "rate_limited",
            CallResult::Unavailable => "unavailable",
            CallResult::NoDescriptor | CallResult::NoPort => "not_sent",
            CallResult::Unreachable => "unreachable",
            CallResult::ServerError | CallResult::Garbled => "server_error",
            CallResult::Broken => "broken",
            CallResult::TimedOut => "timed_out",
            CallResult::Stalled => "stalled",
            CallResult::TooLarge => "too_large",
            CallResult::Unsupported => "unsupported",
        }
    }

    /// For the error of a line that ends with this result and without an answer.
    #[must_use]
    pub fn error_code(self) -> ErrorCode {
        match self {
            CallResult::TimedOut | CallResult::Stalled => ErrorCode::RequestTimeout,
            CallResult::Undecodable | CallResult::Unusable => ErrorCode::InvalidResponse,
            CallResult::Unsupported => ErrorCode::UnsupportedParameter,
            CallResult::TooLarge => ErrorCode::ResponseTooLarge,
            _ => ErrorCode::UpstreamUnavailable,
        }
    }

    /// For health: why a breaker closes, if it does. `None`: the call says nothing of who answers.
    pub(in crate::upstream) fn reason(self) -> Option<Reason> {
        Some(match self {
            CallResult::Succeeded
            | CallResult::Rejected
            | CallResult::Malformed
            | CallResult::Undecodable
            | CallResult::NoDescriptor
            | CallResult::NoPort
            | CallResult::TooLarge
            | CallResult::Unsupported
            | CallResult::ContextTooLong => return None,
            CallResult::ModelMissing => Reason::ModelMissing,
            CallResult::KeyRefused => Reason::KeyRefused,
            CallResult::Refused => Reason::Refused,
            CallResult::Unpaid => Reason::Unpaid,
            CallResult::Misdirected => Reason::Misdirected,
            CallResult::Limited => Reason::Limited,
            CallResult::Unavailable => Reason::Unavailable,
            CallResult::Unreachable => Reason::Unreachable,
            CallResult::ServerError
            | CallResult::Garbled
            | CallResult::Unusable
            | CallResult::Broken
            | CallResult::TimedOut
            | CallResult::Stalled => Reason::Failing,
        })
    }

    /// For health: whether the model server itself has answered the line, well or badly.
    pub(in crate::upstream) fn is_answer(self) -> bool {
        matches!(
            self,
            CallResult::Succeeded
                | CallResult::Rejected
                | CallResult::Malformed
                | CallResult::ContextTooLong
        )
    }

    /// For health: whether only a caller whose key is accepted is answered so.
    pub(in crate::upstream) fn shows_that_the_key_works(self) -> bool {
        matches!(
            self,
            CallResult::Succeeded
                | CallResult::Rejected
                | CallResult::ContextTooLong
                | CallResult::Malformed
                | CallResult::Unusable
                | CallResult::ModelMissing
                | CallResult::Refused
                | CallResult::Unpaid
                | CallResult::Limited
        )
    }

    /// For the bill: whether a call that was not answered so far as its end may have been computed
    /// all the same, and be paid for.
    pub(in crate::upstream) fn may_be_billed(self) -> bool {
        matches!(
            self,
            CallResult::Broken
                | CallResult::TimedOut
                | CallResult::Stalled
                | CallResult::TooLarge
                | CallResult::Undecodable
        )
    }

    /// For retries: whether the line is the cause, and another target may take it all the same.
    pub(in crate::upstream) fn may_pass_elsewhere(self) -> bool {
        matches!(self, CallResult::Unsupported | CallResult::ContextTooLong)
    }

    /// For retries: whether the answer is kept until the line has a better one. Where the line has
    /// none when its window ends, the answer says what to mend.
    pub(in crate::upstream) fn says_what_to_mend(self) -> bool {
        matches!(self, CallResult::Unpaid | CallResult::ContextTooLong)
            || self.cost() == Some(Cost::Refusal)
    }

    /// For lines that have shared the call. Of a success: the answer was not one for all of them.
    #[must_use]
    pub fn regroups(self) -> Regroup {
        match self {
            CallResult::Limited
            | CallResult::Unavailable
            | CallResult::NoDescriptor
            | CallResult::NoPort
            | CallResult::Unreachable => Regroup::Stay,
            CallResult::ModelMissing
            | CallResult::KeyRefused
            | CallResult::Refused
            | CallResult::Unpaid
            | CallResult::Misdirected
            | CallResult::Unsupported => Regroup::Alone,
            CallResult::Succeeded
            | CallResult::Rejected
            | CallResult::ContextTooLong
            | CallResult::Malformed
            | CallResult::Undecodable
            | CallResult::TooLarge => Regroup::Halves { waits: false },
            CallResult::ServerError
            | CallResult::Garbled
            | CallResult::Unusable
            | CallResult::Broken
            | CallResult::TimedOut
            | CallResult::Stalled => Regroup::Halves { waits: true },
        }
    }

    /// For retries: what the call costs its line. `None`: the line ends with it.
    pub(in crate::upstream) fn cost(self) -> Option<Cost> {
        Some(match self {
            CallResult::Succeeded
            | CallResult::Rejected
            | CallResult::Malformed
            | CallResult::Undecodable
            | CallResult::TooLarge
            | CallResult::ModelMissing => return None,
            CallResult::KeyRefused | CallResult::Refused | CallResult::Misdirected => Cost::Refusal,
            CallResult::Unpaid
            | CallResult::Limited
            | CallResult::Unavailable
            | CallResult::NoDescriptor
            | CallResult::NoPort
            | CallResult::Unreachable
            | CallResult::Unsupported
            | CallResult::ContextTooLong => Cost::TurnedAway,
            CallResult::ServerError
            | CallResult::Garbled
            | CallResult::Unusable
            | CallResult::Broken
            | CallResult::TimedOut
            | CallResult::Stalled => Cost::Attempt,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_result_stands_at_its_own_place() {
        for (place, result) in CallResult::ALL.into_iter().enumerate() {
            assert_eq!(result as usize, place);
        }
    }
}
