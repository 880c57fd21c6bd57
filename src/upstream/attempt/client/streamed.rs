//! Answers that are asked for as streams, read and put together.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reqwest::Method;
use reqwest::header::HeaderMap;
use tokio::time::{Instant, Sleep};

use super::{Client, Failure, Reply, stalled, timed_out};
use crate::upstream::attempt::result::CallResult;
use crate::upstream::attempt::timer::Timer;
use crate::upstream::limits::memory::Reservation;
use crate::upstream::provider::http::{self, Head};
use crate::upstream::provider::stream::{Assembly, Gathered};
use crate::upstream::transport::coding::Body;
use crate::upstream::transport::{Address, Response, Unread};

/// How long a connection may take to end a stream whose answer is whole: then it serves another
/// call.
const LINGER: Duration = Duration::from_secs(1);

/// An answer that streams: when it was asked for, and what has come of it.
struct Streamed {
    sent: Instant,
    head: Head,
    assembly: Assembly,
}

impl Client {
    /// The same, where the answer was asked for as a stream. An answer that comes whole all the
    /// same is taken as it is, if it begins within `idle_timeout` and is never silent for longer.
    pub(super) async fn post_for_stream(
        &self,
        (address, headers, body): (Arc<Address>, HeaderMap, Bytes),
        assembly: Assembly,
        timer: &mut Timer,
        reservation: &mut Reservation,
    ) -> Result<Reply, Failure> {
        let sent = Instant::now();
        let patience = self.idle_timeout.min(self.stream_timeout);
        let mut deadline = timer.set(sent + patience);
        let response = {
            let sending = pin!(
                self.transport
                    .send(Method::POST, &address, headers, body, false)
            );
            let head = self.head(sending, self.stream_timeout, deadline.as_mut());
            let waited = |failure| self.silent(failure, patience);
            head.await.map_err(waited)?
        };
        let head = Head {
            status: response.status,
            headers: response.headers,
        };
        if !head.is_success() || !http::is_event_stream(&head.headers) {
            deadline.as_mut().reset(sent + self.stream_timeout);
            let response = Response {
                status: head.status,
                headers: head.headers,
                body: response.body,
            };
            let idle_timeout = Some(self.idle_timeout);
            let whole = self.whole(
                response,
                self.stream_timeout,
                idle_timeout,
                deadline,
                reservation,
            );
            let (head, body) = whole.await?;
            return Ok(Reply {
                head,
                body,
                first_token: None,
            });
        }
        let streamed = Streamed {
            sent,
            head,
            assembly,
        };
        self.gather(streamed, response.body, deadline, reservation)
            .await
    }

    /// Reads a streamed answer, and puts it together as it comes.
    async fn gather(
        &self,
        streamed: Streamed,
        unread: Unread,
        mut deadline: Pin<&mut Sleep>,
        reservation: &mut Reservation,
    ) -> Result<Reply, Failure> {
        let Streamed {
            sent,
            mut head,
            mut assembly,
        } = streamed;
        let mut end = sent + self.stream_timeout;
        let mut frames = Body::of(unread, &head.headers).map_err(|error| self.failure(error))?;
        let (reserved, mut first_token) = (reservation.bytes(), None);
        loop {
            deadline
                .as_mut()
                .reset(end.min(Instant::now() + self.idle_timeout));
            let frame = tokio::select! {
                biased;
                frame = frames.chunk() => Some(frame),
                () = &mut deadline => None,
            };
            let frame = match frame {
                Some(Ok(Some(frame))) => frame,
                // What comes behind the answer is of no consequence.
                _ if assembly.is_over() => break,
                Some(Ok(None)) => break,
                Some(Err(error)) => return Err(self.failure(error)),
                None if Instant::now() < end => return Err(stalled(self.idle_timeout)),
                None => return Err(timed_out(self.stream_timeout)),
            };
            assembly.feed(frame);
            if assembly.is_over() {
                end = end.min(Instant::now() + LINGER);
            }
            if first_token.is_none() && assembly.has_begun() {
                first_token = Some(sent.elapsed());
            }
            let held = assembly.held();
            if held > self.max_response_bytes {
                return Err(self.too_large());
            }
            let more = (reserved + held).saturating_sub(reservation.bytes());
            if !reservation.try_grow(more) {
                // Waiting for memory is not the server's fault.
                let began = Instant::now();
                reservation.grow(more).await;
                end += began.elapsed();
            }
        }
        let body = match assembly.finish() {
            Gathered::Answer(body) => body,
            Gathered::Error { status, body } => {
                head.status = status.unwrap_or(head.status);
                body
            }
            Gathered::Empty | Gathered::Incomplete => return Err(broken_off()),
        };
        let kept = reserved + body.len();
        reservation.shrink_to(kept);
        reservation
            .grow(kept.saturating_sub(reservation.bytes()))
            .await;
        Ok(Reply {
            head,
            body,
            first_token,
        })
    }

    /// Why there was no answer to a call that waited for one for so long.
    fn silent(&self, failure: Failure, waited: Duration) -> Failure {
        let is_stalled = failure.result == CallResult::TimedOut && waited < self.stream_timeout;
        if is_stalled { stalled(waited) } else { failure }
    }
}

fn broken_off() -> Failure {
    Failure {
        result: CallResult::Broken,
        cause: "the stream of the answer ended before the answer was whole".to_owned(),
    }
}
