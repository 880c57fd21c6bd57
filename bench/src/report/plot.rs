//! Plots as SVG.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use super::spec::{self, Plot};
use crate::results::{Results, Series, System};

const SIZE: (u32, u32) = (760, 400);
const SYSTEMS: [System; 4] = [
    System::Sqlite,
    System::Postgres,
    System::Floor,
    System::HyperFloor,
];

/// Draws a plot; whether there was anything to draw.
pub fn draw(plot: &Plot, section: &str, results: &Results, out: &Path) -> Result<bool> {
    let mut points = spec::points(results, section, &plot.at);
    points.sort_by_key(|point| spec::coordinate(point, &plot.x.0));
    let lines = SYSTEMS.map(|system| -> (System, Vec<Series>) {
        let of = |point| results.rounds(section, point, system, &plot.y.0);
        (system, points.iter().copied().map(of).collect())
    });
    let ranges = lines
        .iter()
        .flat_map(|(_, series)| series)
        .filter_map(Series::range);
    let top = ranges.map(|(_, high)| high).fold(0.0, f64::max);
    if points.len() < 2 || top == 0.0 {
        return Ok(false);
    }
    let labels = points
        .iter()
        .map(|point| super::count(spec::coordinate(point, &plot.x.0)));
    let painted = paint(
        plot,
        &out.join(&plot.file),
        &labels.collect::<Vec<_>>(),
        top,
        &lines,
    );
    painted.map_err(|error| anyhow!("{}: {error}", plot.file))?;
    Ok(true)
}

fn paint(
    plot: &Plot,
    path: &Path,
    labels: &[String],
    top: f64,
    lines: &[(System, Vec<Series>)],
) -> Result<(), Box<dyn std::error::Error>> {
    let area = SVGBackend::new(path, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    // Its points stand side by side, whatever lies between them.
    let last = labels.len() as f64 - 1.0;
    // Beside them is room for the names, so that these hide nothing.
    let right = last + 0.2 + 0.28 * (last + 0.4);
    let mut chart = ChartBuilder::on(&area)
        .caption(&plot.title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(42)
        .y_label_area_size(66)
        .build_cartesian_2d(-0.2..right, 0.0..top * 1.1)?;
    let label = |x: &f64| match labels.get(x.round() as usize) {
        Some(label) if (x - x.round()).abs() < 0.01 && *x > -0.1 => label.clone(),
        _ => String::new(),
    };
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(labels.len() * 10 + 1)
        .x_label_formatter(&label)
        .y_label_formatter(&|y| super::number(*y).trim_end_matches(".00").to_owned())
        .x_desc(&plot.x.1)
        .y_desc(&plot.y.1)
        .light_line_style(WHITE)
        .draw()?;
    for (system, series) in lines {
        let color = color(*system);
        let measured: Vec<(f64, f64, (f64, f64))> = (0_u32..)
            .zip(series)
            .filter_map(|(x, series)| Some((f64::from(x), series.median()?, series.range()?)))
            .collect();
        if measured.is_empty() {
            continue;
        }
        let path = measured.iter().map(|(x, median, _)| (*x, *median));
        chart
            .draw_series(LineSeries::new(path, color.stroke_width(2)).point_size(3))?
            .label(system.name())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2)));
        chart.draw_series(measured.iter().map(|(x, _, (low, high))| {
            PathElement::new([(*x, *low), (*x, *high)], color.stroke_width(1))
        }))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.2))
        .draw()?;
    Ok(area.present()?)
}

fn color(system: System) -> RGBColor {
    match system {
        System::Sqlite => RGBColor(31, 119, 180),
        System::Postgres => RGBColor(214, 92, 32),
        System::Floor => RGBColor(90, 90, 90),
        System::SqliteGeneral => RGBColor(120, 180, 220),
        System::HyperFloor | System::Static => RGBColor(170, 170, 170),
    }
}
