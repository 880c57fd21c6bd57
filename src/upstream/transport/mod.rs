//! How a request reaches a model server, and how its answer comes back.
//!
//! There are two ways. [`Direct`] goes to the server itself, in the clear, as to vLLM or Ollama in
//! one's own network, or with TLS; over HTTP/1.1, or HTTP/2 where the server offers it. [`General`]
//! goes over proxies. What one does the other does: the tests here run on both.

mod certificates;
pub(super) mod coding;
mod dial;
mod direct;
mod error;
mod general;
mod http2;
mod keep;
#[cfg(test)]
mod tests;

use bytes::Bytes;
use futures::TryFutureExt as _;
use futures::future::Either;
use hyper::{Request, Uri};
use reqwest::header::HeaderMap;
use reqwest::{Method, Url};

use self::direct::Direct;
pub(super) use self::error::Error;
use self::general::General;
use crate::upstream::settings::UpstreamSettings;

/// The connections of one upstream.
#[derive(Debug)]
pub(super) enum Transport {
    Direct(Box<Direct>),
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
pub(super) struct Response {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) body: Unread,
}

/// The body of an answer, as it comes over the connection.
#[derive(Debug)]
pub(super) enum Unread {
    Direct(direct::Body),
    /// In a box: large for the state of every call.
    General(Box<reqwest::Response>),
}

impl Transport {
    /// Errors in words for people.
    pub(super) fn new(config: &UpstreamSettings, base: &Url) -> Result<Self, String> {
        if config.proxy.is_none() {
            Direct::new(config, base).map(|direct| Self::Direct(Box::new(direct)))
        } else {
            General::new(config, base).map(Self::General)
        }
    }

    /// Sends a request and waits for the head of its answer. An urgent one does not wait until
    /// connections that other calls need are open.
    pub(super) fn send(
        &self,
        method: Method,
        address: &Address,
        headers: HeaderMap,
        body: Bytes,
        is_urgent: bool,
    ) -> impl Future<Output = Result<Response, Error>> + Send + '_ {
        // No `async fn`: that would hold what it is given twice.
        match self {
            Self::Direct(direct) => {
                let mut head = Request::new(());
                *head.method_mut() = method;
                *head.uri_mut() = address.path.clone();
                *head.headers_mut() = headers;
                Either::Left(direct.send(head, body, is_urgent).map_ok(Response::from))
            }
            Self::General(general) => {
                let url = address.url.clone();
                // In a box: large for the state of every call.
                let sending = Box::pin(general.send(method, url, headers, body));
                Either::Right(sending.map_ok(Response::from))
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

impl From<direct::Answer> for Response {
    fn from(answer: direct::Answer) -> Self {
        Self {
            status: answer.status,
            headers: answer.headers,
            body: Unread::Direct(answer.body),
        }
    }
}

impl From<reqwest::Response> for Response {
    fn from(mut response: reqwest::Response) -> Self {
        Self {
            status: response.status().as_u16(),
            headers: std::mem::take(response.headers_mut()),
            body: Unread::General(Box::new(response)),
        }
    }
}

impl Unread {
    /// How many bytes the body will have, if the server said so.
    pub(super) fn content_length(&self) -> Option<u64> {
        match self {
            Self::Direct(body) => body.content_length(),
            Self::General(response) => response.content_length(),
        }
    }

    /// The next bytes of the body; `None` at its end.
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        match self {
            Self::Direct(body) => body.chunk().await,
            Self::General(response) => response.chunk().await.map_err(|e| general::error(&e)),
        }
    }
}
