//! The real binary, as a process.

use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::{Child, Command};

/// A server that is a process of its own. Dropped, it is killed.
pub struct Binary {
    pub base: String,
    pub child: Child,
}

impl Binary {
    /// Starts `nightshift serve` on a free port and waits until it listens.
    pub async fn serve(args: &[&str], variables: &[(&str, &str)]) -> Binary {
        let mut command = command(&["serve", "--listen", "127.0.0.1:0"]);
        command.args(args).envs(variables.iter().copied());
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("starts");
        let mut errors = child.stderr.take().expect("is piped");
        let log = tokio::spawn(async move {
            let mut text = String::new();
            let _ = errors.read_to_string(&mut text).await;
            text
        });
        let mut lines = BufReader::new(child.stdout.take().expect("is piped")).lines();
        let line = tokio::time::timeout(Duration::from_secs(30), lines.next_line()).await;
        match line.expect("listens in time").expect("can be read") {
            Some(line) => {
                let base = line
                    .strip_prefix("Listening on ")
                    .expect("says where")
                    .to_owned();
                Binary { base, child }
            }
            None => panic!("it did not start: {}", log.await.expect("can be read")),
        }
    }

    /// Asks it to stop, and expects that it does so well.
    pub async fn terminate(mut self) {
        self.signal("TERM");
        assert!(self.wait().await.success(), "it does not stop well");
    }

    pub fn signal(&self, name: &str) {
        let id = self.child.id().expect("runs").to_string();
        let sent = std::process::Command::new("kill")
            .args(["-s", name, &id])
            .status();
        assert!(sent.expect("runs kill").success());
    }

    pub async fn wait(&mut self) -> ExitStatus {
        let ended = tokio::time::timeout(Duration::from_secs(60), self.child.wait()).await;
        ended.expect("ends in time").expect("can be waited for")
    }
}

/// A command of the real binary, free of the caller's own settings.
pub fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nightshift"));
    command.args(args);
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if name.starts_with("NIGHTSHIFT_") || name == "DATABASE_URL" {
            command.env_remove(name);
        }
    }
    command
}
