//! What `kill -9` costs: how soon the lines that the dead process had in hand are sent again, by
//! the same server started anew, and by another replica on the same Postgres.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tokio::time::timeout;

use super::{Bench, Section, in_turn};
use crate::client::LOOK_EVERY;
use crate::input::Input;
use crate::recorder::{Event, Recorder};
use crate::results::{Figures, Point, System};
use crate::server::{Server, Serving, Store};

const LINES: u64 = 20_000;
/// Slow enough that the batch is under way when its server dies.
const LATENCY_MS: u64 = 100;
const PATIENCE: Duration = Duration::from_secs(120);

pub async fn run(bench: &mut Bench) -> Result<()> {
    let alone = Point {
        lines: LINES,
        latency_ms: LATENCY_MS,
        ..Point::BASE
    };
    let input = bench.world.input(LINES)?;
    let mut runs = Vec::new();
    for &engine in &bench.world.engines {
        runs.push((engine, alone));
        if engine == System::Postgres {
            let replicas = 2;
            runs.push((engine, Point { replicas, ..alone }));
        }
    }
    for round in 0..bench.rounds {
        for (engine, point) in in_turn(&runs, round) {
            let store = Store::create(&bench.world, engine)?;
            let figures = kill(&store, &input, point).await?;
            store.remove()?;
            bench.add(Section::Recovery, engine, point, round, figures)?;
        }
    }
    Ok(())
}

/// Kills the server that a batch was created at.
async fn kill(store: &Store, input: &Input, point: Point) -> Result<Figures> {
    let mut recorder = Recorder::start(Duration::from_millis(point.latency_ms)).await?;
    let url = recorder.url.clone();
    let serving = Serving::new(&url, point.in_flight);
    let server = store.serve(&serving).await?;
    let mut survivor = None;
    if point.replicas > 1 {
        survivor = Some(store.serve(&serving).await?);
    }
    let file_id = server.client.upload(input).await?;
    let batch = server.client.create(&file_id).await?;
    let mut calls = Calls::default();
    while calls.answered < point.lines / 5 {
        calls.note(next(&mut recorder).await?);
    }
    server.process.kill().await?;
    let killed = Instant::now();
    let survivor: Server = match survivor {
        Some(survivor) => survivor,
        None => store.serve(&serving).await?,
    };
    let restarted = Instant::now();

    let (mut first, mut again) = (None, None);
    while again.is_none() {
        let event = next(&mut recorder).await?;
        if let Event::Read(call, at) = event
            && at > killed
        {
            first.get_or_insert(at);
            if calls.sent.contains(&call) {
                again = Some(at);
            }
        }
        calls.note(event);
    }
    let watched = timeout(PATIENCE, survivor.client.watch(&batch.id, LOOK_EVERY));
    watched.await.context("the batch does not end")??;
    while let Ok(event) = recorder.events.try_recv() {
        calls.note(event);
    }
    survivor.process.stop().await?;
    let distinct = calls.sent.len() as u64;
    ensure!(
        distinct == point.lines,
        "{distinct} different lines were sent"
    );

    let mut figures = Figures::default();
    let since = |at: Option<Instant>, from| -> Result<f64> {
        let at = at.context("nothing was sent")?;
        Ok(at.saturating_duration_since(from).as_secs_f64())
    };
    figures.set("first_line_s", since(first, killed)?);
    figures.set("sent_again_s", since(again, killed)?);
    figures.set("restart_s", (restarted - killed).as_secs_f64());
    figures.set("lines_sent_twice", (calls.all - distinct) as f64);
    Ok(figures)
}

/// What the upstream has seen.
#[derive(Default)]
struct Calls {
    sent: HashSet<u64>,
    all: u64,
    answered: u64,
}

impl Calls {
    fn note(&mut self, event: Event) {
        match event {
            Event::Came(_) => {}
            Event::Read(call, _) => {
                self.sent.insert(call);
                self.all += 1;
            }
            Event::Answered(_) => self.answered += 1,
        }
    }
}

async fn next(recorder: &mut Recorder) -> Result<Event> {
    let event = timeout(PATIENCE, recorder.events.recv()).await;
    event
        .context("no call comes")?
        .context("the upstream ended")
}
