//! How soon the first line goes out once its batch is created.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::{Bench, Section, in_turn};
use crate::client::LOOK_EVERY;
use crate::input::Input;
use crate::recorder::{Event, Recorder};
use crate::results::{Figures, Point, quantile};
use crate::server::{Serving, Store};

/// Small batches, created one after the other for one figure.
const SMALL: u64 = 100;
const QUICK_SMALL: u64 = 30;
/// How many lines each of them has.
const LINES: u64 = 100;
/// Batches of as many lines as the base point has.
const LARGE: u64 = 10;
/// A call that has not come by then never will.
const PATIENCE: Duration = Duration::from_secs(60);

pub async fn run(bench: &mut Bench) -> Result<()> {
    let small = if bench.quick { QUICK_SMALL } else { SMALL };
    for (lines, batches) in [(LINES, small), (bench.lines, LARGE)] {
        let point = Point {
            lines,
            ..Point::BASE
        };
        let input = bench.world.input(lines)?;
        for round in 0..bench.rounds {
            for engine in in_turn(&bench.world.engines, round) {
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
    }
    Ok(())
}

/// From the answer to `POST /v1/batches` to the head of the first call, in milliseconds. The next
/// batch is created when one has ended; a large one is cancelled, so that this is soon.
async fn waits(store: &Store, input: &Input, point: Point, batches: u64) -> Result<Vec<f64>> {
    let mut recorder = Recorder::start(Duration::from_millis(point.latency_ms)).await?;
    let server = store
        .serve(&Serving::new(&recorder.url, point.in_flight))
        .await?;
    let client = &server.client;
    let file_id = client.upload(input).await?;
    let mut waits = Vec::new();
    for _ in 0..batches {
        while recorder.events.try_recv().is_ok() {}
        let batch = client.create(&file_id).await?;
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
        if input.lines > LINES {
            client.cancel(&batch.id).await?;
        }
        client.watch_to_its_end(&batch.id, LOOK_EVERY).await?;
    }
    server.process.stop().await?;
    Ok(waits)
}
