//! What `report.toml` says, and how it reads the samples.

use std::collections::BTreeMap;

use anyhow::Result;
use serde::Deserialize;

use crate::results::{Point, Results, Series, System};

#[derive(Deserialize)]
pub struct Spec {
    /// What stands above the page's tables, and below the README's.
    pub page: String,
    pub readme_end: String,
    /// What the page calls coordinates, figures, and what figures are divided by.
    pub heads: BTreeMap<String, String>,
    pub targets: Vec<Row>,
    pub readme: Vec<Row>,
    #[serde(rename = "table")]
    pub tables: Vec<Table>,
}

/// A figure of the last point of a section that fits.
#[derive(Deserialize)]
pub struct Row {
    pub name: String,
    pub section: String,
    #[serde(default)]
    pub at: At,
    pub figure: String,
    /// A sign, and what the figure is compared with, on SQLite and on Postgres.
    #[serde(default)]
    pub goal: (String, f64, f64),
}

/// All points of a section that fit.
#[derive(Deserialize)]
pub struct Table {
    pub section: String,
    #[serde(default)]
    pub at: At,
    pub title: String,
    pub about: String,
    pub columns: Vec<String>,
    #[serde(default)]
    pub plots: Vec<Plot>,
}

#[derive(Deserialize)]
pub struct Plot {
    pub title: String,
    #[serde(default)]
    pub at: At,
    /// A coordinate.
    pub x: String,
    pub y: String,
}

/// Coordinates that a point must have.
pub type At = BTreeMap<String, u64>;

impl Spec {
    pub fn read() -> Result<Self> {
        Ok(toml::from_str(include_str!("../../report.toml"))?)
    }

    /// What stands above a column.
    pub fn head(&self, column: &str) -> String {
        match column.split_once('/') {
            Some((figure, base)) => format!("{} over {}", self.head(figure), self.head(base)),
            None => self
                .heads
                .get(column)
                .map_or(column, |head| head)
                .to_owned(),
        }
    }
}

/// The points of a section that fit, in order.
pub struct Place<'a> {
    results: &'a Results,
    section: &'a str,
    pub points: Vec<Point>,
}

impl<'a> Place<'a> {
    pub fn new(results: &'a Results, section: &'a str, at: &At) -> Self {
        let fits = |point: &Point| at.iter().all(|(axis, is)| point.coordinate(axis) == *is);
        let points = results.points(section).into_iter().filter(fits).collect();
        Self {
            results,
            section,
            points,
        }
    }

    /// The coordinates in which the points differ.
    pub fn axes(&self) -> Vec<&'static str> {
        let differ = |axis: &&str| {
            let mut all = self.points.iter().map(|point| point.coordinate(axis));
            all.next()
                .is_some_and(|first| all.any(|other| other != first))
        };
        Point::AXES.into_iter().filter(differ).collect()
    }

    /// A column of a point, by round: a figure such as `lines_per_s`, or its ratio such as
    /// `lines_per_s/floor` over another system, or `lines_per_s/first` over the first point.
    pub fn series(&self, point: Point, system: System, column: &str) -> Series {
        let of = |point, system, figure| self.results.rounds(self.section, point, system, figure);
        let Some((figure, base)) = column.split_once('/') else {
            return of(point, system, column);
        };
        let base = match System::ALL.into_iter().find(|one| one.key() == base) {
            Some(other) => of(point, other, figure),
            None => of(self.points[0], system, figure),
        };
        of(point, system, figure).over(&base)
    }
}

impl Row {
    /// A column of the last point that fits.
    pub fn of(&self, results: &Results, system: System, column: &str) -> Series {
        let place = Place::new(results, &self.section, &self.at);
        let last = place.points.last();
        last.map_or_else(Series::default, |point| {
            place.series(*point, system, column)
        })
    }
}
