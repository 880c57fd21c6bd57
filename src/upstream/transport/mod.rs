//! How a request reaches a model server, and how its answer comes back.
//!
//! There are two ways. [`Direct`] is plain HTTP to the server itself, as to vLLM or Ollama in one's
//! own network, which costs less ([`General`] beside it: docs/benchmarks, "Transport"). [`General`]
//! has TLS and proxies. What one does the other does: the tests here run on both.

mod certificates;
pub(super) mod coding;
mod direct;
mod general;
#[cfg(test)]
mod tests;

use std::error::Error as StdError;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::Uri;
use reqwest::header::HeaderMap;
use reqwest::{Method, Url};
use rustix::io::Errno;

use self::direct::Direct;
use self::general::General;
use crate::upstream::settings::UpstreamSettings;

/// Idle connections are dropped before servers drop them (uvicorn and Node do so after 5 s): a
/// line sent into a connection that is just being closed would lose an attempt.
const IDLE_MAX: Duration = Duration::from_secs(4);

/// A connection that says nothing for so long is asked whether it is still there, so that neither a
/// firewall forgets it nor a call waits for a machine that is gone…
const KEEPALIVE: Duration = Duration::from_secs(15);
/// …and is given up when it has not answered so often, or has not taken what was sent.
const KEEPALIVE_RETRIES: u32 = 3;
#[cfg(any(target_os = "linux", target_os = "android"))]
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(30);

/// Of this process, and of all processes together.
const NO_DESCRIPTOR: [Errno; 2] = [Errno::MFILE, Errno::NFILE];

/// The connections of one upstream.
#[derive(Debug)]
pub(super) enum Transport {
    Direct(Direct),
    General(General),
}

/// Where requests go, in the forms that each way takes.
#[derive(Clone, Debug)]
pub(super) struct Address {
    url: Url,
    /// Path and query.
    path: Uri,
}

/// The head of an answer, and its body to come. Dropped before its end, the call is cut.
#[derive(Debug)]
pub(super) enum Response {
    Direct(direct::Response),
    General(reqwest::Response),
}

/// Why no answer, or no more of it, came; in words without addresses.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The request was not sent.
    #[error("its name cannot be resolved: {0}")]
    Resolve(String),
    #[error("no connection in time")]
    ConnectTimeout,
    #[error("no connection: {0}")]
    Connect(String),
    /// This process, or this machine, has no file descriptor left for it.
    #[error("no file descriptor is left for a connection")]
    NoDescriptor,
    /// It may have been.
    #[error("the connection was lost before the answer was whole: {0}")]
    Lost(String),
    /// It was answered, in a content coding that cannot be undone.
    #[error("{0}")]
    Undecodable(String),
}

impl Transport {
    /// Errors in words for people.
    pub(super) fn new(config: &UpstreamSettings, base: &Url) -> Result<Self, String> {
        if base.scheme() == "http" && config.proxy.is_none() && config.ca_file.is_none() {
            Direct::new(config, base).map(Self::Direct)
        } else {
            General::new(config, base).map(Self::General)
        }
    }

    /// Sends a request and waits for the head of its answer.
    pub(super) async fn send(
        &self,
        method: Method,
        address: Arc<Address>,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Response, Error> {
        match self {
            Self::Direct(direct) => {
                let path = address.path.clone();
                let response = direct.send(method, path, headers, body).await?;
                Ok(Response::Direct(response))
            }
            Self::General(general) => {
                let url = address.url.clone();
                // In a box: large for the state of every call.
                let sending = Box::pin(general.send(method, url, headers, body));
                Ok(Response::General(sending.await?))
            }
        }
    }
}

impl Address {
    /// `None`: HTTP has no way to write it.
    pub(super) fn new(url: Url) -> Option<Self> {
        let path = match url.query() {
            Some(query) => format!("{}?{query}", url.path()).parse(),
            None => url.path().parse(),
        };
        Some(Self {
            path: path.ok()?,
            url,
        })
    }
}

impl Response {
    pub(super) fn status(&self) -> u16 {
        match self {
            Self::Direct(response) => response.head().status.as_u16(),
            Self::General(response) => response.status().as_u16(),
        }
    }

    /// Moves the headers out.
    pub(super) fn take_headers(&mut self) -> HeaderMap {
        std::mem::take(match self {
            Self::Direct(response) => &mut response.head_mut().headers,
            Self::General(response) => response.headers_mut(),
        })
    }

    /// How many bytes the body will have, if the server said so.
    pub(super) fn content_length(&self) -> Option<u64> {
        match self {
            Self::Direct(response) => response.content_length(),
            Self::General(response) => response.content_length(),
        }
    }

    /// The next bytes of the body; `None` at its end.
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        match self {
            Self::Direct(response) => response.chunk().await,
            Self::General(response) => response.chunk().await.map_err(|e| general::error(&e)),
        }
    }
}

/// An error and what lies below it, down to the bottom. An `io::Error` is looked into, for it does
/// not give what it holds as its source.
fn causes<'a>(
    error: &'a (dyn StdError + 'static),
) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |&error| {
        let held = error.downcast_ref::<io::Error>();
        match held.and_then(io::Error::get_ref) {
            Some(held) => Some(held),
            None => error.source(),
        }
    })
}

/// Whether there is no connection because this side has no file descriptor left.
fn lacks_descriptor(error: &(dyn StdError + 'static)) -> bool {
    causes(error).any(|error| {
        let io = error.downcast_ref::<io::Error>();
        let code = io.and_then(io::Error::raw_os_error);
        code.is_some_and(|code| NO_DESCRIPTOR.contains(&Errno::from_raw_os_error(code)))
    })
}

/// The same for an error that does not tell its reason, as that of resolving a name: whether there
/// is none left now.
fn none_is_left() -> bool {
    File::open("/dev/null").is_err_and(|error| lacks_descriptor(&error))
}

/// What lies at the bottom of an error: the layers above add nothing, or an address.
fn innermost(error: &(dyn StdError + 'static)) -> String {
    let innermost = causes(error).last();
    innermost.map(ToString::to_string).unwrap_or_default()
}
