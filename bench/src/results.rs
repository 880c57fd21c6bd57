//! What was measured: one flat list of samples, from which every table and plot is made.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::machine::Machine;

/// The content of `results.json`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Results {
    pub machine: Machine,
    pub samples: Vec<Sample>,
}

/// One run of one system.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sample {
    pub section: String,
    pub system: System,
    #[serde(flatten)]
    pub point: Point,
    /// Samples of one round, section and point were taken in turn, and are compared.
    pub round: u32,
    pub figures: Figures,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum System {
    Sqlite,
    /// SQLite, with calls by the transport that can do TLS and proxies.
    SqliteGeneral,
    Postgres,
    /// A bare reqwest loop: what everything is compared with.
    Floor,
    /// A bare hyper loop, each of its tasks with a connection of its own.
    HyperFloor,
    /// A server of static files.
    Static,
}

impl System {
    pub fn name(self) -> &'static str {
        match self {
            Self::Sqlite => "SQLite",
            Self::SqliteGeneral => "SQLite, general transport",
            Self::Postgres => "Postgres",
            Self::Floor => "floor (reqwest)",
            Self::HyperFloor => "hyper loop",
            Self::Static => "static file",
        }
    }
}

/// Where in the space of all runs a sample stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Point {
    pub lines: u64,
    pub latency_ms: u64,
    pub in_flight: u64,
    pub tenants: u64,
    pub replicas: u64,
    /// Batches that the store had seen to their end before.
    pub finished: u64,
}

impl Point {
    /// The base point, from which one factor is changed at a time.
    pub const BASE: Self = Self {
        lines: 50_000,
        latency_ms: 10,
        in_flight: 256,
        tenants: 1,
        replicas: 1,
        finished: 0,
    };
}

/// Named numbers. A name ends in its unit.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Figures(BTreeMap<String, f64>);

impl Figures {
    /// Notes one, with five significant digits.
    pub fn set(&mut self, name: &str, value: f64) {
        let rounded = format!("{value:.4e}").parse().unwrap_or(value);
        self.0.insert(name.to_owned(), rounded);
    }

    pub fn get(&self, name: &str) -> Option<f64> {
        self.0.get(name).copied()
    }
}

impl Results {
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read(path).with_context(|| path.display().to_string())?;
        serde_json::from_slice(&text).with_context(|| path.display().to_string())
    }

    pub fn write(&self, path: &Path) -> Result<()> {
        let mut text = String::from("{\n\"machine\": ");
        text.push_str(&serde_json::to_string_pretty(&self.machine)?);
        text.push_str(",\n\"samples\": [");
        for (place, sample) in self.samples.iter().enumerate() {
            text.push_str(if place == 0 { "\n" } else { ",\n" });
            text.push_str(&serde_json::to_string(sample)?);
        }
        text.push_str("\n]\n}\n");
        Ok(std::fs::write(path, text)?)
    }

    /// The points of a section, in order, each once.
    pub fn points(&self, section: &str) -> BTreeSet<Point> {
        let samples = self
            .samples
            .iter()
            .filter(|sample| sample.section == section);
        samples.map(|sample| sample.point).collect()
    }

    /// One figure at one place, by round.
    pub fn rounds(&self, section: &str, point: Point, system: System, figure: &str) -> Series {
        let samples = self.samples.iter().filter(|sample| {
            sample.section == section && sample.point == point && sample.system == system
        });
        Series(
            samples
                .filter_map(|sample| Some((sample.round, sample.figures.get(figure)?)))
                .collect(),
        )
    }
}

/// Numbers by round.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Series(pub BTreeMap<u32, f64>);

impl Series {
    /// Each round's number over the same round's number of another series.
    pub fn over(&self, other: &Self) -> Self {
        let pairs = self.0.iter().filter_map(|(round, number)| {
            let other = other.0.get(round).filter(|other| **other != 0.0)?;
            Some((*round, number / other))
        });
        Self(pairs.collect())
    }

    pub fn median(&self) -> Option<f64> {
        quantile(self.0.values().copied().collect(), 0.5)
    }

    /// The least and the greatest.
    pub fn range(&self) -> Option<(f64, f64)> {
        let numbers = || self.0.values().copied();
        Some((numbers().reduce(f64::min)?, numbers().reduce(f64::max)?))
    }
}

/// The number below which a share of all is, between the nearest two.
pub fn quantile(mut numbers: Vec<f64>, share: f64) -> Option<f64> {
    numbers.sort_by(f64::total_cmp);
    let place = share * numbers.len().checked_sub(1)? as f64;
    let below = numbers.get(place.floor() as usize)?;
    let above = numbers.get(place.ceil() as usize)?;
    Some(below + (above - below) * place.fract())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(numbers: &[(u32, f64)]) -> Series {
        Series(numbers.iter().copied().collect())
    }

    #[test]
    fn quantiles_lie_between_the_nearest_two() {
        assert_eq!(quantile(vec![], 0.5), None);
        assert_eq!(quantile(vec![3.0], 0.99), Some(3.0));
        assert_eq!(quantile(vec![4.0, 1.0, 2.0, 3.0], 0.5), Some(2.5));
    }

    #[test]
    fn ratios_are_taken_within_a_round() {
        let ours = series(&[(0, 1.0), (1, 4.0), (2, 5.0)]);
        let floor = series(&[(0, 2.0), (1, 4.0)]);
        assert_eq!(ours.over(&floor), series(&[(0, 0.5), (1, 1.0)]));
        assert_eq!(ours.range(), Some((1.0, 5.0)));
    }

    #[test]
    fn figures_keep_five_digits() {
        let mut figures = Figures::default();
        figures.set("a", 0.123_456_78);
        assert_eq!(figures.get("a"), Some(0.12346));
    }
}
