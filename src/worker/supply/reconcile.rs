//! Compares what the store says is this process's with what is in hand.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use super::direct::DirectLeases;
use crate::store::{self, Store};
use crate::worker::dispatch::ownership::Ownership;
use crate::worker::lease::Lease;

/// How often within a lease's lifetime the two are compared.
const COMPARISONS_PER_TTL: u32 = 2;

pub(super) struct Reconciler {
    store: Store,
    lease: Arc<Lease>,
    ownership: Arc<Ownership>,
    direct: Arc<DirectLeases>,
    compared: Instant,
}

impl Reconciler {
    pub(super) fn new(
        store: Store,
        lease: Arc<Lease>,
        ownership: Arc<Ownership>,
        direct: Arc<DirectLeases>,
    ) -> Self {
        Self {
            store,
            lease,
            ownership,
            direct,
            compared: Instant::now(),
        }
    }

    /// Gives back units that the store has leased to this process and that are not in hand: the
    /// reply to their lease was lost. Reclaims units that are in hand and not this process's in
    /// the store, or else revokes them. Nothing is leased in the meantime. A unit that is finished
    /// in the meantime looks like either, and is harmed by neither.
    pub(super) async fn reconcile(&mut self) -> store::Result<()> {
        if self.compared.elapsed() < self.lease.ttl() / COMPARISONS_PER_TTL {
            return Ok(());
        }
        self.compared = Instant::now();
        let _turn = self.direct.turn().await;
        let token = self.lease.token();
        let in_hand: HashSet<_> = self.ownership.leases().into_iter().collect();
        let leased: HashSet<_> = self.store.leased_units(&token).await?.into_iter().collect();
        let not_in_hand: Vec<_> = leased.difference(&in_hand).cloned().collect();
        if !not_in_hand.is_empty() {
            tracing::warn!(
                units.count = not_in_hand.len(),
                "releases units that nobody here holds"
            );
            self.store.release_units(&token, &not_in_hand).await?;
        }
        let mut not_ours: Vec<_> = in_hand.difference(&leased).cloned().collect();
        not_ours.retain(|lease| self.ownership.owns(lease));
        if !not_ours.is_empty() {
            let lost = self.store.reclaim_units(&token, &not_ours).await?;
            tracing::info!(
                units.count = lost.len(),
                "revokes units that are not its own any more"
            );
            self.ownership.revoke(&lost);
        }
        Ok(())
    }
}
