//! Plots as SVG.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use crate::results::{Point, Results, Series, System};

const SIZE: (u32, u32) = (760, 400);

const SYSTEMS: [System; 4] = [
    System::Sqlite,
    System::Postgres,
    System::Floor,
    System::HyperFloor,
];

/// One plot: a figure of one section along one coordinate.
struct Plot {
    file: &'static str,
    /// The part of the page that it belongs to.
    part: &'static str,
    section: &'static str,
    title: &'static str,
    x: (&'static str, fn(&Point) -> u64),
    figure: (&'static str, &'static str),
    fits: fn(&Point) -> bool,
}

const PLOTS: [Plot; 9] = [
    dispatch("dispatch-0ms.svg", "Dispatch, instant upstream", |p| {
        p.latency_ms == 0
    }),
    dispatch("dispatch-10ms.svg", "Dispatch, 10 ms upstream", |p| {
        p.latency_ms == 10
    }),
    dispatch("dispatch-100ms.svg", "Dispatch, 100 ms upstream", |p| {
        p.latency_ms == 100
    }),
    Plot {
        file: "dispatch-cpu.svg",
        part: "Dispatch",
        section: "dispatch",
        title: "CPU a line, the database apart, 256 in flight",
        x: ("upstream, ms", |p| p.latency_ms),
        figure: ("server_cpu_ms_per_line", "CPU ms a line"),
        fits: |p| p.in_flight == 256,
    },
    Plot {
        file: "bytes.svg",
        part: "Bytes",
        section: "dispatch",
        title: "Bytes written, 10 ms upstream",
        x: ("calls in flight", |p| p.in_flight),
        figure: ("written_per_byte", "for each byte of input and output"),
        fits: |p| p.latency_ms == 10,
    },
    Plot {
        file: "lines.svg",
        part: "Growth with lines",
        section: "lines",
        title: "Dispatch, 10 ms upstream, 256 in flight",
        x: ("lines of the batch", |p| p.lines),
        figure: ("lines_per_s", "lines a second"),
        fits: |_| true,
    },
    Plot {
        file: "lines-memory.svg",
        part: "Growth with lines",
        section: "lines",
        title: "Peak memory",
        x: ("lines of the batch", |p| p.lines),
        figure: ("peak_mib", "MiB"),
        fits: |_| true,
    },
    Plot {
        file: "tenants.svg",
        part: "Growth with tenants",
        section: "tenants",
        title: "One batch for each tenant, 10 ms upstream, 256 in flight",
        x: ("tenants", |p| p.tenants),
        figure: ("lines_per_s", "lines a second"),
        fits: |_| true,
    },
    Plot {
        file: "finished.svg",
        part: "Growth with finished batches",
        section: "finished",
        title: "Dispatch, 10 ms upstream, 256 in flight",
        x: ("batches finished before", |p| p.finished),
        figure: ("lines_per_s", "lines a second"),
        fits: |_| true,
    },
];

/// Lines a second by calls in flight.
const fn dispatch(file: &'static str, title: &'static str, fits: fn(&Point) -> bool) -> Plot {
    Plot {
        file,
        part: "Dispatch",
        section: "dispatch",
        title,
        x: ("calls in flight", |p| p.in_flight),
        figure: ("lines_per_s", "lines a second"),
        fits,
    }
}

/// Draws all for which there is something; returns their files by the part they belong to.
pub fn all(results: &Results, out: &Path) -> Result<BTreeMap<&'static str, Vec<String>>> {
    let mut files: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for plot in &PLOTS {
        if plot.draw(results, &out.join(plot.file))? {
            files
                .entry(plot.part)
                .or_default()
                .push(plot.file.to_owned());
        }
    }
    Ok(files)
}

impl Plot {
    /// Whether there was anything to draw.
    fn draw(&self, results: &Results, path: &Path) -> Result<bool> {
        let mut points: Vec<Point> = results
            .points(self.section)
            .into_iter()
            .filter(self.fits)
            .collect();
        points.sort_by_key(self.x.1);
        let series = |system| -> Vec<Series> {
            let of = |point: &Point| results.rounds(self.section, *point, system, self.figure.0);
            points.iter().map(of).collect()
        };
        let lines: Vec<(System, Vec<Series>)> = SYSTEMS
            .into_iter()
            .map(|system| (system, series(system)))
            .collect();
        let ranges = lines
            .iter()
            .flat_map(|(_, series)| series)
            .filter_map(Series::range);
        let top = ranges.map(|(_, high)| high).fold(0.0, f64::max);
        if points.len() < 2 || top == 0.0 {
            return Ok(false);
        }
        let labels: Vec<String> = points.iter().map(|p| super::count((self.x.1)(p))).collect();
        self.paint(path, &labels, top, &lines)
            .map_err(|error| anyhow!("{}: {error}", path.display()))?;
        Ok(true)
    }

    fn paint(
        &self,
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
            .caption(self.title, ("sans-serif", 18))
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
            .x_desc(self.x.0)
            .y_desc(self.figure.1)
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
                .legend(move |(x, y)| {
                    PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2))
                });
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
