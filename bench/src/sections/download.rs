//! How fast an output is read, beside the same bytes from a server of static files.

use std::time::Instant;

use anyhow::{Context as _, Result};
use tokio::process::Command;

use super::{Bench, Section, in_turn};
use crate::client::{Client, content};
use crate::life::Life;
use crate::process::Process;
use crate::results::{Figures, System};
use crate::server::{Serving, Store};

/// How often it is read for one figure: for about a second, since a machine has its moods.
const TIMES: u32 = 20;

pub async fn run(bench: &mut Bench) -> Result<()> {
    let point = bench.base();
    let input = bench.world.input(point.lines)?;
    let (upstream, pid) = bench.world.upstream(point.latency_ms).await?;
    let directory = tempfile::tempdir_in(&bench.world.data)?;
    let mut stores = Vec::new();
    for engine in bench.world.engines.clone() {
        stores.push((engine, Store::create(&bench.world, engine)?));
    }
    let mut servers = Vec::new();
    for (engine, store) in &stores {
        let server = store
            .serve(&Serving::new(&upstream, point.in_flight))
            .await?;
        let life = Life::begin(store, &server, pid, &input)?;
        let file_id = life.upload(&mut Figures::default()).await?;
        let batch = life.run(&file_id, &mut Figures::default()).await?;
        let path = content(batch.output_file_id.as_deref().context("no output")?);
        let copy = directory.path().join("output.jsonl");
        server.client.save(&path, &copy).await?;
        servers.push((*engine, server, path));
    }
    let mut files = Command::new(std::env::current_exe()?);
    files.arg("files").arg("--directory").arg(directory.path());
    let files = Process::start(&mut files).await?;
    let client = Client::new(&files.url)?;
    let mut readings = vec![(System::Static, client, "/output.jsonl".to_owned())];
    for (engine, server, path) in &servers {
        readings.push((*engine, server.client.clone(), path.clone()));
    }
    for round in 0..bench.pairs() {
        for (system, client, path) in in_turn(&readings, round) {
            let speed = mb_per_s(&client, &path).await?;
            bench.add(Section::Download, system, point, round, speed)?;
        }
    }
    for (_, server, _) in servers {
        server.process.stop().await?;
    }
    stores.into_iter().try_for_each(|(_, store)| store.remove())
}

async fn mb_per_s(client: &Client, path: &str) -> Result<Figures> {
    let begun = Instant::now();
    let mut bytes = 0;
    for _ in 0..TIMES {
        bytes += client.download(path).await?;
    }
    let seconds = begun.elapsed().as_secs_f64();
    let mut figures = Figures::default();
    figures.set("download_mb_per_s", bytes as f64 / 1e6 / seconds);
    Ok(figures)
}
