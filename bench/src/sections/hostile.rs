//! How soon the first line of a tenant goes out while another tenant has 10,000 batches of one line
//! and a hundred of a hundred models each, and while there is no other.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use futures::{StreamExt as _, TryStreamExt as _, stream};

use super::{Bench, Section, in_turn};
use crate::client::Client;
use crate::input::Input;
use crate::recorder::{Event, Recorder};
use crate::results::{Figures, Point, quantile};
use crate::server::{Serving, Store};

/// Batches of the tenant that is measured, created one after the other.
const BATCHES: usize = 200;
const QUICK_BATCHES: usize = 50;
/// Before the next one is created: without a pause they would be more than the calls in flight
/// allow.
const PAUSE: Duration = Duration::from_millis(20);
/// What the hostile tenant has.
const HOSTILE: u64 = 10_000;
const QUICK_HOSTILE: u64 = 2_000;
const MANY_MODELS: u64 = 100;
/// Requests of the hostile tenant that are under way at once.
const CLIENTS: usize = 16;
/// So slow that the hostile tenant's lines last.
const LATENCY_MS: u64 = 250;
const IN_FLIGHT: u64 = 64;
/// The 99th percentile may be twice what it is alone, and so much in any case.
const LEAST_MS: f64 = 250.0;
/// A call that has not come by then never will.
const PATIENCE: Duration = Duration::from_secs(60);

/// Limits of all kinds, none of which keeps anything: what they cost is measured, too.
const LIMITS: &str = r#"
[[models]]
name = "*"
spill = "full"
rate_limits = [{ type = "requests", limit = 1_000_000_000, period = "1m" }]
routes = [{ upstream = "sim" }, { upstream = "sim", model = "sim", tier = 1 }]

[[tenants]]
name = "*"
concurrency = 64
rate_limits = [{ type = "tokens", limit = 1_000_000_000_000, period = "1h" }]
models = ["*"]
max_enqueued_requests = 1_000_000
max_enqueued_tokens = 1_000_000_000
max_storage_bytes = 1_000_000_000_000
"#;

pub async fn run(bench: &mut Bench) -> Result<()> {
    let hostile = if bench.quick { QUICK_HOSTILE } else { HOSTILE };
    let batches = if bench.quick { QUICK_BATCHES } else { BATCHES };
    for round in 0..bench.rounds {
        for engine in in_turn(&bench.world.engines, round) {
            // Alone and beside the other one, one right after the other.
            let mut alone_p99 = None;
            for tenants in [1, 2] {
                let point = Point {
                    tenants,
                    lines: if tenants == 2 { hostile } else { 0 },
                    latency_ms: LATENCY_MS,
                    in_flight: IN_FLIGHT,
                    ..Point::BASE
                };
                let store = Store::create(&bench.world, engine)?;
                let waits = waits(&store, point, batches).await?;
                store.remove()?;
                let p99 = quantile(waits.clone(), 0.99).context("no batch")?;
                let mut figures = Figures::default();
                figures.set("first_call_p50_ms", quantile(waits, 0.5).context("none")?);
                figures.set("first_call_p99_ms", p99);
                if let Some(alone) = alone_p99 {
                    figures.set(
                        "first_call_over_allowed",
                        p99 / f64::max(LEAST_MS, 2.0 * alone),
                    );
                }
                alone_p99 = Some(p99);
                bench.add(Section::Hostile, engine, point, round, figures)?;
            }
        }
    }
    Ok(())
}

/// From the answer to `POST /v1/batches` to the head of the batch's call, in milliseconds.
async fn waits(store: &Store, point: Point, batches: usize) -> Result<Vec<f64>> {
    let mut recorder = Recorder::start(Duration::from_millis(point.latency_ms)).await?;
    let serving = Serving {
        keys: true,
        more: LIMITS,
        ..Serving::new(&recorder.url, point.in_flight)
    };
    let server = store.serve(&serving).await?;
    let keys = store.keys(2).await?;
    let [measured, hostile] = &keys[..] else {
        anyhow::bail!("two keys were made");
    };
    let measured = server.client.with_key(measured.clone());
    let hostile = server.client.with_key(hostile.clone());
    let home = tempfile::tempdir()?;
    let mut files = Vec::new();
    let mut own = Vec::new();
    for number in 0..batches {
        let body = body(&format!("measured {number}"), "sim");
        own.push(hash(&body));
        let file = home.path().join(format!("{number}.jsonl"));
        files.push(measured.upload(&write(&file, &[body])?).await?);
    }
    let created = AtomicU64::new(0);
    let flood = flood(&hostile, home.path(), point.lines, &created);
    let measure = async {
        // The flood is in full flow, and goes on.
        while created.load(Ordering::Relaxed) < point.lines / 10 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let mut waits = Vec::new();
        let own: HashSet<u64> = own.into_iter().collect();
        for file in &files {
            tokio::time::sleep(PAUSE).await;
            while recorder.events.try_recv().is_ok() {}
            measured.create(file).await?;
            let begun = Instant::now();
            let first = loop {
                let event = tokio::time::timeout(PATIENCE, recorder.events.recv()).await;
                match event
                    .context("no call comes")?
                    .context("the upstream ended")?
                {
                    Event::Read(call, came) if own.contains(&call) => break came,
                    _ => continue,
                }
            };
            // It may come before the answer does.
            waits.push(first.saturating_duration_since(begun).as_secs_f64() * 1000.0);
        }
        anyhow::Ok(waits)
    };
    let (waits, flooded) = tokio::join!(measure, flood);
    flooded?;
    server.process.kill().await?;
    waits
}

/// Creates so many batches of one line, and one of a hundred models beside each hundred of them.
async fn flood(
    client: &Client,
    home: &std::path::Path,
    batches: u64,
    created: &AtomicU64,
) -> Result<()> {
    if batches == 0 {
        return Ok(());
    }
    let one = write(&home.join("one.jsonl"), &[body("hostile", "sim")])?;
    let one = client.upload(&one).await?;
    let bodies: Vec<String> = (0..MANY_MODELS)
        .map(|model| body("hostile", &format!("sim-{model}")))
        .collect();
    let many = write(&home.join("many.jsonl"), &bodies)?;
    let many = client.upload(&many).await?;
    stream::iter(0..batches)
        .map(async |number| {
            if number % 100 == 0 {
                client.create(&many).await?;
            }
            client.create(&one).await?;
            created.fetch_add(1, Ordering::Relaxed);
            anyhow::Ok(())
        })
        .buffer_unordered(CLIENTS)
        .try_collect()
        .await
}

fn body(content: &str, model: &str) -> String {
    format!(
        r#"{{"model":"{model}","max_tokens":16,"messages":[{{"role":"user","content":"{content}"}}]}}"#
    )
}

/// As the recorder names a call.
fn hash(body: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes::Bytes::copy_from_slice(body.as_bytes()).hash(&mut hasher);
    hasher.finish()
}

fn write(path: &std::path::Path, bodies: &[String]) -> Result<Input> {
    let mut text = String::new();
    for (number, body) in bodies.iter().enumerate() {
        writeln!(
            text,
            r#"{{"custom_id":"request-{number}","method":"POST","url":"/v1/chat/completions","body":{body}}}"#
        )?;
    }
    std::fs::write(path, &text)?;
    Ok(Input {
        path: path.to_owned(),
        lines: bodies.len() as u64,
        bytes: text.len() as u64,
    })
}
