//! `nightshift status`: how things stand in a server that runs, for people.

pub(super) mod table;

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;

use super::remote::{Remote, RemoteArgs};
use crate::api::admin::{BatchStatus, Status};
use crate::config::Environment;
use table::{Table, duration, rate, size};

const EXAMPLE: &str = "\
Examples:
  nightshift status
  nightshift status --watch
  OPS_KEY=sk-ns-… nightshift status --url https://batch.internal \\
    --api-key-env OPS_KEY --json";

/// How often it is asked by --watch.
const EVERY: Duration = Duration::from_secs(2);
/// Columns of a terminal that does not say how many it has.
const NARROW: usize = 80;
/// Clears a terminal, and begins at its top.
const CLEAR: &str = "\x1b[2J\x1b[H";

/// Show how things stand in a server that runs: upstreams, models, batches, replicas.
///
/// Where the server asks for keys, it needs one made with `nightshift keys create --scope admin`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLE)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    server: RemoteArgs,

    /// Print what the server answers, as JSON
    #[arg(long)]
    json: bool,

    /// Cut nothing, however wide the tables are
    #[arg(long)]
    wide: bool,

    /// Go on: ask every two seconds, until interrupted
    #[arg(long)]
    watch: bool,
}

pub(super) async fn run(args: StatusArgs) -> anyhow::Result<ExitCode> {
    let server = Remote::new(&args.server, &Environment::capture())?;
    let mut out = std::io::stdout();
    let terminal = console::Term::stdout();
    let is_cut = terminal.is_term() && !args.wide;
    loop {
        let width = terminal
            .size_checked()
            .map_or(NARROW, |(_, columns)| columns.into());
        let width = is_cut.then_some(width);
        let text = server.get("/admin/status").await?;
        let picture = if args.json {
            text.trim_end().to_owned() + "\n"
        } else {
            let status = serde_json::from_str(&text);
            let status = status.context("the server's answer is not understood: is it nightshift?");
            picture(&status?, width)
        };
        if !args.watch {
            out.write_all(picture.as_bytes())?;
            return Ok(ExitCode::SUCCESS);
        }
        let clear = if args.json { "" } else { CLEAR };
        write!(out, "{clear}{picture}")?;
        out.flush()?;
        tokio::time::sleep(EVERY).await;
    }
}

/// How things stand, in words and tables.
fn picture(status: &Status, width: Option<usize>) -> String {
    let mut text = String::new();
    let answers = status.replicas.iter().find(|replica| replica.answers);
    let answers = answers.map_or(String::new(), |replica| format!(" ({})", replica.name));
    // Writing to a string cannot fail.
    let _ = writeln!(
        text,
        "nightshift {}{answers}   database {} ({})",
        status.version,
        status.database.engine,
        if status.database.answers {
            "up"
        } else {
            "DOES NOT ANSWER"
        },
    );
    // Calls, shares and these metrics are those of the process that answers.
    let _ = writeln!(
        text,
        "this process: {} lines/s   request budget {} of {}",
        rate(status.lines_per_second),
        size(status.budget.used_bytes),
        size(status.budget.limit_bytes),
    );
    let batches: Vec<String> = status
        .batches
        .iter()
        .filter(|(_, count)| **count > 0)
        .map(|(name, count)| format!("{count} {name}"))
        .collect();
    let batches = if batches.is_empty() {
        "none".to_owned()
    } else {
        batches.join(", ")
    };
    let _ = writeln!(text, "batches: {batches}");
    for alarm in &status.alarms {
        let _ = writeln!(text, "ALARM: {alarm}");
    }
    for table in [
        upstreams(status),
        closed(status),
        models(status),
        live(status),
        replicas(status),
    ] {
        table.write(&mut text, width);
    }
    text
}

fn upstreams(status: &Status) -> Table {
    let mut table = Table::new(["UPSTREAM", "STATE", "CALLS", "SHARE", "LIMIT", "CAUSE"]);
    for upstream in &status.upstreams {
        table.row([
            upstream.name.clone(),
            upstream.state.clone(),
            upstream.in_flight.to_string(),
            upstream.share.to_string(),
            upstream.limit.to_string(),
            upstream.cause.clone().unwrap_or_default(),
        ]);
    }
    table
}

/// What takes no lines now, and until when.
fn closed(status: &Status) -> Table {
    let mut table = Table::new(["CLOSED", "AT", "REASON", "TRIED", "CAUSE"]);
    for upstream in &status.upstreams {
        for model in &upstream.closed {
            let left = model.until - status.now;
            table.row([
                model.model.clone(),
                upstream.name.clone(),
                model.reason.clone(),
                if left > 0 {
                    format!("in {}", duration(left as f64))
                } else {
                    "now".to_owned()
                },
                model.cause.clone(),
            ]);
        }
    }
    table
}

fn models(status: &Status) -> Table {
    let mut table = Table::new([
        "MODEL", "CALLS", "SHARE", "LIMIT", "WAITING", "LEASED", "OLDEST", "LINES/S",
    ]);
    let number = |count: Option<usize>| count.map_or("-".to_owned(), |count| count.to_string());
    for model in &status.models {
        table.row([
            model.model.clone(),
            number(model.in_flight),
            number(model.share),
            number(model.limit),
            model.waiting_units.to_string(),
            model.leased_units.to_string(),
            duration(model.oldest_seconds),
            rate(model.lines_per_second),
        ]);
    }
    table
}

fn live(status: &Status) -> Table {
    let mut table = Table::new([
        "BATCH", "TENANT", "STATUS", "MODEL", "DONE", "FAILED", "LINES/S", "ETA", "DEADLINE",
    ]);
    for batch in &status.live_batches {
        table.row([
            batch.id.clone(),
            batch.tenant.clone(),
            batch.status.clone(),
            batch.model.clone().unwrap_or_else(|| "-".to_owned()),
            done(batch),
            batch.failed.to_string(),
            rate(batch.lines_per_second),
            batch.eta_seconds.map_or("-".to_owned(), duration),
            batch.expires_at.map_or("-".to_owned(), |at| {
                format!("in {}", duration((at - status.now) as f64))
            }),
        ]);
    }
    table
}

fn done(batch: &BatchStatus) -> String {
    let percent = (batch.done * 100).checked_div(batch.total).unwrap_or(0);
    format!("{}/{} ({percent}%)", batch.done, batch.total)
}

fn replicas(status: &Status) -> Table {
    let mut table = Table::new(["REPLICA", "UP FOR", "LEASE", ""]);
    for replica in &status.replicas {
        table.row([
            replica.name.clone(),
            duration((status.now - replica.started_at) as f64),
            format!("{:.0}s left", replica.lease_seconds_left),
            if replica.answers { "answers here" } else { "" }.to_owned(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_picture_has_aligned_tables() {
        let status: Status = serde_json::from_value(serde_json::json!({
            "version": "1", "now": 1000,
            "database": {"engine": "sqlite", "answers": true},
            "replicas": [{
                "name": "r", "started_at": 400, "lease_seconds_left": 9.7, "answers": true
            }],
            "upstreams": [
                {"name": "gpu", "state": "up", "cause": null, "in_flight": 3, "share": 32, "limit": 64},
                {"name": "b", "state": "down", "cause": "no", "in_flight": 0, "share": 8, "limit": 8},
            ],
            "models": [],
            "batches": {"in_progress": 1, "validating": 0},
            "live_batches": [{
                "id": "batch_1", "tenant": "t", "status": "in_progress", "model": "m",
                "total": 200, "done": 50, "failed": 1, "lines_per_second": 12.5,
                "eta_seconds": 12.0, "created_at": 0, "expires_at": 4600
            }],
            "lines_per_second": 12.5,
            "budget": {"used_bytes": 1048576, "limit_bytes": 67108864},
        }))
        .expect("is a status");
        assert_eq!(
            picture(&status, None),
            "nightshift 1 (r)   database sqlite (up)\n\
             this process: 12.5 lines/s   request budget 1.0 MiB of 64.0 MiB\n\
             batches: 1 in_progress\n\
             \n\
             UPSTREAM  STATE  CALLS  SHARE  LIMIT  CAUSE\n\
             gpu       up     3      32     64\n\
             b         down   0      8      8      no\n\
             \n\
             BATCH    TENANT  STATUS       MODEL  DONE          FAILED  LINES/S  ETA  DEADLINE\n\
             batch_1  t       in_progress  m      50/200 (25%)  1       12.5     12s  in 1h 0m\n\
             \n\
             REPLICA  UP FOR  LEASE\n\
             r        10m 0s  10s left  answers here\n"
        );
    }
}
