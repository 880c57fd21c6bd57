//! Spans to an OTLP receiver, by the same HTTP client as model servers are called with.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use futures::future::BoxFuture;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider};
use tokio::runtime::Handle;

use crate::config::Telemetry;

/// How long a receiver may take over a request.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How long the last spans may take at the end.
const LAST_TIMEOUT: Duration = Duration::from_secs(5);

/// Exports spans until it is shut down.
pub struct Exporter(SdkTracerProvider);

impl Exporter {
    /// An exporter to a receiver's base URL. To be called within the runtime.
    ///
    /// # Errors
    /// When what the environment says to OpenTelemetry cannot be done.
    pub(super) fn new(endpoint: &str, telemetry: &Telemetry) -> anyhow::Result<Self> {
        let client = reqwest::Client::builder()
            .no_proxy()
            .timeout(TIMEOUT)
            .build()?;
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(Client {
                client,
                runtime: Handle::current(),
                fails: AtomicBool::new(false),
            })
            .with_endpoint(format!("{endpoint}/v1/traces"))
            .with_timeout(TIMEOUT)
            .build()
            .context("spans cannot be exported")?;
        let own = Sampler::TraceIdRatioBased(telemetry.sample_ratio);
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_sampler(Sampler::ParentBased(Box::new(own)))
            .with_resource(Resource::builder().with_service_name("nightshift").build())
            .build();
        Ok(Self(provider))
    }

    pub(super) fn tracer(&self) -> SdkTracer {
        self.0.tracer("nightshift")
    }

    /// Sends what is left, for a moment.
    pub async fn shutdown(self) {
        let shut = move || self.0.shutdown_with_timeout(LAST_TIMEOUT);
        if let Ok(Err(error)) = tokio::task::spawn_blocking(shut).await {
            tracing::warn!(%error, "the last spans could not be exported");
        }
    }
}

/// Sends requests on the runtime, for the exporter has a thread of its own.
#[derive(Debug)]
struct Client {
    client: reqwest::Client,
    runtime: Handle,
    /// Whether the last request failed, so that a failure is logged once and not every second.
    fails: AtomicBool,
}

impl HttpClient for Client {
    fn send_bytes<'a, 'b>(
        &'a self,
        request: Request<Bytes>,
    ) -> BoxFuture<'b, Result<Response<Bytes>, HttpError>>
    where
        'a: 'b,
        Self: 'b,
    {
        Box::pin(async move {
            let sent = self.runtime.spawn(send(self.client.clone(), request));
            let outcome = match sent.await {
                Ok(outcome) => outcome,
                Err(error) => Err(error.into()),
            };
            self.log(&outcome);
            outcome
        })
    }
}

impl Client {
    /// Logs when requests begin to fail, and when they succeed again.
    fn log(&self, outcome: &Result<Response<Bytes>, HttpError>) {
        let cause = match outcome {
            Ok(response) if response.status().is_success() => None,
            Ok(response) => Some(format!("it answered {}", response.status())),
            Err(error) => Some(error.to_string()),
        };
        let failed_before = self.fails.swap(cause.is_some(), Ordering::Relaxed);
        match cause {
            Some(cause) if !failed_before => {
                tracing::warn!(
                    cause,
                    "the OTLP receiver does not take spans; they are dropped"
                );
            }
            None if failed_before => tracing::info!("the OTLP receiver takes spans again"),
            _ => {}
        }
    }
}

async fn send(
    client: reqwest::Client,
    request: Request<Bytes>,
) -> Result<Response<Bytes>, HttpError> {
    let request = reqwest::Request::try_from(request)?;
    // Without the URL, which is known and may be long.
    let response = client
        .execute(request)
        .await
        .map_err(reqwest::Error::without_url)?;
    let mut answer = Response::builder().status(response.status());
    if let Some(headers) = answer.headers_mut() {
        headers.clone_from(response.headers());
    }
    let body = response
        .bytes()
        .await
        .map_err(reqwest::Error::without_url)?;
    Ok(answer.body(body)?)
}
