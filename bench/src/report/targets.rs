//! What Nightshift means to reach, and what was measured.

use crate::results::{Point, Results, Series, System};

use super::{cell, table};

/// A figure and what its median is to be.
struct Target {
    name: &'static str,
    goal: Goal,
    measure: fn(&Results, System) -> Series,
}

/// On SQLite, and on Postgres.
enum Goal {
    AtLeast(f64, f64),
    AtMost(f64, f64),
    Below(f64, f64),
}

const TARGETS: [Target; 19] = [
    Target {
        name: "dispatch over the floor: instant upstream, 256 in flight",
        goal: Goal::AtLeast(0.85, 0.7),
        measure: |results, system| over_floor(results, system, 0, "lines_per_s"),
    },
    Target {
        name: "dispatch over the floor: 100 ms, 256 in flight",
        goal: Goal::AtLeast(0.97, 0.97),
        measure: |results, system| over_floor(results, system, 100, "lines_per_s"),
    },
    Target {
        name: "CPU a line, server alone, over the floor: 10 ms, 256 in flight",
        goal: Goal::AtMost(1.25, 1.25),
        measure: |results, system| over_floor(results, system, 10, "server_cpu_ms_per_line"),
    },
    Target {
        name: "bytes written for each byte of input and output",
        goal: Goal::AtMost(1.2, 1.0),
        measure: |results, system| {
            let base = |p: &Point| (p.latency_ms, p.in_flight) == (10, 256);
            series(results, "dispatch", base, system, "written_per_byte")
        },
    },
    Target {
        name: "statements a line after upload",
        goal: Goal::AtMost(0.05, 0.05),
        measure: |results, system| first(results, "statements", system, "statements_per_line"),
    },
    Target {
        name: "upload, CPU-seconds a GB, server and database",
        goal: Goal::AtMost(12.0, 12.0),
        measure: |results, system| first(results, "upload", system, "upload_cpu_s_per_gb"),
    },
    Target {
        name: "download over a static file",
        goal: Goal::AtLeast(0.5, 0.5),
        measure: |results, system| {
            let speed = |system| first(results, "download", system, "download_mb_per_s");
            speed(system).over(&speed(System::Static))
        },
    },
    Target {
        name: "first call after create, batches of 100 lines, 99th percentile, ms",
        goal: Goal::Below(50.0, 50.0),
        measure: |results, system| first(results, "first-call", system, "first_call_p99_ms"),
    },
    Target {
        name: "first call after create, batches of 50,000 lines, 99th percentile, ms",
        goal: Goal::Below(50.0, 50.0),
        measure: |results, system| {
            let large = |p: &Point| p.lines > 100;
            series(results, "first-call", large, system, "first_call_p99_ms")
        },
    },
    Target {
        name: "`GET /v1/batches/{id}` in 1,000,000 lines, upstream at 10 ms, 99th percentile, ms",
        goal: Goal::Below(10.0, 10.0),
        measure: |results, system| {
            let points = results.points("lines").into_iter();
            let most = points.map(|p| p.lines).max().unwrap_or_default();
            let most = |p: &Point| p.lines == most;
            series(results, "lines", most, system, "get_p99_ms")
        },
    },
    Target {
        name: "`GET /v1/batches/{id}` in 1,000,000 lines, instant upstream, 99th percentile, ms",
        goal: Goal::Below(10.0, 10.0),
        measure: |results, system| {
            let instant = |p: &Point| p.latency_ms == 0;
            series(results, "memory", instant, system, "get_p99_ms")
        },
    },
    Target {
        name: "peak memory: 1 GB upload, 1,000,000 lines, download, MiB (150 MB)",
        goal: Goal::Below(143.0, 143.0),
        measure: |results, system| first(results, "memory", system, "peak_mib"),
    },
    Target {
        name: "with 10,000 finished batches over an empty store: lines/s",
        goal: Goal::AtLeast(0.9, 0.9),
        measure: |results, system| full_over_empty(results, system, "lines_per_s"),
    },
    Target {
        name: "… upload MB/s",
        goal: Goal::AtLeast(0.9, 0.9),
        measure: |results, system| full_over_empty(results, system, "upload_mb_per_s"),
    },
    Target {
        name: "… download MB/s",
        goal: Goal::AtLeast(0.9, 0.9),
        measure: |results, system| full_over_empty(results, system, "download_mb_per_s"),
    },
    Target {
        name: "… GET p99, empty over full",
        goal: Goal::AtLeast(0.9, 0.9),
        measure: |results, system| empty_over_full(results, system, "get_p99_ms"),
    },
    Target {
        name: "… CPU a line, server, empty over full",
        goal: Goal::AtLeast(0.9, 0.9),
        measure: |results, system| empty_over_full(results, system, "server_cpu_ms_per_line"),
    },
    Target {
        name: "three replicas over one, 100 ms, threefold limit",
        goal: Goal::AtLeast(2.7, 2.7),
        measure: |results, system| {
            let speed = |replicas| {
                let point = move |p: &Point| p.replicas == replicas;
                series(results, "replicas", point, system, "lines_per_s")
            };
            speed(3).over(&speed(1))
        },
    },
    Target {
        name: "after `kill -9`: first line sent again, seconds",
        goal: Goal::Below(15.0, 15.0),
        measure: |results, system| {
            let alone = |p: &Point| p.replicas == 1;
            series(results, "recovery", alone, system, "sent_again_s")
        },
    },
];

/// All of them, as a table, each with whether it is met.
pub fn render(results: &Results) -> String {
    let head = ["", "target", System::Sqlite.name(), System::Postgres.name()].map(String::from);
    let rows: Vec<Vec<String>> = TARGETS
        .iter()
        .map(|target| {
            let measured = |system| {
                let series = (target.measure)(results, system);
                match series.median() {
                    Some(median) if target.goal.is_met(median, system) => cell(&series) + " ✓",
                    Some(_) => cell(&series) + " ✗",
                    None => cell(&series),
                }
            };
            vec![
                target.name.to_owned(),
                target.goal.text(),
                measured(System::Sqlite),
                measured(System::Postgres),
            ]
        })
        .collect();
    table(&head, &rows)
}

impl Goal {
    fn is_met(&self, median: f64, system: System) -> bool {
        let of = |sqlite, postgres| match system {
            System::Postgres => postgres,
            _ => sqlite,
        };
        match *self {
            Self::AtLeast(sqlite, postgres) => median >= of(sqlite, postgres),
            Self::AtMost(sqlite, postgres) => median <= of(sqlite, postgres),
            Self::Below(sqlite, postgres) => median < of(sqlite, postgres),
        }
    }

    fn text(&self) -> String {
        let (sign, sqlite, postgres) = match *self {
            Self::AtLeast(sqlite, postgres) => ("≥", sqlite, postgres),
            Self::AtMost(sqlite, postgres) => ("≤", sqlite, postgres),
            Self::Below(sqlite, postgres) => ("<", sqlite, postgres),
        };
        if sqlite == postgres {
            return format!("{sign} {sqlite}");
        }
        format!("{sign} {sqlite} SQLite, {sign} {postgres} Postgres")
    }
}

/// A figure of the first point of a section that fits.
pub fn series(
    results: &Results,
    section: &str,
    fits: impl Fn(&Point) -> bool,
    system: System,
    figure: &str,
) -> Series {
    let point = results.points(section).into_iter().find(fits);
    point.map_or_else(Series::default, |point| {
        results.rounds(section, point, system, figure)
    })
}

/// A figure of a section's first point.
pub fn first(results: &Results, section: &str, system: System, figure: &str) -> Series {
    series(results, section, |_| true, system, figure)
}

/// A figure of the dispatch at 256 in flight, over the floor's of the same round.
fn over_floor(results: &Results, system: System, latency_ms: u64, figure: &str) -> Series {
    let of = |system| {
        let point = |p: &Point| (p.latency_ms, p.in_flight) == (latency_ms, 256);
        series(results, "dispatch", point, system, figure)
    };
    of(system).over(&of(System::Floor))
}

/// A figure in a store with finished batches, over that of the same round in an empty one.
fn full_over_empty(results: &Results, system: System, figure: &str) -> Series {
    store(results, system, figure, true).over(&store(results, system, figure, false))
}

/// The other way round, of figures of which less is better.
fn empty_over_full(results: &Results, system: System, figure: &str) -> Series {
    store(results, system, figure, false).over(&store(results, system, figure, true))
}

fn store(results: &Results, system: System, figure: &str, is_full: bool) -> Series {
    let point = move |p: &Point| (p.finished > 0) == is_full;
    series(results, "finished", point, system, figure)
}
