//! `nightshift demo`: the first minute. A server, a simulated upstream, and one batch through
//! them, over HTTP.

mod requests;

use std::io::Write as _;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use reqwest::multipart::{Form, Part};
use serde::Deserialize;

use super::progress::{Details, Progress, Snapshot};
use crate::app::App;
use crate::config::{Config, Environment, Overrides};
use crate::domain::clock::Clock;
use crate::shutdown::{self, Hangup};
use crate::simulate::{Options, Simulator};
use crate::telemetry;

const EXAMPLE: &str = "\
Examples:
  nightshift demo
  nightshift demo --exit | head";

const FIRST_PORT: u16 = 8080;
const PORTS_TRIED: u16 = 100;
const POLL: Duration = Duration::from_millis(200);
const LATENCY: Duration = Duration::from_millis(250);
const SHOWN_LINES: usize = 3;
const SHOWN_CHARACTERS: usize = 300;

/// Run a batch of 600 requests through a server and a simulated upstream, and leave both to try.
///
/// Data goes to a directory of its own, which is removed at the end; configuration is ignored.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLE)]
pub(super) struct DemoArgs {
    /// Stop when the batch is done, instead of serving until Ctrl-C
    #[arg(long)]
    exit: bool,

    /// Where the server listens [default: 127.0.0.1:8080, or the next port that is free]
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<String>,
}

/// What the demo reads of a batch.
#[derive(Debug, Deserialize)]
struct Batch {
    id: String,
    status: String,
    output_file_id: Option<String>,
    error_file_id: Option<String>,
    request_counts: RequestCounts,
    usage: Option<Usage>,
}

#[derive(Debug, Deserialize)]
struct RequestCounts {
    total: u64,
    completed: u64,
    failed: u64,
}

#[derive(Debug, Deserialize)]
struct Usage {
    total_tokens: u64,
}

#[derive(Debug, Deserialize)]
struct File {
    id: String,
    bytes: u64,
}

pub(super) async fn run(args: DemoArgs) -> anyhow::Result<ExitCode> {
    let stop = shutdown::on_signal(Hangup::Stops)?;
    let directory = tempfile::Builder::new()
        .prefix("nightshift-demo-")
        .tempdir()?;
    let options = Options {
        latency: LATENCY,
        jitter: LATENCY / 2,
        rate_limit_rate: 0.03,
        ..Options::default()
    };
    let upstream = Simulator::start("127.0.0.1:0", options).await?;
    let config = config(&upstream, directory.path())?;
    telemetry::start(&config.log);
    let app = start(config, args.listen).await?;
    let server = format!("http://{}", app.address());

    let shown = stop.token().run_until_cancelled(show(&server)).await;
    let interrupted = match shown {
        Some(outcome) => {
            outcome?;
            false
        }
        None => true,
    };
    if !interrupted {
        say(&format!("Server: {server}"))?;
        if !args.exit {
            hint(&server);
            stop.token().cancelled().await;
        }
    }
    app.stop().await;
    upstream.stop().await;
    Ok(if interrupted {
        ExitCode::from(stop.code())
    } else {
        ExitCode::SUCCESS
    })
}

/// The defaults, with the simulated upstream and a database that belongs to the demo.
fn config(upstream: &Simulator, directory: &std::path::Path) -> anyhow::Result<Config> {
    let overrides = Overrides {
        upstream: Some(upstream.base_url()),
        database_file: Some(directory.join("demo.db")),
        ..Overrides::default()
    };
    let mut config = Config::built_in(&overrides, &Environment::default())
        .map_err(|errors| anyhow::anyhow!("{errors}"))?;
    // What the demo does is shown in another way.
    "error".clone_into(&mut config.log.filter);
    Ok(config)
}

/// Starts the server on port 8080 or the next that is free.
async fn start(mut config: Config, listen: Option<String>) -> anyhow::Result<App> {
    if let Some(listen) = listen {
        config.server.listen = listen;
        return App::start(&config, Clock::default()).await;
    }
    for port in FIRST_PORT..FIRST_PORT + PORTS_TRIED {
        config.server.listen = format!("127.0.0.1:{port}");
        match App::start(&config, Clock::default()).await {
            Err(error) if is_taken(&error) => {}
            started => return started,
        }
    }
    bail!(
        "no port from {FIRST_PORT} to {} is free",
        FIRST_PORT + PORTS_TRIED - 1
    )
}

/// Whether somebody else has the address.
fn is_taken(error: &anyhow::Error) -> bool {
    let mut causes = error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>());
    causes.any(|cause| cause.kind() == std::io::ErrorKind::AddrInUse)
}

/// One batch, as a user would run it.
async fn show(server: &str) -> anyhow::Result<()> {
    let client = reqwest::Client::builder().no_proxy().build()?;
    let api = format!("{server}/v1");

    let requests = requests::jsonl();
    let part = Part::text(requests).file_name("requests.jsonl");
    let form = Form::new().text("purpose", "batch").part("file", part);
    let file: File = read(client.post(format!("{api}/files")).multipart(form)).await?;
    tell!("Uploaded requests.jsonl: {} bytes, {}", file.bytes, file.id);

    let body = serde_json::json!({
        "input_file_id": file.id,
        "endpoint": requests::ENDPOINT,
        "completion_window": "24h",
        "metadata": {"from": "nightshift demo"},
    });
    let batch: Batch = read(client.post(format!("{api}/batches")).json(&body)).await?;
    tell!("Created {}", batch.id);

    let batch = wait(&client, &api, batch).await?;
    ensure!(batch.status == "completed", "the batch is {}", batch.status);
    let counts = &batch.request_counts;
    say(&format!(
        "{}: {} requests, {} completed, {} failed, {} tokens",
        batch.status,
        counts.total,
        counts.completed,
        counts.failed,
        batch.usage.map_or(0, |usage| usage.total_tokens)
    ))?;
    let files = [
        ("output", batch.output_file_id),
        ("error", batch.error_file_id),
    ];
    for (name, file_id) in files {
        let file_id = file_id.with_context(|| format!("the batch has no {name} file"))?;
        say(&format!(
            "\nThe first lines of the {name} file, {api}/files/{file_id}/content"
        ))?;
        let content = client
            .get(format!("{api}/files/{file_id}/content"))
            .send()
            .await?;
        for line in content
            .error_for_status()?
            .text()
            .await?
            .lines()
            .take(SHOWN_LINES)
        {
            say(&sample(line))?;
        }
    }
    say("")
}

async fn wait(client: &reqwest::Client, api: &str, mut batch: Batch) -> anyhow::Result<Batch> {
    let url = format!("{api}/batches/{}", batch.id);
    let mut progress = Progress::new(None);
    while matches!(
        batch.status.as_str(),
        "validating" | "in_progress" | "finalizing"
    ) {
        progress.update(snapshot(&batch), &Details::default(), Instant::now());
        tokio::time::sleep(POLL).await;
        batch = read(client.get(&url)).await?;
    }
    progress.finish(snapshot(&batch), Instant::now());
    Ok(batch)
}

fn snapshot(batch: &Batch) -> Snapshot {
    let counts = &batch.request_counts;
    Snapshot {
        done: counts.completed + counts.failed,
        failed: counts.failed,
        kept: 0,
        total: counts.total,
        tokens: batch.usage.as_ref().map_or(0, |usage| usage.total_tokens),
    }
}

async fn read<T: for<'a> Deserialize<'a>>(request: reqwest::RequestBuilder) -> anyhow::Result<T> {
    let answer = request.send().await?;
    let status = answer.status();
    let text = answer.text().await?;
    ensure!(status.is_success(), "the server answered {status}: {text}");
    Ok(serde_json::from_str(&text)?)
}

fn hint(server: &str) {
    tell!(
        "The server runs until Ctrl-C. Try it from another terminal:\n  \
         curl {server}/v1/batches\n  \
         export OPENAI_BASE_URL={server}/v1 OPENAI_API_KEY=unused\n  \
         {server}/docs describes it."
    );
}

/// What a person wants to see of a line: whose it is, and its text or what is wrong with it.
fn sample(line: &str) -> String {
    let Ok(line) = serde_json::from_str::<serde_json::Value>(line) else {
        return shorten(line);
    };
    let custom_id = line["custom_id"].as_str().unwrap_or_default();
    let response = &line["response"];
    let body = &response["body"];
    let answer = body["choices"][0]["message"]["content"].as_str();
    let text = answer.map_or_else(
        || {
            let error = [&line["error"], &body["error"]];
            let message = error.iter().find_map(|error| error["message"].as_str());
            let status = &response["status_code"];
            format!("{status} {}", message.unwrap_or_default())
        },
        str::to_owned,
    );
    shorten(&format!("  {custom_id}: {}", text.replace('\n', " ")))
}

fn shorten(line: &str) -> String {
    match line.char_indices().nth(SHOWN_CHARACTERS) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line.to_owned(),
    }
}

fn say(line: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}
