//! What the page shows of which section.

use crate::results::{Point, System};

/// One part of the page: a table of a section's samples.
pub struct Part {
    pub section: &'static str,
    pub title: &'static str,
    pub about: &'static str,
    /// The coordinates of a point that are shown.
    pub axes: &'static [Axis],
    pub systems: &'static [System],
    /// Figures and their headings.
    pub columns: &'static [(&'static str, &'static str)],
    pub ratios: Option<Ratios>,
}

pub type Axis = (&'static str, fn(&Point) -> u64);

/// Columns in which a row is compared with another row.
#[derive(Clone, Copy)]
pub struct Ratios {
    /// The row that another is compared with.
    pub with: fn(Point, System) -> (Point, System),
    pub columns: &'static [Ratio],
}

/// What is divided by what, and the heading.
#[derive(Clone, Copy)]
pub enum Ratio {
    Over(&'static str, &'static str),
    /// The other way round, of figures of which less is better.
    Under(&'static str, &'static str),
}

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
const OVER_FLOOR: Ratios = Ratios {
    with: |point, _| (point, System::Floor),
    columns: &[
        Ratio::Over("lines_per_s", "lines/s over floor"),
        Ratio::Over("server_cpu_ms_per_line", "CPU over floor"),
    ],
};

pub const PARTS: [Part; 14] = [
    Part {
        section: "dispatch",
        title: "Dispatch",
        about: "From `POST /v1/batches` to `completed`, in an empty store. The floor is a bare \
                reqwest loop with no database, the hyper loop a still barer one.",
        axes: &[LATENCY, IN_FLIGHT, LINES],
        systems: &ALL,
        columns: RUN,
        ratios: Some(OVER_FLOOR),
    },
    Part {
        section: "dispatch",
        title: "End to end",
        about: "Of the same runs: the upload, the run and one download together, which is what \
                the floor does when it reads its input and writes its output. CPU is the \
                server's.",
        axes: &[LATENCY, IN_FLIGHT, LINES],
        systems: &ALL,
        columns: &[
            ("whole_lines_per_s", "lines/s"),
            ("whole_server_cpu_ms_per_line", "CPU ms/line, server"),
        ],
        ratios: Some(Ratios {
            with: |point, _| (point, System::Floor),
            columns: &[
                Ratio::Over("whole_lines_per_s", "lines/s over floor"),
                Ratio::Over("whole_server_cpu_ms_per_line", "CPU over floor"),
            ],
        }),
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
        ratios: None,
    },
    Part {
        section: "transport",
        title: "Transport",
        about: "Everything else on this page goes to its upstream by the direct transport, which \
                is for plain HTTP. The general one is for TLS and proxies; here it has plain HTTP \
                to do, too, so that this is the cost of the client alone.",
        axes: &[LATENCY, IN_FLIGHT, LINES],
        systems: &[System::Sqlite, System::SqliteGeneral],
        columns: RUN,
        ratios: Some(Ratios {
            with: |point, _| (point, System::Sqlite),
            columns: &[
                Ratio::Over("lines_per_s", "lines/s over direct"),
                Ratio::Over("server_cpu_ms_per_line", "CPU over direct"),
            ],
        }),
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
        ratios: None,
    },
    Part {
        section: "first-call",
        title: "First call",
        about: "From the answer to `POST /v1/batches` to the head of the first call at the \
                upstream: 100 small batches one after the other, and 10 large ones, each \
                cancelled once its first call has come, so that their percentile is nearly the \
                slowest of them.",
        axes: &[LINES],
        systems: &ENGINES,
        columns: &[
            ("first_call_p50_ms", "median, ms"),
            ("first_call_p99_ms", "99th percentile, ms"),
        ],
        ratios: None,
    },
    Part {
        section: "download",
        title: "Download",
        about: "The output file, beside the same bytes from a server of static files.",
        axes: &[LINES],
        systems: &[System::Sqlite, System::Postgres, System::Static],
        columns: &[("download_mb_per_s", "MB/s")],
        ratios: Some(Ratios {
            with: |point, _| (point, System::Static),
            columns: &[Ratio::Over("download_mb_per_s", "over static file")],
        }),
    },
    Part {
        section: "memory",
        title: "Memory",
        about: "The server's peak in MiB: of an upload of 1 GB and of the batch's own file, of \
                the batch, of its download.",
        axes: &[LINES, LATENCY],
        systems: &ENGINES,
        columns: &[
            ("upload_peak_mib", "upload"),
            ("run_peak_mib", "run"),
            ("download_peak_mib", "download"),
            ("lines_per_s", "lines/s"),
            ("get_p99_ms", "GET p99, ms"),
        ],
        ratios: None,
    },
    Part {
        section: "statements",
        title: "Statements",
        about: "Between the server's start and its end, the upload before it, divided by the \
                lines: every statement in its log, `BEGIN` and `COMMIT` included. \
                [results.json](results.json) has each by its name. Commits: on SQLite \
                the log's `COMMIT`s; on Postgres what it counts itself, reads among them.",
        axes: &[LINES],
        systems: &ENGINES,
        columns: &[
            ("statements_per_line", "statements/line"),
            ("commits_per_line", "commits/line"),
        ],
        ratios: None,
    },
    Part {
        section: "recovery",
        title: "Recovery",
        about: "Seconds from `kill -9` under way, with the default lease of 10 s, to the first \
                line that is sent, and to the first that had been sent before. One replica: it is \
                started again at once. Two: the other takes over.",
        axes: &[REPLICAS],
        systems: &ENGINES,
        columns: &[
            ("first_line_s", "first line, s"),
            ("sent_again_s", "first line sent again, s"),
            ("lines_sent_twice", "lines sent twice"),
        ],
        ratios: None,
    },
    Part {
        section: "lines",
        title: "Growth with lines",
        about: "10 ms upstream, 256 in flight; larger points in fewer rounds. The base point, of \
                50,000 lines, was not measured again: its rows are those of Dispatch.",
        axes: &[LINES],
        systems: &ALL,
        columns: &[
            ("lines_per_s", "lines/s"),
            ("server_cpu_ms_per_line", "CPU ms/line, server"),
            ("database_cpu_ms_per_line", "CPU ms/line, database"),
            ("get_p99_ms", "GET p99, ms"),
            ("peak_mib", "peak MiB"),
            ("upload_mb_per_s", "upload MB/s"),
            ("download_mb_per_s", "download MB/s"),
            ("written_per_byte", "written, bytes/byte"),
        ],
        ratios: Some(OVER_FLOOR),
    },
    Part {
        section: "tenants",
        title: "Growth with tenants",
        about: "The same number of lines, in one batch for each tenant, all created at once. One \
                client looks every 20 ms; each of a hundred every 200 ms, so that there are 500 \
                looks a second, and the end is known that exactly.",
        axes: &[TENANTS, LINES],
        systems: &ENGINES,
        columns: &[
            ("lines_per_s", "lines/s"),
            ("server_cpu_ms_per_line", "CPU ms/line, server"),
            ("database_cpu_ms_per_line", "CPU ms/line, database"),
            ("get_p99_ms", "GET p99, ms"),
            ("peak_mib", "peak MiB"),
            ("written_per_line", "written after upload, bytes/line"),
        ],
        ratios: Some(Ratios {
            with: |point, system| {
                (
                    Point {
                        tenants: 1,
                        ..point
                    },
                    system,
                )
            },
            columns: &[Ratio::Over("lines_per_s", "lines/s over one tenant")],
        }),
    },
    Part {
        section: "replicas",
        title: "Growth with replicas",
        about: "On one Postgres, 100 ms upstream, the limit raised with the replicas. CPU of all \
                servers together; looks at one of them, the peak of the greatest.",
        axes: &[REPLICAS, IN_FLIGHT, LINES],
        systems: &[System::Postgres],
        columns: RUN,
        ratios: Some(Ratios {
            with: |point, system| {
                let in_flight = point.in_flight / point.replicas;
                let one = Point {
                    replicas: 1,
                    in_flight,
                    ..point
                };
                (one, system)
            },
            columns: &[Ratio::Over("lines_per_s", "lines/s over one replica")],
        }),
    },
    Part {
        section: "finished",
        title: "Growth with finished batches",
        about: "An empty store, and one in which so many batches have come to their end, in turn. \
                Ratios are such that more is better in each.",
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
        ratios: Some(Ratios {
            with: |point, system| {
                let finished = 0;
                (Point { finished, ..point }, system)
            },
            columns: &[
                Ratio::Over("lines_per_s", "lines/s, full over empty"),
                Ratio::Over("upload_mb_per_s", "upload, full over empty"),
                Ratio::Over("download_mb_per_s", "download, full over empty"),
                Ratio::Under("get_p99_ms", "GET p99, empty over full"),
                Ratio::Under("server_cpu_ms_per_line", "CPU, empty over full"),
            ],
        }),
    },
];
