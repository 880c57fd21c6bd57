//! The server, built from its configuration: store, upstreams, worker and HTTP.

mod engine;
mod reload;
mod settings;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use secrecy::ExposeSecret as _;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::api::auth::Auth;
use crate::api::looks::Looks;
use crate::api::server::Threads;
use crate::api::snapshots::Snapshots;
use crate::api::{self, Api};
use crate::config::{Config, Role};
use crate::domain::clock::Clock;
use crate::domain::current::Current;
use crate::domain::tenant::CurrentTenants;
use crate::store::{self, Store};
use crate::transfer::UploadBudget;
use crate::upstream::{Options, Pool};
use crate::worker::{Switches, Worker};
use engine::Engine;
use reload::{Given, Reloader};
pub use settings::{configuration_of, settings};

const HOW_TO_CREATE_A_KEY: &str = "create one with `nightshift keys create --name NAME` (with the \
     same --config or --database), or name a first key's \
     file in auth.bootstrap_key_file, or give it in NIGHTSHIFT_AUTH__BOOTSTRAP_KEY";

/// How long a stop waits until it is written when keys were used last.
const LAST_USE_PATIENCE: Duration = Duration::from_secs(2);
/// How long a command waits for the database: long enough for one that another process migrates.
const COMMAND_PATIENCE: Duration = Duration::from_secs(5);

/// A server that runs.
pub struct App {
    address: SocketAddr,
    store: Store,
    /// `None` in a process with the role `api`.
    worker: Option<Worker>,
    /// Asks the upstreams for their models, and follows what operators set for them, where no
    /// worker does.
    discovery: Option<JoinHandle<()>>,
    http: JoinHandle<()>,
    _threads: Threads,
    /// Writes when keys were used last.
    last_use: JoinHandle<()>,
    reloader: Arc<Reloader>,
    stop: CancellationToken,
    /// Ends what goes on until the last request has been answered.
    drained: CancellationToken,
}

impl App {
    /// Opens the store, starts the worker, and listens.
    ///
    /// # Errors
    /// When the configuration is not safe to serve, the database cannot be used, or the address
    /// is taken.
    pub async fn start(config: &Config, clock: Clock) -> anyhow::Result<App> {
        check_role(config)?;
        let role = config.server.role;
        let database = store::Settings {
            http_connections: connections_of_http(role, config.database.max_connections),
            open_timeout: config.database.start_timeout,
            exclusive: true,
            ..store_settings(config)
        };
        let store = open_store_with(&database, config, clock.clone()).await?;
        let auth = Arc::new(auth(config, &store).await?);
        let listener = TcpListener::bind(&config.server.listen)
            .await
            .with_context(|| format!("cannot listen on {}", config.server.listen))?;
        let address = listener.local_addr()?;
        if role.works() && config.upstreams.is_empty() {
            tracing::warn!(
                "no upstream is configured: batches will fail validation with model_not_found; \
                 give one with --upstream URL or [[upstreams]]"
            );
        }
        let pool = Pool::new(&config.upstream_settings(), Options::default())?;
        let configuration = configuration_of(config, &clock);
        let tenants = CurrentTenants::new(config.allowances());
        // Before the worker: once it runs, it is stopped and not just dropped.
        let threads = Threads::start()?;
        let stop = CancellationToken::new();
        let settings = settings(config, &store, tenants.clone(), configuration.clone());
        let given = Given {
            tenants: tenants.clone(),
            rules: settings.rules.clone(),
            limits: Current::new(config.limits.clone()),
            retention: Current::new(config.retention.clone()),
            output: Current::new(config.output),
            reuse: Current::new(config.reuse),
            auth: Arc::clone(&auth),
        };
        let (limits, retention) = (given.limits.clone(), given.retention.clone());
        let (output, reuse) = (given.output.clone(), given.reuse.clone());
        let (worker, discovery) = if role.works() {
            let (pool, clock) = (pool.clone(), clock.clone());
            let worker = Worker::start(store.clone(), pool, clock, settings).await?;
            (Some(worker), None)
        } else {
            let switches = Switches::new(store.clone(), pool.clone(), None).await?;
            let (pool, stop) = (pool.clone(), stop.clone());
            let discovery = async move {
                tokio::join!(pool.run(stop.clone()), switches.run(stop));
            };
            (None, Some(tokio::spawn(discovery)))
        };
        let rerouter = worker.as_ref().map(Worker::rerouter);
        let reloader = Reloader::new(
            config,
            configuration,
            (pool.clone(), rerouter, given),
            clock.clone(),
        );
        let reloader = Arc::new(reloader);
        let engine: Arc<dyn api::engine::Engine> = Arc::new(Engine::new(pool, worker.as_ref()));
        let drained = CancellationToken::new();
        let last_use = Arc::clone(&auth).write_last_use(store.clone(), drained.clone());
        let http_store = store.http_pool();
        let api = Api {
            looks: Arc::new(Looks::new(&http_store)),
            waits: Arc::default(),
            store: http_store,
            clock,
            limits,
            retention,
            output,
            reuse,
            tenants,
            auth,
            snapshots: Arc::new(Snapshots::new(engine.clone())),
            engine,
            reload: Arc::new(Arc::clone(&reloader)),
            uploads: UploadBudget::new(config.limits.max_line_bytes),
            stopping: stop.clone(),
            endpoints: config.endpoints,
            allowed_origins: config.server.allowed_origins.clone().into(),
        };
        let router = if role.serves() {
            api::router(api)
        } else {
            api::worker_router(api)
        };
        let grace = config.worker.shutdown_grace;
        let trusted = config.server.trusted_proxies.clone();
        let http = threads.serve(listener, router, trusted, stop.clone(), grace)?;
        Ok(App {
            address,
            store,
            worker,
            discovery,
            http,
            _threads: threads,
            last_use: tokio::spawn(last_use),
            reloader,
            stop,
            drained,
        })
    }

    /// Where the server listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until asked to stop, then stops. Reads its configuration again whenever it is asked
    /// to by `reloads`. Fails if a task fails: then the process must be
    /// started again; or if a newer program has migrated the database.
    ///
    /// # Errors
    /// When a task ended that should not, or the schema is not this program's any more.
    pub async fn serve_until(
        mut self,
        stop: CancellationToken,
        reloads: Arc<Notify>,
    ) -> anyhow::Result<()> {
        let reloader = Arc::clone(&self.reloader);
        let reload = async {
            loop {
                reloads.notified().await;
                // What is wrong is in the log.
                let _: Result<_, _> = Arc::clone(&reloader).reload().await;
            }
        };
        let failed = tokio::select! {
            () = reload => None,
            () = stop.cancelled() => None,
            name = failed(self.worker.as_mut()) => {
                Some(format!("the task {name} failed; what was accepted is safe"))
            }
            newer = self.store.schema_too_new() => Some(newer.to_string()),
        };
        if let Some(cause) = &failed {
            tracing::error!("{cause}");
        }
        self.stop().await;
        match failed {
            None => Ok(()),
            Some(cause) => bail!(cause),
        }
    }

    /// Takes no more requests, lets calls in flight finish within the grace period, and writes
    /// what they brought.
    pub async fn stop(self) {
        tracing::info!("stopping; a second signal stops at once");
        self.stop.cancel();
        if let Some(worker) = self.worker {
            worker.stop().await;
        }
        if let Some(discovery) = self.discovery {
            // It ends by itself, and holds nothing.
            discovery.abort();
        }
        if let Err(error) = self.http.await {
            tracing::warn!(%error, "the HTTP server ended badly");
        }
        // Only now is it known which keys were used last.
        self.drained.cancel();
        let mut last_use = self.last_use;
        if tokio::time::timeout(LAST_USE_PATIENCE, &mut last_use)
            .await
            .is_err()
        {
            // Nobody waits for a database that is away because of this.
            last_use.abort();
        }
        self.store.close().await;
    }
}

/// Waits until a task fails: for ever in a process without a worker.
async fn failed(worker: Option<&mut Worker>) -> String {
    match worker {
        Some(worker) => worker.failed().await,
        None => std::future::pending().await,
    }
}

/// Refuses a role that the database cannot have.
///
/// # Errors
/// When the halves are to run apart, on a SQLite file.
pub fn check_role(config: &Config) -> anyhow::Result<()> {
    let role = config.server.role;
    if role != Role::All
        && let Some(path) = config.database.sqlite_path()
    {
        bail!(
            "the role {} needs Postgres: a SQLite file ({}) belongs to one server process, which \
             must be both halves; set database.url to a postgres:// URL, or leave the role out",
            role.as_str(),
            path.display()
        );
    }
    Ok(())
}

/// Opens the configured database, for a command: somebody waits for it.
///
/// # Errors
/// When it cannot be used.
pub async fn open_store(config: &Config, clock: Clock) -> anyhow::Result<Store> {
    open_store_with(&store_settings(config), config, clock).await
}

/// [`open_store`] for a command that does a server's work.
///
/// # Errors
/// As [`open_store`], and where a server has the SQLite file.
pub async fn open_store_alone(config: &Config, clock: Clock) -> anyhow::Result<Store> {
    let settings = store::Settings {
        exclusive: true,
        ..store_settings(config)
    };
    open_store_with(&settings, config, clock).await
}

/// The file of the configured database, where it is not there yet: to open it would create it.
#[must_use]
pub fn missing_file(config: &Config) -> Option<PathBuf> {
    let file = config.database.sqlite_path()?;
    let is_missing = matches!(file.try_exists(), Ok(false));
    is_missing.then(|| std::path::absolute(file).unwrap_or_else(|_| file.to_owned()))
}

/// How a command opens the database.
fn store_settings(config: &Config) -> store::Settings {
    store::Settings {
        open_timeout: COMMAND_PATIENCE,
        ..config.database.store_settings()
    }
}

async fn open_store_with(
    settings: &store::Settings,
    config: &Config,
    clock: Clock,
) -> anyhow::Result<Store> {
    let database = &config.database;
    if let Some(path) = database.sqlite_path() {
        let opened = Store::open_file(path, settings, clock).await;
        opened.with_context(|| format!("cannot use {}", path.display()))
    } else {
        let opened = Store::open_with(database.url.expose_secret(), settings, clock).await;
        // Its URL may hold a password, which is not shown.
        opened.with_context(|| format!("cannot use the database {}", database.shown()))
    }
}

/// How many connections to Postgres belong to HTTP's threads; 0: they share in the others, as
/// they do where these are few: one that waits for a lock must not be half of them.
fn connections_of_http(role: Role, connections: u32) -> u32 {
    match role {
        _ if connections < 4 => 0,
        Role::All => connections / 2,
        Role::Api => connections - 1,
        // It answers few requests.
        Role::Worker => 0,
    }
}

/// Who may ask. Off loopback there must be keys, so that a server is never open by accident.
async fn auth(config: &Config, store: &Store) -> anyhow::Result<Auth> {
    let loopback = config.listen_is_loopback();
    let listen = &config.server.listen;
    if !config.auth_is_required() {
        if !loopback {
            bail!(
                "{listen} can be reached from other machines, and auth.required is false: listen \
                 on 127.0.0.1, or leave auth.required out and {HOW_TO_CREATE_A_KEY}"
            );
        }
        return Ok(Auth::Off);
    }
    let bootstrap = config.auth.bootstrap_key.clone();
    let (keys, now_ms) = (store.keys().await?, store.now().await?);
    // A worker has no API that needs keys.
    let serves = config.server.role.serves();
    if serves && bootstrap.is_none() && !keys.iter().any(|key| key.is_active(now_ms)) {
        if !loopback {
            bail!(
                "{listen} can be reached from other machines, so requests need an API key, and \
                 there is none: {HOW_TO_CREATE_A_KEY}"
            );
        }
        tracing::warn!("requests need an API key, and there is none: {HOW_TO_CREATE_A_KEY}");
    }
    Ok(Auth::keys(bootstrap.as_ref(), config.auth.bootstrap_scope))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_connections_are_for_http_where_there_are_enough() {
        let of = |role| [1, 3, 4, 5, 10].map(|all| connections_of_http(role, all));
        assert_eq!(of(Role::All), [0, 0, 2, 2, 5]);
        assert_eq!(of(Role::Api), [0, 0, 3, 4, 9]);
        assert_eq!(of(Role::Worker), [0; 5]);
    }
}
