//! `nightshift serve` over a store of its own, and what it uses.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use tokio::process::Command;

use crate::client::Client;
use crate::postgres::{Database, Postgres};
use crate::process::Process;
use crate::procfs;
use crate::results::{Figures, System};
use crate::world::World;

/// A key for every server that asks for one.
const BOOTSTRAP_KEY: &str = "bench-bootstrap-key-0123456789";

/// Any certificate: an upstream that names one is reached by the client that can do TLS.
const CERTIFICATE: &str = include_str!("certificate.pem");

/// Keys that are made at once.
const KEYS_AT_ONCE: usize = 4;

/// A database, empty at first, and the directory of what belongs to it. It outlives servers.
pub struct Store {
    home: tempfile::TempDir,
    binary: PathBuf,
    postgres: Option<(Arc<Postgres>, Database)>,
}

/// How a server is started.
pub struct Serving<'a> {
    /// The upstream's base URL, /v1 included.
    pub upstream: &'a str,
    pub in_flight: u64,
    /// Whether requests need keys.
    pub keys: bool,
    /// What is logged, if not what is logged by default.
    pub log: Option<&'a str>,
    /// Whether calls go by the transport that can do TLS and proxies.
    pub general_transport: bool,
    /// The whole configuration, if it is not made of the above.
    pub config: Option<String>,
    /// Where callgrind counts the server's instructions, if it runs under valgrind.
    pub counted: Option<&'a Path>,
    /// More of the configuration, behind the upstream called `sim`.
    pub more: &'a str,
}

impl<'a> Serving<'a> {
    pub fn new(upstream: &'a str, in_flight: u64) -> Self {
        Self {
            upstream,
            in_flight,
            keys: false,
            log: None,
            general_transport: false,
            config: None,
            counted: None,
            more: "",
        }
    }
}

/// A server that runs.
pub struct Server {
    pub process: Process,
    pub client: Client,
    /// Where its standard error goes.
    pub log: PathBuf,
}

impl Store {
    pub fn create(world: &World, engine: System) -> Result<Self> {
        // No run pays for what the one before it has left to be written.
        rustix::fs::sync();
        let home = tempfile::Builder::new()
            .prefix("store-")
            .tempdir_in(&world.data)?;
        let postgres = if engine == System::Postgres {
            let postgres = world.postgres()?;
            let database = postgres.create_database()?;
            Some((postgres, database))
        } else {
            None
        };
        Ok(Self {
            home,
            binary: world.binary.clone(),
            postgres,
        })
    }

    fn url(&self) -> String {
        match &self.postgres {
            Some((_, database)) => database.url.clone(),
            None => format!("sqlite://{}", self.sqlite().display()),
        }
    }

    /// Where SQLite's database is, if it is one.
    pub fn sqlite(&self) -> PathBuf {
        self.home.path().join("data/nightshift.db")
    }

    /// The Postgres it stands in.
    pub fn postgres(&self) -> Option<(&Postgres, &Database)> {
        self.postgres
            .as_ref()
            .map(|(postgres, database)| (&**postgres, database))
    }

    fn command(&self) -> Command {
        self.settled(Command::new(&self.binary))
    }

    /// The same under valgrind.
    fn counted(&self, out: &Path) -> Command {
        let mut command = Command::new("valgrind");
        let mut to = OsString::from("--callgrind-out-file=");
        to.push(out);
        command.arg("--tool=callgrind").arg(to).arg(&self.binary);
        self.settled(command)
    }

    fn settled(&self, mut command: Command) -> Command {
        // What the caller's environment says of Nightshift is not what is measured.
        command
            .env_clear()
            .envs(std::env::vars_os().filter(|(name, _)| name == "PATH" || name == "TMPDIR"))
            .current_dir(self.home.path());
        command
    }

    pub async fn serve(&self, serving: &Serving<'_>) -> Result<Server> {
        let config = self.home.path().join("bench.toml");
        let usual = || {
            format!(
                "auth.required = {}\n[[upstreams]]\nname = \"sim\"\nbase_url = \"{}\"\n\
             concurrency = {}\n",
                serving.keys, serving.upstream, serving.in_flight
            )
        };
        let mut text = serving.config.clone().unwrap_or_else(usual);
        if serving.general_transport {
            let certificate = self.home.path().join("certificate.pem");
            std::fs::write(&certificate, CERTIFICATE)?;
            text.push_str(&format!("ca_file = \"{}\"\n", certificate.display()));
        }
        text.push_str(serving.more);
        if let Some(filter) = serving.log {
            text.push_str(&format!("[log]\nfilter = \"{filter}\"\n"));
        }
        std::fs::write(&config, text)?;
        let log = tempfile::NamedTempFile::with_prefix_in("log-", &self.home)?;
        let (log_file, log) = log.keep()?;
        let mut command = match serving.counted {
            Some(out) => self.counted(out),
            None => self.command(),
        };
        command
            .args(["serve", "--listen", "127.0.0.1:0", "--config"])
            .arg(&config)
            .args(["--database", &self.url()])
            .stderr(log_file);
        if serving.keys {
            command.env("NIGHTSHIFT_AUTH__BOOTSTRAP_KEY", BOOTSTRAP_KEY);
        }
        let process = Process::start(&mut command).await?;
        let mut client = Client::new(&process.url)?;
        if serving.keys {
            client = client.with_key(BOOTSTRAP_KEY.to_owned());
        }
        Ok(Server {
            process,
            client,
            log,
        })
    }

    /// So many servers that share the store.
    pub async fn serve_many(&self, serving: &Serving<'_>, servers: u64) -> Result<Vec<Server>> {
        let mut all = Vec::new();
        for _ in 0..servers {
            all.push(self.serve(serving).await?);
        }
        Ok(all)
    }

    /// Makes a key for each of so many tenants.
    pub async fn keys(&self, tenants: u64) -> Result<Vec<String>> {
        stream::iter(0..tenants)
            .map(async |tenant| self.key(&format!("tenant-{tenant}")).await)
            .buffer_unordered(KEYS_AT_ONCE)
            .try_collect()
            .await
    }

    /// Makes a key of a tenant.
    async fn key(&self, tenant: &str) -> Result<String> {
        let mut command = self.command();
        command
            .args(["keys", "create", "--name", "bench", "--tenant", tenant])
            .args(["--database", &self.url()]);
        let output = command.output().await?;
        let key = String::from_utf8(output.stdout)?;
        anyhow::ensure!(output.status.success(), "keys create: {}", output.status);
        Ok(key.trim().to_owned())
    }

    /// How many bytes the database has on disk.
    pub fn bytes(&self) -> Result<f64> {
        match &self.postgres {
            Some((postgres, database)) => postgres.database_bytes(database),
            None => {
                let mut bytes = 0;
                let directory = self.sqlite().parent().context("it has one")?.to_owned();
                for entry in std::fs::read_dir(directory)? {
                    bytes += entry?.metadata()?.len();
                }
                Ok(bytes as f64)
            }
        }
    }

    /// Takes the database away.
    pub fn remove(self) -> Result<()> {
        match self.postgres {
            Some((postgres, database)) => postgres.drop_database(database),
            None => Ok(()),
        }
    }
}

/// What servers, database and upstream have used up to a moment.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    pub at: Instant,
    pub server_cpu: f64,
    /// `None` on SQLite, where it is the server's, and where Postgres is on another machine.
    pub database_cpu: Option<f64>,
    pub upstream_cpu: f64,
    pub written: Written,
}

/// Bytes written for the store.
#[derive(Clone, Copy, Debug, Default)]
pub struct Written {
    /// By the servers themselves: on SQLite, all there is.
    pub server: f64,
    /// Postgres: its write-ahead log.
    pub wal: Option<f64>,
    /// Postgres: the size of the database. Its growth is written at least once beside the log.
    pub database: Option<f64>,
}

/// Reads what is used.
pub struct Meter<'a> {
    pub servers: Vec<u32>,
    pub upstream: u32,
    pub store: &'a Store,
}

impl Meter<'_> {
    /// What is used up to now, of a stretch that begins: asking Postgres is not counted to it.
    pub fn begin(&self) -> Result<Reading> {
        let written = self.written()?;
        self.read(written, Instant::now)
    }

    /// What is used up to now, of a stretch that ended at `at`.
    pub fn end(&self, at: Instant) -> Result<Reading> {
        let mut reading = self.read(Written::default(), || at)?;
        reading.written = self.written()?;
        Ok(reading)
    }

    fn read(&self, written: Written, at: impl FnOnce() -> Instant) -> Result<Reading> {
        let mut server_cpu = 0.0;
        for pid in &self.servers {
            server_cpu += procfs::cpu_seconds(*pid)?;
        }
        let postgres = self.store.postgres().and_then(|(postgres, _)| postgres.pid);
        Ok(Reading {
            server_cpu,
            database_cpu: postgres.map(procfs::family_cpu_seconds).transpose()?,
            upstream_cpu: procfs::cpu_seconds(self.upstream)?,
            written,
            at: at(),
        })
    }

    fn written(&self) -> Result<Written> {
        let mut written = Written::default();
        for pid in &self.servers {
            written.server += procfs::written_bytes(*pid)?;
        }
        if let Some((postgres, database)) = self.store.postgres() {
            written.wal = Some(postgres.wal_bytes()?);
            written.database = Some(postgres.database_bytes(database)?);
        }
        Ok(written)
    }
}

impl Reading {
    /// Bytes written between two readings: write-ahead log, files and growth together.
    pub fn written_since(&self, before: &Self) -> f64 {
        let grown = |now: Option<f64>, then: Option<f64>| match (now, then) {
            (Some(now), Some(then)) => (now - then).max(0.0),
            _ => 0.0,
        };
        self.written.server - before.written.server
            + grown(self.written.wal, before.written.wal)
            + grown(self.written.database, before.written.database)
    }

    /// CPU a line between two readings, in milliseconds, of each process apart.
    pub fn cpu_figures(&self, before: &Self, lines: u64, figures: &mut Figures) {
        self.cpu_figures_per("line", before, lines, figures);
    }

    /// The same for what there is another number of, such as a batch.
    pub fn cpu_figures_per(&self, what: &str, before: &Self, count: u64, figures: &mut Figures) {
        let mut set = |process: &str, now: Option<f64>, then: Option<f64>| {
            if let (Some(now), Some(then)) = (now, then) {
                let cpu_ms = (now - then) * 1000.0 / count as f64;
                figures.set(&format!("{process}_cpu_ms_per_{what}"), cpu_ms);
            }
        };
        set("server", Some(self.server_cpu), Some(before.server_cpu));
        set(
            "upstream",
            Some(self.upstream_cpu),
            Some(before.upstream_cpu),
        );
        set("database", self.database_cpu, before.database_cpu);
    }
}
