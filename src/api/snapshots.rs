//! What operators read: how things stand in this process, and what the store says of all processes.
//! However many operators ask, the store is asked at most once in two seconds.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Mutex as AsyncMutex;

use super::engine::Engine;
use crate::domain::batch::Status;
use crate::metrics::{self, ProcessSnapshot, QueueOfModel, Snapshot};
use crate::store::{
    self, KeptOfTenant, ListedBatch, Queue, ReplicaLease, Store, TenantHolds, Undrained,
};

/// For how long an overview is given again before it is read anew.
const OVERVIEW_TTL: Duration = Duration::from_secs(2);
/// How long the database may take to answer. Operators do not wait longer for a database that is
/// away.
const READ_TIMEOUT: Duration = Duration::from_secs(2);
/// The longest time that a batch's rate is an average of.
const RATE_OVER_MAX: Duration = Duration::from_mins(1);
/// The shortest such time. An average of less time would jump with each flush.
const RATE_OVER_MIN: Duration = Duration::from_secs(2);

/// How things stand, for `/metrics` and `/admin/status`.
pub struct Snapshots {
    engine: Arc<dyn Engine>,
    overview: AsyncMutex<Option<(Instant, Option<Arc<Overview>>)>>,
    progress: Mutex<HashMap<String, VecDeque<(Instant, i64)>>>,
}

/// What the store says of the work of all processes.
#[derive(Debug)]
pub(super) struct Overview {
    pub statuses: Vec<(Status, i64)>,
    pub queues: Vec<QueueOfModel>,
    pub replicas: Vec<ReplicaLease>,
    /// Answers that are kept to be given to equal requests.
    pub kept: Vec<KeptOfTenant>,
}

impl Snapshots {
    #[must_use]
    pub fn new(engine: Arc<dyn Engine>) -> Self {
        Self {
            engine,
            overview: AsyncMutex::default(),
            progress: Mutex::default(),
        }
    }

    /// How things stand in this process.
    pub(super) fn process(&self) -> ProcessSnapshot {
        self.engine.snapshot()
    }

    /// What the store says, at most two seconds old. `None` where the database does not answer.
    /// `now_ms`: the wall-clock time from which ages are counted.
    pub(super) async fn overview(&self, store: &Store, now_ms: i64) -> Option<Arc<Overview>> {
        let mut known = self.overview.lock().await;
        if let Some((read, overview)) = &*known
            && read.elapsed() < OVERVIEW_TTL
        {
            return overview.clone();
        }
        let overview = in_time("what waits", self.read(store, now_ms)).await;
        let overview = overview.map(Arc::new);
        *known = Some((Instant::now(), overview.clone()));
        overview
    }

    /// The oldest live batches, and of those that ended since `since_ms` the last ones: at most
    /// `limit` of each. `None` where the database does not answer.
    pub(super) async fn batches(
        &self,
        store: &Store,
        since_ms: i64,
        limit: i64,
    ) -> Option<(Vec<ListedBatch>, Vec<ListedBatch>)> {
        let (live, ended) = tokio::join!(
            in_time("the live batches", store.live_batches(limit)),
            in_time("the ended batches", store.ended_batches(since_ms, limit)),
        );
        live.zip(ended)
    }

    /// What these tenants have in the store, by name. `None` where the database does not answer.
    pub(super) async fn tenants(
        &self,
        store: &Store,
        names: &[&str],
    ) -> Option<BTreeMap<String, TenantHolds>> {
        in_time("what tenants have", store.held_by_tenants(names)).await
    }

    /// The whole snapshot, for the metrics.
    pub(super) async fn snapshot(&self, store: &Store, now_ms: i64) -> Snapshot {
        let overview = self.overview(store, now_ms).await;
        let database = overview.map(|overview| metrics::Database {
            batches: overview
                .statuses
                .iter()
                .map(|(status, count)| (status.as_str(), *count))
                .collect(),
            queue: overview.queues.clone(),
            replicas: overview.replicas.len(),
            kept_answers: overview.kept.iter().map(|one| one.answers).sum(),
            kept_bytes: overview.kept.iter().map(|one| one.bytes).sum(),
        });
        Snapshot {
            database,
            process: self.process(),
        }
    }

    /// The processes that may have calls in flight at an upstream that was disabled at this time.
    /// `None` where the database does not answer.
    pub(super) async fn undrained(
        &self,
        store: &Store,
        upstream: &str,
        at_ms: i64,
    ) -> Option<Vec<Undrained>> {
        in_time("who is drained", store.undrained(upstream, at_ms)).await
    }

    /// Lines a second of each batch: over the last minute, as far back as this was asked, and else
    /// since the batch began. `now_ms`: the wall-clock time.
    pub(super) fn rates(&self, batches: &[ListedBatch], now_ms: i64) -> Vec<f64> {
        let now = Instant::now();
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        progress.retain(|id, _| batches.iter().any(|batch| batch.id == *id));
        let rate = |batch: &ListedBatch| {
            let done = batch.counts.completed + batch.counts.failed;
            let looks = progress.entry(batch.id.clone()).or_default();
            let lately = rate_between(looks, now, done);
            lately.unwrap_or_else(|| rate_since(batch, done, now_ms))
        };
        batches.iter().map(rate).collect()
    }

    async fn read(&self, store: &Store, now_ms: i64) -> store::Result<Overview> {
        Ok(Overview {
            statuses: store.live_statuses().await?,
            queues: self.labelled(store.queues(now_ms).await?, now_ms),
            replicas: store.replicas().await?,
            kept: store.kept_of_tenants().await?,
        })
    }

    /// The queues by the models' labels in the metrics. Models without a label of their own are
    /// summed.
    fn labelled(&self, queues: Vec<Queue>, now_ms: i64) -> Vec<QueueOfModel> {
        let mut by_label: BTreeMap<String, QueueOfModel> = BTreeMap::new();
        for queue in queues {
            let label = self.engine.label(queue.task.as_deref(), &queue.model);
            let sum = by_label.entry(label).or_default();
            sum.waiting_units += queue.waiting;
            sum.leased_units += queue.leased;
            let age = queue
                .oldest
                .map_or(0, |oldest| now_ms.saturating_sub(oldest));
            sum.window_used = sum.window_used.max(queue.window_used.unwrap_or(0.0));
            sum.oldest_seconds = sum.oldest_seconds.max(age as f64 / 1000.0);
        }
        let named = by_label.into_iter();
        named
            .map(|(model, queue)| QueueOfModel { model, ..queue })
            .collect()
    }
}

/// The store's answer. `None` if it fails, or takes longer than [`READ_TIMEOUT`].
async fn in_time<T>(what: &str, answer: impl Future<Output = store::Result<T>>) -> Option<T> {
    match tokio::time::timeout(READ_TIMEOUT, answer).await {
        Ok(Ok(answer)) => Some(answer),
        Ok(Err(error)) => {
            tracing::debug!(%error, "{what} could not be read");
            None
        }
        Err(_) => None,
    }
}

/// Lines a second since the first of the earlier looks that is not too long ago. Remembers this
/// look.
fn rate_between(looks: &mut VecDeque<(Instant, i64)>, now: Instant, done: i64) -> Option<f64> {
    while let Some((then, _)) = looks.front()
        && now.duration_since(*then) > RATE_OVER_MAX
    {
        looks.pop_front();
    }
    let is_new = |(then, _): &(Instant, i64)| now.duration_since(*then) >= Duration::from_secs(1);
    if looks.back().is_none_or(is_new) {
        looks.push_back((now, done));
    }
    let (then, before) = looks.front()?;
    let elapsed = now.duration_since(*then);
    (elapsed >= RATE_OVER_MIN).then(|| (done - before) as f64 / elapsed.as_secs_f64())
}

/// Lines a second from a batch's beginning to its end.
pub(super) fn rate_of_ended(batch: &ListedBatch) -> f64 {
    let done = batch.counts.completed + batch.counts.failed;
    batch
        .ended_at
        .map_or(0.0, |ended_at| rate_since(batch, done, ended_at))
}

fn rate_since(batch: &ListedBatch, done: i64, now_ms: i64) -> f64 {
    let elapsed_ms = batch.in_progress_at.map_or(0, |at| now_ms - at);
    if elapsed_ms <= 0 {
        return 0.0;
    }
    done as f64 * 1000.0 / elapsed_ms as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::tests::TestEngine;

    #[test]
    fn a_rate_is_of_the_looks_of_the_last_minute() {
        let mut looks = VecDeque::new();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(rate_between(&mut looks, at(0), 0), None);
        assert_eq!(rate_between(&mut looks, at(1), 500), None, "too soon");
        assert_eq!(rate_between(&mut looks, at(10), 1000), Some(100.0));
        assert_eq!(rate_between(&mut looks, at(65), 1550), Some(10.0));
        assert_eq!(rate_between(&mut looks, at(300), 9999), None, "forgotten");
    }

    #[test]
    fn models_without_a_label_of_their_own_are_one() {
        let snapshots = Snapshots::new(Arc::new(TestEngine::new(&["known"])));
        let queue = |model: &str, oldest, window_used| Queue {
            model: model.to_owned(),
            task: None,
            waiting: 1,
            leased: 2,
            oldest,
            window_used,
        };
        let queues = vec![
            queue("a", Some(4000), Some(0.5)),
            queue("b", Some(2000), None),
            queue("known", None, None),
            Queue {
                task: Some("known".to_owned()),
                ..queue("", None, None)
            },
        ];
        let of = |model: &str, waiting_units, oldest_seconds, window_used| QueueOfModel {
            model: model.to_owned(),
            waiting_units,
            leased_units: 2 * waiting_units,
            oldest_seconds,
            window_used,
        };
        assert_eq!(
            snapshots.labelled(queues, 5000),
            [of("known", 2, 0.0, 0.0), of("other", 2, 3.0, 0.5)]
        );
    }
}
