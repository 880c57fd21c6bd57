//! What the runs share: the binary, the inputs, the upstreams, Postgres.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use tokio::process::Command;

use crate::floor::{FloorResult, Library};
use crate::input::Input;
use crate::postgres::Postgres;
use crate::process::Process;
use crate::results::{Point, System};

/// The number of words of an answer, so that it has about as many bytes as a request.
const ANSWER_TOKENS: &str = "60";

pub struct World {
    pub binary: PathBuf,
    /// Everything that is written stands below it.
    pub data: PathBuf,
    pub postgres: Option<Arc<Postgres>>,
    /// Which engines are measured.
    pub engines: Vec<System>,
    inputs: HashMap<u64, Arc<Input>>,
    upstreams: HashMap<u64, Process>,
}

impl World {
    pub fn new(
        binary: PathBuf,
        data: &Path,
        postgres: Option<Arc<Postgres>>,
        engines: Vec<System>,
    ) -> Self {
        Self {
            binary,
            data: data.to_owned(),
            postgres,
            engines,
            inputs: HashMap::new(),
            upstreams: HashMap::new(),
        }
    }

    /// The file of so many lines, made once.
    pub fn input(&mut self, lines: u64) -> Result<Arc<Input>> {
        if let Some(input) = self.inputs.get(&lines) {
            return Ok(Arc::clone(input));
        }
        let path = self.data.join(format!("{lines}.jsonl"));
        let input = Arc::new(Input::write(&path, lines, 0)?);
        self.inputs.insert(lines, Arc::clone(&input));
        Ok(input)
    }

    /// The simulated upstream of that latency, started once: its base URL and its process.
    pub async fn upstream(&mut self, latency_ms: u64) -> Result<(String, u32)> {
        if !self.upstreams.contains_key(&latency_ms) {
            let mut command = Command::new(&self.binary);
            command
                .args(["simulate", "--listen", "127.0.0.1:0"])
                .args(["--answer-tokens", ANSWER_TOKENS])
                .args(["--latency", &format!("{latency_ms}ms")]);
            let upstream = Process::start(&mut command).await?;
            self.upstreams.insert(latency_ms, upstream);
        }
        let upstream = self.upstreams.get(&latency_ms).context("it was started")?;
        Ok((upstream.url.clone(), upstream.pid))
    }

    pub fn postgres(&self) -> Result<Arc<Postgres>> {
        self.postgres.clone().context("Postgres is not measured")
    }

    /// Where the floor leaves its answers.
    pub fn floor_output(&self) -> PathBuf {
        self.data.join("floor.jsonl")
    }

    /// Sends the lines with no database.
    pub async fn floor(&mut self, library: Library, point: Point) -> Result<FloorResult> {
        let input = self.input(point.lines)?;
        let (url, _) = self.upstream(point.latency_ms).await?;
        let library = match library {
            Library::Reqwest => "reqwest",
            Library::Hyper => "hyper",
        };
        rustix::fs::sync();
        let output = Command::new(std::env::current_exe()?)
            .args(["floor", "--library", library, "--url", &url])
            .args(["--in-flight", &point.in_flight.to_string()])
            .arg("--input")
            .arg(&input.path)
            .arg("--output")
            .arg(self.floor_output())
            .stderr(Stdio::inherit())
            .kill_on_drop(true)
            .output()
            .await?;
        ensure!(
            output.status.success(),
            "the floor ended with {}",
            output.status
        );
        let result: FloorResult = serde_json::from_slice(&output.stdout)?;
        ensure!(
            result.lines == point.lines,
            "the floor sent {} lines",
            result.lines
        );
        Ok(result)
    }
}
