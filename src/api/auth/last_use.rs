//! When keys were used last. A request only notes it in memory; one statement a minute writes the
//! times of all keys, so that requests cost the database nothing more.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::store::Result;

/// How long after a statement the next one follows at the earliest.
const WRITTEN_EVERY: Duration = Duration::from_mins(1);

/// Keys that were used since the last statement, by id, and when. As many as there are keys at the
/// most.
#[derive(Debug, Default)]
pub struct LastUse {
    used: Mutex<HashMap<String, i64>>,
    noted: Notify,
}

impl LastUse {
    pub(super) fn note(&self, key_id: &str, now_ms: i64) {
        let mut used = self.lock();
        if let Some(at) = used.get_mut(key_id) {
            *at = now_ms.max(*at);
        } else {
            used.insert(key_id.to_owned(), now_ms);
            self.noted.notify_one();
        }
    }

    /// Has what is noted be written by a statement: the first use at once, later ones within a
    /// minute, the last ones when the process stops.
    pub(super) async fn write<F>(
        &self,
        statement: impl Fn(Vec<(String, i64)>) -> F,
        stop: &CancellationToken,
    ) where
        F: Future<Output = Result<()>>,
    {
        loop {
            let is_over = tokio::select! {
                () = stop.cancelled() => true,
                () = self.noted.notified() => false,
            };
            self.write_once(&statement).await;
            let pause = tokio::time::sleep(WRITTEN_EVERY);
            if is_over || stop.run_until_cancelled(pause).await.is_none() {
                return self.write_once(&statement).await;
            }
        }
    }

    async fn write_once<F>(&self, statement: impl Fn(Vec<(String, i64)>) -> F)
    where
        F: Future<Output = Result<()>>,
    {
        let uses: Vec<_> = std::mem::take(&mut *self.lock()).into_iter().collect();
        if uses.is_empty() {
            return;
        }
        if let Err(error) = statement(uses.clone()).await {
            tracing::debug!(%error, "when keys were used last could not be written");
            for (id, at) in uses {
                self.note(&id, at);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, i64>> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::store::Error;

    type Statements = Arc<Mutex<Vec<Vec<(String, i64)>>>>;

    /// What a writer that lives as long as this has written.
    struct Writer {
        last_use: Arc<LastUse>,
        statements: Statements,
        stop: CancellationToken,
        task: tokio::task::JoinHandle<()>,
    }

    impl Writer {
        /// A writer whose first statements fail.
        fn failing(failures: usize) -> Self {
            let (last_use, stop) = (Arc::new(LastUse::default()), CancellationToken::new());
            let statements = Statements::default();
            let (uses, written, until) = (last_use.clone(), statements.clone(), stop.clone());
            let statement = move |mut uses: Vec<(String, i64)>| {
                uses.sort();
                let mut written = written.lock().unwrap();
                written.push(uses);
                let fails = written.len() <= failures;
                async move {
                    if fails {
                        return Err(Error::TimedOut("a test"));
                    }
                    Ok(())
                }
            };
            let task = tokio::spawn(async move { uses.write(statement, &until).await });
            Writer {
                last_use,
                statements,
                stop,
                task,
            }
        }

        fn statements(&self) -> Vec<Vec<(String, i64)>> {
            self.statements.lock().unwrap().clone()
        }
    }

    fn used(uses: &[(&str, i64)]) -> Vec<(String, i64)> {
        let owned = |(id, at): &(&str, i64)| ((*id).to_owned(), *at);
        uses.iter().map(owned).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn one_statement_a_minute_writes_the_last_use_of_all_keys() {
        let writer = Writer::failing(0);
        writer.last_use.note("a", 1);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(
            writer.statements(),
            [used(&[("a", 1)])],
            "the first at once"
        );
        // A thousand requests in the minute after that.
        for second in 2..52 {
            for key in ["a", "b"].iter().cycle().take(20) {
                writer.last_use.note(key, second);
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        assert_eq!(writer.statements().len(), 1);
        tokio::time::sleep(Duration::from_mins(1)).await;
        let all = [used(&[("a", 1)]), used(&[("a", 51), ("b", 51)])];
        assert_eq!(writer.statements(), all);
        tokio::time::sleep(Duration::from_mins(10)).await;
        assert_eq!(writer.statements(), all, "no key was used since");
    }

    #[tokio::test(start_paused = true)]
    async fn what_could_not_be_written_is_written_later_and_the_last_at_the_stop() {
        let writer = Writer::failing(1);
        writer.last_use.note("a", 1);
        tokio::time::sleep(Duration::from_secs(61)).await;
        let twice = [used(&[("a", 1)]), used(&[("a", 1)])];
        assert_eq!(writer.statements(), twice);
        writer.last_use.note("b", 62);
        writer.stop.cancel();
        let statements = writer.statements.clone();
        writer.task.await.unwrap();
        assert_eq!(statements.lock().unwrap().last(), Some(&used(&[("b", 62)])));
    }
}
