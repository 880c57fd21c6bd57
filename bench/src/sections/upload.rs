//! How fast a file is taken in, and what that costs.

use anyhow::Result;

use super::{Bench, Section, in_turn};
use crate::life::Life;
use crate::results::{Figures, Point};
use crate::server::{Serving, Store};

/// 268 MB.
const LINES: u64 = 400_000;
const QUICK_LINES: u64 = 50_000;

pub async fn run(bench: &mut Bench) -> Result<()> {
    let lines = if bench.quick { QUICK_LINES } else { LINES };
    let point = Point {
        lines,
        ..Point::BASE
    };
    let input = bench.world.input(lines)?;
    let (upstream, pid) = bench.world.upstream(point.latency_ms).await?;
    for round in 0..bench.rounds {
        for engine in in_turn(&bench.world.engines, round) {
            let store = Store::create(&bench.world, engine)?;
            let server = store
                .serve(&Serving::new(&upstream, point.in_flight))
                .await?;
            let mut figures = Figures::default();
            let life = Life::begin(&store, &server, pid, &input)?;
            life.upload(&mut figures).await?;
            figures.set("peak_mib", crate::procfs::peak_mib(server.process.pid)?);
            server.process.stop().await?;
            store.remove()?;
            bench.add(Section::Upload, engine, point, round, figures)?;
        }
    }
    Ok(())
}
