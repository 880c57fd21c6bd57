//! `[[upstreams]]`: the model servers that lines are sent to.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use reqwest::header::{HeaderName, HeaderValue};
use secrecy::SecretString;

use super::error::{Faults, nearest};
use super::preset::{self, Known, Preset};
use super::price::Pricing;
use super::rate;
use super::reader::{Item, Reader};
use super::secret;
use super::upstream_url::{base_url_of, http_url, read_metrics_url, with_query};
use super::value::Origin;
use crate::upstream::{
    Http2, ModelSettings, ProviderKind, ReasoningKey, UnsupportedParams, UpstreamKey,
    UpstreamSettings,
};

/// The name of an upstream that stands alone and has none.
pub(super) const DEFAULT_NAME: &str = "default";

/// Of anything that has a concurrency.
pub(super) const CONCURRENCY_MAX: u64 = 1_000_000;

const DEFAULT_CONCURRENCY: usize = 64;
/// `max_concurrency`, where nothing else is said.
const AUTO_MAX: usize = 1024;
/// Whom an upstream yields to.
const INTERACTIVE: &str = "interactive";
const DEFAULT_TIMEOUT: Duration = Duration::from_mins(10);
/// Of a call whose answer streams: silence is noticed by `idle_timeout`.
const DEFAULT_STREAM_TIMEOUT: Duration = Duration::from_hours(1);
const DEFAULT_IDLE_TIMEOUT: Duration = Duration::from_mins(2);
const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Holds the largest answer that OpenAI's API can ask for: 2,048 embeddings of 3,072 numbers each,
/// which are about 132 MiB as text. Some servers write more digits, or more white space.
const DEFAULT_RESPONSE_BYTES: usize = 268_435_456;

const RESPONSE_BYTES_MAX: u64 = 1 << 40;
const TIMEOUT_MIN: Duration = Duration::from_millis(1);

/// Said by the HTTP client itself, about the one call.
const OWN_HEADERS: [&str; 10] = [
    "connection",
    "content-length",
    "content-type",
    "expect",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// All `[[upstreams]]`.
#[derive(Default)]
pub(super) struct Upstreams<'a> {
    pub(super) all: Vec<UpstreamSettings>,
    /// Those that have a preset.
    pub(super) presets: Vec<Preset>,
    /// What `concurrency = "auto"` alone heeds, with the upstream's number.
    of_auto: Vec<(usize, Item<'a>)>,
}

/// Reads `[[upstreams]]`.
pub(super) fn read_all<'a>(readers: Vec<Reader<'a>>, pricing: &Pricing) -> Upstreams<'a> {
    let alone = readers.len() == 1;
    let mut names = BTreeSet::new();
    let mut upstreams = Upstreams::default();
    for (number, mut reader) in readers.into_iter().enumerate() {
        let name = if alone {
            reader.take("name")
        } else {
            reader.need("name")
        };
        let name = name.map(|item| {
            let name = item.string().unwrap_or_default();
            if !name.is_empty() && !names.insert(name.clone()) {
                item.fault("another upstream has this name");
            }
            name
        });
        let default = if alone { DEFAULT_NAME } else { "" };
        let name = name.unwrap_or_else(|| default.to_owned());
        let known = preset::fill(&mut reader, &name);
        let (upstream, items) = read(reader, name, &known, pricing);
        upstreams.all.push(upstream);
        upstreams.presets.extend(known.preset);
        let items = items.into_iter().map(|item| (number, item));
        upstreams.of_auto.extend(items);
    }
    upstreams
}

/// Notes what only `concurrency = "auto"` heeds, where neither the upstream nor anything that leads
/// to it says that. What a preset says of it is left out there.
pub(super) fn check_auto(upstreams: &mut Upstreams<'_>, models: &[ModelSettings]) {
    for (number, item) in &upstreams.of_auto {
        let upstream = &mut upstreams.all[*number];
        let is_led_here = |model: &ModelSettings| {
            let mut routes = model.routes.iter();
            routes.any(|route| route.upstream == upstream.name && (model.is_auto || route.is_auto))
        };
        if upstream.is_auto || models.iter().any(is_led_here) {
            continue;
        }
        if item.is_filled_in() {
            upstream.metrics_url = None;
        } else {
            item.fault(
                "needs `concurrency = \"auto\"`, here or at a model or route that leads here: a \
                 fixed number heeds no engine",
            );
        }
    }
}

fn read<'a>(
    mut reader: Reader<'a>,
    name: String,
    known: &Known,
    pricing: &Pricing,
) -> (UpstreamSettings, Vec<Item<'a>>) {
    for key in ["balance", "spill"] {
        reader.refuse(key, "is written in [[models]]: it is said for each model");
    }
    reader.refuse(
        "priority",
        "which upstreams come first is the `tier` of a model's routes",
    );
    reader.refuse(
        "api_key",
        "a secret is not written here: name it with `api_key_env` or `api_key_file`",
    );
    let provider = reader.take("provider").and_then(|item| provider(&item));
    let provider = provider.unwrap_or_default();
    let base_url = reader.take("base_url");
    if base_url.is_none() {
        reader.fault(match &known.example {
            Some(example) => format!("`base_url` is missing: it looks like {example}"),
            None => "`base_url` is missing".to_owned(),
        });
    }
    let path = known.path.as_deref();
    let base_url = base_url.and_then(|item| base_url_of(&item, provider, path));
    let api_version = reader.take("api_version");
    let api_version = api_version.and_then(|item| api_version_of(&item, provider));
    let unsupported_params = reader.take("unsupported_params");
    let unsupported_params = unsupported_params.and_then(|item| unsupported_params_of(&item));
    let max_tokens_key = reader.take("max_tokens_key");
    let only_max_tokens = max_tokens_key.is_some_and(|item| read_max_tokens_key(&item, provider));
    let reasoning_key = reader.take("reasoning_key");
    let reasoning_key = reasoning_key.and_then(|item| reasoning_key_of(&item, provider));
    let responses = reader.take("responses");
    let translates_responses = responses.is_some_and(|item| responses_of(&item, provider));
    let query = reader.take("query").and_then(Item::entries);
    let base_url = base_url.map(|url| with_query(&url, query.unwrap_or_default()));
    let keys = secret::named_keys(&mut reader);
    let auth_header = reader.take("auth_header");
    let auth_header = auth_header.and_then(|item| auth_header_of(&item, !keys.is_empty()));
    let key_header = auth_header.as_deref();
    let key_header = (!keys.is_empty()).then(|| key_header.unwrap_or(provider.key_header()));
    let enabled = reader.take("enabled").and_then(|mut item| item.boolean());
    let Concurrency { most, is_auto } = concurrency(&mut reader);
    let metrics_item = reader.take("metrics_url");
    let own = base_url.as_deref();
    let metrics_url = metrics_item.as_ref();
    let metrics_url = metrics_url.and_then(|item| read_metrics_url(item, own));
    let yield_item = reader.take("yield_to");
    let yields = yield_item.is_some();
    if let Some(item) = &yield_item {
        read_yield_to(item, metrics_item.is_some());
    }
    let timeout = reader.duration("timeout", TIMEOUT_MIN);
    let connect_timeout = reader.duration("connect_timeout", TIMEOUT_MIN);
    let stream = reader.take("stream").and_then(|mut item| item.boolean());
    let stream = stream.unwrap_or(false);
    let idle_timeout = idle_timeout(&mut reader, stream || provider.streams_by_itself());
    let max_response_bytes = reader.whole("max_response_bytes", 1, RESPONSE_BYTES_MAX);
    let headers = read_headers(&mut reader, key_header);
    let proxy = reader.take("proxy").and_then(|item| proxy(&item));
    let ca_file = reader.take("ca_file").and_then(|item| ca_file(&item));
    let http2 = reader.take("http2");
    let http2 = http2.map_or(Http2::Auto, |item| read_http2(item, proxy.is_some()));
    let rate_limits = rate::read(&mut reader);
    let price = pricing.price(&mut reader);
    reader.finish();
    let settings = UpstreamSettings {
        name,
        provider,
        base_url: base_url.unwrap_or_default(),
        enabled: enabled.unwrap_or(true),
        api_version,
        unsupported_params: unsupported_params.unwrap_or_default(),
        only_max_tokens,
        reasoning_key,
        translates_responses,
        concurrency: most.unwrap_or(if is_auto {
            AUTO_MAX
        } else {
            DEFAULT_CONCURRENCY
        }),
        is_auto,
        metrics_url,
        yields,
        timeout: timeout.unwrap_or(DEFAULT_TIMEOUT),
        connect_timeout: connect_timeout.unwrap_or(DEFAULT_CONNECT_TIMEOUT),
        stream,
        idle_timeout: idle_timeout.unwrap_or(DEFAULT_IDLE_TIMEOUT),
        stream_timeout: timeout.unwrap_or(DEFAULT_STREAM_TIMEOUT),
        max_response_bytes: max_response_bytes.unwrap_or(DEFAULT_RESPONSE_BYTES),
        headers,
        keys: keys.into_iter().map(key).collect(),
        auth_header,
        proxy,
        ca_file,
        http2,
        rate_limits,
        price,
        capabilities: Vec::new(),
    };
    let of_auto = metrics_item.into_iter().chain(yield_item).collect();
    (settings, of_auto)
}

/// Reads `idle_timeout`, which only streamed answers have.
fn idle_timeout(reader: &mut Reader<'_>, streams: bool) -> Option<Duration> {
    let key = "idle_timeout";
    if streams {
        return reader.duration(key, TIMEOUT_MIN);
    }
    reader.refuse(
        key,
        "is the longest silence within an answer that streams: it needs `stream = true`",
    );
    None
}

/// Adds what `--header` gave, in place of headers of the same name.
pub(super) fn add_headers(
    upstream: &mut UpstreamSettings,
    headers: &[(String, String)],
    faults: &Faults,
) {
    let place = |name: &str| format!("--header {name}");
    let key_header = upstream.auth_header.clone();
    let key_header = key_header.unwrap_or_else(|| upstream.provider.key_header().to_owned());
    let key_header = (!upstream.keys.is_empty()).then_some(&*key_header);
    for (name, value) in headers {
        let Ok(header) = HeaderName::try_from(name) else {
            faults.note(place(name), "is not the name of a header");
            continue;
        };
        // The command line is no file that people show each other.
        if let Some(message) = check_header(header.as_str(), false, key_header) {
            faults.note(place(name), message);
        } else if HeaderValue::try_from(value).is_err() {
            faults.note(place(name), "the value cannot stand in a header");
        } else {
            upstream
                .headers
                .insert(header.as_str().to_owned(), value.clone().into());
        }
    }
}

fn key(key: secret::Named) -> UpstreamKey {
    UpstreamKey {
        name: key.name,
        secret: key.secret,
    }
}

/// Calls at once, of an upstream, a model or a route.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Concurrency {
    /// There are never more; `None`: nothing is said.
    pub most: Option<usize>,
    /// How many there are is found out.
    pub is_auto: bool,
}

/// Reads `concurrency`, and `max_concurrency` beside `"auto"`.
pub(super) fn concurrency(reader: &mut Reader<'_>) -> Concurrency {
    let item = reader.take("concurrency");
    let is_auto = item.as_ref().and_then(Item::as_str) == Some("auto");
    let ceiling = reader.take("max_concurrency");
    if is_auto {
        let most = ceiling.and_then(|item| item.whole(1, CONCURRENCY_MAX));
        return Concurrency { most, is_auto };
    }
    if let Some(ceiling) = ceiling {
        ceiling.fault("is the ceiling of `concurrency = \"auto\"`: write `concurrency` instead");
    }
    Concurrency {
        most: item.and_then(|item| item.whole(1, CONCURRENCY_MAX)),
        is_auto,
    }
}

fn read_yield_to(item: &Item<'_>, has_metrics: bool) {
    if item.string().is_some_and(|whom| whom != INTERACTIVE) {
        item.fault("expected \"interactive\"");
    } else if !has_metrics {
        item.fault("needs `metrics_url`: it says what others have running");
    }
}

fn provider(item: &Item<'_>) -> Option<ProviderKind> {
    let name = item.string()?;
    let mut all = ProviderKind::ALL.into_iter();
    if let Some(found) = all.find(|one| one.as_str() == name) {
        return Some(found);
    }
    let known = ProviderKind::ALL.map(ProviderKind::as_str);
    let known = nearest(&name, known).unwrap_or_default();
    item.fault(format!(
        "unknown provider; the nearest is {known} (openai fits any server that speaks OpenAI's \
         API)"
    ));
    None
}

fn api_version_of(item: &Item<'_>, provider: ProviderKind) -> Option<String> {
    if !provider.has_versions() {
        item.fault(format!(
            "the API of the provider {} has no versions that can be chosen",
            provider.as_str()
        ));
        return None;
    }
    let version = item.string()?;
    let is_date =
        |part: &str, digits| part.len() == digits && part.bytes().all(|byte| byte.is_ascii_digit());
    let parts: Vec<&str> = version.split('-').collect();
    match parts.as_slice() {
        [year, month, day] if is_date(year, 4) && is_date(month, 2) && is_date(day, 2) => {
            Some(version)
        }
        _ => {
            item.fault("expected a date, such as 2023-06-01");
            None
        }
    }
}

fn unsupported_params_of(item: &Item<'_>) -> Option<UnsupportedParams> {
    let name = item.string()?;
    let mut all = UnsupportedParams::ALL.into_iter();
    let found = all.find(|one| one.as_str() == name);
    if found.is_none() {
        item.fault("expected \"reject\" or \"drop\"");
    }
    found
}

/// Whether the server knows `max_tokens` and not `max_completion_tokens`.
fn read_max_tokens_key(item: &Item<'_>, provider: ProviderKind) -> bool {
    if provider.translates() {
        if !item.is_filled_in() {
            item.fault("is for the provider openai: any other is sent its own key");
        }
        return false;
    }
    let Some(key) = item.string() else {
        return false;
    };
    if key != "max_tokens" {
        item.fault("expected \"max_tokens\"; left out, each line is sent as it is");
    }
    true
}

/// Where the server takes what was thought before.
fn reasoning_key_of(item: &Item<'_>, provider: ProviderKind) -> Option<ReasoningKey> {
    if provider.translates() {
        if !item.is_filled_in() {
            item.fault("is for the provider openai: any other is sent thoughts in its own form");
        }
        return None;
    }
    let name = item.string()?;
    let key = ReasoningKey::ALL
        .into_iter()
        .find(|key| key.as_str() == name);
    if key.is_none() {
        item.fault(
            "expected \"reasoning_content\" or \"reasoning\"; left out, the server is sent no \
             thoughts",
        );
    }
    key
}

/// Whether lines of the Responses API are translated although the provider has that API.
fn responses_of(item: &Item<'_>, provider: ProviderKind) -> bool {
    let name = item.string().unwrap_or_default();
    if name != "translate" {
        item.fault("expected \"translate\"");
    } else if provider.translates() {
        item.fault(format!(
            "the API of the provider {} has no responses: they are always translated",
            provider.as_str()
        ));
    }
    name == "translate"
}

/// The header that a key is sent in.
fn auth_header_of(item: &Item<'_>, has_key: bool) -> Option<String> {
    let Ok(name) = HeaderName::try_from(item.string()?) else {
        item.fault("is not the name of a header");
        return None;
    };
    if OWN_HEADERS.contains(&name.as_str()) {
        item.fault("this header is made for each call");
        return None;
    }
    if !has_key && item.is_filled_in() {
        // Which key there is to be is a fault already.
        return None;
    }
    if !has_key {
        item.fault("says where the key is sent, and there is none: name one with `api_key_env`");
        return None;
    }
    Some(name.as_str().to_owned())
}

fn proxy(item: &Item<'_>) -> Option<SecretString> {
    let text = item.string()?;
    if http_url(&text, &["http", "https", "socks5", "socks5h"]).is_none() {
        item.fault("expected a URL that begins with http://, https://, socks5:// or socks5h://");
        return None;
    }
    Some(SecretString::from(text))
}

fn read_http2(mut item: Item<'_>, has_proxy: bool) -> Http2 {
    if item.as_str() == Some("auto") {
        return Http2::Auto;
    }
    match item.boolean() {
        Some(true) if has_proxy => {
            item.fault("HTTP/2 is not spoken over a proxy: leave out `http2` or `proxy`");
            Http2::Auto
        }
        Some(true) => Http2::Always,
        Some(false) => Http2::Never,
        None => Http2::Auto,
    }
}

fn ca_file(item: &Item<'_>) -> Option<PathBuf> {
    let path = PathBuf::from(item.string()?);
    match std::fs::read_to_string(&path) {
        Ok(text) if text.contains("-----BEGIN CERTIFICATE-----") => Some(path),
        Ok(_) => {
            item.fault("the file holds no certificate in PEM");
            None
        }
        Err(error) => {
            item.fault(format!("the file cannot be read: {error}"));
            None
        }
    }
}

/// `headers` holds values, `headers_env` the names of variables that hold them.
fn read_headers(
    reader: &mut Reader<'_>,
    key_header: Option<&str>,
) -> BTreeMap<String, SecretString> {
    let environment = reader.environment();
    let written = reader.take("headers").and_then(Item::entries);
    let named = reader.take("headers_env").and_then(Item::entries);
    let written = written.into_iter().flatten().map(|entry| (entry, false));
    let named = named.into_iter().flatten().map(|entry| (entry, true));
    let mut headers = BTreeMap::new();
    for ((name, item), is_named) in written.chain(named) {
        let Ok(name) = HeaderName::try_from(&name) else {
            item.fault("is not the name of a header");
            continue;
        };
        let name = name.as_str().to_owned();
        let is_public = !is_named && matches!(item.origin(), Origin::File { .. });
        if let Some(message) = check_header(&name, is_public, key_header) {
            item.fault(message);
            continue;
        }
        let value = if is_named {
            secret::variable(&item, environment).map(str::to_owned)
        } else {
            item.string()
        };
        let Some(value) = value else {
            continue;
        };
        if HeaderValue::try_from(&value).is_err() {
            item.fault("the value holds what no header can, such as a line break");
        } else if headers.insert(name, SecretString::from(value)).is_some() {
            item.fault("the header is given twice: case does not tell names apart");
        }
    }
    headers
}

/// `is_public`: its value stands in a file that people show each other. `key_header`: where the
/// upstream's key is sent, if it has one.
fn check_header(name: &str, is_public: bool, key_header: Option<&str>) -> Option<&'static str> {
    if OWN_HEADERS.contains(&name) {
        return Some("this header is made for each call");
    }
    if key_header == Some(name) {
        return Some("the upstream's key is sent in this header: use one of the two");
    }
    (is_public && secret::is_secret_name(name)).then_some(
        "a secret is not written here: name the variable that holds it in `headers_env`, or use \
         `api_key_env` or `api_key_file` if it is a key that is sent as a bearer token",
    )
}
