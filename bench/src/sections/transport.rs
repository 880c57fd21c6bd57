//! The two ways to an upstream. All other sections go by the direct one, plain HTTP; the general
//! one can do TLS and proxies, and is given plain HTTP here as well, so that they compare.

use anyhow::Result;

use super::{Bench, Section, dispatch};
use crate::results::{Point, System};

pub async fn run(bench: &mut Bench) -> Result<()> {
    if !bench.world.engines.contains(&System::Sqlite) {
        return Ok(());
    }
    let systems = [System::Sqlite, System::SqliteGeneral];
    for latency_ms in [0, 10] {
        let point = Point {
            latency_ms,
            ..bench.base()
        };
        dispatch::compare(bench, Section::Transport, point, &systems, 0..bench.rounds).await?;
    }
    Ok(())
}
