//! What `report.toml` says, and how it reads the samples.

use std::collections::BTreeMap;

use anyhow::Result;
use serde::Deserialize;

use crate::results::{Point, Results, Series, System};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// Headings of coordinates and figures.
    pub axes: BTreeMap<String, String>,
    pub figures: BTreeMap<String, String>,
    #[serde(rename = "target")]
    pub targets: Vec<Row>,
    pub readme: Vec<Row>,
    #[serde(rename = "table")]
    pub tables: Vec<Table>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    pub name: String,
    /// Of a target: a sign, and what it is compared with, on SQLite and on Postgres.
    #[serde(default)]
    pub goal: (String, f64, f64),
    pub of: Measure,
}

/// A figure of one point of a section.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measure {
    pub section: String,
    #[serde(default)]
    pub at: At,
    #[serde(default)]
    pub last: bool,
    pub figure: String,
    pub over: Option<String>,
    pub under: Option<String>,
}

/// Coordinates that a point must have.
pub type At = BTreeMap<String, u64>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Table {
    pub section: String,
    pub title: String,
    pub about: String,
    pub axes: Vec<String>,
    pub systems: Vec<System>,
    pub columns: Vec<String>,
    pub base: Option<String>,
    #[serde(default)]
    pub base_name: String,
    #[serde(default)]
    pub over: Vec<String>,
    #[serde(default)]
    pub under: Vec<String>,
    #[serde(default)]
    pub plots: Vec<Plot>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plot {
    pub file: String,
    pub title: String,
    #[serde(default)]
    pub at: At,
    /// A coordinate and a figure, each with what the plot calls it.
    pub x: (String, String),
    pub y: (String, String),
}

pub fn read() -> Result<Spec> {
    Ok(toml::from_str(include_str!("../../report.toml"))?)
}

pub fn coordinate(point: &Point, axis: &str) -> u64 {
    let all = serde_json::to_value(point).unwrap_or_default();
    all[axis].as_u64().unwrap_or_default()
}

/// The points of a section that fit.
pub fn points(results: &Results, section: &str, at: &At) -> Vec<Point> {
    let fits = |point: &Point| at.iter().all(|(axis, is)| coordinate(point, axis) == *is);
    let points = results.points(section).into_iter();
    points.filter(fits).collect()
}

/// The row that others are compared with: another system's, or the section's first point.
pub fn base(
    results: &Results,
    section: &str,
    here: (Point, System),
    base: &str,
) -> (Point, System) {
    match base {
        "first" => (
            results.points(section).into_iter().next().unwrap_or(here.0),
            here.1,
        ),
        system => {
            let system = serde_json::from_value(system.into());
            (here.0, system.expect("report.toml names a system"))
        }
    }
}

impl Measure {
    /// The figure itself.
    pub fn own(&self, results: &Results, system: System) -> Series {
        let here = self.place(results);
        here.map_or_else(Series::default, |point| {
            results.rounds(&self.section, point, system, &self.figure)
        })
    }

    /// The figure, or its ratio.
    pub fn of(&self, results: &Results, system: System) -> Series {
        let own = self.own(results, system);
        let (Some(point), Some(with)) = (
            self.place(results),
            self.over.as_ref().or(self.under.as_ref()),
        ) else {
            return own;
        };
        let (point, system) = base(results, &self.section, (point, system), with);
        let other = results.rounds(&self.section, point, system, &self.figure);
        match self.over {
            Some(_) => own.over(&other),
            None => other.over(&own),
        }
    }

    fn place(&self, results: &Results) -> Option<Point> {
        let points = points(results, &self.section, &self.at);
        let place = if self.last {
            points.last()
        } else {
            points.first()
        };
        place.copied()
    }
}
