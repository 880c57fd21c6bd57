//! Child processes that say on their first line of output where they listen, and that do not
//! outlive the benchmark.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

const START_TIMEOUT: Duration = Duration::from_secs(60);
const STOP_TIMEOUT: Duration = Duration::from_secs(60);

/// A process that runs. Dropped, it is killed.
pub struct Process {
    child: Child,
    pub pid: u32,
    /// What its first line named.
    pub url: String,
    // Closed, it would end a process that prints again.
    _output: Lines<BufReader<ChildStdout>>,
}

impl Process {
    /// Starts it and waits until it has printed a URL.
    pub async fn start(command: &mut Command) -> Result<Self> {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        let what = format!("{:?}", command.as_std());
        let mut child = command.spawn().with_context(|| what.clone())?;
        let pid = child.id().context("it has ended")?;
        let output = child.stdout.take().context("it has no output")?;
        let mut output = BufReader::new(output).lines();
        let line = timeout(START_TIMEOUT, output.next_line()).await;
        let Some(line) = line.with_context(|| format!("{what} does not start"))?? else {
            bail!("{what} ended: {}", child.wait().await?);
        };
        let url = line
            .split_whitespace()
            .find(|word| word.starts_with("http://"));
        let url = url
            .with_context(|| format!("{what} said {line}"))?
            .to_owned();
        Ok(Self {
            child,
            pid,
            url,
            _output: output,
        })
    }

    /// Asks it to stop, and waits until it has.
    pub async fn stop(mut self) -> Result<()> {
        kill_process(self.id()?, Signal::TERM)?;
        let status = timeout(STOP_TIMEOUT, self.child.wait()).await;
        let status = status.context("it does not stop")??;
        ensure!(status.success(), "it ended with {status}");
        Ok(())
    }

    /// `kill -9`.
    pub async fn kill(mut self) -> Result<()> {
        Ok(self.child.kill().await?)
    }

    fn id(&self) -> Result<Pid> {
        i32::try_from(self.pid)
            .ok()
            .and_then(Pid::from_raw)
            .context("it has no id")
    }
}
