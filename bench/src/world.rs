//! What the runs share: the binary, the inputs, the upstreams, Postgres.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use tokio::process::Command;

use crate::floor::{FloorResult, Library};
use crate::input::{Input, LINE_BYTES};
use crate::postgres::Postgres;
use crate::process::Process;
use crate::results::{Point, System};

/// The number of words of an answer, so that it has about as many bytes as a request.
const ANSWER_TOKENS: u64 = 60;

/// A simulated upstream.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Upstream {
    pub latency_ms: u64,
    /// A call takes up to this much less or more.
    pub jitter_ms: u64,
    pub answer_tokens: u64,
}

pub struct World {
    pub binary: PathBuf,
    /// Everything that is written stands below it.
    pub data: PathBuf,
    pub postgres: Option<Arc<Postgres>>,
    /// Which engines are measured.
    pub engines: Vec<System>,
    inputs: HashMap<u64, Arc<Input>>,
    upstreams: HashMap<Upstream, Process>,
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
        let input = Arc::new(Input::write(&path, lines, 0, LINE_BYTES)?);
        self.inputs.insert(lines, Arc::clone(&input));
        Ok(input)
    }

    /// The upstream of just that latency: its base URL and its process.
    pub async fn upstream(&mut self, latency_ms: u64) -> Result<(String, u32)> {
        let upstream = Upstream {
            latency_ms,
            jitter_ms: 0,
            answer_tokens: ANSWER_TOKENS,
        };
        self.simulate(upstream).await
    }

    /// An upstream, started once.
    pub async fn simulate(&mut self, upstream: Upstream) -> Result<(String, u32)> {
        if !self.upstreams.contains_key(&upstream) {
            let mut command = Command::new(&self.binary);
            command
                .args(["simulate", "--listen", "127.0.0.1:0"])
                .args(["--answer-tokens", &upstream.answer_tokens.to_string()])
                .args(["--latency", &format!("{}ms", upstream.latency_ms)])
                .args(["--latency-jitter", &format!("{}ms", upstream.jitter_ms)]);
            let process = Process::start(&mut command).await?;
            self.upstreams.insert(upstream, process);
        }
        let process = self.upstreams.get(&upstream).context("it was started")?;
        Ok((process.url.clone(), process.pid))
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

#[cfg(test)]
mod tests {
    #[test]
    fn the_floor_is_what_it_was_when_it_was_frozen() {
        let (_, code) = include_str!("floor.rs").split_once("\n\n").unwrap();
        // FNV-1a.
        let hash = code.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        assert_eq!(hash, 0xcbf4_f80a_74d5_4bd3, "the floor is not to change");
    }
}
