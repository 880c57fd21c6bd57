//! Looks that come at the same moment, by one statement. A hundred clients that look at their
//! batches at once would otherwise wait for each other's statements.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

use crate::store::{Batch, KnownKey, Result, Store};

/// One statement looks up so many things at most.
const TOGETHER_MAX: usize = 64;
/// Nobody waits longer for a statement of others, which may hang on a connection that was cut.
const WAIT_MAX: Duration = Duration::from_secs(1);

/// What clients look at again and again.
pub struct Looks {
    /// By tenant and id.
    batches: Arc<Gather<(String, String), Batch>>,
    /// By the key's hash.
    keys: Arc<Gather<String, KnownKey>>,
    /// Rounds are counted from here.
    began: Instant,
}

impl Looks {
    #[must_use]
    pub fn new(store: &Store) -> Self {
        let (of_batches, of_keys) = (store.clone(), store.clone());
        Self {
            batches: Gather::new(move |wanted| {
                let store = of_batches.clone();
                Box::pin(async move { store.batches_of(&wanted).await })
            }),
            keys: Gather::new(move |hashes| {
                let store = of_keys.clone();
                Box::pin(async move { store.keys_of_hashes(&hashes).await })
            }),
            began: Instant::now(),
        }
    }

    /// A tenant's batch.
    ///
    /// # Errors
    /// When the database fails.
    pub(super) async fn batch(&self, tenant: &str, id: &str) -> Result<Option<Batch>> {
        self.batches.look((tenant.to_owned(), id.to_owned())).await
    }

    /// When those who wait for a change look the next time: all at the same moment, once a second,
    /// so that few statements serve all of them.
    pub(super) fn next_round(&self, now: Instant) -> Instant {
        let rounds = now.saturating_duration_since(self.began).as_secs() + 1;
        self.began + Duration::from_secs(rounds)
    }

    /// The key of that hash, unless it was revoked.
    ///
    /// # Errors
    /// When the database fails.
    pub(super) async fn key(&self, hash: &str) -> Result<KnownKey> {
        let found = self.keys.look(hash.to_owned()).await?;
        Ok(found.unwrap_or(KnownKey::None))
    }
}

type Read<K, V> = dyn Fn(Vec<K>) -> BoxFuture<'static, Result<HashMap<K, V>>> + Send + Sync;

/// Looks of one kind. One statement is under way at a time; whoever comes meanwhile is answered by
/// the next one, which is begun later and so tells nothing old.
struct Gather<K, V> {
    read: Box<Read<K, V>>,
    looks: Mutex<Waiting<K, V>>,
}

struct Waiting<K, V> {
    is_reading: bool,
    looks: Vec<Look<K, V>>,
}

/// What somebody looks for, and where the answer goes.
type Look<K, V> = (K, oneshot::Sender<Option<V>>);

impl<K: Clone + Eq + Hash + Send + 'static, V: Clone + Send + 'static> Gather<K, V> {
    fn new(
        read: impl Fn(Vec<K>) -> BoxFuture<'static, Result<HashMap<K, V>>> + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self {
            read: Box::new(read),
            looks: Mutex::new(Waiting {
                is_reading: false,
                looks: Vec::new(),
            }),
        })
    }

    async fn look(self: &Arc<Self>, key: K) -> Result<Option<V>> {
        let answer = {
            let mut waiting = self.lock();
            if waiting.is_reading {
                let (send, receive) = oneshot::channel();
                waiting.looks.push((key.clone(), send));
                Some(receive)
            } else {
                waiting.is_reading = true;
                None
            }
        };
        let _turn = match answer {
            None => Some(Turn(self.clone())),
            Some(answer) => match timeout(WAIT_MAX, answer).await {
                Ok(Ok(found)) => return Ok(found),
                // The statement failed, or hangs: what is wrong is found out alone.
                Ok(Err(_)) | Err(_) => None,
            },
        };
        let mut found = (self.read)(vec![key.clone()]).await?;
        Ok(found.remove(&key))
    }

    /// Answers looks, and those that come meanwhile.
    async fn answer(turn: Turn<K, V>, looks: Vec<Look<K, V>>) {
        let mut looks = looks.into_iter().peekable();
        while looks.peek().is_some() {
            let (keys, answers): (Vec<K>, Vec<_>) = looks.by_ref().take(TOGETHER_MAX).unzip();
            // A failure drops the senders.
            if let Ok(found) = (turn.0.read)(keys.clone()).await {
                for (key, answer) in keys.iter().zip(answers) {
                    answer.send(found.get(key).cloned()).ok();
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting<K, V>> {
        self.looks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to read. Whoever gives it up, or is dropped, leaves it to those who wait.
struct Turn<K, V>(Arc<Gather<K, V>>)
where
    K: Clone + Eq + Hash + Send + 'static,
    V: Clone + Send + 'static;

impl<K, V> Drop for Turn<K, V>
where
    K: Clone + Eq + Hash + Send + 'static,
    V: Clone + Send + 'static,
{
    fn drop(&mut self) {
        let mut waiting = self.0.lock();
        let looks = std::mem::take(&mut waiting.looks);
        // Without a runtime the process ends, and so do those who wait.
        match Handle::try_current() {
            Ok(runtime) if !looks.is_empty() => {
                drop(waiting);
                let turn = Turn(self.0.clone());
                runtime.spawn(Gather::answer(turn, looks));
            }
            _ => waiting.is_reading = false,
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::future::join_all;
    use tokio::sync::Semaphore;

    use super::*;
    use crate::store::Error;

    /// Numbers and their doubles. Each statement waits for a permit; the statements are noted.
    struct Doubles {
        gather: Arc<Gather<u32, u32>>,
        permits: Arc<Semaphore>,
        statements: Arc<Mutex<Vec<Vec<u32>>>>,
    }

    fn doubles(fails: impl Fn(&[u32]) -> bool + Send + Sync + 'static) -> Doubles {
        let permits = Arc::new(Semaphore::new(0));
        let statements = Arc::<Mutex<Vec<Vec<u32>>>>::default();
        let (gate, noted) = (Arc::clone(&permits), Arc::clone(&statements));
        let gather = Gather::new(move |keys: Vec<u32>| {
            let fails = fails(&keys);
            let gate = Arc::clone(&gate);
            noted.lock().unwrap().push(keys.clone());
            Box::pin(async move {
                gate.acquire().await.unwrap().forget();
                if fails {
                    return Err(Error::TimedOut("a look"));
                }
                let even = keys.into_iter().filter(|key| key % 2 == 0);
                Ok(even.map(|key| (key, key * 2)).collect())
            })
        });
        Doubles {
            gather,
            permits,
            statements,
        }
    }

    impl Doubles {
        /// Looks, and waits until that has begun.
        async fn look(&self, key: u32) -> tokio::task::JoinHandle<Result<Option<u32>>> {
            let gather = self.gather.clone();
            let look = tokio::spawn(async move { gather.look(key).await });
            tokio::time::sleep(Duration::from_millis(1)).await;
            look
        }

        fn statements(&self) -> Vec<Vec<u32>> {
            self.statements.lock().unwrap().clone()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn those_who_come_while_one_is_answered_are_answered_together() {
        let doubles = doubles(|_| false);
        let looks = [2, 4, 5, 4];
        let looks = join_all(looks.map(|key| doubles.look(key))).await;
        doubles.permits.add_permits(2);
        let answers = join_all(looks).await.into_iter();
        let answers: Vec<_> = answers.map(|one| one.unwrap().unwrap()).collect();
        assert_eq!(answers, [Some(4), Some(8), None, Some(8)]);
        assert_eq!(doubles.statements(), [vec![2], vec![4, 5, 4]]);
        // And then there is nobody to wait for.
        doubles.permits.add_permits(1);
        assert_eq!(doubles.gather.look(6).await.unwrap(), Some(12));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_goes_leaves_the_others_their_turn() {
        let doubles = doubles(|_| false);
        let (first, second) = (doubles.look(2).await, doubles.look(4).await);
        first.abort();
        doubles.permits.add_permits(1);
        assert_eq!(second.await.unwrap().unwrap(), Some(8));
        assert_eq!(doubles.statements(), [vec![2], vec![4]]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_told_to_each_by_a_look_of_its_own() {
        let doubles = doubles(|keys| keys.len() > 1 || keys == [6]);
        let looks = [2, 4, 6];
        let looks = join_all(looks.map(|key| doubles.look(key))).await;
        doubles.permits.add_permits(4);
        let answers = join_all(looks).await.into_iter();
        let answers: Vec<_> = answers.map(|one| one.unwrap().ok()).collect();
        assert_eq!(answers, [Some(Some(4)), Some(Some(8)), None]);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_a_statement_that_hangs() {
        let doubles = doubles(|_| false);
        let (hanging, other) = (doubles.look(2).await, doubles.look(4).await);
        // The permits go to those who ask, in turn: the first is for the statement that hangs.
        while doubles.statements().len() < 2 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(doubles.statements(), [vec![2], vec![4]]);
        doubles.permits.add_permits(2);
        assert_eq!(other.await.unwrap().unwrap(), Some(8));
        assert_eq!(hanging.await.unwrap().unwrap(), Some(4));
    }

    #[tokio::test(start_paused = true)]
    async fn one_statement_looks_up_so_many_and_no_more() {
        let doubles = doubles(|_| false);
        let looks = join_all((0..=200).map(|key| doubles.look(key))).await;
        doubles.permits.add_permits(5);
        for look in looks {
            look.await.unwrap().unwrap();
        }
        let sizes: Vec<usize> = doubles.statements().iter().map(Vec::len).collect();
        assert_eq!(sizes, [1, 64, 64, 64, 8]);
    }
}
