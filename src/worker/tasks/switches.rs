//! Follows what operators have set for upstreams, and tells how many calls are in flight at those
//! that are disabled.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::store::{self, Store, SwitchRow};
use crate::upstream::{Pool, Switch};

/// A process goes without a look for no longer than this: a command writes straight to the store,
/// and a pooler passes no wake-up on.
const TICK: Duration = Duration::from_secs(1);

/// What operators have set, in one process.
pub struct Switches {
    store: Store,
    pool: Arc<Pool>,
    /// Of the process's lease. `None`: the process makes no calls.
    token: Option<Arc<str>>,
    /// What was told of upstreams that are disabled: since when, and how many calls are in flight.
    told: BTreeMap<String, (i64, usize)>,
}

impl Switches {
    /// Reads what is set, and follows it at once: no line is sent before.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn new(
        store: Store,
        pool: Arc<Pool>,
        token: Option<Arc<str>>,
    ) -> store::Result<Self> {
        let mut switches = Self {
            store,
            pool,
            token,
            told: BTreeMap::new(),
        };
        switches.follow().await?;
        Ok(switches)
    }

    /// Follows what is set, within a second or so, until stopped. Where the database is away, all
    /// stays as it is.
    pub async fn run(mut self, stop: CancellationToken) -> &'static str {
        let mut wakeups = self.store.wakeups(store::Who::Switches);
        let pool = self.pool.clone();
        let go_on = async {
            loop {
                tokio::select! {
                    Ok(()) = wakeups.changed() => {}
                    () = pool.targets().last_call_ended() => {}
                    () = tokio::time::sleep(TICK) => {}
                }
                wakeups.mark_unchanged();
                if let Err(error) = self.follow().await {
                    tracing::debug!(%error, "what operators have set could not be read");
                    tokio::time::sleep(TICK).await;
                }
            }
        };
        let _: Option<()> = stop.run_until_cancelled(go_on).await;
        "switches"
    }

    async fn follow(&mut self) -> store::Result<()> {
        let rows = self.store.upstream_switches().await?;
        let switches: Vec<Switch> = rows.into_iter().map(from_row).collect();
        let targets = self.pool.targets();
        targets.follow_switches(&switches);
        let Some(token) = &self.token else {
            return Ok(());
        };
        let disabled = targets.in_flight_at_disabled(&switches);
        self.told
            .retain(|name, _| disabled.iter().any(|(upstream, _, _)| upstream == name));
        for (upstream, at_ms, calls) in disabled {
            if self.told.get(&upstream) != Some(&(at_ms, calls)) {
                let noted = self.store.note_in_flight(token, &upstream, at_ms, calls);
                noted.await?;
                self.told.insert(upstream, (at_ms, calls));
            }
        }
        Ok(())
    }
}

fn from_row(row: SwitchRow) -> Switch {
    Switch {
        upstream: row.upstream,
        enabled: row.enabled,
        configured: row.configured,
        by: row.changed_by,
        at_ms: row.changed_at,
    }
}
