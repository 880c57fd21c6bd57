//! The base point in an empty store, and in one that has seen many batches to their end.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use futures::{StreamExt as _, TryStreamExt as _, stream};

use super::{Bench, Section, in_turn};
use crate::client::LOOK_EVERY;
use crate::input::{Input, LINE_BYTES};
use crate::life::{Life, live};
use crate::recorder::Recorder;
use crate::results::{Figures, Point};
use crate::server::{Serving, Store};

const FINISHED: u64 = 10_000;
const QUICK_FINISHED: u64 = 500;
/// Batches that are made at once.
const AT_ONCE: usize = 64;

pub async fn run(bench: &mut Bench) -> Result<()> {
    let finished = if bench.quick {
        QUICK_FINISHED
    } else {
        FINISHED
    };
    let empty = bench.base();
    let full = Point { finished, ..empty };
    for engine in bench.world.engines.clone() {
        let store = Store::create(&bench.world, engine)?;
        let filled_s = fill(bench, &store, finished).await?;
        for round in 0..bench.pairs() {
            for point in in_turn(&[empty, full], round) {
                let figures = if point == full {
                    let mut figures = again(bench, &store, full).await?;
                    figures.set("fill_s", filled_s);
                    figures
                } else {
                    live(&mut bench.world, engine, empty).await?
                };
                bench.add(Section::Finished, engine, point, round, figures)?;
            }
        }
        store.remove()?;
    }
    Ok(())
}

/// Lets batches of one line run to their end, through the API.
async fn fill(bench: &Bench, store: &Store, batches: u64) -> Result<f64> {
    let path = bench.world.data.join("one.jsonl");
    let input = Input::write(&path, 1, u64::MAX / 2, LINE_BYTES)?;
    let recorder = Recorder::start(Duration::ZERO).await?;
    let server = store
        .serve(&Serving::new(&recorder.url, Point::BASE.in_flight))
        .await?;
    let begun = Instant::now();
    let file_id = server.client.upload(&input).await.context("upload")?;
    stream::iter(0..batches)
        .map(async |_| {
            let batch = server.client.create(&file_id).await?;
            server.client.watch(&batch.id, LOOK_EVERY).await.map(drop)
        })
        .buffer_unordered(AT_ONCE)
        .try_collect::<()>()
        .await?;
    let seconds = begun.elapsed().as_secs_f64();
    server.process.stop().await?;
    Ok(seconds)
}

/// A life in a store that is there already.
async fn again(bench: &mut Bench, store: &Store, point: Point) -> Result<Figures> {
    let input = bench.world.input(point.lines)?;
    let (upstream, pid) = bench.world.upstream(point.latency_ms).await?;
    let server = store
        .serve(&Serving::new(&upstream, point.in_flight))
        .await?;
    let mut figures = Figures::default();
    let life = Life::begin(store, &server, pid, &input)?;
    let file_id = life.upload(&mut figures).await?;
    let batch = life.run(&file_id, &mut figures).await?;
    life.download(&batch, &mut figures).await?;
    server.process.stop().await?;
    Ok(figures)
}
