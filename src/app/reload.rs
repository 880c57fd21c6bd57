//! Gives a running server its configuration anew, when it is asked to.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::FutureExt as _;
use futures::future::BoxFuture;

use super::settings::{configuration_of, rules};
use crate::api::auth::Auth;
use crate::api::configuration::{Loaded, Reload};
use crate::config::{Config, ConfigError, ConfigErrors, Limits, Output, Retention};
use crate::domain::clock::{Clock, seconds};
use crate::domain::current::Current;
use crate::domain::reuse::Terms;
use crate::domain::tenant::CurrentTenants;
use crate::store::Configuration;
use crate::telemetry;
use crate::upstream::Pool;
use crate::worker::{Rerouter, Rules};

/// What a configuration gives to a server, and may give anew while the server runs.
pub(super) struct Given {
    pub(super) tenants: CurrentTenants,
    pub(super) rules: Current<Rules>,
    pub(super) limits: Current<Limits>,
    pub(super) retention: Current<Retention>,
    pub(super) output: Current<Output>,
    pub(super) reuse: Current<Terms>,
    pub(super) auth: Arc<Auth>,
}

impl Given {
    fn give_anew(&self, config: &Config) {
        self.tenants.replace(config.allowances());
        self.rules.replace(rules(config));
        self.limits.replace(config.limits.clone());
        self.retention.replace(config.retention.clone());
        self.output.replace(config.output);
        self.reuse.replace(config.reuse);
        let auth = &config.auth;
        self.auth
            .set_bootstrap(auth.bootstrap_key.as_ref(), auth.bootstrap_scope);
        telemetry::filter(&config.log);
    }
}

/// What a server runs by, and those to whom a change is told.
pub struct Reloader {
    pool: Arc<Pool>,
    /// `None` in a process without a worker.
    rerouter: Option<Rerouter>,
    given: Given,
    clock: Clock,
    /// What the server runs by. Locked while it is read again: one reload goes after the other.
    running: tokio::sync::Mutex<Config>,
    loaded: Mutex<Loaded>,
}

impl Reloader {
    /// For a server that was started with this configuration.
    pub(super) fn new(
        config: &Config,
        configuration: Configuration,
        (pool, rerouter, given): (Arc<Pool>, Option<Rerouter>, Given),
        clock: Clock,
    ) -> Self {
        let Configuration { hash, read_at } = configuration;
        let loaded = Loaded {
            hash,
            loaded_at: seconds(read_at),
            ..Loaded::default()
        };
        Self {
            pool,
            rerouter,
            given,
            clock,
            running: tokio::sync::Mutex::new(config.clone()),
            loaded: Mutex::new(loaded),
        }
    }

    /// Reads the configuration again, and gives the server what can change. Where it has faults,
    /// nothing changes. What is in flight goes on either way.
    ///
    /// # Errors
    /// All faults of the configuration.
    pub async fn reload(self: Arc<Self>) -> Result<Loaded, ConfigErrors> {
        let mut running = self.running.lock().await;
        let before = running.clone();
        // Files are read, which may take a while.
        let read = tokio::task::spawn_blocking(move || before.read_again());
        let read = read.await.unwrap_or_else(|error| {
            let message = format!("the configuration could not be read: {error}");
            Err(fault("configuration", message))
        });
        let replaced = read.and_then(|next| {
            let (next, needs_restart) = running.reloaded(next);
            self.pool
                .reload(&next.upstream_settings())
                .map_err(|error| {
                    let place = format!("upstreams.{}", error.upstream);
                    fault(place, error.problem)
                })?;
            Ok((next, needs_restart))
        });
        match replaced {
            Ok((next, needs_restart)) => {
                self.given.give_anew(&next);
                let configuration = configuration_of(&next, &self.clock);
                let loaded = Loaded {
                    hash: configuration.hash.clone(),
                    loaded_at: seconds(configuration.read_at),
                    needs_restart,
                    faults: Vec::new(),
                    failed_at: None,
                };
                if let Some(rerouter) = &self.rerouter {
                    rerouter.reroute(configuration);
                }
                *running = next;
                self.lock().clone_from(&loaded);
                tell(&loaded);
                Ok(loaded)
            }
            Err(errors) => {
                for error in &errors.0 {
                    tracing::error!(place = error.place, "{}", error.message);
                }
                tracing::error!(
                    faults = errors.0.len(),
                    "the configuration was read again and has mistakes: nothing was changed"
                );
                let mut loaded = self.lock();
                loaded.faults = errors.0.iter().map(ConfigError::to_string).collect();
                loaded.failed_at = Some(seconds(self.clock.now_ms()));
                drop(loaded);
                Err(errors)
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Loaded> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reload for Arc<Reloader> {
    fn loaded(&self) -> Loaded {
        self.lock().clone()
    }

    fn reload(&self) -> BoxFuture<'static, Result<Loaded, Vec<String>>> {
        let reload = Reloader::reload(Arc::clone(self));
        let in_words = |errors: ConfigErrors| errors.0.iter().map(ConfigError::to_string).collect();
        reload.map(move |loaded| loaded.map_err(in_words)).boxed()
    }
}

fn tell(loaded: &Loaded) {
    tracing::info!(
        configuration = loaded.hash,
        "the configuration was read again, and holds from now on"
    );
    if !loaded.needs_restart.is_empty() {
        tracing::warn!(
            keys = loaded.needs_restart.join(", "),
            "these keys have changed, and cannot change while the server runs: start it again to \
             have them hold"
        );
    }
}

fn fault(place: impl Into<String>, message: impl Into<String>) -> ConfigErrors {
    ConfigErrors(vec![ConfigError {
        place: place.into(),
        message: message.into(),
    }])
}
