//! What upstreams are told: plain values, already checked. The configuration makes them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;

use crate::domain::clock::Clock;
use crate::domain::price::Price;
use crate::domain::tenant::ModelPattern;
use crate::upstream::balance::Strategy;
use crate::upstream::provider::kind::ProviderKind;

/// Which model servers there are, and what goes where.
#[derive(Clone, Debug)]
pub struct Settings {
    pub upstreams: Vec<UpstreamSettings>,
    /// Without any, every model goes to the upstreams that report it.
    pub models: Vec<ModelSettings>,
    /// Names that stand for several models. No task has the name of a model.
    pub tasks: Vec<TaskSettings>,
    /// What tenants may send in a time.
    pub tenants: Vec<TenantRates>,
    pub retry: RetrySettings,
    /// What all prices are in. `None`: what those are in that this version knows.
    pub currency: Option<String>,
    /// Bytes of requests and answers that the process may hold.
    pub max_in_flight_bytes: usize,
}

/// A model server.
#[derive(Clone, Debug)]
pub struct UpstreamSettings {
    /// No two upstreams have one name.
    pub name: String,
    /// What it speaks.
    pub provider: ProviderKind,
    /// http or https; no slash behind its path but that of a bare origin. The path is `/v1` where
    /// none was given and the provider is OpenAI's. May have a query, which each call has, too; no
    /// secret is in it.
    pub base_url: String,
    /// The version of the provider's API, where the provider has versions and one was named.
    pub api_version: Option<String>,
    /// What becomes of what the provider cannot do.
    pub unsupported_params: UnsupportedParams,
    /// The server knows `max_tokens` and not `max_completion_tokens`: it is sent the first for
    /// both. Only of OpenAI's API.
    pub only_max_tokens: bool,
    /// Where the server takes what the assistant thought before. Only of OpenAI's API; `None`: it
    /// takes no thoughts.
    pub reasoning_key: Option<ReasoningKey>,
    /// Lines of the Responses API are asked as chat completions although the provider has that API.
    pub translates_responses: bool,
    /// What calls are made with: each key has rate limits and health of its own. No two have one
    /// name. Without any, calls go without a key.
    pub keys: Vec<UpstreamKey>,
    /// The header in which a key is sent as it is. `None`: as the provider has it.
    pub auth_header: Option<String>,
    /// Whether lines are sent to it. Its operators may say something else while it is in use.
    pub enabled: bool,
    /// Calls at once; with `is_auto`, the most that are tried.
    pub concurrency: usize,
    /// How many calls at once each of its models takes is found out.
    pub is_auto: bool,
    /// Where its engine says how many calls it runs and how many wait. http or https, without user
    /// and password.
    pub metrics_url: Option<String>,
    /// Others have the right of way at its engine.
    pub yields: bool,
    /// Of one call, from connecting to the last byte of its answer.
    pub timeout: Duration,
    /// Of connecting alone.
    pub connect_timeout: Duration,
    /// Whether an answer is asked for as a stream where there are streams, and put together here.
    pub stream: bool,
    /// The longest silence of a call whose answer was asked for as a stream: before the answer, and
    /// within.
    pub idle_timeout: Duration,
    /// In place of `timeout`, of a call whose answer was asked for as a stream.
    pub stream_timeout: Duration,
    /// Of one answer.
    pub max_response_bytes: usize,
    /// Sent with each call. Valid in HTTP; names in lower case.
    pub headers: BTreeMap<String, SecretString>,
    /// `http`, `https`, `socks5` or `socks5h`. May hold a password: never printed.
    pub proxy: Option<SecretString>,
    /// Certificates in PEM that are trusted for this upstream.
    pub ca_file: Option<PathBuf>,
    /// Never `Always` beside a proxy: over one, HTTP/1.1 is spoken.
    pub http2: Http2,
    /// Of all calls to it together, or, where it has several keys, of all calls by one of them.
    pub rate_limits: Vec<RateLimit>,
    /// Of each of its models. Wins over what is known of them.
    pub price: Option<Price>,
    /// What the configuration says of models here.
    pub capabilities: Vec<CapabilitySettings>,
}

/// What a model can do and costs, as far as that is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// The most input, in tokens.
    pub context: Option<u64>,
    /// The most that it writes, in tokens.
    pub output: Option<u64>,
    pub images: Option<bool>,
    pub tools: Option<bool>,
    pub reasoning: Option<bool>,
    /// Keys that a request must not have.
    pub refuses: Vec<String>,
    pub price: Option<Price>,
    /// Where the price stands, and as of when, where no configuration says it.
    pub source: Option<String>,
}

/// What the configuration says of models.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CapabilitySettings {
    /// What the upstream calls the models.
    pub model: ModelPattern,
    /// `None`: at any upstream.
    pub upstream: Option<String>,
    pub says: Capabilities,
}

/// A key of an upstream.
#[derive(Clone, Debug)]
pub struct UpstreamKey {
    /// What people call it: the variable or the file that holds it.
    pub name: String,
    /// Printable ASCII without spaces, so that a header can carry it.
    pub secret: SecretString,
}

/// What becomes of what a line asks for and its provider cannot do, where the answer would be one
/// without it, too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UnsupportedParams {
    /// The line fails.
    #[default]
    Reject,
    /// It is left out, and the line of the output file says so.
    Drop,
}

impl UnsupportedParams {
    pub const ALL: [UnsupportedParams; 2] = [UnsupportedParams::Reject, UnsupportedParams::Drop];

    /// As the configuration writes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            UnsupportedParams::Reject => "reject",
            UnsupportedParams::Drop => "drop",
        }
    }
}

/// Under which key a server takes what the assistant thought before, in its earlier messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReasoningKey {
    ReasoningContent,
    Reasoning,
}

impl ReasoningKey {
    pub const ALL: [ReasoningKey; 2] = [ReasoningKey::ReasoningContent, ReasoningKey::Reasoning];

    /// As the configuration and messages write it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            ReasoningKey::ReasoningContent => "reasoning_content",
            ReasoningKey::Reasoning => "reasoning",
        }
    }
}

/// Whether HTTP/2 is spoken to an upstream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Http2 {
    /// Where the server offers it over TLS.
    #[default]
    Auto,
    /// HTTP/1.1 alone.
    Never,
    /// HTTP/2 alone, without TLS too.
    Always,
}

/// How much there may be in any window of time, over all processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    pub kind: RateKind,
    /// At least 1.
    pub limit: u64,
    /// At least a second.
    pub period: Duration,
}

/// What a rate limit counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RateKind {
    Requests,
    /// Of input and output together.
    Tokens,
    InputTokens,
    OutputTokens,
}

impl RateKind {
    pub const ALL: [RateKind; 4] = [
        RateKind::Requests,
        RateKind::Tokens,
        RateKind::InputTokens,
        RateKind::OutputTokens,
    ];

    /// As configuration and metrics have it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            RateKind::Requests => "requests",
            RateKind::Tokens => "tokens",
            RateKind::InputTokens => "input_tokens",
            RateKind::OutputTokens => "output_tokens",
        }
    }
}

/// What a tenant may send in a time, by all models together.
#[derive(Clone, Debug)]
pub struct TenantRates {
    /// `*`: of each tenant that has no entry of its own.
    pub name: String,
    pub rate_limits: Vec<RateLimit>,
}

impl UpstreamSettings {
    /// The names of its keys, where it has several: what one key does need not be told apart.
    pub(super) fn told_keys(&self) -> &[UpstreamKey] {
        if self.keys.len() > 1 { &self.keys } else { &[] }
    }

    /// Whether calls are made in just the same way, where the file of certificates is as it was.
    pub(super) fn is_called_as(&self, other: &Self) -> bool {
        let Self {
            name,
            provider,
            base_url,
            api_version,
            unsupported_params,
            only_max_tokens,
            reasoning_key,
            translates_responses,
            keys,
            auth_header,
            enabled: _,
            concurrency: _,
            is_auto: _,
            metrics_url,
            yields,
            timeout,
            connect_timeout,
            stream,
            idle_timeout,
            stream_timeout,
            max_response_bytes,
            headers,
            proxy,
            ca_file,
            http2,
            rate_limits: _,
            price: _,
            capabilities,
        } = self;
        let shown = |secret: &Option<SecretString>| {
            let secret = secret.as_ref();
            secret.map(|secret| secret.expose_secret().to_owned())
        };
        let are_alike = |(ours, theirs): ((&String, &SecretString), (&String, &SecretString))| {
            ours.0 == theirs.0 && ours.1.expose_secret() == theirs.1.expose_secret()
        };
        let is_same_key = |(ours, theirs): (&UpstreamKey, &UpstreamKey)| {
            are_alike(((&ours.name, &ours.secret), (&theirs.name, &theirs.secret)))
        };
        *name == other.name
            && *provider == other.provider
            && *base_url == other.base_url
            && *api_version == other.api_version
            && *unsupported_params == other.unsupported_params
            && *only_max_tokens == other.only_max_tokens
            && *reasoning_key == other.reasoning_key
            && *capabilities == other.capabilities
            && *translates_responses == other.translates_responses
            && *metrics_url == other.metrics_url
            && *yields == other.yields
            && keys.len() == other.keys.len()
            && keys.iter().zip(&other.keys).all(is_same_key)
            && *auth_header == other.auth_header
            && *timeout == other.timeout
            && *connect_timeout == other.connect_timeout
            && *stream == other.stream
            && *idle_timeout == other.idle_timeout
            && *stream_timeout == other.stream_timeout
            && *max_response_bytes == other.max_response_bytes
            && headers.len() == other.headers.len()
            && headers.iter().zip(&other.headers).all(are_alike)
            && shown(proxy) == shown(&other.proxy)
            && *ca_file == other.ca_file
            && *http2 == other.http2
    }

    /// How long connecting may take: less than the whole call, in any case. So when a call's time
    /// runs out while it connects, nothing was sent.
    #[must_use]
    pub fn time_to_connect(&self) -> Duration {
        self.connect_timeout.min(self.patience())
    }

    /// How long a call may wait for a connection, others' turns included: nine tenths of the time
    /// after which a call without an answer is given up.
    #[must_use]
    pub fn patience(&self) -> Duration {
        let streams = self.stream || self.provider.streams_by_itself();
        let silence = if streams {
            self.timeout.min(self.idle_timeout)
        } else {
            self.timeout
        };
        silence.saturating_sub(silence / 10)
    }
}

/// Which upstreams answer for a model.
#[derive(Clone, Debug)]
pub struct ModelSettings {
    /// What a line's `body.model` says, or how it begins: then a `*` stands at its end. No two
    /// models have one name.
    pub name: String,
    /// Calls at once over all its upstreams; `None`: what its upstreams allow.
    pub concurrency: Option<usize>,
    /// How many calls at once each of its upstreams takes is found out.
    pub is_auto: bool,
    /// Which of its routes takes the next line.
    pub balance: Strategy,
    pub spill: Spill,
    pub order: Order,
    /// At least one.
    pub routes: Vec<RouteSettings>,
    /// Filled in where the line leaves them out.
    pub defaults: Map<String, Value>,
    /// Written over what the line says.
    pub overrides: Map<String, Value>,
    /// Over all its upstreams.
    pub rate_limits: Vec<RateLimit>,
}

/// A name for what is to be done, which a line may name in place of a model.
#[derive(Clone, Debug)]
pub struct TaskSettings {
    /// No two tasks have one name, and no task has the name of a model.
    pub name: String,
    /// The names of the models that do it: at least one, none twice. Where there are
    /// [`models`](Settings::models), each name fits one of them.
    pub models: Vec<String>,
    /// Which of the routes of its models takes the next line.
    pub balance: Strategy,
    /// Filled in where the line leaves them out; they win over those of models and routes.
    pub defaults: Map<String, Value>,
    /// Written over what the line says; those of models and routes win over them.
    pub overrides: Map<String, Value>,
}

impl ModelSettings {
    /// How the names begin that it is for, where it is for several.
    #[must_use]
    pub fn prefix(&self) -> Option<&str> {
        self.name.strip_suffix('*')
    }

    /// The one of these models that a line of this model belongs to: the most exact.
    #[must_use]
    pub fn of<'m>(models: &'m [ModelSettings], name: &str) -> Option<&'m ModelSettings> {
        let fits = |model: &&ModelSettings| match model.prefix() {
            Some(prefix) => name.starts_with(prefix),
            None => model.name == name,
        };
        let exactness = |model: &&ModelSettings| (model.prefix().is_none(), model.name.len());
        models.iter().filter(fits).max_by_key(exactness)
    }
}

/// When a model's lines go to the routes of the next tier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Spill {
    /// While none of the lower tiers is open.
    #[default]
    Closed,
    /// Also while all of the lower tiers are full.
    Full,
    /// Only lines that the lowest tier would not send before their batch's window ends. Who sends
    /// lines decides which these are: see [`Pool::try_spill`](crate::upstream::Pool::try_spill).
    Late,
}

impl Spill {
    pub const ALL: [Spill; 3] = [Spill::Closed, Spill::Full, Spill::Late];

    /// As the configuration writes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Spill::Closed => "closed",
            Spill::Full => "full",
            Spill::Late => "late",
        }
    }
}

/// In which order the lines of a batch are sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// As they stand in the file.
    #[default]
    File,
    /// Of those in hand, lines that begin alike one after the other: an engine keeps what it has
    /// computed of a beginning.
    Prefix,
}

impl Order {
    pub const ALL: [Order; 2] = [Order::File, Order::Prefix];

    /// As the configuration writes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Order::File => "file",
            Order::Prefix => "prefix",
        }
    }
}

/// One way of a model's lines to an upstream.
#[derive(Clone, Debug)]
pub struct RouteSettings {
    /// An upstream's name.
    pub upstream: String,
    /// What the upstream calls the model, where that differs.
    pub model: Option<String>,
    /// Its share among the model's routes: at least 1.
    pub weight: u32,
    /// Routes of the lowest tier come first.
    pub tier: u32,
    /// Calls at once by this route; `None`: what the model and the upstream allow.
    pub concurrency: Option<usize>,
    /// How many calls at once its model takes at its upstream is found out.
    pub is_auto: bool,
    /// Filled in where neither the line nor the model says.
    pub defaults: Map<String, Value>,
    /// Written over what the line and the model say.
    pub overrides: Map<String, Value>,
    pub rate_limits: Vec<RateLimit>,
    /// Wins over the upstream's.
    pub price: Option<Price>,
    /// Lines of `/v1/embeddings` share calls. `None`: each has a call of its own.
    pub pack: Option<PackLimits>,
}

/// How much lines that share a call have together at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackLimits {
    /// Inputs to be embedded: more than one.
    pub inputs: usize,
    /// Bytes of the lines.
    pub bytes: usize,
}

/// How often and how soon a line is sent again.
#[derive(Clone, Copy, Debug)]
pub struct RetrySettings {
    /// Calls that one line may cost, the first included: at least 1.
    pub max_attempts: u32,
    /// Before the second attempt; never zero.
    pub initial_backoff: Duration,
    /// Between any two attempts; at least `initial_backoff`.
    pub max_backoff: Duration,
    /// A server that asks to be left alone for longer is not believed: never zero.
    pub longest_wait: Duration,
}

/// What no configuration says.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// For `run`, where somebody waits who can mend what is wrong.
    pub fail_fast: Option<FailFast>,
    pub pace: Pace,
    pub clock: Clock,
    /// For `run`: how often a call may begin.
    pub rate: Option<CallRate>,
}

/// When to give up because all calls fail alike.
#[derive(Clone, Copy, Debug)]
pub struct FailFast {
    /// After so many calls without a success.
    pub calls: usize,
    /// A line of the batch has succeeded in an earlier process.
    pub has_succeeded: bool,
}

/// How often a call may begin, over all upstreams together.
#[derive(Clone, Debug)]
pub struct CallRate {
    /// Between the beginnings of two calls.
    pub interval: Duration,
    /// Nobody waits for a turn any more.
    pub stop: CancellationToken,
}

/// How soon what fails is tried again, and how often upstreams are asked for their models.
#[derive(Clone, Debug)]
pub struct Pace {
    /// Until the first probe of what cannot be reached; doubled with each failure in a row.
    pub probe_first: Duration,
    /// Between two probes. Short, because a probe costs nothing: an outage is over for the lines
    /// when a probe notices.
    pub probe_longest: Duration,
    /// Between two trials of what fails. A trial is a line. The first comes after `probe_first`,
    /// and each later one after a part of the time that it has failed.
    pub failing_longest: Duration,
    /// Until the first trial of what refuses us; doubled likewise.
    pub trial_first: Duration,
    pub trial_longest: Duration,
    /// Between two questions which models an upstream has.
    pub discovery: Duration,
    /// How long the first validation waits for upstreams to tell their models.
    pub first_discovery_max: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            probe_first: Duration::from_millis(500),
            probe_longest: Duration::from_secs(2),
            failing_longest: Duration::from_secs(30),
            trial_first: Duration::from_secs(1),
            trial_longest: Duration::from_mins(1),
            discovery: Duration::from_mins(1),
            first_discovery_max: Duration::from_secs(5),
        }
    }
}

/// An upstream whose settings cannot work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("upstream `{upstream}`: {problem}")]
pub struct BuildError {
    /// Its name.
    pub upstream: String,
    pub problem: String,
}
