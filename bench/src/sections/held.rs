//! A transaction that somebody holds open through a whole run on Postgres: no version of a row is
//! removed meanwhile, so that whoever reads old versions is the slower the longer it lasts.

use anyhow::Result;

use super::small::{self, CLIENTS};
use super::{Bench, Section, in_turn};
use crate::life::live;
use crate::results::{Point, System};

const BATCHES: u64 = 300;
const QUICK_BATCHES: u64 = 50;

pub async fn run(bench: &mut Bench) -> Result<()> {
    if !bench.world.engines.contains(&System::Postgres) {
        return Ok(());
    }
    let batches = if bench.quick { QUICK_BATCHES } else { BATCHES };
    for load in [bench.base(), small::point(CLIENTS, batches)] {
        let held = Point { held: 1, ..load };
        for round in 0..bench.pairs() {
            for point in in_turn(&[load, held], round) {
                let figures = match point.clients {
                    0 => live(&mut bench.world, System::Postgres, point).await?,
                    _ => small::load(bench, System::Postgres, point).await?,
                };
                bench.add(Section::Held, System::Postgres, point, round, figures)?;
            }
        }
    }
    Ok(())
}
