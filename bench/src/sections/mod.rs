//! What is measured, one file a section.

mod dispatch;
mod download;
mod finished;
mod first_call;
mod held;
mod hostile;
mod lines;
mod memory;
mod recovery;
mod replicas;
mod slow;
mod small;
mod statements;
mod tenants;
mod transport;
mod upload;
mod wide;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;

use crate::results::{Figures, Point, Results, Sample, System};
use crate::world::World;

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Section {
    /// Lines a second and CPU a line, by latency and calls in flight, beside the floor
    Dispatch,
    /// The two ways to an upstream: plain HTTP, and the client that can do TLS; on SQLite
    Transport,
    /// MB a second and CPU of an upload
    Upload,
    /// From `POST /v1/batches` to the first call at the upstream
    FirstCall,
    /// MB a second of an output, beside a static file
    Download,
    /// Peak memory of a large upload, a large batch, and its download
    Memory,
    /// Statements and commits a line; not timed
    Statements,
    /// From `kill -9` to the first line that is sent again
    Recovery,
    /// Growth with the number of lines
    Lines,
    /// Growth with the number of tenants
    Tenants,
    /// How soon a tenant's first line goes out beside a tenant with 10,000 batches
    Hostile,
    /// Growth with the number of replicas on one Postgres
    Replicas,
    /// The same figures in a store with many finished batches
    Finished,
    /// Rows and bytes of lines that come in one by one, as from real models; not timed
    Slow,
    /// What a batch of five lines costs, by clients
    Small,
    /// 15,000 calls in flight, beside a bare loop of that width
    Wide,
    /// With a transaction that somebody holds open on Postgres
    Held,
}

impl Section {
    pub const ALL: [Self; 17] = [
        Self::Dispatch,
        Self::Transport,
        Self::Upload,
        Self::FirstCall,
        Self::Download,
        Self::Memory,
        Self::Statements,
        Self::Recovery,
        Self::Lines,
        Self::Tenants,
        Self::Hostile,
        Self::Replicas,
        Self::Finished,
        Self::Slow,
        Self::Small,
        Self::Wide,
        Self::Held,
    ];

    /// Those of a short run.
    pub const QUICK: [Self; 7] = [
        Self::Dispatch,
        Self::Transport,
        Self::Upload,
        Self::FirstCall,
        Self::Download,
        Self::Memory,
        Self::Statements,
    ];

    /// As it is called in `results.json` and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dispatch => "dispatch",
            Self::Transport => "transport",
            Self::Upload => "upload",
            Self::FirstCall => "first-call",
            Self::Download => "download",
            Self::Memory => "memory",
            Self::Statements => "statements",
            Self::Recovery => "recovery",
            Self::Lines => "lines",
            Self::Tenants => "tenants",
            Self::Hostile => "hostile",
            Self::Replicas => "replicas",
            Self::Finished => "finished",
            Self::Slow => "slow",
            Self::Small => "small",
            Self::Wide => "wide",
            Self::Held => "held",
        }
    }
}

/// All of them, beginning with another in each round: nobody is always the first.
fn in_turn<T: Clone>(all: &[T], round: u32) -> Vec<T> {
    let mut turn = all.to_vec();
    turn.rotate_left(round as usize % all.len().max(1));
    turn
}

/// A benchmark under way.
pub struct Bench {
    pub world: World,
    pub results: Results,
    pub rounds: u32,
    /// How many lines the base point has.
    pub lines: u64,
    pub quick: bool,
    /// `results.json`: written anew after every sample, so that nothing is lost.
    pub path: PathBuf,
    pub begun: Instant,
}

impl Bench {
    pub async fn measure(&mut self, section: Section) -> Result<()> {
        match section {
            Section::Dispatch => dispatch::run(self).await,
            Section::Transport => transport::run(self).await,
            Section::Upload => upload::run(self).await,
            Section::FirstCall => first_call::run(self).await,
            Section::Download => download::run(self).await,
            Section::Memory => memory::run(self).await,
            Section::Statements => statements::run(self).await,
            Section::Recovery => recovery::run(self).await,
            Section::Lines => lines::run(self).await,
            Section::Tenants => tenants::run(self).await,
            Section::Hostile => hostile::run(self).await,
            Section::Replicas => replicas::run(self).await,
            Section::Finished => finished::run(self).await,
            Section::Slow => slow::run(self).await,
            Section::Small => small::run(self).await,
            Section::Wide => wide::run(self).await,
            Section::Held => held::run(self).await,
        }
    }

    /// How often a pair is run whose ratio is a target: enough for an interval that says something,
    /// but for a short run.
    pub fn pairs(&self) -> u32 {
        if self.quick {
            self.rounds
        } else {
            self.rounds * 3
        }
    }

    /// Notes why this machine cannot run a section.
    pub fn skip(&mut self, section: Section, reason: String) -> Result<()> {
        eprintln!("section {}: not measured: {reason}", section.name());
        self.results
            .skipped
            .insert(section.name().to_owned(), reason);
        self.results.write(&self.path)
    }

    /// The base point of this run.
    pub fn base(&self) -> Point {
        Point {
            lines: self.lines,
            ..Point::BASE
        }
    }

    pub fn add(
        &mut self,
        section: Section,
        system: System,
        point: Point,
        round: u32,
        figures: Figures,
    ) -> Result<()> {
        let sample = Sample {
            section: section.name().to_owned(),
            system,
            point,
            round,
            figures,
        };
        let seconds = self.begun.elapsed().as_secs();
        eprintln!("{seconds:>5} s  {}", serde_json::to_string(&sample)?);
        self.results.samples.push(sample);
        self.results.write(&self.path)
    }
}
