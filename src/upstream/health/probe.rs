//! Looking after upstreams beside the lines: probing those that are down, and asking which models
//! they have. Both are one request: `GET /models`.

use std::sync::Arc;

use futures::future::{join, join_all};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::upstream::ModelInfo;
use crate::upstream::attempt::client::FailureKind;
use crate::upstream::pool::Pool;

impl Pool {
    /// Probes upstreams that are down and asks those that are up for their models, until stopped.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let upstreams = (0..self.upstreams.len()).map(|upstream| self.tend(upstream));
        let duties = join(join_all(upstreams), self.watch_closed());
        tokio::select! {
            () = stop.cancelled() => {}
            _ = duties => {}
        }
    }

    /// Waits until every upstream was asked for its models once, but not longer than five seconds
    /// ([`Pace`](crate::upstream::Pace)) from the start: before that, a model may seem to be nobody's.
    /// Returns at once where models are not routed by what upstreams report.
    pub async fn discovered(&self) {
        if !self.routing.needs_reports() {
            return;
        }
        let end = self.created + self.options.pace.first_discovery_max;
        let mut unasked = self.unasked.subscribe();
        let all_asked = unasked.wait_for(|unasked| *unasked == 0);
        let waited = tokio::time::timeout_at(end, all_asked).await;
        if waited.is_err() {
            tracing::warn!("some upstreams have not told their models yet");
        }
    }

    /// Tries each upstream once: which models it lists, or what is wrong, in words.
    pub async fn try_upstreams(&self) -> Vec<(String, Result<Vec<ModelInfo>, String>)> {
        let tries = self.upstreams.iter().map(async |upstream| {
            let result = match upstream.models().await {
                Ok((_, Some(models))) => Ok(models),
                Ok((status @ 200..=299, None)) => Err(format!(
                    "it answers {status} at /models, but with no list of models: is base_url right?"
                )),
                Ok((401, None)) => Err("it answers 401: the key is missing or wrong".to_owned()),
                Ok((status, None)) => Err(format!("it answers {status} at /models")),
                Err(failure) => Err(failure.cause),
            };
            (upstream.name.clone(), result)
        });
        join_all(tries).await
    }

    /// Looks after one upstream: probes it while it cannot be reached, and else asks now and then
    /// which models it has.
    async fn tend(&self, upstream: usize) {
        let mut discover_at = self.routing.wants_reports().then(Instant::now);
        let mut is_asked = false;
        loop {
            let probe_at = self.probe_due(upstream);
            let due = async {
                match probe_at.or(discover_at) {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = due => {}
                // Something has changed: think again. A change that came before is not missed.
                () = self.attention[upstream].notified() => continue,
            }
            if probe_at.is_some() {
                self.probe(upstream).await;
            } else {
                self.discover(upstream).await;
                discover_at = Some(Instant::now() + self.options.pace.discovery);
            }
            if !is_asked {
                is_asked = true;
                self.unasked.send_modify(|unasked| *unasked -= 1);
            }
        }
    }

    async fn probe(&self, upstream: usize) {
        let (answers, models, cause) = match self.upstreams[upstream].models().await {
            Ok((status, models)) => {
                // What a gateway says for a server that is not there; any other answer is its own.
                let answers = !matches!(status, 502..=504 | 520..=529);
                (Some(answers), models, format!("it answered {status}"))
            }
            Err(failure) => (None, None, failure.cause),
        };
        self.report_models(upstream, models);
        self.probed(upstream, answers, cause);
    }

    async fn discover(&self, upstream: usize) {
        match self.upstreams[upstream].models().await {
            Ok((_, models)) => {
                self.looked_at(upstream, None);
                self.report_models(upstream, models);
            }
            // Better found out now than by a line. A slow answer says less: it may be busy.
            Err(failure) if failure.kind == FailureKind::Unreachable => {
                self.looked_at(upstream, Some(&failure.cause));
            }
            Err(_) => {}
        }
    }

    fn report_models(&self, upstream: usize, models: Option<Vec<ModelInfo>>) {
        if let Some(models) = models
            && self.routing.report(upstream, models)
        {
            self.changed.notify_one();
        }
    }

    /// Wakes the dispatcher when something that is closed may be tried.
    async fn watch_closed(&self) {
        loop {
            let next = self.next_opening(Instant::now());
            let opened = async {
                match next {
                    Some(opens) => tokio::time::sleep_until(opens).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = opened => self.changed.notify_one(),
                () = self.closed.notified() => {}
            }
        }
    }
}
