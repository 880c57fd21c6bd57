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
    /// Sections that this machine cannot run, each with the reason.
    #[serde(default)]
    pub skipped: BTreeMap<String, String>,
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
    pub const ALL: [Self; 6] = [
        Self::Sqlite,
        Self::SqliteGeneral,
        Self::Postgres,
        Self::Floor,
        Self::HyperFloor,
        Self::Static,
    ];

    /// As it is called in `results.json`.
    pub fn key(self) -> &'static str {
        match self {
            Self::Sqlite => "sqlite",
            Self::SqliteGeneral => "sqlite-general",
            Self::Postgres => "postgres",
            Self::Floor => "floor",
            Self::HyperFloor => "hyper-floor",
            Self::Static => "static",
        }
    }

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

/// Where in the space of all runs a sample stands. A coordinate that a sample leaves out is that of
/// [`Point::BASE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct Point {
    pub latency_ms: u64,
    pub in_flight: u64,
    /// Lines of all batches together.
    pub lines: u64,
    /// Batches that are created one after the other by each of so many clients at once; 0: every
    /// tenant creates one batch.
    pub clients: u64,
    pub tenants: u64,
    pub replicas: u64,
    /// Batches that the store had seen to their end before.
    pub finished: u64,
    /// Transactions that somebody holds open meanwhile.
    pub held: u64,
}

impl Point {
    /// The base point, from which one factor is changed at a time.
    pub const BASE: Self = Self {
        latency_ms: 10,
        in_flight: 256,
        lines: 50_000,
        clients: 0,
        tenants: 1,
        replicas: 1,
        finished: 0,
        held: 0,
    };

    /// The names of the coordinates, as `results.json` has them.
    pub const AXES: [&'static str; 8] = [
        "latency_ms",
        "in_flight",
        "lines",
        "clients",
        "tenants",
        "replicas",
        "finished",
        "held",
    ];

    /// A coordinate by its name.
    pub fn coordinate(&self, axis: &str) -> u64 {
        match axis {
            "latency_ms" => self.latency_ms,
            "in_flight" => self.in_flight,
            "lines" => self.lines,
            "clients" => self.clients,
            "tenants" => self.tenants,
            "replicas" => self.replicas,
            "finished" => self.finished,
            "held" => self.held,
            _ => unreachable!("report.toml names the coordinate {axis}"),
        }
    }
}

impl Default for Point {
    fn default() -> Self {
        Self::BASE
    }
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
        text.push_str(",\n\"skipped\": ");
        text.push_str(&serde_json::to_string(&self.skipped)?);
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

    /// The interval that the median is in with a probability of 95 %, whatever the numbers'
    /// distribution: each number is above the median or below it, as a coin falls. Of fewer than
    /// six numbers even the least and the greatest are less sure: of five, 94 %.
    pub fn interval(&self) -> Option<(f64, f64)> {
        let mut numbers: Vec<f64> = self.0.values().copied().collect();
        numbers.sort_by(f64::total_cmp);
        // The probability that at most `cut` of all coins show heads.
        let (mut cut, mut tail) = (0, 0.5_f64.powi(i32::try_from(numbers.len()).ok()?));
        let mut term = tail;
        loop {
            term *= (numbers.len() - cut) as f64 / (cut + 1) as f64;
            tail += term;
            if tail > 0.025 {
                break;
            }
            cut += 1;
        }
        Some((*numbers.get(cut)?, *numbers.iter().nth_back(cut)?))
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
    }

    #[test]
    fn an_interval_is_as_wide_as_the_sign_test_says() {
        let first = |count: u32| Series((1..=count).map(|n| (n, f64::from(n))).collect());
        let intervals = [1, 5, 6, 8, 9, 15].map(|count| first(count).interval());
        let expected = [(1, 1), (1, 5), (1, 6), (1, 8), (2, 8), (4, 12)];
        assert_eq!(
            intervals,
            expected.map(|(low, high)| Some((f64::from(low), f64::from(high))))
        );
        assert_eq!(Series::default().interval(), None);
    }

    #[test]
    fn figures_keep_five_digits() {
        let mut figures = Figures::default();
        figures.set("a", 0.123_456_78);
        assert_eq!(figures.get("a"), Some(0.12346));
    }
}
