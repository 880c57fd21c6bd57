//! What Nightshift means to reach, and what was measured.

use crate::results::{Point, Results, Series, System};

use super::{cell, table};

/// A figure and what it is to be at least or at most.
struct Target {
    name: &'static str,
    goal: &'static str,
    measure: fn(&Results, System) -> Series,
}

const TARGETS: [Target; 13] = [
    Target {
        name: "dispatch over the floor: instant upstream, 256 in flight",
        goal: "≥ 0.85 SQLite, ≥ 0.70 Postgres",
        measure: |results, system| over_floor(results, system, 0, "lines_per_s"),
    },
    Target {
        name: "dispatch over the floor: 100 ms, 256 in flight",
        goal: "≥ 0.97",
        measure: |results, system| over_floor(results, system, 100, "lines_per_s"),
    },
    Target {
        name: "CPU a line, server alone, over the floor",
        goal: "≤ 1.25",
        measure: |results, system| over_floor(results, system, 10, "server_cpu_ms_per_line"),
    },
    Target {
        name: "bytes written for each byte of input and output",
        goal: "≤ 1.2 SQLite, ≤ 1.0 Postgres",
        measure: |results, system| {
            let base = |p: &Point| (p.latency_ms, p.in_flight) == (10, 256);
            series(results, "dispatch", base, system, "written_per_byte")
        },
    },
    Target {
        name: "statements a line after upload",
        goal: "≤ 0.05",
        measure: |results, system| {
            series(
                results,
                "statements",
                |_| true,
                system,
                "statements_per_line",
            )
        },
    },
    Target {
        name: "upload, CPU-seconds a GB, server and database",
        goal: "≤ 12",
        measure: |results, system| {
            series(results, "upload", |_| true, system, "upload_cpu_s_per_gb")
        },
    },
    Target {
        name: "download over a static file",
        goal: "≥ 0.5",
        measure: |results, system| {
            let speed = |system| series(results, "download", |_| true, system, "download_mb_per_s");
            speed(system).over(&speed(System::Static))
        },
    },
    Target {
        name: "first call after create, 99th percentile, ms",
        goal: "< 50",
        measure: |results, system| {
            series(results, "first-call", |_| true, system, "first_call_p99_ms")
        },
    },
    Target {
        name: "`GET /v1/batches/{id}` while the most lines run, 99th percentile, ms",
        goal: "< 10",
        measure: |results, system| series(results, "memory", |_| true, system, "get_p99_ms"),
    },
    Target {
        name: "peak memory: 1 GB upload, 1,000,000 lines, download, MiB",
        goal: "< 143 (150 MB)",
        measure: |results, system| series(results, "memory", |_| true, system, "peak_mib"),
    },
    Target {
        name: "dispatch with 10,000 finished batches over an empty store",
        goal: "≥ 0.9",
        measure: |results, system| {
            let speed = |full: bool| {
                let point = move |p: &Point| (p.finished > 0) == full;
                series(results, "finished", point, system, "lines_per_s")
            };
            speed(true).over(&speed(false))
        },
    },
    Target {
        name: "three replicas over one, 100 ms, threefold limit",
        goal: "≥ 2.7",
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
        goal: "< 15",
        measure: |results, system| {
            series(
                results,
                "recovery",
                |p| p.replicas == 1,
                system,
                "sent_again_s",
            )
        },
    },
];

/// All of them, as a table.
pub fn render(results: &Results) -> String {
    let head = ["", "target", System::Sqlite.name(), System::Postgres.name()].map(String::from);
    let rows: Vec<Vec<String>> = TARGETS
        .iter()
        .map(|target| {
            let measured = |system| cell(&(target.measure)(results, system));
            vec![
                target.name.to_owned(),
                target.goal.to_owned(),
                measured(System::Sqlite),
                measured(System::Postgres),
            ]
        })
        .collect();
    table(&head, &rows)
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

/// A figure of the dispatch at 256 in flight, over the floor's of the same round.
fn over_floor(results: &Results, system: System, latency_ms: u64, figure: &str) -> Series {
    let of = |system| {
        let point = |p: &Point| (p.latency_ms, p.in_flight) == (latency_ms, 256);
        series(results, "dispatch", point, system, figure)
    };
    of(system).over(&of(System::Floor))
}
