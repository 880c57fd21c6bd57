//! What a configuration says to a worker, and to those who ask which one it is.

use crate::config::Config;
use crate::domain::clock::Clock;
use crate::domain::current::Current;
use crate::domain::tenant::CurrentTenants;
use crate::store::{self, Configuration, Store};
use crate::worker::{Rules, Settings};

/// What operators are told of a configuration that was read now.
#[must_use]
pub fn configuration_of(config: &Config, clock: &Clock) -> Configuration {
    Configuration {
        hash: config.hash(),
        read_at: clock.now_ms(),
    }
}

/// What the configuration says to a worker, and may say anew while the worker runs.
pub(super) fn rules(config: &Config) -> Rules {
    Rules {
        initial_backoff: config.retry.initial_backoff,
        removal_grace: config.retention.grace,
        usage_kept: config.retention.usage,
        max_requests: config.limits.max_requests_per_batch,
        reuse: config.reuse,
    }
}

/// What the configuration says to a worker.
#[must_use]
pub fn settings(
    config: &Config,
    store: &Store,
    tenants: CurrentTenants,
    configuration: Configuration,
) -> Settings {
    let worker = &config.worker;
    Settings {
        name: worker.name.clone(),
        lease: worker.lease,
        reclaim_after: worker.reclaim_after,
        settle_timeout: worker.settle_timeout,
        shutdown_grace: worker.shutdown_grace,
        configuration,
        rules: Current::new(rules(config)),
        tenants,
        // The lock on the file is held: no other process can have a lease in it.
        exclusive: store.engine() == store::Engine::Sqlite,
    }
}
