//! `docs/benchmarks/README.md`: every section as a table.

use std::collections::BTreeMap;

use crate::machine::Machine;
use crate::results::{Point, Results, Series, System};

use super::{cell, count, number, table, targets};

/// One section of the page.
struct Part {
    section: &'static str,
    title: &'static str,
    about: &'static str,
    /// The coordinates of a point that are shown.
    axes: &'static [Axis],
    systems: &'static [System],
    /// Figures and their headings.
    columns: &'static [(&'static str, &'static str)],
    /// The system that others are compared with, and the figures of which.
    over: Option<(System, &'static [(&'static str, &'static str)])>,
}

type Axis = (&'static str, fn(&Point) -> u64);

const LINES: Axis = ("lines", |p| p.lines);
const LATENCY: Axis = ("upstream, ms", |p| p.latency_ms);
const IN_FLIGHT: Axis = ("in flight", |p| p.in_flight);
const TENANTS: Axis = ("tenants", |p| p.tenants);
const REPLICAS: Axis = ("replicas", |p| p.replicas);
const FINISHED: Axis = ("finished batches", |p| p.finished);

const ENGINES: [System; 2] = [System::Sqlite, System::Postgres];
const ALL: [System; 4] = [
    System::Sqlite,
    System::Postgres,
    System::Floor,
    System::HyperFloor,
];

const RUN: &[(&str, &str)] = &[
    ("lines_per_s", "lines/s"),
    ("server_cpu_ms_per_line", "CPU ms/line, server"),
    ("database_cpu_ms_per_line", "CPU ms/line, database"),
    ("get_p99_ms", "GET p99, ms"),
    ("peak_mib", "peak MiB"),
];
const OVER_FLOOR: &[(&str, &str)] = &[
    ("lines_per_s", "lines/s over floor"),
    ("server_cpu_ms_per_line", "CPU over floor"),
];

const PARTS: [Part; 12] = [
    Part {
        section: "dispatch",
        title: "Dispatch",
        about: "From `POST /v1/batches` to `completed`, in an empty store. The floor is a bare \
                reqwest loop with no database, the hyper loop a still barer one.",
        axes: &[LATENCY, IN_FLIGHT, LINES],
        systems: &ALL,
        columns: RUN,
        over: Some((System::Floor, OVER_FLOOR)),
    },
    Part {
        section: "dispatch",
        title: "Bytes",
        about: "Of the same runs. Written: on SQLite what the process wrote, on Postgres its \
                write-ahead log and the growth of the database, from the start of the upload to \
                the end of the download, for each byte of input and output together.",
        axes: &[LATENCY, IN_FLIGHT, LINES],
        systems: &ENGINES,
        columns: &[
            ("written_per_byte", "written, bytes/byte"),
            ("stored_per_byte", "database, bytes/byte"),
            ("written_per_line", "written after upload, bytes/line"),
            ("wal_per_line", "WAL after upload, bytes/line"),
        ],
        over: None,
    },
    Part {
        section: "upload",
        title: "Upload",
        about: "One file by `POST /v1/files`, from the first byte sent to the answer.",
        axes: &[LINES],
        systems: &ENGINES,
        columns: &[
            ("upload_mb_per_s", "MB/s"),
            ("upload_server_cpu_s_per_gb", "CPU s/GB, server"),
            ("upload_cpu_s_per_gb", "CPU s/GB, server and database"),
            ("upload_written_per_byte", "written, bytes/byte"),
            ("peak_mib", "peak MiB"),
        ],
        over: None,
    },
    Part {
        section: "first-call",
        title: "First call",
        about: "From the answer to `POST /v1/batches` to the head of the first call at the \
                upstream, for batches created one after the other.",
        axes: &[LINES],
        systems: &ENGINES,
        columns: &[
            ("first_call_p50_ms", "median, ms"),
            ("first_call_p99_ms", "99th percentile, ms"),
        ],
        over: None,
    },
    Part {
        section: "download",
        title: "Download",
        about: "The output file, beside the same bytes from a server of static files.",
        axes: &[LINES],
        systems: &[System::Sqlite, System::Postgres, System::Static],
        columns: &[("download_mb_per_s", "MB/s")],
        over: Some((System::Static, &[("download_mb_per_s", "over static file")])),
    },
    Part {
        section: "memory",
        title: "Memory",
        about: "The server's peak in MiB: of an upload of 1 GB, of the batch, of its download.",
        axes: &[LINES],
        systems: &ENGINES,
        columns: &[
            ("upload_peak_mib", "upload"),
            ("run_peak_mib", "run"),
            ("download_peak_mib", "download"),
            ("lines_per_s", "lines/s"),
            ("get_p99_ms", "GET p99, ms"),
        ],
        over: None,
    },
    Part {
        section: "statements",
        title: "Statements",
        about: "Between the server's start and its end, the upload before it, divided by the \
                lines. `BEGIN` and `COMMIT` are not counted. Commits, of reads too, are counted \
                by Postgres.",
        axes: &[LINES],
        systems: &ENGINES,
        columns: &[
            ("statements_per_line", "statements/line"),
            ("commits_per_line", "commits/line"),
        ],
        over: None,
    },
    Part {
        section: "recovery",
        title: "Recovery",
        about: "Seconds from `kill -9` under way, with the default lease of 15 s, to the first \
                line that is sent, and to the first that had been sent before. One replica: it is \
                started again at once. Two: the other takes over.",
        axes: &[REPLICAS],
        systems: &ENGINES,
        columns: &[
            ("first_line_s", "first line, s"),
            ("sent_again_s", "first line sent again, s"),
            ("lines_sent_twice", "lines sent twice"),
        ],
        over: None,
    },
    Part {
        section: "lines",
        title: "Growth with lines",
        about: "10 ms upstream, 256 in flight.",
        axes: &[LINES],
        systems: &ALL,
        columns: RUN,
        over: Some((System::Floor, OVER_FLOOR)),
    },
    Part {
        section: "tenants",
        title: "Growth with tenants",
        about: "The same number of lines, in one batch for each tenant, all created at once.",
        axes: &[TENANTS, LINES],
        systems: &ENGINES,
        columns: RUN,
        over: None,
    },
    Part {
        section: "replicas",
        title: "Growth with replicas",
        about: "On one Postgres, 100 ms upstream, the limit raised with the replicas.",
        axes: &[REPLICAS, IN_FLIGHT, LINES],
        systems: &[System::Postgres],
        columns: RUN,
        over: None,
    },
    Part {
        section: "finished",
        title: "Growth with finished batches",
        about: "An empty store, and one in which so many batches have come to their end.",
        axes: &[FINISHED, LINES],
        systems: &ENGINES,
        columns: &[
            ("lines_per_s", "lines/s"),
            ("server_cpu_ms_per_line", "CPU ms/line, server"),
            ("upload_mb_per_s", "upload MB/s"),
            ("download_mb_per_s", "download MB/s"),
            ("get_p99_ms", "GET p99, ms"),
            ("fill_s", "seconds to fill"),
        ],
        over: None,
    },
];

/// The whole page.
pub fn render(
    results: &Results,
    plots: &BTreeMap<&str, Vec<String>>,
    notes: Option<&str>,
) -> String {
    let mut page = String::from(
        "# Benchmarks\n\n<!-- Written by `cargo run --release -p bench`; changed there, not here. -->\n\n\
         Medians, with the least and the greatest in parentheses, of runs taken in turn; ratios \
         are taken within a round. [bench/README.md](../../bench/README.md) says how to run it \
         and what the figures mean; [results.json](results.json) has every sample.\n\n",
    );
    page.push_str(&machine(&results.machine));
    page.push_str(&entropy(results));
    page.push_str("\n## Targets\n\n");
    page.push_str(&targets::render(results));
    if let Some(notes) = notes {
        page.push_str(&format!("\n[{notes}]({notes}) says where the time goes.\n"));
    }
    for part in &PARTS {
        let rows = part.rows(results);
        if rows.is_empty() {
            continue;
        }
        page.push_str(&format!("\n## {}\n\n{}\n\n", part.title, part.about));
        page.push_str(&table(&part.head(), &rows));
        for plot in plots.get(part.title).into_iter().flatten() {
            page.push_str(&format!("\n![{}]({plot})\n", part.title));
        }
    }
    page
}

fn machine(machine: &Machine) -> String {
    let short = if machine.quick {
        "**A short run, for looking at only.**\n\n"
    } else {
        ""
    };
    format!(
        "{short}{}: {} ({}), {}, Postgres {}; {} cores of {}, {} of memory, {}; data on {}. \
         Upstream, database and benchmark share the cores.\n",
        machine.date,
        machine.nightshift,
        machine.revision,
        machine.rust,
        machine.postgres,
        machine.cores,
        machine.processor,
        machine.memory,
        machine.kernel,
        machine.disk,
    )
}

/// How hard what was sent is to compress.
fn entropy(results: &Results) -> String {
    let floor = results.samples.iter().find_map(|sample| {
        let figure = |name| sample.figures.get(name);
        Some((
            figure("requests_zstd3")?,
            figure("answers_zstd3")?,
            figure("answer_bytes")?,
        ))
    });
    floor.map_or_else(String::new, |(requests, answers, bytes)| {
        format!(
            "\nRequests of 670 bytes, answers of {} on average, all different; `zstd -3` makes \
             the requests {} times smaller, the answers {} times.\n",
            number(bytes),
            number(requests),
            number(answers)
        )
    })
}

impl Part {
    fn head(&self) -> Vec<String> {
        let axes = self.axes.iter().map(|(name, _)| *name);
        let over = self.over.iter().flat_map(|(_, columns)| columns.iter());
        let columns = self.columns.iter().chain(over).map(|(_, heading)| *heading);
        axes.chain([""]).chain(columns).map(String::from).collect()
    }

    fn rows(&self, results: &Results) -> Vec<Vec<String>> {
        let mut points: Vec<Point> = results.points(self.section).into_iter().collect();
        points.sort_by_key(|point| {
            self.axes
                .iter()
                .map(|(_, of)| of(point))
                .collect::<Vec<_>>()
        });
        let mut rows = Vec::new();
        for point in points {
            for &system in self.systems {
                let of = |system, figure| results.rounds(self.section, point, system, figure);
                let own: Vec<Series> = self
                    .columns
                    .iter()
                    .map(|(figure, _)| of(system, figure))
                    .collect();
                if own.iter().all(|series| series.0.is_empty()) {
                    continue;
                }
                let axes = self.axes.iter().map(|(_, axis)| count(axis(&point)));
                let mut row: Vec<String> = axes.chain([system.name().to_owned()]).collect();
                row.extend(own.iter().map(cell));
                if let Some((other, columns)) = self.over {
                    row.extend(columns.iter().map(|(figure, _)| {
                        if system == other {
                            return "1".to_owned();
                        }
                        cell(&of(system, figure).over(&of(other, figure)))
                    }));
                }
                rows.push(row);
            }
        }
        rows
    }
}
