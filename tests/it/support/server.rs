//! A server to test, with a database of its own and a simulated upstream behind it.

use std::ops::Deref;
use std::pin::Pin;

use nightshift::internals::config::{Config, Environment, Overrides};
use nightshift::internals::domain::clock::Clock;
use nightshift::internals::simulate::{Options, Simulator};
use tempfile::TempDir;

use super::audit::audit;
use super::binary::{Binary, Launch};
use super::in_process::InProcess;
use super::secrets::{search_log, search_pages};
use super::session::Session;
use super::{Api, engines, eventually};

/// One upstream, the simulator, and one model.
const USUAL: &str = r#"
[[upstreams]]
name = "simulated"
base_url = "{simulated}"
concurrency = 64

[[models]]
name = "sim-small"
routes = [{ upstream = "simulated" }]
"#;

/// A server with a database of its own, and a simulated upstream behind it. It asks for keys, and
/// is itself a client with the key of tenant-a. Dropped, it is gone as after a power cut, and its
/// store is audited.
pub struct Server {
    api: Api,
    other: Api,
    pub clock: Clock,
    pub simulator: Simulator,
    pub database: String,
    config: Config,
    running: Running,
    /// The key by which its pages are searched at the end.
    operator: String,
    /// By which URL the store is audited at the end.
    audited: Option<String>,
    directory: TempDir,
    variables: Variables,
}

/// Variables of the environment of a server.
type Variables = &'static [(&'static str, &'static str)];

enum Running {
    InProcess(InProcess),
    Binary(Box<Binary>),
    Stopped,
}

impl Server {
    pub async fn start() -> Self {
        Self::with("").await
    }

    /// A server with more configuration: `.await` starts it. Where the configuration names no
    /// upstream, there is the usual one. `{simulated}` stands for the simulator's base URL.
    pub fn with(toml: &str) -> Builder {
        Builder {
            toml: toml.to_owned(),
            upstream: Options {
                track: true,
                ..Options::default()
            },
            is_process: false,
            variables: &[],
        }
    }

    /// The API for tenant-b.
    pub fn other(&self) -> &Api {
        &self.other
    }

    /// Stops the server politely; its database and upstream stay.
    pub async fn stop(&mut self) {
        match std::mem::replace(&mut self.running, Running::Stopped) {
            Running::InProcess(server) => server.stop().await,
            Running::Binary(binary) => drop(binary.terminate().await),
            Running::Stopped => {}
        }
    }

    /// Starts a server that was stopped again, in this process. Its address is another one.
    pub async fn start_again(&mut self) {
        let server = InProcess::start(&self.config, self.clock.clone()).await;
        self.moves_to(&server.base);
        self.running = Running::InProcess(server);
    }

    /// The same as a process.
    pub async fn start_process(&mut self, launch: Launch) {
        let binary = self.replica(launch).await;
        self.moves_to(&binary.base);
        self.running = Running::Binary(Box::new(binary));
    }

    /// One more server on the same database, with the same configuration, as a process.
    pub async fn replica(&self, launch: Launch) -> Binary {
        let usual = Launch::new()
            .flags(&["--config", &self.config_file()])
            .variables(&[("DATABASE_URL", &self.database)])
            .variables(self.variables);
        usual.and(launch).start().await
    }

    fn moves_to(&mut self, base: &str) {
        self.api = self.api.at(base);
        self.other = self.other.at(base);
    }

    /// Sends the server's process a signal.
    pub fn signal(&self, name: &str) {
        self.process().signal(name);
    }

    /// The number of the server's process.
    pub fn process_id(&self) -> u32 {
        self.process().id()
    }

    fn process(&self) -> &Binary {
        match &self.running {
            Running::Binary(binary) => binary,
            _ => panic!("it is no process, or has been stopped"),
        }
    }

    /// The server's process, taken out of it; the rest stays.
    pub fn binary_process(&mut self) -> Binary {
        match std::mem::replace(&mut self.running, Running::Stopped) {
            Running::Binary(binary) => *binary,
            _ => panic!("it is no process, or has been stopped"),
        }
    }

    /// Kills the server's process, as a power cut would.
    pub async fn kill(&mut self) {
        let binary = self.binary_process();
        binary.signal("KILL");
        binary.ended().await;
    }

    /// The path of its configuration, for commands beside it.
    pub fn config_file(&self) -> String {
        let file = self.directory.path().join("nightshift.toml");
        file.to_str().expect("is text").to_owned()
    }

    /// Waits until a count in the database is so: of the rows of a table, or of what stands after
    /// `SELECT count(*) FROM`.
    pub async fn until_rows(&self, table: &str, is_so: impl Fn(i64) -> bool) -> i64 {
        let mut session = Session::open(&self.database).await;
        let sql = format!("SELECT count(*) FROM {table}");
        eventually(table, async || {
            let count = session.number(&sql).await;
            if is_so(count) { Ok(count) } else { Err(count) }
        })
        .await
    }

    /// How many rows there are of everything that a request can leave behind.
    pub async fn rows(&self) -> Vec<(String, i64)> {
        engines::all_rows(&self.database).await
    }

    /// Waits until there are so many rows as there were: what a refused request has written is
    /// removed in the background.
    pub async fn has_only(&self, before: &[(String, i64)]) {
        eventually("nothing of a refused request stays", async || {
            let now = self.rows().await;
            if now == before {
                Ok(())
            } else {
                Err(format!("{now:?}"))
            }
        })
        .await;
    }

    /// Leaves the store without an audit, in a test that breaks it on purpose.
    pub fn leave_broken(&mut self) {
        self.audited = None;
    }
}

impl Deref for Server {
    type Target = Api;

    fn deref(&self) -> &Api {
        &self.api
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if !matches!(self.running, Running::Stopped) && !std::thread::panicking() {
            search_pages(&self.api.url(""), &self.operator);
        }
        match std::mem::replace(&mut self.running, Running::Stopped) {
            Running::InProcess(server) => drop(server),
            Running::Binary(binary) => binary.cut_off(),
            Running::Stopped => {}
        }
        search_log();
        if let Some(database) = self.audited.take().filter(|_| !std::thread::panicking()) {
            audit(&database, &self.clock);
        }
    }
}

/// A server that is not started yet.
pub struct Builder {
    toml: String,
    upstream: Options,
    is_process: bool,
    variables: Variables,
}

impl Builder {
    /// Another upstream than one that answers everything.
    pub fn upstream(mut self, options: Options) -> Self {
        self.upstream = options;
        self
    }

    /// With these variables in its environment, such as upstreams' keys.
    pub fn variables(mut self, variables: Variables) -> Self {
        self.variables = variables;
        self
    }

    /// The real binary, as a process.
    pub fn binary(mut self) -> Self {
        self.is_process = true;
        self
    }

    async fn build(self) -> Server {
        let directory = tempfile::tempdir().expect("makes a directory");
        let (around, url) = engines::new_database(directory.path()).await;
        let simulator = Simulator::start("127.0.0.1:0", self.upstream)
            .await
            .expect("starts");
        let toml = self.toml;
        let usual = if toml.contains("[[upstreams]]") {
            ""
        } else {
            USUAL
        };
        let toml = format!("{toml}\n{usual}").replace("{simulated}", &simulator.base_url());
        // In front: a table of the test's own must not swallow it.
        let toml = if toml.contains("[auth]") {
            toml
        } else {
            format!("[auth]\nrequired = true\n\n{toml}")
        };
        let file = directory.path().join("nightshift.toml");
        std::fs::write(&file, toml).expect("writes the configuration");
        let overrides = Overrides {
            config: Some(file),
            database: Some(url.clone()),
            listen: Some("127.0.0.1:0".to_owned()),
            ..Overrides::default()
        };
        let config = Config::load(&overrides, &Environment::from_iter(self.variables.to_vec()))
            .unwrap_or_else(|errors| panic!("{errors}"));
        let clock = Clock::default();
        let store = nightshift::internals::app::open_store(&config, clock.clone())
            .await
            .expect("opens");
        let key = engines::add_key(&store, "tenant-a").await;
        let other_key = engines::add_key(&store, "tenant-b").await;
        let operator = engines::add_operator(&store).await;
        store.close().await;
        drop(store);
        let mut server = Server {
            api: Api::new("", &key),
            other: Api::new("", &other_key),
            clock,
            simulator,
            database: url,
            config,
            running: Running::Stopped,
            operator,
            audited: Some(around),
            directory,
            variables: self.variables,
        };
        if self.is_process {
            server.start_process(Launch::new()).await;
        } else {
            server.start_again().await;
        }
        server
    }
}

impl IntoFuture for Builder {
    type Output = Server;
    type IntoFuture = Pin<Box<dyn Future<Output = Server>>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.build())
    }
}
