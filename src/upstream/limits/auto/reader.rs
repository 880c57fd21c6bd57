//! Asks engines, each second, what they say of themselves.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{ACCEPT, HOST, HeaderMap, HeaderValue, USER_AGENT};
use reqwest::{Method, Url};
use tokio::time::{Instant, MissedTickBehavior};

use super::engine::EngineLoad;
use crate::upstream::settings::{BuildError, Http2, UpstreamSettings};
use crate::upstream::target::Targets;
use crate::upstream::transport::coding::Body;
use crate::upstream::transport::{Address, Transport};

/// How often an engine is asked, and how long an answer may take.
const PERIOD: Duration = Duration::from_secs(1);
const TIMEOUT: Duration = Duration::from_secs(2);
/// More than all metrics of an engine have.
const BODY_MAX: usize = 4 << 20;
/// The engine of an upstream that nobody else uses is asked for so long after its last call.
const ASKED_AFTER: Duration = Duration::from_secs(5);

/// Asks the engine of an upstream for its metrics.
#[derive(Debug)]
pub(in crate::upstream) struct Reader {
    /// The upstream's name.
    name: Arc<str>,
    /// Whether others use the engine, so that it is asked in any case.
    is_shared: bool,
    address: Address,
    headers: HeaderMap,
    transport: Transport,
    /// What was wrong was said.
    was_said: AtomicBool,
}

impl Reader {
    /// `None`: the upstream's engine is not to be asked. `of_calls`: the headers of the upstream's
    /// calls.
    pub(in crate::upstream) fn of(
        settings: &UpstreamSettings,
        of_calls: &HeaderMap,
    ) -> Result<Option<Self>, BuildError> {
        let url = settings.metrics_url.as_deref();
        let reader = url.map(|url| Self::new(settings, url, of_calls));
        reader.transpose().map_err(|problem| BuildError {
            upstream: settings.name.clone(),
            problem,
        })
    }

    fn new(settings: &UpstreamSettings, url: &str, of_calls: &HeaderMap) -> Result<Self, String> {
        let url = Url::parse(url).map_err(|error| format!("its metrics_url is no URL: {error}"))?;
        let base = Url::parse(&settings.base_url).map_err(|error| error.to_string())?;
        // A key goes to the server that it is for, and to no other.
        let mut headers = if url.origin() == base.origin() {
            let mut headers = of_calls.clone();
            headers.remove(reqwest::header::CONTENT_TYPE);
            headers
        } else {
            HeaderMap::new()
        };
        let host = HeaderValue::from_str(url.authority());
        headers.insert(HOST, host.map_err(|_| "its metrics_url names no host")?);
        let agent = concat!("nightshift/", env!("CARGO_PKG_VERSION"));
        headers.insert(USER_AGENT, HeaderValue::from_static(agent));
        headers.insert(ACCEPT, HeaderValue::from_static("text/plain"));
        // Whatever the calls speak: metrics have servers of their own.
        let of_metrics = UpstreamSettings {
            http2: Http2::Never,
            ..settings.clone()
        };
        Ok(Self {
            name: settings.name.as_str().into(),
            is_shared: settings.yields,
            transport: Transport::new(&of_metrics, &url)?,
            address: Address::new(url).ok_or("its metrics_url is none that HTTP can write")?,
            headers,
            was_said: AtomicBool::new(false),
        })
    }

    /// Asks the engine, for ever. `upstream`: the upstream's number.
    pub(in crate::upstream) async fn run(&self, upstream: usize, targets: &Targets) {
        let mut tick = tokio::time::interval(PERIOD);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut asked_until = Instant::now();
        loop {
            tick.tick().await;
            let before = targets.in_flight_at(upstream);
            let now = Instant::now();
            if before > 0 {
                asked_until = now + ASKED_AFTER;
            }
            if !self.is_shared && now >= asked_until {
                continue;
            }
            let asked = tokio::time::timeout(TIMEOUT, self.ask()).await;
            match asked.unwrap_or_else(|_| Err(format!("no answer within {TIMEOUT:?}"))) {
                Ok(load) => targets.hear_engine(upstream, load, before),
                Err(cause) => self.say(&cause),
            }
        }
    }

    async fn ask(&self) -> Result<EngineLoad, String> {
        let headers = self.headers.clone();
        let sending = self
            .transport
            .send(Method::GET, &self.address, headers, Bytes::new(), true);
        let response = pin!(sending).await.map_err(|error| error.to_string())?;
        if response.status != 200 {
            return Err(format!("it answers {}", response.status));
        }
        let mut frames =
            Body::of(response.body, &response.headers).map_err(|error| error.to_string())?;
        let mut body = Vec::new();
        while let Some(frame) = frames.chunk().await.map_err(|error| error.to_string())? {
            if body.len() + frame.len() > BODY_MAX {
                return Err(format!("it answers with more than {BODY_MAX} bytes"));
            }
            body.extend_from_slice(&frame);
        }
        let text = String::from_utf8_lossy(&body);
        EngineLoad::read(&text).ok_or_else(|| {
            "it says of no known engine how many calls run and how many wait".to_owned()
        })
    }

    /// Says once what is wrong. The window is found without the engine's word then.
    fn say(&self, cause: &str) {
        if !self.was_said.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                upstream.name = &*self.name,
                cause,
                "the upstream's metrics_url cannot be read; its concurrency is found without it, \
                 and this is not said again"
            );
        }
    }
}
