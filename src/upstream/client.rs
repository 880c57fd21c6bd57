//! The HTTP client of one upstream: everything that does not change from call to call is made
//! once, so that a call costs little more than its bytes.

use std::error::Error as _;
use std::pin::pin;
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use reqwest::{Certificate, Method, Proxy, Request, Url, redirect, retry};
use secrecy::ExposeSecret;
use tokio::time::Instant;

use super::budget::{Budget, Charge};
use super::provider::{self, Provider};
use super::{BuildError, ModelInfo};
use crate::config;

/// Idle connections are dropped before servers drop them (uvicorn and Node do so after 5 s): a
/// line sent into a connection that is just being closed would lose an attempt.
const IDLE_MAX: Duration = Duration::from_secs(4);

/// Room made for an answer on its server's word, before its bytes are here.
const TRUSTED_LENGTH_MAX: usize = 8 << 20;

/// How long a look at `/models` may take.
const MODELS_TIMEOUT: Duration = Duration::from_secs(10);

/// A model server, ready to be called.
#[derive(Debug)]
pub(super) struct Upstream {
    pub(super) name: String,
    pub(super) concurrency: usize,
    pub(super) provider: &'static dyn Provider,
    base: Url,
    /// The URL of each path that was called so far.
    urls: RwLock<Vec<(&'static str, Url)>>,
    headers: HeaderMap,
    client: reqwest::Client,
    timeout: Duration,
    connect_timeout: Duration,
    max_response_bytes: usize,
}

/// An HTTP answer, read to its end.
#[derive(Debug)]
pub(super) struct Received {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FailureKind {
    /// No connection: refused, no such name, no TLS. The request was not sent.
    Unreachable,
    /// The connection was lost, or no HTTP came from it.
    Broken,
    TimedOut,
    TooLarge,
}

#[derive(Debug)]
pub(super) struct Failure {
    pub(super) kind: FailureKind,
    /// In words, without addresses.
    pub(super) cause: String,
}

impl Upstream {
    pub(super) fn new(config: &config::Upstream) -> Result<Self, BuildError> {
        let fault = |problem: String| BuildError {
            upstream: config.name.clone(),
            problem,
        };
        let base = Url::parse(&config.base_url)
            .map_err(|error| fault(format!("its base_url is no URL: {error}")))?;
        if !matches!(base.scheme(), "http" | "https") {
            return Err(fault(
                "its base_url does not begin with http:// or https://".to_owned(),
            ));
        }
        if !base.username().is_empty() || base.password().is_some() {
            return Err(fault(
                "its base_url holds a user name or password: name the variable that holds the \
                 key in api_key_env instead"
                    .to_owned(),
            ));
        }
        let provider = provider::of(config);
        Ok(Self {
            name: config.name.clone(),
            concurrency: config.concurrency,
            provider,
            urls: RwLock::default(),
            headers: headers(config, provider).map_err(fault)?,
            client: client(config, &base).map_err(fault)?,
            timeout: config.timeout,
            connect_timeout: config.connect_timeout,
            max_response_bytes: config.max_response_bytes,
            base,
        })
    }

    /// Posts a line's body and reads the whole answer; its bytes are charged as they come.
    pub(super) async fn post(
        &self,
        path: &'static str,
        body: Bytes,
        traceparent: Option<&str>,
        charge: &mut Charge,
    ) -> Result<Received, Failure> {
        let mut request = Request::new(Method::POST, self.url(path));
        request.headers_mut().clone_from(&self.headers);
        if let Some(Ok(traceparent)) = traceparent.map(HeaderValue::from_str) {
            request.headers_mut().insert("traceparent", traceparent);
        }
        *request.body_mut() = Some(body.into());
        self.exchange(request, self.timeout, charge).await
    }

    /// Asks which models it has: the status, and the list if there is one.
    pub(super) async fn models(&self) -> Result<(u16, Option<Vec<ModelInfo>>), Failure> {
        let mut request = Request::new(Method::GET, self.provider.models_url(&self.base));
        request.headers_mut().clone_from(&self.headers);
        request.headers_mut().remove(CONTENT_TYPE);
        let timeout = self.timeout.min(MODELS_TIMEOUT);
        // Not from the process's budget: an upstream must be seen to come back when memory is full.
        let mut charge = Budget::new(self.max_response_bytes).open();
        let received = self.exchange(request, timeout, &mut charge).await?;
        let is_ok = (200..300).contains(&received.status);
        let models = is_ok
            .then(|| self.provider.models(&received.body))
            .flatten();
        Ok((received.status, models))
    }

    async fn exchange(
        &self,
        request: Request,
        timeout: Duration,
        charge: &mut Charge,
    ) -> Result<Received, Failure> {
        let mut deadline = pin!(tokio::time::sleep(timeout));
        let mut response = tokio::select! {
            biased;
            response = self.client.execute(request) => response.map_err(|e| self.failure(&e))?,
            () = &mut deadline => return Err(timed_out(timeout)),
        };
        let announced = response.content_length().unwrap_or(0);
        let announced = usize::try_from(announced).unwrap_or(usize::MAX);
        if announced > self.max_response_bytes {
            return Err(self.too_large());
        }
        // Copied together, for a frame keeps alive the whole buffer that it was read into.
        let mut body = Vec::with_capacity(announced.min(TRUSTED_LENGTH_MAX));
        loop {
            let frame = tokio::select! {
                biased;
                frame = response.chunk() => frame.map_err(|e| self.failure(&e))?,
                () = &mut deadline => return Err(timed_out(timeout)),
            };
            let Some(frame) = frame else { break };
            if body.len() + frame.len() > self.max_response_bytes {
                return Err(self.too_large());
            }
            if !charge.try_grow(frame.len()) {
                // Waiting for memory is not the server's fault.
                let began = Instant::now();
                charge.grow(frame.len()).await;
                let later = deadline.deadline() + began.elapsed();
                deadline.as_mut().reset(later);
            }
            body.extend_from_slice(&frame);
        }
        Ok(Received {
            status: response.status().as_u16(),
            headers: std::mem::take(response.headers_mut()),
            body: body.into(),
        })
    }

    fn url(&self, path: &'static str) -> Url {
        let urls = self.urls.read().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, url)) = urls.iter().find(|(known, _)| *known == path) {
            return url.clone();
        }
        drop(urls);
        let url = self.provider.url(&self.base, path);
        let mut urls = self.urls.write().unwrap_or_else(PoisonError::into_inner);
        urls.push((path, url.clone()));
        url
    }

    fn failure(&self, error: &reqwest::Error) -> Failure {
        let innermost = innermost(error);
        if !error.is_connect() {
            return Failure {
                kind: FailureKind::Broken,
                cause: format!("the connection was lost before the answer was whole: {innermost}"),
            };
        }
        let cause = if error.is_dns() {
            format!("its name cannot be resolved: {innermost}")
        } else if error.is_timeout() {
            format!("no connection within {:?}", self.connect_timeout)
        } else {
            format!("no connection: {innermost}")
        };
        Failure {
            kind: FailureKind::Unreachable,
            cause,
        }
    }

    fn too_large(&self) -> Failure {
        Failure {
            kind: FailureKind::TooLarge,
            cause: format!(
                "the answer is larger than {} bytes (max_response_bytes)",
                self.max_response_bytes
            ),
        }
    }
}

fn timed_out(timeout: Duration) -> Failure {
    Failure {
        kind: FailureKind::TimedOut,
        cause: format!("no whole answer within {timeout:?}"),
    }
}

/// What lies at the bottom of an error: the layers above add nothing, or an address.
fn innermost(error: &reqwest::Error) -> String {
    let mut innermost = error.source();
    while let Some(source) = innermost.and_then(std::error::Error::source) {
        innermost = Some(source);
    }
    innermost.map_or_else(|| "unknown cause".to_owned(), ToString::to_string)
}

fn headers(
    config: &config::Upstream,
    provider: &'static dyn Provider,
) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    let agent = concat!("nightshift/", env!("CARGO_PKG_VERSION"));
    headers.insert(USER_AGENT, HeaderValue::from_static(agent));
    headers.insert(ACCEPT, HeaderValue::from_static("*/*"));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(key) = &config.api_key {
        provider
            .authorize(key, &mut headers)
            .map_err(|_| "its API key holds characters that no HTTP header can".to_owned())?;
    }
    for (name, value) in &config.headers {
        let header = HeaderName::try_from(name.as_str())
            .map_err(|_| format!("`{name}` is no name of an HTTP header"))?;
        let mut value = HeaderValue::from_str(value.expose_secret())
            .map_err(|_| format!("the value of its header `{name}` is no HTTP header value"))?;
        value.set_sensitive(true);
        headers.insert(header, value);
    }
    Ok(headers)
}

fn client(config: &config::Upstream, base: &Url) -> Result<reqwest::Client, String> {
    let mut builder = reqwest::Client::builder()
        // One connection a call. Over HTTP/2 all calls would share one: a server that takes 100
        // streams would halve a concurrency of 200 unseen, and a reset would fail every call.
        .http1_only()
        .no_proxy()
        .redirect(redirect::Policy::none())
        .retry(retry::never())
        .referer(false)
        .connect_timeout(config.connect_timeout)
        .pool_idle_timeout(IDLE_MAX)
        .pool_max_idle_per_host(config.concurrency)
        .tcp_nodelay(true);
    let mut speaks_tls = base.scheme() == "https";
    if let Some(proxy) = &config.proxy {
        let url = proxy.expose_secret();
        speaks_tls |= url.starts_with("https:");
        let proxy = Proxy::all(url).map_err(|_| "its proxy is no URL of a proxy".to_owned())?;
        builder = builder.proxy(proxy);
    }
    let mut certificates = Vec::new();
    if let Some(path) = &config.ca_file {
        let shown = path.display();
        let pem = std::fs::read(path)
            .map_err(|error| format!("its ca_file {shown} cannot be read: {error}"))?;
        certificates = Certificate::from_pem_bundle(&pem)
            .map_err(|_| format!("its ca_file {shown} is no PEM file"))?;
        if certificates.is_empty() {
            return Err(format!("its ca_file {shown} holds no certificate"));
        }
    }
    let lacks_own = certificates.is_empty();
    builder = if speaks_tls {
        builder.tls_certs_merge(certificates)
    } else {
        // Without TLS no certificates are needed: the system, which may have none, is not asked.
        builder.tls_certs_only(certificates)
    };
    builder.build().map_err(|error| match innermost(&error) {
        problem if speaks_tls && lacks_own => {
            format!("{problem} (install the system's CA certificates, or set ca_file)")
        }
        problem => problem,
    })
}
