//! How soon the first line goes out once its batch is created.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::{Bench, Section};
use crate::input::Input;
use crate::recorder::{Event, Recorder};
use crate::results::{Figures, Point, quantile};
use crate::server::{Serving, Store};

/// How many batches are created for one figure, one after the other.
const BATCHES: u64 = 100;
const QUICK_BATCHES: u64 = 30;
const LINES: u64 = 100;
/// A call that has not come by then never will.
const PATIENCE: Duration = Duration::from_secs(60);

pub async fn run(bench: &mut Bench) -> Result<()> {
    let batches = if bench.quick { QUICK_BATCHES } else { BATCHES };
    let point = Point {
        lines: LINES,
        ..Point::BASE
    };
    let input = bench.world.input(LINES)?;
    for round in 0..bench.rounds {
        for engine in bench.world.engines.clone() {
            let store = Store::create(&bench.world, engine)?;
            let waits = waits(&store, &input, point, batches).await?;
            store.remove()?;
            let mut figures = Figures::default();
            for (name, share) in [("first_call_p50_ms", 0.5), ("first_call_p99_ms", 0.99)] {
                figures.set(name, quantile(waits.clone(), share).context("no batch")?);
            }
            bench.add(Section::FirstCall, engine, point, round, figures)?;
        }
    }
    Ok(())
}

/// From the answer to `POST /v1/batches` to the head of the first call, in milliseconds.
async fn waits(store: &Store, input: &Input, point: Point, batches: u64) -> Result<Vec<f64>> {
    let mut recorder = Recorder::start(Duration::from_millis(point.latency_ms)).await?;
    let server = store
        .serve(&Serving::new(&recorder.url, point.in_flight))
        .await?;
    let file_id = server.client.upload(input).await?;
    let mut waits = Vec::new();
    for _ in 0..batches {
        while recorder.events.try_recv().is_ok() {}
        let batch = server.client.create(&file_id).await?;
        let created = Instant::now();
        let first = loop {
            let event = tokio::time::timeout(PATIENCE, recorder.events.recv()).await;
            match event
                .context("no call comes")?
                .context("the upstream ended")?
            {
                Event::Came(at) => break at,
                _ => continue,
            }
        };
        // It may come before the answer does.
        waits.push(first.saturating_duration_since(created).as_secs_f64() * 1000.0);
        server.client.watch(&batch.id).await?;
    }
    server.process.stop().await?;
    Ok(waits)
}
