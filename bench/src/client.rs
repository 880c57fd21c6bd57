//! A client of the API: just so much as measuring needs.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use futures::StreamExt as _;
use reqwest::multipart::{Form, Part};
use reqwest::{Body, RequestBuilder, Response};
use serde::Deserialize;
use serde_json::json;
use tokio_util::io::ReaderStream;

use crate::input::Input;

/// Between two looks at a batch that runs, where it is the only one.
pub const LOOK_EVERY: Duration = Duration::from_millis(20);

#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    base: String,
    key: Option<String>,
}

#[derive(Debug, Deserialize)]
pub struct Batch {
    pub id: String,
    pub status: String,
    pub output_file_id: Option<String>,
    pub request_counts: Option<Counts>,
}

#[derive(Debug, Deserialize)]
pub struct Counts {
    pub total: u64,
    pub completed: u64,
    pub failed: u64,
}

/// A batch that has ended, and how it was to watch it.
pub struct Watched {
    pub batch: Batch,
    pub ended: Instant,
    /// How long each look took, in milliseconds.
    pub looks_ms: Vec<f64>,
}

impl Client {
    pub fn new(base: &str) -> Result<Self> {
        Ok(Self {
            http: reqwest::Client::builder().no_proxy().build()?,
            base: base.to_owned(),
            key: None,
        })
    }

    pub fn with_key(&self, key: String) -> Self {
        Self {
            key: Some(key),
            ..self.clone()
        }
    }

    /// Uploads a file as a stream; returns its id.
    pub async fn upload(&self, input: &Input) -> Result<String> {
        #[derive(Deserialize)]
        struct File {
            id: String,
        }
        let file = tokio::fs::File::open(&input.path).await?;
        let stream = Body::wrap_stream(ReaderStream::with_capacity(file, 256 << 10));
        let part = Part::stream_with_length(stream, input.bytes).file_name("in.jsonl");
        let form = Form::new().text("purpose", "batch").part("file", part);
        let request = self.http.post(format!("{}/v1/files", self.base));
        let file: File = self.send(request.multipart(form)).await?.json().await?;
        Ok(file.id)
    }

    pub async fn create(&self, file_id: &str) -> Result<Batch> {
        let request = self
            .http
            .post(format!("{}/v1/batches", self.base))
            .json(&json!({
                "input_file_id": file_id,
                "endpoint": "/v1/chat/completions",
                "completion_window": "24h",
            }));
        Ok(self.send(request).await?.json().await?)
    }

    pub async fn batch(&self, id: &str) -> Result<Batch> {
        let request = self.http.get(format!("{}/v1/batches/{id}", self.base));
        Ok(self.send(request).await?.json().await?)
    }

    pub async fn cancel(&self, id: &str) -> Result<()> {
        let request = self
            .http
            .post(format!("{}/v1/batches/{id}/cancel", self.base));
        self.send(request).await.map(drop)
    }

    /// Looks at a batch until every line of it has been answered well.
    pub async fn watch(&self, id: &str, every: Duration) -> Result<Watched> {
        let watched = self.watch_to_its_end(id, every).await?;
        let batch = &watched.batch;
        ensure!(
            batch.status == "completed",
            "the batch did not complete: {batch:?}"
        );
        let counts = batch.request_counts.as_ref().context("no counts")?;
        ensure!(
            counts.completed == counts.total && counts.failed == 0,
            "lines failed: {batch:?}"
        );
        Ok(watched)
    }

    /// Looks at a batch until it has ended, however that is.
    pub async fn watch_to_its_end(&self, id: &str, every: Duration) -> Result<Watched> {
        let mut looks_ms = Vec::new();
        loop {
            let begun = Instant::now();
            let batch = self.batch(id).await?;
            let ended = Instant::now();
            looks_ms.push((ended - begun).as_secs_f64() * 1000.0);
            match batch.status.as_str() {
                "validating" | "in_progress" | "finalizing" | "cancelling" => {
                    tokio::time::sleep(every).await;
                }
                _ => {
                    return Ok(Watched {
                        batch,
                        ended,
                        looks_ms,
                    });
                }
            }
        }
    }

    /// Reads a file's content and lets go of it; returns its length.
    pub async fn download(&self, path: &str) -> Result<u64> {
        let request = self.http.get(format!("{}{path}", self.base));
        let mut stream = self.send(request).await?.bytes_stream();
        let mut bytes = 0;
        while let Some(piece) = stream.next().await {
            bytes += piece?.len() as u64;
        }
        Ok(bytes)
    }

    /// Writes a file's content to disk.
    pub async fn save(&self, path: &str, to: &std::path::Path) -> Result<()> {
        let request = self.http.get(format!("{}{path}", self.base));
        let bytes = self.send(request).await?.bytes().await?;
        Ok(tokio::fs::write(to, bytes).await?)
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response> {
        let request = match &self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        };
        let response = request.send().await?;
        if !response.status().is_success() {
            bail!("{}: {}", response.status(), response.text().await?);
        }
        Ok(response)
    }
}

/// Where a file's content is read.
pub fn content(file_id: &str) -> String {
    format!("/v1/files/{file_id}/content")
}
