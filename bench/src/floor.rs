//! The floor: what it costs to send the lines with no database behind them. It reads the JSONL,
//! posts each line's body with so many calls at once over connections that are kept, and writes
//! the answers' bytes to a file through a buffer, without looking into them.
//!
//! It runs in a process of its own and prints what it took.
//!
//! It is frozen as of commit 8caee6e, so that ratios of all times compare: a test in `world` holds
//! the code below to what it was.

use std::fs::File;
use std::io::{BufRead as _, BufReader, BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::header::{CONTENT_TYPE, HOST, HeaderValue};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::procfs;

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Library {
    Reqwest,
    Hyper,
}

#[derive(Clone, Debug, clap::Args)]
pub struct FloorArgs {
    #[arg(long)]
    pub library: Library,
    /// The upstream's base URL, /v1 included
    #[arg(long)]
    pub url: String,
    #[arg(long)]
    pub input: PathBuf,
    #[arg(long)]
    pub output: PathBuf,
    #[arg(long)]
    pub in_flight: usize,
}

/// What it prints.
#[derive(Debug, Serialize, Deserialize)]
pub struct FloorResult {
    pub lines: u64,
    pub seconds: f64,
    pub cpu_seconds: f64,
    pub peak_mib: f64,
}

/// Both files, shared by all calls.
struct Files {
    input: Mutex<BufReader<File>>,
    output: Mutex<BufWriter<File>>,
}

impl Files {
    fn open(input: &Path, output: &Path) -> Result<Arc<Self>> {
        Ok(Arc::new(Self {
            input: Mutex::new(BufReader::with_capacity(1 << 20, File::open(input)?)),
            output: Mutex::new(BufWriter::with_capacity(1 << 20, File::create(output)?)),
        }))
    }

    /// The next line's body, cut out of it.
    fn next(&self) -> Result<Option<Bytes>> {
        const KEY: &[u8] = b"\"body\":";
        let mut line = Vec::with_capacity(1024);
        let mut input = self.input.lock().unwrap_or_else(PoisonError::into_inner);
        if input.read_until(b'\n', &mut line)? == 0 {
            return Ok(None);
        }
        drop(input);
        let start = memchr::memmem::find(&line, KEY).context("a line has no body")? + KEY.len();
        let end = memchr::memrchr(b'}', &line).context("a line has no end")?;
        Ok(Some(Bytes::from(line).slice(start..end)))
    }

    fn write(&self, answer: &[u8]) -> Result<()> {
        let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        output.write_all(answer)?;
        Ok(output.write_all(b"\n")?)
    }

    fn flush(&self) -> Result<()> {
        let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(output.flush()?)
    }
}

/// Sends every line, and prints what it took.
pub async fn run(args: FloorArgs) -> Result<()> {
    let begun = Instant::now();
    // A server has started, too, before it is measured.
    let cpu_before = procfs::cpu_seconds(std::process::id())?;
    let files = Files::open(&args.input, &args.output)?;
    let url: hyper::Uri = format!("{}/chat/completions", args.url).parse()?;
    let client = reqwest::Client::builder().no_proxy().build()?;
    let mut calls = JoinSet::new();
    for _ in 0..args.in_flight {
        let files = Arc::clone(&files);
        match args.library {
            Library::Reqwest => {
                let url = reqwest::Url::parse(&url.to_string())?;
                calls.spawn(by_reqwest(client.clone(), url, files));
            }
            Library::Hyper => {
                calls.spawn(by_hyper(url.clone(), files));
            }
        }
    }
    let mut lines = 0;
    while let Some(sent) = calls.join_next().await {
        lines += sent??;
    }
    files.flush()?;
    let result = FloorResult {
        lines,
        seconds: begun.elapsed().as_secs_f64(),
        cpu_seconds: procfs::cpu_seconds(std::process::id())? - cpu_before,
        peak_mib: procfs::peak_mib(std::process::id())?,
    };
    writeln!(std::io::stdout(), "{}", serde_json::to_string(&result)?)?;
    Ok(())
}

async fn by_reqwest(client: reqwest::Client, url: reqwest::Url, files: Arc<Files>) -> Result<u64> {
    let json = HeaderValue::from_static("application/json");
    let mut lines = 0;
    while let Some(body) = files.next()? {
        let call = client
            .post(url.clone())
            .header(CONTENT_TYPE, &json)
            .body(body);
        let answer = call.send().await?;
        ensure!(
            answer.status().is_success(),
            "the upstream answered {}",
            answer.status()
        );
        files.write(&answer.bytes().await?)?;
        lines += 1;
    }
    Ok(lines)
}

async fn by_hyper(url: hyper::Uri, files: Arc<Files>) -> Result<u64> {
    let Some(authority) = url.authority() else {
        bail!("the URL names no host");
    };
    let host = HeaderValue::from_str(authority.as_str())?;
    let stream = TcpStream::connect(authority.as_str()).await?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let mut lines = 0;
    while let Some(body) = files.next()? {
        let call = hyper::Request::post(url.path())
            .header(HOST, &host)
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(body))?;
        let answer = sender.send_request(call).await?;
        ensure!(
            answer.status().is_success(),
            "the upstream answered {}",
            answer.status()
        );
        files.write(&answer.into_body().collect().await?.to_bytes())?;
        lines += 1;
    }
    Ok(lines)
}
