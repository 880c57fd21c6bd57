//! Reuse of answers: a line whose answer is known needs no call, and lines that ask the same at the
//! same time share one.
//!
//! A line comes here once its target is chosen. What it would ask there is its key
//! ([`Pool::reuse_key`](crate::upstream::Pool::reuse_key)). The first line of a key looks in the
//! store, and is sent if nothing is found; the lines of that key that come meanwhile wait for it,
//! without a permit. If its call brings no answer, each of those runs by itself. An answer stays
//! here until it is in the store, so that no line falls between the two.
//!
//! The store is read and written in groups, by two tasks: whoever looks while a statement is under
//! way is answered by the next one, and answers are written a few times a second. Where few lines
//! are in flight, a statement looks for the lines behind them, too. Answers are not
//! written with the flush, because they can wait and the answers of lines cannot: what is not kept
//! is one more call.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{Notify, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::codec;
use crate::domain::current::Current;
use crate::domain::outcome::{Form, Warning};
use crate::domain::reuse::{self, Choice, Key, Mode};
use crate::metrics::{ReuseMetrics, metrics};
use crate::store::{self, KeptAnswer, NewAnswer, Store};
use crate::upstream::Answer;
use crate::worker::work::settings::Rules;
use crate::worker::work::unit::BatchContext;

/// The largest answer that is shared or kept.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// Keys that one statement looks for, of lines that wait for the answer, and in all.
const LOOKED_UP_AT_ONCE: usize = 32;
const KEYS_AT_ONCE: usize = 64;
/// While fewer lines than this ask, a statement looks for the keys of so many lines behind them.
const FEW_ASK: usize = 8;
pub(crate) const LINES_AHEAD: usize = 31;
/// How long what was found so is used.
const AHEAD_FOR: Duration = Duration::from_secs(5);
/// How many keys are known so at most, and how many bytes of answers.
const AHEAD_KEYS_MAX: usize = 2_048;
const AHEAD_BYTES_MAX: usize = 4 << 20;
/// How long an answer waits for others to be written with.
const WRITTEN_AFTER: Duration = Duration::from_millis(250);
/// What one transaction writes, before it is compressed.
const WRITTEN_BYTES: usize = 2 << 20;
const WRITTEN_ANSWERS: usize = 256;
/// While so many bytes wait to be written, no further answers are kept.
const UNWRITTEN_BYTES_MAX: usize = 8 << 20;
/// How often answers are tried to be written, and how long after each other.
const WRITE_TRIES: usize = 3;
const WRITE_PAUSE: Duration = Duration::from_secs(1);
const COMPRESSION_LEVEL: i32 = 1;

/// An answer that is given to more lines than the one that was sent.
#[derive(Debug)]
pub(crate) struct SharedAnswer {
    pub status: u16,
    /// The model server's own.
    pub request_id: Option<String>,
    pub body: Bytes,
    pub form: Form,
    pub warnings: Vec<Warning>,
    /// When the answer was kept or, where it is not in the store yet, when the batch was created
    /// that it was asked for. In milliseconds.
    since: i64,
}

/// What a line that may be answered by another's answer does next.
pub(crate) enum Begun {
    /// It gets this answer.
    Answered(Arc<SharedAnswer>),
    /// Another line asks the same at this moment.
    Waits(Waiting),
    /// It is the one that asks.
    Asks(Asking),
    /// It asks for itself alone.
    Alone,
}

/// The answer of another line, which is on its way.
pub(crate) struct Waiting(watch::Receiver<Option<Arc<SharedAnswer>>>);

/// The right to ask for a key. Dropped without an answer, it sends those who wait on their own way.
pub(crate) struct Asking {
    reuse: Arc<Reuse>,
    key: Key,
    answer: watch::Sender<Option<Arc<SharedAnswer>>>,
    /// The answer stands in the place of the question.
    is_settled: bool,
}

pub(crate) struct Reuse {
    store: Store,
    rules: Current<Rules>,
    /// Whether any batch may have answers reused, by the rules of now.
    is_on: AtomicBool,
    state: Mutex<State>,
    looked_up: Notify,
    kept: Notify,
    metrics: ReuseMetrics,
}

#[derive(Default)]
struct State {
    keys: HashMap<Key, Known>,
    lookups: Vec<Lookup>,
    ahead: Ahead,
    unwritten: Vec<Unwritten>,
    unwritten_bytes: usize,
}

/// What is known of a key here.
enum Known {
    Asked(watch::Receiver<Option<Arc<SharedAnswer>>>),
    /// On its way to the store.
    Answered(Arc<SharedAnswer>),
}

/// A line that waits for what the store has.
struct Lookup {
    key: Key,
    answer: oneshot::Sender<Option<SharedAnswer>>,
    /// Keys of the lines behind it.
    ahead: Vec<Key>,
}

/// What the store was found to have for a key, or that it has nothing.
struct Found(Option<SharedAnswer>);

/// What the store was found to have for lines that have not come yet.
#[derive(Default)]
struct Ahead {
    by_key: HashMap<Key, (Instant, Found)>,
    bytes: usize,
}

impl Ahead {
    /// What is known of a key, for one line.
    fn take(&mut self, key: &Key) -> Option<Found> {
        let (at, found) = self.by_key.remove(key)?;
        self.bytes -= found.bytes();
        (at.elapsed() < AHEAD_FOR).then_some(found)
    }

    fn insert(&mut self, key: Key, found: Found) {
        self.take(&key);
        if self.by_key.len() >= AHEAD_KEYS_MAX || self.bytes >= AHEAD_BYTES_MAX {
            // Most are of lines that went another way.
            *self = Self::default();
        }
        self.bytes += found.bytes();
        self.by_key.insert(key, (Instant::now(), found));
    }
}

impl Found {
    fn bytes(&self) -> usize {
        self.0.as_ref().map_or(0, |answer| answer.body.len())
    }
}

/// An answer that is to be written.
struct Unwritten {
    key: Key,
    tenant: Arc<str>,
    file_id: Arc<str>,
    answer: Arc<SharedAnswer>,
}

impl Reuse {
    pub(crate) fn new(store: Store, rules: Current<Rules>) -> Arc<Self> {
        let reuse = Self {
            store,
            is_on: AtomicBool::new(false),
            rules,
            state: Mutex::default(),
            looked_up: Notify::new(),
            kept: Notify::new(),
            metrics: metrics().reuse(),
        };
        reuse.renew();
        Arc::new(reuse)
    }

    /// Takes in the rules of now.
    pub(crate) fn renew(&self) {
        let is_on = self.rules.get().reuse.mode != Mode::Off;
        self.is_on.store(is_on, Ordering::Relaxed);
    }

    /// The mode that holds for a batch. `None`: its lines are sent without a look.
    #[inline]
    pub(crate) fn mode_of(&self, batch: &BatchContext) -> Option<Mode> {
        if !self.is_on.load(Ordering::Relaxed) {
            return None;
        }
        let mode = self.rules.get().reuse.mode_of(batch.reuse);
        (mode != Mode::Off).then_some(mode)
    }

    /// A line of this key is about to be sent. `alone`: it has waited for another line in vain, and
    /// does not wait again. `behind`: the keys of the lines behind it, as far as they are known.
    pub(crate) async fn begin(
        self: &Arc<Self>,
        key: Key,
        batch: &BatchContext,
        alone: bool,
        behind: impl FnOnce() -> Vec<Key>,
    ) -> Begun {
        let (asking, known, few_ask) = {
            let mut state = self.lock();
            match state.keys.get(&key) {
                Some(Known::Answered(answer)) if is_fresh_enough(batch, answer) => {
                    self.metrics.shared();
                    return Begun::Answered(Arc::clone(answer));
                }
                Some(Known::Asked(_)) if alone => {
                    self.metrics.sent();
                    return Begun::Alone;
                }
                Some(Known::Asked(answer)) => return Begun::Waits(Waiting(answer.clone())),
                Some(Known::Answered(_)) | None => {}
            }
            let (sender, receiver) = watch::channel(None);
            state.keys.insert(key, Known::Asked(receiver));
            let asking = Asking {
                reuse: Arc::clone(self),
                key,
                answer: sender,
                is_settled: false,
            };
            let few_ask = state.keys.len() < FEW_ASK;
            (asking, state.ahead.take(&key), few_ask)
        };
        let found = if let Some(Found(found)) = known {
            found
        } else {
            let behind = if few_ask { behind() } else { Vec::new() };
            self.look_up(key, behind).await
        };
        match found {
            Some(answer) if is_fresh_enough(batch, &answer) => {
                let answer = Arc::new(answer);
                asking.answer.send_replace(Some(Arc::clone(&answer)));
                self.metrics.stored();
                Begun::Answered(answer)
            }
            _ => {
                self.metrics.sent();
                Begun::Asks(asking)
            }
        }
    }

    /// Looks for a key in the store, together with others.
    async fn look_up(&self, key: Key, ahead: Vec<Key>) -> Option<SharedAnswer> {
        let (answer, receive) = oneshot::channel();
        self.lock().lookups.push(Lookup { key, answer, ahead });
        self.looked_up.notify_one();
        receive.await.ok()?
    }

    /// Looks up what lines ask for, until stopped.
    pub(crate) async fn read(self: Arc<Self>, stop: CancellationToken) -> &'static str {
        let read = async {
            loop {
                self.looked_up.notified().await;
                while let Some(lookups) = self.next_lookups() {
                    self.answer(lookups).await;
                }
            }
        };
        stop.run_until_cancelled(read).await;
        // Nobody waits for an answer that does not come.
        self.lock().lookups.clear();
        "reuse"
    }

    fn next_lookups(&self) -> Option<Vec<Lookup>> {
        let mut state = self.lock();
        let some = state.lookups.len().min(LOOKED_UP_AT_ONCE);
        (some > 0).then(|| state.lookups.drain(..some).collect())
    }

    async fn answer(&self, lookups: Vec<Lookup>) {
        let mut keys: Vec<Key> = lookups.iter().map(|lookup| lookup.key).collect();
        let waited_for = keys.len();
        for key in lookups.iter().flat_map(|lookup| &lookup.ahead) {
            if keys.len() < KEYS_AT_ONCE && !keys.contains(key) {
                keys.push(*key);
            }
        }
        let found = self.store.kept_answers(&keys, self.ttl_ms()).await;
        let Ok(mut found) = found.inspect_err(|error| {
            tracing::debug!(%error, "kept answers could not be read: the lines are sent");
        }) else {
            return;
        };
        let mut state = self.lock();
        for key in &keys[waited_for..] {
            // What is asked for, or was answered just now, is known better.
            if !state.keys.contains_key(key) {
                let answer = found.remove(key).and_then(SharedAnswer::read);
                state.ahead.insert(*key, Found(answer));
            }
        }
        drop(state);
        for lookup in lookups {
            let answer = found.remove(&lookup.key).and_then(SharedAnswer::read);
            lookup.answer.send(answer).ok();
        }
    }

    fn ttl_ms(&self) -> i64 {
        let ttl = self.rules.get().reuse.ttl.as_millis();
        i64::try_from(ttl).unwrap_or(i64::MAX)
    }

    /// Writes answers that are to be kept, until stopped; then those that are left.
    pub(crate) async fn write(self: Arc<Self>, stop: CancellationToken) -> &'static str {
        loop {
            let due = async {
                self.kept.notified().await;
                tokio::time::sleep(WRITTEN_AFTER).await;
            };
            let goes_on = stop.run_until_cancelled(due).await.is_some();
            // Not cut off: what is being written is in no list any more.
            self.write_all().await;
            if !goes_on {
                return "kept answers";
            }
        }
    }

    async fn write_all(&self) {
        while let Some(group) = self.next_group() {
            let mut tries = 1;
            while let Err(error) = self.write_group(&group).await {
                if tries == WRITE_TRIES {
                    tracing::warn!(
                        %error,
                        answers = group.len(),
                        "answers could not be kept for reuse; they are written for their lines \
                         all the same"
                    );
                    self.metrics.unkept(group.len());
                    break;
                }
                tries += 1;
                tokio::time::sleep(WRITE_PAUSE).await;
            }
            self.forget(&group);
        }
    }

    /// What one transaction writes next.
    fn next_group(&self) -> Option<Vec<Unwritten>> {
        let mut state = self.lock();
        let mut bytes = 0;
        let size = state.unwritten.iter().take(WRITTEN_ANSWERS);
        let size = size.take_while(|unwritten| {
            let fits = bytes < WRITTEN_BYTES;
            bytes += unwritten.answer.body.len();
            fits
        });
        let size = size.count();
        (size > 0).then(|| state.unwritten.drain(..size).collect())
    }

    async fn write_group(&self, group: &[Unwritten]) -> store::Result<()> {
        // A key that was asked for twice is kept as it was answered last.
        let mut last: HashMap<Key, &Unwritten> = HashMap::new();
        for unwritten in group {
            last.insert(unwritten.key, unwritten);
        }
        let answers: Vec<(Key, Arc<SharedAnswer>, String, String)> = last
            .into_values()
            .map(|unwritten| {
                let (tenant, file_id) = (&*unwritten.tenant, &*unwritten.file_id);
                let answer = Arc::clone(&unwritten.answer);
                (unwritten.key, answer, tenant.to_owned(), file_id.to_owned())
            })
            .collect();
        let compress = move || {
            let answers = answers.into_iter();
            let new = answers
                .filter_map(|(key, answer, tenant, file_id)| answer.into_new(key, tenant, file_id));
            new.collect::<Vec<NewAnswer>>()
        };
        let Ok(new) = tokio::task::spawn_blocking(compress).await else {
            return Ok(());
        };
        self.store.keep_answers(&new).await?;
        let max_bytes = self.rules.get().reuse.max_bytes;
        let room = self.store.make_room(max_bytes).await;
        // They are kept all the same, and the next ones or the clean-up make room.
        room.inspect_err(|error| tracing::debug!(%error, "no room was made for kept answers"))
            .ok();
        Ok(())
    }

    /// What was written is found in the store from now on.
    fn forget(&self, group: &[Unwritten]) {
        let mut state = self.lock();
        for unwritten in group {
            state.unwritten_bytes -= unwritten.answer.body.len();
            state.ahead.take(&unwritten.key);
            let is_it = matches!(
                state.keys.get(&unwritten.key),
                Some(Known::Answered(answer)) if Arc::ptr_eq(answer, &unwritten.answer)
            );
            if is_it {
                state.keys.remove(&unwritten.key);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a batch may have this answer: one that is to be refreshed has none from before.
pub(crate) fn is_fresh_enough(batch: &BatchContext, answer: &SharedAnswer) -> bool {
    batch.reuse != Some(Choice::Refresh) || answer.since >= batch.created_at
}

impl Waiting {
    /// The answer, however old. `None`: there is none, and the line is to be sent.
    pub(crate) async fn answer(mut self) -> Option<Arc<SharedAnswer>> {
        let answer = self.0.wait_for(Option::is_some).await;
        answer.ok()?.clone()
    }
}

impl Asking {
    /// The line was answered: those who wait get its answer. It is kept if it is whole.
    pub(crate) fn answered(mut self, answer: &Answer, batch: &BatchContext, path: &'static str) {
        let is_good = (200..300).contains(&answer.status) && answer.form.is_json();
        if !is_good || answer.body.len() > ANSWER_BYTES_MAX {
            return;
        }
        let shared = Arc::new(SharedAnswer {
            status: answer.status,
            request_id: answer.request_id.clone(),
            body: answer.body.clone(),
            form: answer.form,
            warnings: of_every_line(&answer.warnings, path),
            since: batch.created_at,
        });
        self.answer.send_replace(Some(Arc::clone(&shared)));
        let body = std::str::from_utf8(&shared.body);
        if !body.is_ok_and(|body| reuse::ends_naturally(path, body)) {
            return;
        }
        let mut state = self.reuse.lock();
        if state.unwritten_bytes >= UNWRITTEN_BYTES_MAX {
            drop(state);
            self.reuse.metrics.unkept(1);
            return;
        }
        state.unwritten_bytes += shared.body.len();
        let known = Known::Answered(Arc::clone(&shared));
        state.keys.insert(self.key, known);
        self.is_settled = true;
        state.unwritten.push(Unwritten {
            key: self.key,
            tenant: Arc::clone(&batch.tenant),
            file_id: Arc::clone(&batch.file_id),
            answer: shared,
        });
        drop(state);
        self.reuse.kept.notify_one();
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        if !self.is_settled {
            self.reuse.lock().keys.remove(&self.key);
        }
    }
}

/// The warnings that are true for each line of one key: not those about what makes no difference
/// between two lines.
fn of_every_line(warnings: &[Warning], path: &str) -> Vec<Warning> {
    let left_out = reuse::left_out(path);
    let of_all = warnings.iter().filter(|warning| {
        let key = warning.param.split(['.', '[']).next();
        !key.is_some_and(|key| left_out.contains(&key))
    });
    of_all.cloned().collect()
}

impl SharedAnswer {
    /// From what the store has kept. `None` if that cannot be read.
    fn read(kept: KeptAnswer) -> Option<Self> {
        let text = std::str::from_utf8(&kept.body).ok()?;
        let form = Form::of(text, None);
        let warnings = match &kept.warnings {
            Some(warnings) => serde_json::from_str(warnings).ok()?,
            None => Vec::new(),
        };
        form.is_json().then(|| Self {
            status: kept.status,
            request_id: kept.request_id,
            body: kept.body.into(),
            form,
            warnings,
            since: kept.kept_at,
        })
    }

    /// What the store is to keep. `None` if that cannot be made, for want of memory only.
    fn into_new(self: Arc<Self>, key: Key, tenant: String, file_id: String) -> Option<NewAnswer> {
        let has_warnings = !self.warnings.is_empty();
        let warnings = has_warnings.then(|| serde_json::to_string(&self.warnings));
        Some(NewAnswer {
            key,
            tenant,
            file_id,
            status: self.status,
            request_id: self.request_id.clone(),
            warnings: warnings.transpose().ok()?,
            bytes: self.body.len(),
            answer: codec::compress(&self.body, COMPRESSION_LEVEL).ok()?,
        })
    }
}
