//! A Postgres of the benchmark's own, with its defaults: every commit is on disk before it is
//! acknowledged. Or one that is named, which must run on this machine for its CPU to be seen.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, ensure};

use crate::procfs;

pub struct Postgres {
    /// Of the maintenance database.
    url: String,
    psql: PathBuf,
    /// The parent of its processes, if they are on this machine.
    pub pid: Option<u32>,
    pub version: String,
    databases: AtomicU32,
    own: Option<Own>,
}

/// What is to be stopped in the end.
struct Own {
    bin: PathBuf,
    home: PathBuf,
}

/// A database of one run. Dropped by [`Postgres::drop_database`] only.
pub struct Database {
    pub url: String,
    pub name: String,
}

impl Postgres {
    /// Makes a cluster below `home` and starts it.
    pub fn start(home: &Path) -> Result<Self> {
        let bin = bin().context(
            "Postgres is not installed (apt-get install postgresql), and --postgres names none",
        )?;
        let home = home.to_owned();
        std::fs::create_dir_all(&home)?;
        if is_root() {
            run(Command::new("chown").arg("postgres").arg(&home))?;
        }
        let data = home.join("data");
        run(user_command(&bin.join("initdb"))
            .arg("-D")
            .arg(&data)
            .args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C"]))?;
        let options = format!("-c listen_addresses='' -k {}", home.display());
        let own = Own { bin, home };
        run(user_command(&own.bin.join("pg_ctl"))
            .arg("-D")
            .arg(&data)
            .arg("-l")
            .arg(own.home.join("log"))
            .args(["-w", "-o", &options, "start"]))?;
        let url = format!(
            "postgres://postgres@localhost/postgres?host={}",
            own.home.display()
        );
        let psql = own.bin.join("psql");
        Self::connect(url, psql, Some(own))
    }

    /// Uses a server on which databases may be created.
    pub fn named(url: &str) -> Result<Self> {
        let psql = bin().map_or_else(|| "psql".into(), |bin| bin.join("psql"));
        Self::connect(url.to_owned(), psql, None)
    }

    fn connect(url: String, psql: PathBuf, own: Option<Own>) -> Result<Self> {
        let mut postgres = Self {
            url,
            psql,
            pid: None,
            version: String::new(),
            databases: AtomicU32::new(0),
            own,
        };
        postgres.pid = match &postgres.own {
            Some(own) => {
                let text = std::fs::read_to_string(own.home.join("data/postmaster.pid"))?;
                text.lines().next().and_then(|pid| pid.parse().ok())
            }
            None => postgres.local_pid(),
        };
        postgres.version = postgres.ask("SHOW server_version")?;
        for setting in ["fsync", "synchronous_commit", "full_page_writes"] {
            let value = postgres.ask(&format!("SHOW {setting}"))?;
            ensure!(
                value == "on",
                "Postgres has {setting} = {value}: it is not durable"
            );
        }
        Ok(postgres)
    }

    /// The server's first process, where psql's is its neighbour.
    fn local_pid(&self) -> Option<u32> {
        let sleeper = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'";
        let checkpointer = self.ask(sleeper).ok()?.parse().ok()?;
        let (pid, name) = procfs::parent(checkpointer).ok()?;
        name.starts_with("postgres").then_some(pid)
    }

    /// A fresh database, after a checkpoint, so that none falls into the run by what was before.
    pub fn create_database(&self) -> Result<Database> {
        let number = self.databases.fetch_add(1, Ordering::Relaxed);
        let name = format!("nightshift_bench_{}_{number}", std::process::id());
        self.ask(&format!("CREATE DATABASE {name}"))?;
        self.checkpoint()?;
        // The parameters may hold slashes, as a socket's directory does.
        let (server, parameters) = match self.url.split_once('?') {
            Some((server, parameters)) => (server, format!("?{parameters}")),
            None => (self.url.as_str(), String::new()),
        };
        let (server, _) = server
            .rsplit_once('/')
            .context("the URL names no database")?;
        let url = format!("{server}/{name}{parameters}");
        Ok(Database { url, name })
    }

    pub fn drop_database(&self, database: Database) -> Result<()> {
        self.ask(&format!("DROP DATABASE {} WITH (FORCE)", database.name))?;
        Ok(())
    }

    pub fn checkpoint(&self) -> Result<()> {
        self.ask("CHECKPOINT").map(drop)
    }

    /// Bytes of write-ahead log written since the cluster was made.
    pub fn wal_bytes(&self) -> Result<f64> {
        Ok(self.ask("SELECT pg_current_wal_lsn() - '0/0'")?.parse()?)
    }

    pub fn database_bytes(&self, database: &Database) -> Result<f64> {
        let size = format!("SELECT pg_database_size('{}')", database.name);
        Ok(self.ask(&size)?.parse()?)
    }

    /// Transactions that were committed in a database.
    pub fn commits(&self, database: &Database) -> Result<f64> {
        let name = &database.name;
        let commits = format!("SELECT xact_commit FROM pg_stat_database WHERE datname = '{name}'");
        Ok(self.ask(&commits)?.parse()?)
    }

    /// Asks the maintenance database one question with one answer.
    pub fn ask(&self, sql: &str) -> Result<String> {
        self.ask_in(&self.url, sql)
    }

    /// Asks a database one question with one answer.
    pub fn ask_in(&self, url: &str, sql: &str) -> Result<String> {
        let mut psql = self.psql(url);
        let output = psql.args(["-c", sql]).output();
        let output = output.context("psql does not start")?;
        ensure!(
            output.status.success(),
            "psql: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }

    /// A client of a database that is to be told what to do.
    pub fn psql(&self, url: &str) -> Command {
        let mut psql = Command::new(&self.psql);
        psql.args(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-d", url]);
        psql
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let Some(own) = &self.own else { return };
        let stop = run(user_command(&own.bin.join("pg_ctl"))
            .arg("-D")
            .arg(own.home.join("data"))
            .args(["-m", "immediate", "stop"]));
        if let Err(error) = stop {
            eprintln!("Postgres does not stop: {error}");
        }
    }
}

/// The newest version that is installed.
fn bin() -> Option<PathBuf> {
    let mut homes: Vec<(u32, PathBuf)> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let version = path.file_name()?.to_str()?.parse().ok()?;
            Some((version, path.join("bin")))
        })
        .collect();
    homes.sort();
    let on_path = std::env::var_os("PATH")
        .into_iter()
        .flat_map(|path| std::env::split_paths(&path).collect::<Vec<_>>());
    let installed = homes.into_iter().rev().map(|(_, bin)| bin);
    let mut all = installed.chain(on_path);
    all.find(|bin| bin.join("initdb").exists() && bin.join("postgres").exists())
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Postgres refuses to run as root.
fn user_command(program: &Path) -> Command {
    let mut command = if is_root() {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=postgres", "--regid=postgres", "--init-groups"]);
        command.arg(program);
        command
    } else {
        Command::new(program)
    };
    command.current_dir("/");
    command
}

fn run(command: &mut Command) -> Result<()> {
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let status = command.status().with_context(|| format!("{command:?}"))?;
    ensure!(status.success(), "{command:?} ended with {status}");
    Ok(())
}
