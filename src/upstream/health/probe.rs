//! Looking after upstreams beside the lines: probing those that are down, and asking which models
//! the others have. Both are one request, `GET /models`.

use std::sync::Arc;

use futures::future::{join, join_all};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::upstream::attempt::client::{Client, Failure, Listing};
use crate::upstream::attempt::result::CallResult;
use crate::upstream::models::ModelInfo;
use crate::upstream::route::Routing;
use crate::upstream::settings::Pace;
use crate::upstream::target::Targets;
use crate::upstream::target::backend::Backends;

/// What looks after the upstreams of a process.
#[derive(Debug)]
pub(in crate::upstream) struct Probes {
    clients: Arc<[Client]>,
    targets: Arc<Targets>,
    routing: Arc<Routing>,
    pace: Pace,
    created: Instant,
    /// Upstreams that have not been asked for their models yet.
    unasked: watch::Sender<usize>,
}

impl Probes {
    pub(in crate::upstream) fn new(
        clients: Arc<[Client]>,
        targets: Arc<Targets>,
        routing: Arc<Routing>,
        pace: Pace,
    ) -> Self {
        Self {
            unasked: watch::Sender::new(clients.len()),
            created: Instant::now(),
            clients,
            targets,
            routing,
            pace,
        }
    }

    /// Looks after all upstreams, for ever.
    pub(in crate::upstream) async fn run(&self) {
        let upstreams = (0..self.clients.len()).map(|upstream| self.look_after(upstream));
        join(join_all(upstreams), self.watch_closed()).await;
    }

    /// Waits until every upstream was asked for its models once, but not longer than
    /// [`Pace::first_discovery_max`] from the start: before that, it may seem that nobody has a
    /// model. Returns at once where models are not routed by what upstreams report.
    pub(in crate::upstream) async fn discovered(&self) {
        if !self.routing.needs_reports() {
            return;
        }
        let end = self.created + self.pace.first_discovery_max;
        let mut unasked = self.unasked.subscribe();
        let all_asked = unasked.wait_for(|unasked| *unasked == 0);
        let waited = tokio::time::timeout_at(end, all_asked).await;
        if waited.is_err() {
            tracing::warn!("some upstreams have not told their models yet");
        }
    }

    /// The loop of one upstream: probes it while it cannot be reached, and else asks now and then
    /// which models it has.
    async fn look_after(&self, upstream: usize) {
        let mut discover_at = self.routing.wants_reports().then(Instant::now);
        let mut is_asked = false;
        loop {
            let probe_at = self.targets.probe_due(upstream);
            let due = async {
                match probe_at.or(discover_at) {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = due => {}
                // Something has changed: think again. A change that came before is not missed.
                () = self.targets.attention[upstream].notified() => continue,
            }
            if probe_at.is_some() {
                self.probe(upstream).await;
            } else {
                self.discover(upstream).await;
                discover_at = Some(Instant::now() + self.pace.discovery);
            }
            if !is_asked {
                is_asked = true;
                self.unasked.send_modify(|unasked| *unasked -= 1);
            }
        }
    }

    async fn probe(&self, upstream: usize) {
        let (answer, models, cause) = match self.list_models(upstream).await {
            Ok(listing) => {
                let cause = format!("it answered {}", listing.status);
                (Some(listing.is_own), listing.models, cause)
            }
            Err(failure) => (None, None, failure.cause),
        };
        self.report_models(upstream, models);
        self.targets.on_probe(upstream, answer, cause);
    }

    async fn discover(&self, upstream: usize) {
        match self.list_models(upstream).await {
            Ok(listing) => {
                self.targets.on_discovery(upstream, None);
                self.report_models(upstream, listing.models);
            }
            // Better found out now than by a line. A slow answer says less: it may be busy.
            Err(failure) if failure.result == CallResult::Unreachable => {
                self.targets.on_discovery(upstream, Some(&failure.cause));
            }
            Err(_) => {}
        }
    }

    /// Asks with a key that is not refused, as far as is known.
    async fn list_models(&self, upstream: usize) -> Result<Listing, Failure> {
        let key = self.targets.key_to_ask_with(upstream);
        self.clients[upstream].list_models(key).await
    }

    fn report_models(&self, upstream: usize, models: Option<Vec<ModelInfo>>) {
        if let Some(models) = models
            && self.routing.report(upstream, models)
        {
            self.targets.changed.notify_one();
        }
    }

    /// Wakes the dispatcher when something that is closed may be tried.
    async fn watch_closed(&self) {
        loop {
            let next = self.targets.next_opening(Instant::now());
            let opened = async {
                match next {
                    Some(opens) => tokio::time::sleep_until(opens).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = opened => self.targets.changed.notify_one(),
                () = self.targets.closed.notified() => {}
            }
        }
    }
}

/// Asks each upstream once, with each of its keys: which models it lists, or what is wrong, in
/// words. Where there are several keys, each is named.
pub(in crate::upstream) async fn try_all(clients: &[Client], backends: &Backends) -> Vec<Tried> {
    let upstreams = clients.iter().enumerate();
    let ways = upstreams.flat_map(|(upstream, client)| {
        let names = backends.key_names(upstream);
        let keys = 0..names.len().max(1);
        keys.map(move |key| (upstream, client, key, names.get(key)))
    });
    let tries = ways.map(async |(upstream, client, key, key_name)| Tried {
        upstream,
        name: client.name.as_ref().to_owned(),
        key: key_name.map(|name| name.as_ref().to_owned()),
        models: try_one(client, key).await,
    });
    join_all(tries).await
}

/// An upstream that was asked for its models.
#[derive(Debug)]
pub struct Tried {
    pub(in crate::upstream) upstream: usize,
    /// The upstream's name.
    pub name: String,
    /// The name of the key, where there are several.
    pub key: Option<String>,
    /// What it lists, or what is wrong, in words.
    pub models: Result<Vec<ModelInfo>, String>,
}

impl Tried {
    /// The upstream, and its key where that matters.
    #[must_use]
    pub fn subject(&self) -> String {
        match &self.key {
            Some(key) => format!("{} by {key}", self.name),
            None => self.name.clone(),
        }
    }
}

async fn try_one(client: &Client, key: usize) -> Result<Vec<ModelInfo>, String> {
    let listing = client.list_models(key).await;
    let listing = listing.map_err(|failure| failure.cause)?;
    match (listing.status, listing.models) {
        (_, Some(models)) => Ok(models),
        (status @ 200..=299, None) => Err(format!(
            "it answers {status} at /models, but with no list of models: is base_url right?"
        )),
        (401, None) => Err("it answers 401: the key is missing or wrong".to_owned()),
        (status, None) => Err(format!("it answers {status} at /models")),
    }
}
