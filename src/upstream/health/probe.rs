//! Looking after upstreams beside the lines: probing those that are down, and asking which models
//! the others have. Both are one request, `GET /models`.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::future::{join, join_all};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::upstream::attempt::client::{Client, Failure, Listing};
use crate::upstream::attempt::result::CallResult;
use crate::upstream::models::ModelInfo;
use crate::upstream::settings::Pace;
use crate::upstream::setup::{Current, Server};
use crate::upstream::target::Targets;
use crate::upstream::target::backend::Backends;

/// What looks after the upstreams of a process.
#[derive(Debug)]
pub(in crate::upstream) struct Probes {
    shared: Arc<Shared>,
    created: Instant,
    /// There may be other upstreams to look after.
    reloaded: Notify,
}

#[derive(Debug)]
struct Shared {
    current: Arc<Current>,
    targets: Arc<Targets>,
    pace: Pace,
    /// Upstreams of the first configuration that have not been asked for their models yet.
    unasked: watch::Sender<usize>,
}

/// An upstream that is looked after.
struct LookedAfter {
    client: Arc<Client>,
    /// Ends the upstream's loop.
    _end: DropGuard,
}

impl Probes {
    pub(in crate::upstream) fn new(
        current: Arc<Current>,
        targets: Arc<Targets>,
        pace: Pace,
    ) -> Self {
        let unasked = watch::Sender::new(current.get().upstreams.len());
        Self {
            shared: Arc::new(Shared {
                current,
                targets,
                pace,
                unasked,
            }),
            created: Instant::now(),
            reloaded: Notify::new(),
        }
    }

    /// There may be other upstreams to look after.
    pub(in crate::upstream) fn reload(&self) {
        self.reloaded.notify_one();
    }

    /// Looks after all upstreams, for ever.
    pub(in crate::upstream) async fn run(&self) {
        join(self.look_after_all(), self.shared.watch_closed()).await;
    }

    /// Has a loop for each upstream that is configured.
    async fn look_after_all(&self) {
        let mut loops = JoinSet::new();
        let mut looked_after: BTreeMap<usize, LookedAfter> = BTreeMap::new();
        loop {
            let setup = self.shared.current.get();
            looked_after.retain(|_, one| setup.has(&one.client));
            for server in &setup.upstreams {
                looked_after.entry(server.number).or_insert_with(|| {
                    let end = CancellationToken::new();
                    let look_after = Arc::clone(&self.shared).look_after(server);
                    loops.spawn(end.clone().run_until_cancelled_owned(look_after));
                    LookedAfter {
                        client: Arc::clone(&server.client),
                        _end: end.drop_guard(),
                    }
                });
            }
            drop(setup);
            loop {
                tokio::select! {
                    () = self.reloaded.notified() => break,
                    Some(_) = loops.join_next() => {}
                }
            }
        }
    }

    /// Waits until every upstream was asked for its models once, but not longer than
    /// [`Pace::first_discovery_max`] from the start: before that, it may seem that nobody has a
    /// model. Returns at once where models are not routed by what upstreams report.
    pub(in crate::upstream) async fn discovered(&self) {
        let Shared { current, pace, .. } = &*self.shared;
        if !current.get().routing.needs_reports() {
            return;
        }
        let end = self.created + pace.first_discovery_max;
        let mut unasked = self.shared.unasked.subscribe();
        let all_asked = unasked.wait_for(|unasked| *unasked == 0);
        let waited = tokio::time::timeout_at(end, all_asked).await;
        if waited.is_err() {
            tracing::warn!("some upstreams have not told their models yet");
        }
    }
}

impl Shared {
    /// Has the upstream probed, and its engine asked for its metrics.
    fn look_after(self: Arc<Self>, server: &Server) -> impl Future<Output = ()> + use<> {
        let (number, client) = (server.number, Arc::clone(&server.client));
        let reader = server.reader.clone();
        async move {
            let read = async {
                if let Some(reader) = &reader {
                    reader.run(number, &self.targets).await;
                }
            };
            join(self.probe_and_discover(number, &client), read).await;
        }
    }

    /// The loop of one upstream: probes it while it cannot be reached, and else asks now and then
    /// which models it has.
    async fn probe_and_discover(&self, upstream: usize, client: &Client) {
        let mut asked_at: Option<Instant> = None;
        let attention = self.targets.attention(upstream);
        let mut is_asked = false;
        loop {
            let probe_at = self.targets.probe_due(upstream);
            let wants_reports = self.current.get().routing.wants_reports();
            let discover_at = wants_reports
                .then(|| asked_at.map_or_else(Instant::now, |asked| asked + self.pace.discovery));
            let due = async {
                match probe_at.or(discover_at) {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = due => {}
                // Something has changed: think again. A change that came before is not missed.
                () = attention.notified() => continue,
            }
            if probe_at.is_some() {
                self.probe(upstream, client).await;
            } else {
                self.discover(upstream, client).await;
                asked_at = Some(Instant::now());
            }
            if !is_asked {
                is_asked = true;
                self.unasked
                    .send_modify(|unasked| *unasked = unasked.saturating_sub(1));
            }
        }
    }

    async fn probe(&self, upstream: usize, client: &Client) {
        let (answer, models, cause) = match self.list_models(upstream, client).await {
            Ok(listing) => {
                let cause = format!("it answered {}", listing.status);
                (Some(listing.is_own), listing.models, cause)
            }
            Err(failure) => (None, None, failure.cause),
        };
        self.report_models(upstream, models);
        self.targets.on_probe(upstream, answer, cause);
    }

    async fn discover(&self, upstream: usize, client: &Client) {
        match self.list_models(upstream, client).await {
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
    async fn list_models(&self, upstream: usize, client: &Client) -> Result<Listing, Failure> {
        let key = self.targets.key_to_ask_with(upstream);
        client.list_models(key).await
    }

    fn report_models(&self, upstream: usize, models: Option<Vec<ModelInfo>>) {
        if let Some(models) = models
            && self.current.get().routing.report(upstream, models)
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
pub(in crate::upstream) async fn try_all(upstreams: &[Server], backends: &Backends) -> Vec<Tried> {
    let ways = upstreams.iter().flat_map(|Server { number, client, .. }| {
        let names = backends.key_names(*number);
        let keys = 0..names.len().max(1);
        keys.map(move |key| (*number, client, key, names.get(key).cloned()))
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
