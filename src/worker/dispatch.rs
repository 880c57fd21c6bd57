//! Which line is sent next, and what happens to it when its attempt is over.
//!
//! The [ledger](ledger) owns what is in hand. The [scheduler](scheduler) chooses lines
//! ([order](order)), has the [executor](executor) send each of them once, and books what came of
//! it. Choosing the next line, with a permit of its model and of an upstream, is one step under
//! one short lock. Nothing waits while that lock is held.

pub(crate) mod demand;
mod executor;
#[cfg(test)]
mod fairness;
pub(crate) mod late;
pub(crate) mod ledger;
mod missing_models;
pub(crate) mod order;
pub(crate) mod ownership;
#[cfg(test)]
mod prefix;
pub(crate) mod result;
pub(crate) mod reuse;
pub(crate) mod scheduler;
pub(crate) mod shared;
pub(crate) mod standing;
pub(crate) mod tenants;
mod together;
pub(crate) mod write_failures;

use std::sync::Arc;

use crate::domain::clock::Clock;
use crate::store::Store;
use crate::upstream::Pool;
use crate::worker::lease::Lease;
use crate::worker::lease::authority::Authority;
use crate::worker::work::finished::CompletionQueue;
use crate::worker::work::settings::Settings;
use executor::Executor;
use missing_models::MissingModels;
use ownership::Ownership;
use reuse::Reuse;
use scheduler::Scheduler;
use shared::SharedLedger;
use tenants::Tenants;
use write_failures::WriteFailures;

/// The parts of the dispatch that the rest of the room acts on.
pub(crate) struct Dispatch {
    pub ledger: Arc<SharedLedger>,
    pub ownership: Arc<Ownership>,
    pub scheduler: Arc<Scheduler>,
    pub write_failures: Arc<WriteFailures>,
    pub tenants: Arc<Tenants>,
    pub reuse: Arc<Reuse>,
}

impl Dispatch {
    pub(crate) fn new(
        store: &Store,
        pool: &Arc<Pool>,
        completions: &Arc<CompletionQueue>,
        lease: &Arc<Lease>,
        authority: &Arc<Authority>,
        clock: &Clock,
        settings: &Settings,
    ) -> Dispatch {
        let ledger = Arc::new(SharedLedger::default());
        let write_failures = Arc::new(WriteFailures::new(Arc::clone(&ledger)));
        let ownership = Arc::new(Ownership::new(
            Arc::clone(&ledger),
            store.clone(),
            Arc::clone(lease),
        ));
        let missing_models = Arc::new(MissingModels::new(
            Arc::clone(&ledger),
            Arc::clone(completions),
            Arc::clone(pool),
        ));
        let reuse = Reuse::new(store.clone(), settings.rules.clone());
        let executor = Executor {
            pool: Arc::clone(pool),
            store: store.clone(),
            lease: Arc::clone(lease),
            authority: Arc::clone(authority),
            ownership: Arc::clone(&ownership),
            missing_models: Arc::clone(&missing_models),
            reuse: Arc::clone(&reuse),
            rules: settings.rules.clone(),
        };
        let tenants = Arc::new(Tenants::new(settings.tenants.clone(), Arc::clone(pool)));
        let scheduler = Arc::new(Scheduler {
            ledger: Arc::clone(&ledger),
            pool: Arc::clone(pool),
            tenants: Arc::clone(&tenants),
            completions: Arc::clone(completions),
            authority: Arc::clone(authority),
            missing_models,
            write_failures: Arc::clone(&write_failures),
            executor,
            clock: clock.clone(),
            settle_timeout: settings.settle_timeout,
        });
        Dispatch {
            ledger,
            ownership,
            scheduler,
            write_failures,
            tenants,
            reuse,
        }
    }
}
