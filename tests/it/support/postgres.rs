//! A Postgres of a test's own, to be stopped and started again.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

/// A server in a directory of its own, which is reached by a socket in it. Dropped, it is stopped.
pub struct OwnPostgres {
    bin: PathBuf,
    directory: TempDir,
}

impl OwnPostgres {
    pub fn start() -> Self {
        let directory = tempfile::tempdir().expect("makes a directory");
        let server = OwnPostgres {
            bin: bin(),
            directory,
        };
        give_to_postgres(server.directory.path());
        let data = server.data();
        let mut initdb = server.command("initdb");
        initdb.arg("-D").arg(data);
        run(initdb.args(["-U", "postgres", "-A", "trust", "--no-sync", "-E", "UTF8"]));
        server.start_again();
        server
    }

    /// The URL of its first database.
    pub fn url(&self) -> String {
        let host = self.directory.path().display();
        format!("postgres://postgres@localhost/postgres?host={host}")
    }

    /// Stops it as its machine would on a shutdown (`fast`), or so that it must recover at its
    /// next start (`immediate`).
    pub fn stop(&self, mode: &str) {
        let mut pg_ctl = self.command("pg_ctl");
        pg_ctl.arg("-D").arg(self.data());
        run(pg_ctl.args(["-m", mode, "-w", "stop"]));
    }

    pub fn start_again(&self) {
        let path = self.directory.path();
        let options = format!(
            "-c listen_addresses='' -k {} -c fsync=off -c max_connections=50",
            path.display()
        );
        let mut pg_ctl = self.command("pg_ctl");
        pg_ctl.arg("-D").arg(self.data());
        pg_ctl.arg("-l").arg(path.join("log"));
        run(pg_ctl.args(["-w", "-o", &options, "start"]));
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// One of its programs, as somebody as whom Postgres agrees to run.
    fn command(&self, program: &str) -> Command {
        let program = self.bin.join(program);
        let mut command = as_postgres(&program);
        command.current_dir("/");
        command
    }
}

impl Drop for OwnPostgres {
    fn drop(&mut self) {
        let mut pg_ctl = self.command("pg_ctl");
        pg_ctl.arg("-D").arg(self.data());
        pg_ctl.args(["-m", "immediate", "stop"]);
        // It may be stopped already.
        let _ = pg_ctl.stdout(Stdio::null()).stderr(Stdio::null()).status();
    }
}

/// A program, run as another user where this one is root: Postgres refuses that.
pub fn as_postgres(program: &Path) -> Command {
    if !is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]);
    command.arg(program);
    command
}

/// Lets the user as whom [`as_postgres`] runs programs write in a directory.
pub fn give_to_postgres(directory: &Path) {
    if is_root() {
        run(Command::new("chown").arg("postgres").arg(directory));
    }
}

fn is_root() -> bool {
    let id = Command::new("id").arg("-u").output().expect("runs id");
    id.stdout == b"0\n"
}

/// Where Postgres's programs are: where tests/run.sh says, or the newest that is installed.
fn bin() -> PathBuf {
    if let Some(bin) = std::env::var_os("NIGHTSHIFT_TEST_POSTGRES_BIN") {
        return bin.into();
    }
    let versions = std::fs::read_dir("/usr/lib/postgresql").expect("Postgres is installed");
    let newest = versions
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .max();
    let version = newest.expect("Postgres is installed").to_string();
    Path::new("/usr/lib/postgresql").join(version).join("bin")
}

fn run(command: &mut Command) {
    // Not piped: a server that it starts would keep a pipe open.
    let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
    let status = status.expect("runs");
    assert!(status.success(), "{command:?}: {status}");
}
