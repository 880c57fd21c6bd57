//! Tells in the store how the batches go that this process works on, for those who watch one from
//! another process.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::store::{self, Store, Told};
use crate::upstream::Pool;
use crate::worker::dispatch::shared::SharedLedger;
use crate::worker::dispatch::standing::{self, BatchStanding};
use crate::worker::dispatch::tenants::Tenants;
use crate::worker::flush::paces::Paces;
use crate::worker::lease::Lease;

const TICK: Duration = Duration::from_secs(2);

pub(crate) struct Progress {
    pub store: Store,
    pub pool: Arc<Pool>,
    pub ledger: Arc<SharedLedger>,
    pub tenants: Arc<Tenants>,
    pub paces: Arc<Paces>,
    pub lease: Arc<Lease>,
}

impl Progress {
    /// Tells from time to time, until stopped. Where the database is away, nothing is told.
    pub(crate) async fn run(self, stop: CancellationToken) -> &'static str {
        let go_on = async {
            // What was in hand a tick ago, and of what the store has a row.
            let (mut before, mut known) = (HashSet::new(), HashSet::new());
            loop {
                tokio::time::sleep(TICK).await;
                let standings = self.standings();
                let in_hand: HashSet<Arc<str>> = standings.keys().cloned().collect();
                let told = self.told(standings, &before);
                if let Err(error) = self.tell(&told, &mut known).await {
                    tracing::debug!(%error, "progress could not be told");
                }
                before = in_hand;
            }
        };
        let _: Option<()> = stop.run_until_cancelled(go_on).await;
        "progress"
    }

    fn standings(&self) -> BTreeMap<Arc<str>, BatchStanding> {
        let lanes = self.pool.lanes();
        standing::of_batches(&self.ledger.lock(), &self.tenants, &lanes)
    }

    /// What is to be told. Nothing of batches that were not in hand a tick ago: small ones come and
    /// go.
    fn told(
        &self,
        standings: BTreeMap<Arc<str>, BatchStanding>,
        before: &HashSet<Arc<str>>,
    ) -> Vec<Told> {
        let in_hand = standings.keys().cloned().collect();
        let paces = self.paces.of(&in_hand);
        let lasting = standings.into_iter().filter(|(id, _)| before.contains(id));
        let told = lasting.map(|(id, standing)| {
            let (lines_per_second, tokens_per_second) = paces.get(&id).copied().unwrap_or_default();
            Told {
                batch_id: id.to_string(),
                in_flight: i64::try_from(standing.in_flight).unwrap_or(i64::MAX),
                lines_per_second,
                tokens_per_second,
                waits_for: standing.waits_for,
            }
        });
        told.collect()
    }

    /// Writes what is told, and takes back what was told of other batches. `known`: of what the
    /// store has a row.
    async fn tell(&self, told: &[Told], known: &mut HashSet<String>) -> store::Result<()> {
        let token = self.lease.token();
        let now: HashSet<String> = told.iter().map(|one| one.batch_id.clone()).collect();
        // A statement that fails may have written its rows nevertheless.
        known.extend(now.iter().cloned());
        self.store.tell_progress(&token, told).await?;
        let gone: Vec<String> = known.difference(&now).cloned().collect();
        self.store.forget_progress(&token, &gone).await?;
        *known = now;
        Ok(())
    }
}
