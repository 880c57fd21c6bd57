//! What tests of other rooms need: upstreams that nobody calls, and calls of which it is only said
//! how they went. By the clock of tokio, which may be paused.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reqwest::Url;
use reqwest::header::HeaderMap;
use tokio::time::Instant;

use super::provider::http::Head;
use super::settings::{Spill, UpstreamSettings};
use super::target::Ended;
pub(crate) use super::tests::upstream;
use super::tests::{model, route, settings};
use super::{History, Next, Options, Permit, Pool, provider};

/// One upstream with so many places, and models of so much concurrency each (`None`: as much as
/// the upstream).
pub fn pool(places: usize, models: &[(&str, Option<usize>)]) -> Arc<Pool> {
    let mut one = upstream("one", "http://127.0.0.1:1/v1");
    one.concurrency = places;
    let models = models.iter().map(|(name, concurrency)| {
        let mut model = model(name, vec![route("one", None)]);
        model.concurrency = *concurrency;
        model
    });
    let mut settings = settings(vec![one], models.collect());
    settings.retry.initial_backoff = Duration::from_millis(500);
    settings.retry.max_backoff = Duration::from_mins(1);
    Pool::new(&settings, Options::default()).expect("good settings")
}

/// A model `m` of two tiers, which spills late.
pub fn spilling_late() -> Arc<Pool> {
    let names = ["own", "paid"];
    let upstreams = names.map(|name| upstream(name, "http://127.0.0.1:1/v1"));
    let mut routes = names.map(|name| route(name, None));
    routes[1].tier = 1;
    let mut model = model("m", routes.to_vec());
    model.spill = Spill::Late;
    let settings = settings(upstreams.to_vec(), vec![model]);
    Pool::new(&settings, Options::default()).expect("good settings")
}

/// Where a chat is sent.
pub fn chat_url(upstream: &UpstreamSettings, model: &str) -> String {
    let base = Url::parse(&upstream.base_url).expect("a URL");
    let url = provider::of(upstream).url(&base, "/v1/chat/completions", model);
    url.into()
}

/// What becomes of a line whose call was answered so: `None`: it has ended; else after how long it
/// is sent again, and whether sooner once a call succeeds.
pub fn answered(permit: Permit, history: &mut History, status: u16) -> Option<(Duration, bool)> {
    let provider = provider::of(&upstream("one", "http://127.0.0.1:1/v1"));
    let head = Head {
        status,
        headers: HeaderMap::new(),
    };
    let body: &[u8] = match status {
        200..=299 => b"{}",
        _ => br#"{"error":{"message":"no"}}"#,
    };
    let decoded = provider.decode(&head, Bytes::from_static(body), None);
    let ended = Ended {
        result: provider.classify(&head, &decoded),
        status: Some(status),
        retry_after: None,
        used: None,
        remaining: Vec::new(),
        cause: format!("it answered {status}"),
    };
    match permit.finish(history, &ended) {
        Next::End => None,
        Next::Again { after, is_hastened } => Some((after, is_hastened)),
    }
}

/// When the next closed model or upstream may be tried.
pub fn next_opening(pool: &Pool) -> Option<Instant> {
    pool.targets().next_opening(Instant::now())
}
