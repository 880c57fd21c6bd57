//! How a request reaches a model server, and how its answer comes back.
//!
//! There are two ways. [`Direct`] is plain HTTP to the server itself, as to vLLM or Ollama in one's
//! own network, which costs less ([`General`] beside it: docs/benchmarks, "Transport"). [`General`]
//! has TLS and proxies. What one does the other does: the tests here run on both.

mod certificates;
pub(super) mod coding;
mod direct;
mod error;
mod general;
mod keep;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use bytes::Bytes;
use hyper::Uri;
use reqwest::header::HeaderMap;
use reqwest::{Method, Url};

use self::direct::Direct;
pub(super) use self::error::Error;
use self::general::General;
use crate::upstream::settings::UpstreamSettings;

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
