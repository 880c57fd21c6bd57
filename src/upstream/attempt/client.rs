//! The HTTP client of one upstream: everything that does not change from call to call is made
//! once, so that a call costs little more than its bytes.

mod streamed;

use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{
    ACCEPT, ACCEPT_ENCODING, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, USER_AGENT,
};
use reqwest::{Method, Url};
use secrecy::{ExposeSecret, SecretString};
use tokio::time::{Instant, Sleep};

use super::abilities::Abilities;
use super::notice::Notice;
use super::result::CallResult;
use super::timer::Timer;
use crate::metrics::{UpstreamMetrics, metrics};
use crate::upstream::limits::memory::{Budget, Reservation};
use crate::upstream::models::ModelInfo;
use crate::upstream::provider::http::{self, Head};
use crate::upstream::provider::stream::Assembly;
use crate::upstream::provider::{self, Provider};
use crate::upstream::settings::{BuildError, UpstreamSettings};
use crate::upstream::transport::coding::{self, Body};
use crate::upstream::transport::{self, Address, Response, Transport, Unread};

/// Room made for an answer on its server's word, before its bytes are here.
const TRUSTED_LENGTH_MAX: usize = 8 << 20;

/// How long a question for `/models` may take, with all pages of the list.
const MODELS_TIMEOUT: Duration = Duration::from_secs(10);

/// Of the whole process, whichever upstream it wants to reach.
static NO_DESCRIPTOR: Notice = Notice::new();

/// A model server, ready to be called.
#[derive(Debug)]
pub(in crate::upstream) struct Client {
    pub(in crate::upstream) name: Arc<str>,
    pub(in crate::upstream) provider: Box<dyn Provider>,
    pub(super) abilities: Abilities,
    pub(in crate::upstream) metrics: UpstreamMetrics,
    /// As the configuration says it. Empty where it says nothing.
    pub(in crate::upstream) api_version: Box<str>,
    base: Url,
    /// Of each path that was called so far.
    addresses: RwLock<Vec<(&'static str, Arc<Address>)>>,
    /// By each key, in the order of the settings: one at least.
    headers: Box<[HeaderMap]>,
    transport: Transport,
    timeout: Duration,
    idle_timeout: Duration,
    stream_timeout: Duration,
    connect_timeout: Duration,
    max_response_bytes: usize,
    /// The server has answered something: there is a way to it.
    has_answered: AtomicBool,
    timeouts: Notice,
    stalls: Notice,
    no_port: Notice,
}

/// What is posted, and how.
#[derive(Debug)]
pub(in crate::upstream) struct Post<'p> {
    /// The number of the key that it is sent with.
    pub(in crate::upstream) key: usize,
    /// The line's `url`.
    pub(in crate::upstream) path: &'static str,
    /// What the upstream calls the line's model.
    pub(in crate::upstream) model: &'p str,
    pub(in crate::upstream) body: Bytes,
    /// The header by which the call is a part of a trace, if it is.
    pub(in crate::upstream) traceparent: Option<&'p str>,
    /// Puts the answer together, where it was asked for as a stream.
    pub(in crate::upstream) assembly: Option<Assembly>,
}

/// A whole answer.
#[derive(Debug)]
pub(in crate::upstream) struct Reply {
    pub(in crate::upstream) head: Head,
    pub(in crate::upstream) body: Bytes,
    /// From sending to the first that the model wrote, where the answer was streamed.
    pub(in crate::upstream) first_token: Option<Duration>,
}

/// Why there is no answer.
#[derive(Debug)]
pub(in crate::upstream) struct Failure {
    pub(in crate::upstream) result: CallResult,
    /// In words, without addresses.
    pub(in crate::upstream) cause: String,
}

/// What a server says when it is asked for its models.
#[derive(Debug)]
pub(in crate::upstream) struct Listing {
    pub(in crate::upstream) status: u16,
    /// The answer is the server's own, not a gateway's for a server that does not answer.
    pub(in crate::upstream) is_own: bool,
    /// `None`: the answer is no list of models.
    pub(in crate::upstream) models: Option<Vec<ModelInfo>>,
}

impl Client {
    /// Why no line of this `url` is taken for a model (`None`), or none whose body has this key at
    /// its top, whatever its value asks for: in words.
    pub(in crate::upstream) fn refuses(
        &self,
        model: &str,
        path: &str,
        key: Option<&str>,
    ) -> Option<String> {
        let of_provider = self.provider.refuses(path, key);
        of_provider.or_else(|| self.abilities.refuses(model, key?))
    }

    pub(in crate::upstream) fn new(settings: &UpstreamSettings) -> Result<Self, BuildError> {
        let fault = |problem: String| BuildError {
            upstream: settings.name.clone(),
            problem,
        };
        let base = Url::parse(&settings.base_url)
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
        let provider = provider::of(settings);
        Ok(Self {
            name: settings.name.as_str().into(),
            metrics: metrics().upstream(&settings.name, CallResult::ALL.map(CallResult::label)),
            addresses: RwLock::default(),
            headers: headers(settings, &*provider, &base).map_err(fault)?,
            provider,
            api_version: settings.api_version.as_deref().unwrap_or_default().into(),
            abilities: Abilities::new(settings),
            transport: Transport::new(settings, &base).map_err(fault)?,
            timeout: settings.timeout,
            idle_timeout: settings.idle_timeout,
            stream_timeout: settings.stream_timeout,
            connect_timeout: settings.time_to_connect(),
            max_response_bytes: settings.max_response_bytes,
            has_answered: AtomicBool::new(false),
            timeouts: Notice::new(),
            stalls: Notice::new(),
            no_port: Notice::new(),
            base,
        })
    }

    /// What each call has, its key included.
    pub(in crate::upstream) fn headers(&self) -> &HeaderMap {
        &self.headers[0]
    }

    /// The upstream's address, for the log.
    pub(in crate::upstream) fn shown_url(&self) -> String {
        let mut url = self.base.clone();
        url.set_query(None);
        url.into()
    }

    /// Warns of results that only an operator can prevent, at most once a minute.
    pub(in crate::upstream) fn warn_of(&self, result: CallResult) {
        if result == CallResult::NoDescriptor
            && let Some(calls) = NO_DESCRIPTOR.occurred()
        {
            tracing::warn!(
                calls,
                "no file descriptor is left for connections to model servers: calls wait until one \
                 is free; allow the process more (ulimit -n), or lower the concurrency"
            );
        }
        if result == CallResult::NoPort
            && let Some(calls) = self.no_port.occurred()
        {
            tracing::warn!(
                upstream.name = &*self.name,
                calls,
                "no local port is left for connections to the upstream: calls wait until one is \
                 free; lower its concurrency, or give this machine more ports \
                 (net.ipv4.ip_local_port_range)"
            );
        }
        if result == CallResult::TimedOut
            && let Some(calls) = self.timeouts.occurred()
        {
            tracing::warn!(
                upstream.name = &*self.name,
                timeout = ?self.timeout,
                calls.timed_out = calls,
                "calls took longer than the upstream's timeout: the second time a line fails \
                 with request_timeout; raise timeout if answers take so long"
            );
        }
        if result == CallResult::Stalled
            && let Some(calls) = self.stalls.occurred()
        {
            tracing::warn!(
                upstream.name = &*self.name,
                idle_timeout = ?self.idle_timeout,
                calls.stalled = calls,
                "streamed answers stood still for longer than the upstream's idle_timeout: raise it \
                 if the server has so long a queue, or thinks for so long"
            );
        }
    }

    /// Posts a line's body and reads the whole answer; its bytes are reserved as they come.
    pub(in crate::upstream) async fn post(
        &self,
        post: Post<'_>,
        timer: &mut Timer,
        reservation: &mut Reservation,
    ) -> Result<Reply, Failure> {
        let Post {
            key,
            path,
            model,
            body,
            traceparent,
            assembly,
        } = post;
        let (address, mut headers) = (self.address(path, model)?, self.headers[key].clone());
        if let Some(Ok(traceparent)) = traceparent.map(HeaderValue::from_str) {
            headers.insert("traceparent", traceparent);
        }
        if let Some(assembly) = assembly {
            // In a box: more than what a plain answer needs.
            let sent = (address, headers, body);
            return Box::pin(self.post_for_stream(sent, assembly, timer, reservation)).await;
        }
        let mut deadline = timer.set(Instant::now() + self.timeout);
        let response = {
            // Ends before the body is read: a call is as large as the larger of the two.
            let sending = pin!(
                self.transport
                    .send(Method::POST, &address, headers, body, false)
            );
            self.head(sending, self.timeout, deadline.as_mut()).await?
        };
        let whole = self.whole(response, self.timeout, None, deadline, reservation);
        let (head, body) = whole.await?;
        Ok(Reply {
            head,
            body,
            first_token: None,
        })
    }

    /// Asks the server which models it has, with one of the keys.
    pub(in crate::upstream) async fn list_models(&self, key: usize) -> Result<Listing, Failure> {
        let mut headers = self.headers[key].clone();
        headers.remove(CONTENT_TYPE);
        let timeout = self.timeout.min(MODELS_TIMEOUT);
        // Not from the process's budget: an upstream must be seen to come back when memory is full.
        let mut reservation = Budget::new(self.max_response_bytes).reserve();
        let mut timer = Timer::default();
        let mut deadline = timer.set(Instant::now() + timeout);
        let (mut listed, mut after) = (Vec::new(), None::<String>);
        loop {
            let address = written(self.provider.models_url(&self.base, after.as_deref()))?;
            let (headers, body) = (headers.clone(), Bytes::new());
            let sending = self
                .transport
                .send(Method::GET, &address, headers, body, true);
            let response = self.head(pin!(sending), timeout, deadline.as_mut()).await?;
            let whole = self.whole(response, timeout, None, deadline.as_mut(), &mut reservation);
            let (head, body) = whole.await?;
            let page = head.is_success().then(|| self.provider.models(&body));
            drop(body);
            reservation.shrink_to(0);
            let page = page.flatten().map(|page| {
                listed.extend(page.models);
                page.next
            });
            match page {
                Some(next @ Some(_)) => after = next,
                end => {
                    return Ok(Listing {
                        status: head.status,
                        is_own: !http::is_of_a_gateway(head.status),
                        models: end.map(|_| listed),
                    });
                }
            }
        }
    }

    /// Waits for the head of an answer.
    async fn head(
        &self,
        mut sending: Pin<&mut impl Future<Output = Result<Response, transport::Error>>>,
        timeout: Duration,
        mut deadline: Pin<&mut Sleep>,
    ) -> Result<Response, Failure> {
        let response = tokio::select! {
            biased;
            response = &mut sending => response.map_err(|error| self.failure(error))?,
            () = &mut deadline => return Err(timed_out(timeout)),
        };
        if !self.has_answered.load(Ordering::Relaxed) {
            self.has_answered.store(true, Ordering::Relaxed);
        }
        Ok(response)
    }

    /// Reads the rest of an answer, until the deadline. `idle_timeout`: how long the server may be
    /// silent meanwhile.
    async fn whole(
        &self,
        response: Response,
        timeout: Duration,
        idle_timeout: Option<Duration>,
        deadline: Pin<&mut Sleep>,
        reservation: &mut Reservation,
    ) -> Result<(Head, Bytes), Failure> {
        let head = Head {
            status: response.status,
            headers: response.headers,
        };
        let timeouts = (timeout, idle_timeout);
        let read = self.read(
            response.body,
            &head.headers,
            timeouts,
            deadline,
            reservation,
        );
        let body = match read.await {
            Ok(body) => body,
            // The status says enough of an error whose text cannot be had.
            Err(failure) if !head.is_success() && is_of_the_body(failure.result) => Bytes::new(),
            // No model server packs a page: it is a proxy's, so another call may go better.
            Err(mut failure) if failure.result == CallResult::Undecodable => {
                if !self.provider.is_own(&head.headers) {
                    failure.result = CallResult::Broken;
                }
                return Err(failure);
            }
            Err(failure) => return Err(failure),
        };
        Ok((head, body))
    }

    /// Reads an answer's body to its end.
    async fn read(
        &self,
        unread: Unread,
        headers: &HeaderMap,
        (timeout, idle_timeout): (Duration, Option<Duration>),
        mut deadline: Pin<&mut Sleep>,
        reservation: &mut Reservation,
    ) -> Result<Bytes, Failure> {
        let announced = unread.content_length().unwrap_or(0);
        let announced = usize::try_from(announced).unwrap_or(usize::MAX);
        if announced > self.max_response_bytes {
            return Err(self.too_large());
        }
        let mut frames = Body::of(unread, headers).map_err(|error| self.failure(error))?;
        // Copied together, for a frame keeps alive the whole buffer that it was read into.
        let mut body = Vec::with_capacity(announced.min(TRUSTED_LENGTH_MAX));
        let mut end = deadline.deadline();
        loop {
            if let Some(idle_timeout) = idle_timeout {
                deadline
                    .as_mut()
                    .reset(end.min(Instant::now() + idle_timeout));
            }
            let frame = tokio::select! {
                biased;
                frame = frames.chunk() => frame.map_err(|error| self.failure(error))?,
                () = &mut deadline => return Err(match idle_timeout {
                    Some(idle_timeout) if Instant::now() < end => stalled(idle_timeout),
                    _ => timed_out(timeout),
                }),
            };
            let Some(frame) = frame else { break };
            if body.len() + frame.len() > self.max_response_bytes {
                return Err(self.too_large());
            }
            if !reservation.try_grow(frame.len()) {
                // Waiting for memory is not the server's fault.
                let began = Instant::now();
                reservation.grow(frame.len()).await;
                end += began.elapsed();
                deadline.as_mut().reset(end);
            }
            body.extend_from_slice(&frame);
        }
        Ok(Bytes::from(body))
    }

    /// Where a line goes whose `url` is `path`.
    pub(in crate::upstream) fn url(&self, path: &str, model: &str) -> Url {
        self.provider.url(&self.base, path, model)
    }

    fn address(&self, path: &'static str, model: &str) -> Result<Arc<Address>, Failure> {
        let made = || Ok(Arc::new(written(self.url(path, model))?));
        if self.provider.names_models_in_urls() {
            // Not kept: there may be any number of models.
            return made();
        }
        let addresses = self.addresses.read();
        let addresses = addresses.unwrap_or_else(PoisonError::into_inner);
        if let Some((_, address)) = addresses.iter().find(|(known, _)| *known == path) {
            return Ok(Arc::clone(address));
        }
        drop(addresses);
        let address = made()?;
        let addresses = self.addresses.write();
        let mut addresses = addresses.unwrap_or_else(PoisonError::into_inner);
        addresses.push((path, Arc::clone(&address)));
        Ok(address)
    }

    fn failure(&self, error: transport::Error) -> Failure {
        use transport::Error::{
            Connect, ConnectTimeout, Lost, NoDescriptor, NoPort, Refused, Resolve, Undecodable,
        };
        let result = match &error {
            // The same error as of an address to which there is no way.
            NoPort if self.has_answered.load(Ordering::Relaxed) => CallResult::NoPort,
            Resolve(_) | ConnectTimeout | Connect(_) | NoPort => CallResult::Unreachable,
            NoDescriptor => CallResult::NoDescriptor,
            Refused(_) => CallResult::Unavailable,
            Lost(_) => CallResult::Broken,
            Undecodable(_) => CallResult::Undecodable,
        };
        let cause = match error {
            ConnectTimeout => format!("no connection within {:?}", self.connect_timeout),
            error => error.to_string(),
        };
        Failure { result, cause }
    }

    fn too_large(&self) -> Failure {
        Failure {
            result: CallResult::TooLarge,
            cause: format!(
                "the answer is larger than {} bytes (max_response_bytes)",
                self.max_response_bytes
            ),
        }
    }
}

/// Whether there was an answer whose body cannot be had.
fn is_of_the_body(result: CallResult) -> bool {
    matches!(result, CallResult::Undecodable | CallResult::TooLarge)
}

fn written(url: Url) -> Result<Address, Failure> {
    Address::new(url).ok_or_else(|| Failure {
        result: CallResult::Unreachable,
        cause: "its URL is none that HTTP can write".to_owned(),
    })
}

fn timed_out(timeout: Duration) -> Failure {
    Failure {
        result: CallResult::TimedOut,
        cause: format!("no whole answer within {timeout:?}"),
    }
}

fn stalled(idle_timeout: Duration) -> Failure {
    Failure {
        result: CallResult::Stalled,
        cause: format!("nothing came of the answer for {idle_timeout:?} (idle_timeout)"),
    }
}

/// The headers of a call beside those that are configured, or more.
const HEADERS: usize = 12;

/// The headers of each call, by each key.
fn headers(
    settings: &UpstreamSettings,
    provider: &dyn Provider,
    base: &Url,
) -> Result<Box<[HeaderMap]>, String> {
    let keys = settings.keys.iter().map(|key| Some(&key.secret));
    let none = settings.keys.is_empty().then_some(None);
    let keys = keys.chain(none);
    keys.map(|key| headers_by(key, settings, provider, base))
        .collect()
}

fn headers_by(
    key: Option<&SecretString>,
    settings: &UpstreamSettings,
    provider: &dyn Provider,
    base: &Url,
) -> Result<HeaderMap, String> {
    // A copy for each call, to which that adds a few of its own, is never to be laid out anew.
    let mut headers = HeaderMap::with_capacity(HEADERS + settings.headers.len());
    let host = HeaderValue::from_str(base.authority());
    headers.insert(HOST, host.map_err(|_| "its base_url names no host")?);
    let agent = concat!("nightshift/", env!("CARGO_PKG_VERSION"));
    headers.insert(USER_AGENT, HeaderValue::from_static(agent));
    headers.insert(ACCEPT, HeaderValue::from_static("*/*"));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if base.scheme() == "https" {
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static(coding::ACCEPTED));
    }
    provider.introduce(&mut headers);
    if let Some(key) = key {
        const WRONG: &str = "its API key holds characters that no HTTP header can";
        match &settings.auth_header {
            None => provider
                .authorize(key, &mut headers)
                .map_err(|_| WRONG.to_owned())?,
            Some(name) => {
                let name = HeaderName::try_from(name.as_str())
                    .map_err(|_| format!("`{name}` is no name of an HTTP header"))?;
                let value = HeaderValue::from_str(key.expose_secret());
                let mut value = value.map_err(|_| WRONG.to_owned())?;
                value.set_sensitive(true);
                headers.insert(name, value);
            }
        }
    }
    for (name, value) in &settings.headers {
        let header = HeaderName::try_from(name.as_str())
            .map_err(|_| format!("`{name}` is no name of an HTTP header"))?;
        let mut value = HeaderValue::from_str(value.expose_secret())
            .map_err(|_| format!("the value of its header `{name}` is no HTTP header value"))?;
        value.set_sensitive(true);
        headers.insert(header, value);
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::attempt::result::Cost;
    use crate::upstream::tests::upstream;

    #[test]
    fn packed_answers_are_asked_for_where_a_call_goes_over_tls() {
        let asked_for = |base_url: &str, own: Option<&str>| {
            let mut settings = upstream("gpu", base_url);
            let own = own.map(|own| ("accept-encoding".to_owned(), own.into()));
            settings.headers.extend(own);
            let client = Client::new(&settings).expect("a good configuration");
            let value = client.headers[0].get(ACCEPT_ENCODING);
            value.map(|value| value.to_str().expect("is text").to_owned())
        };
        assert_eq!(asked_for("http://gpu/v1", None), None);
        let asked = asked_for("https://gpu/v1", None);
        assert_eq!(asked.as_deref(), Some("gzip, br, zstd"));
        let own = asked_for("https://gpu/v1", Some("identity"));
        assert_eq!(own.as_deref(), Some("identity"));
    }

    #[test]
    fn no_port_is_told_apart_from_no_way_once_the_server_has_answered() {
        let client = Client::new(&upstream("gpu", "http://gpu/v1")).expect("a good configuration");
        let result = || client.failure(transport::Error::NoPort).result;
        assert_eq!(result(), CallResult::Unreachable);
        client.has_answered.store(true, Ordering::Relaxed);
        assert_eq!(result(), CallResult::NoPort);
        assert_eq!(CallResult::NoPort.cost(), Some(Cost::TurnedAway));
        assert_eq!(CallResult::NoPort.reason(), None);
    }
}
