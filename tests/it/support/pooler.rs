//! PgBouncer in transaction mode, before the Postgres that all tests share.

use std::path::Path;
use std::process::{Child, Stdio};

use sqlx::postgres::PgConnectOptions;
use tempfile::TempDir;

use super::engines::shared_postgres;
use super::postgres::{as_postgres, give_to_postgres};

const PORT: u16 = 6432;

/// A pooler in a directory of its own, which is reached by a socket in it. Dropped, it is
/// stopped.
pub struct Pooler {
    directory: TempDir,
    process: Child,
}

impl Pooler {
    /// So few connections that those of a server and its neighbour are the same.
    pub fn start(connections: usize) -> Pooler {
        let directory = tempfile::tempdir().expect("makes a directory");
        let path = directory.path();
        give_to_postgres(path);
        let server: PgConnectOptions = shared_postgres().parse().expect("is a URL of Postgres");
        let host = match server.get_socket() {
            Some(socket) => socket.display().to_string(),
            None => server.get_host().to_owned(),
        };
        let (port, user) = (server.get_port(), server.get_username());
        let configuration = format!(
            "[databases]\n* = host={host} port={port} user={user}\n\
             [pgbouncer]\nlisten_addr =\nlisten_port = {PORT}\nunix_socket_dir = {}\n\
             auth_type = any\npool_mode = transaction\ndefault_pool_size = {connections}\n\
             max_client_conn = 200\n",
            path.display()
        );
        let file = path.join("pgbouncer.ini");
        std::fs::write(&file, configuration).expect("writes");
        let program = ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer"];
        let program = program
            .map(Path::new)
            .into_iter()
            .find(|path| path.exists());
        let mut pgbouncer = as_postgres(program.expect("PgBouncer is installed: see tests/run.sh"));
        pgbouncer.arg("--quiet").arg(file);
        let process = pgbouncer
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        Pooler {
            process: process.expect("starts"),
            directory,
        }
    }

    /// The URL of the shared Postgres by way of it.
    pub fn url(&self) -> String {
        let mut url = reqwest::Url::parse(&shared_postgres()).expect("is a URL");
        let host = self.directory.path().display();
        let query = format!("host={host}&port={PORT}");
        url.set_query(Some(&query));
        url.into()
    }

    /// Waits until it listens.
    pub async fn ready(&self) {
        let socket = self.directory.path().join(format!(".s.PGSQL.{PORT}"));
        super::eventually("PgBouncer listens", async || socket.exists()).await;
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
