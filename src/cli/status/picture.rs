//! How things stand in a server, in words and tables.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use crate::api::admin::{BatchStatus, Status, WindowStatus};
use crate::cli::cache;
use crate::cli::figures::{ago, rate, seconds, size};
use crate::cli::printable::{cut, printable};
use crate::cli::table::{Column, Table};
use crate::domain::tenant::grouped;

/// How many batches a server lists.
const BATCHES_MAX: usize = 50;

/// How things stand, in words and tables.
pub(super) fn picture(status: &Status, width: Option<usize>) -> String {
    let mut text = String::new();
    let version = format!("nightshift {}", printable(&status.version));
    let database = format!(
        "   database {} ({})",
        status.database.engine,
        if status.database.answers {
            "up"
        } else {
            "DOES NOT ANSWER"
        },
    );
    let answers = status.replicas.iter().find(|replica| replica.answers);
    let answers = answers.map_or(String::new(), |replica| {
        let others = version.len() + database.len() + " ()".len();
        let room = width.map_or(usize::MAX, |width| width.saturating_sub(others));
        format!(" ({})", cut(&printable(&replica.name), room))
    });
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{version}{answers}{database}");
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
    if let Some(reuse) = &status.reuse {
        let _ = writeln!(text, "{}", printable(&cache::summary(reuse)));
    }
    for line in configuration(status) {
        let _ = writeln!(text, "{}", printable(&line));
    }
    for alarm in &status.alarms {
        let _ = writeln!(text, "ALARM: {}", printable(alarm));
    }
    for table in [
        upstreams(status),
        keys(status),
        closed(status),
        models(status),
        passed_over(status),
        tenants(status),
        rate_limits(status),
        windows(&status.windows),
        late(status),
        live(status),
        ended(status),
        replicas(status),
    ] {
        table.write(&mut text, width);
    }
    for (batches, which) in [
        (&status.live_batches, "oldest live batches"),
        (&status.ended_batches, "batches that ended last"),
    ] {
        if batches.len() >= BATCHES_MAX {
            let _ = writeln!(text, "\nOnly the {} {which} are listed.", batches.len());
        }
    }
    text
}

/// What is to be said of configurations, where anything is.
fn configuration(status: &Status) -> Vec<String> {
    let loaded = &status.configuration;
    let mut lines = Vec::new();
    // A process whose lease has run out may be gone.
    let alive = status.replicas.iter();
    let alive = alive.filter(|one| one.lease_seconds_left > 0.0);
    let hashes = alive.filter_map(|one| one.configuration.as_ref());
    if hashes.collect::<BTreeSet<_>>().len() > 1 {
        lines.push("the processes run by different configurations: see CONFIGURATION".to_owned());
    }
    if let Some(at) = loaded.failed_at {
        let ago = ago(status.now - at);
        lines.push(format!(
            "the configuration was read again {ago} and has mistakes:"
        ));
        lines.extend(loaded.faults.iter().map(|fault| format!("  {fault}")));
    }
    if !loaded.needs_restart.is_empty() {
        let keys = loaded.needs_restart.join(", ");
        lines.push(format!("changed, and need a restart: {keys}"));
    }
    lines
}

fn upstreams(status: &Status) -> Table {
    let mut table = Table::new([
        Column::cut("UPSTREAM"),
        Column::whole("STATE"),
        Column::whole("CALLS"),
        Column::whole("SHARE"),
        Column::whole("LIMIT"),
        Column::cut("CAUSE"),
    ]);
    for upstream in &status.upstreams {
        let state = match upstream.state.as_str() {
            "unknown" => "not called yet",
            state => state,
        };
        table.row([
            upstream.name.clone(),
            state.to_owned(),
            upstream.in_flight.to_string(),
            upstream.share.to_string(),
            upstream.limit.to_string(),
            upstream.cause.clone().unwrap_or_default(),
        ]);
    }
    table
}

/// The keys of upstreams that have several.
fn keys(status: &Status) -> Table {
    let mut table = Table::new([
        Column::cut("KEY"),
        Column::cut("OF"),
        Column::whole("STATE"),
        Column::whole("CALLS"),
        Column::whole("TRIED"),
        Column::cut("CAUSE"),
    ]);
    for upstream in &status.upstreams {
        for key in &upstream.keys {
            table.row([
                key.name.clone(),
                upstream.name.clone(),
                key.state.clone(),
                key.in_flight.to_string(),
                key.until
                    .map_or(String::new(), |until| tried(until, status)),
                key.cause.clone().unwrap_or_default(),
            ]);
        }
    }
    table
}

/// When what is closed gets a line again.
fn tried(until: i64, status: &Status) -> String {
    match until - status.now {
        left if left > 0 => format!("in {}", seconds(left as f64)),
        _ => "now".to_owned(),
    }
}

/// What takes no lines now, and until when.
fn closed(status: &Status) -> Table {
    let mut table = Table::new([
        Column::cut("CLOSED"),
        Column::cut("AT"),
        Column::whole("REASON"),
        Column::whole("TRIED"),
        Column::cut("CAUSE"),
    ]);
    for upstream in &status.upstreams {
        for model in &upstream.closed {
            table.row([
                model.model.clone(),
                upstream.name.clone(),
                model.reason.clone(),
                tried(model.until, status),
                model.cause.clone(),
            ]);
        }
    }
    table
}

fn models(status: &Status) -> Table {
    let mut table = Table::new([
        Column::cut("MODEL"),
        Column::whole("CALLS"),
        Column::whole("SHARE"),
        Column::whole("LIMIT"),
        Column::whole("WAITING"),
        Column::whole("LEASED").leaves(1),
        Column::whole("OLDEST"),
        Column::whole("LINES/S"),
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
            seconds(model.oldest_seconds),
            rate(model.lines_per_second),
        ]);
    }
    table
}

/// The routes that lines do not go by now, of models that have several, and why.
fn passed_over(status: &Status) -> Table {
    let mut table = Table::new([
        Column::cut("PASSED OVER"),
        Column::cut("AT"),
        Column::whole("TIER"),
        Column::whole("WHY"),
        Column::whole("TRIED"),
    ]);
    for model in status.models.iter().filter(|model| model.routes.len() > 1) {
        for route in &model.routes {
            let Some(why) = &route.skipped else {
                continue;
            };
            table.row([
                model.model.clone(),
                route.upstream.clone(),
                route.tier.to_string(),
                why.clone(),
                route
                    .until
                    .map_or(String::new(), |until| tried(until, status)),
            ]);
        }
    }
    table
}

/// The tenants in the order of their turns, what their lines wait for, and how much they have of
/// what they may have.
fn tenants(status: &Status) -> Table {
    let mut table = Table::new([
        Column::cut("TENANT"),
        Column::whole("WEIGHT").leaves(2),
        Column::whole("CALLS"),
        Column::whole("SHARE").leaves(3),
        Column::whole("LIMIT"),
        Column::whole("READY").leaves(4),
        Column::whole("WAITS FOR"),
        Column::whole("ENQUEUED"),
        Column::whole("TOKENS").leaves(1),
        Column::whole("STORED").leaves(1),
    ]);
    let count = |number: Option<usize>| number.map_or(String::new(), |number| number.to_string());
    let of = |held: Option<u64>, most: Option<u64>, shown: fn(u64) -> String| {
        let held = held.map_or("?".to_owned(), shown);
        most.map_or(held.clone(), |most| format!("{held} of {}", shown(most)))
    };
    let bytes = |bytes: u64| size(usize::try_from(bytes).unwrap_or(usize::MAX));
    for tenant in &status.tenants {
        let waits_for = tenant.waits_for.clone().unwrap_or_default();
        table.row([
            tenant.tenant.clone(),
            tenant.weight.to_string(),
            tenant.in_flight.to_string(),
            count(tenant.share),
            count(tenant.limit),
            tenant.ready.to_string(),
            match tenant.until {
                Some(until) => format!("{waits_for}, {}", seconds((until - status.now) as f64)),
                None => waits_for,
            },
            of(
                tenant.enqueued_requests,
                tenant.max_enqueued_requests,
                grouped,
            ),
            of(tenant.enqueued_tokens, tenant.max_enqueued_tokens, grouped),
            of(tenant.stored_bytes, tenant.max_storage_bytes, bytes),
        ]);
    }
    table
}

/// The limits on requests and tokens in a time, and until when those that are spent keep lines.
fn rate_limits(status: &Status) -> Table {
    let mut table = Table::new([
        Column::cut("RATE LIMIT OF"),
        Column::whole("TYPE"),
        Column::whole("LIMIT"),
        Column::whole("IN"),
        Column::whole("USED"),
        Column::whole("RESERVED").leaves(1),
        Column::whole("OPENS"),
    ]);
    for limit in &status.rate_limits {
        table.row([
            format!("{} {}", limit.scope, limit.name),
            limit.r#type.clone(),
            limit.limit.to_string(),
            seconds(limit.period_seconds),
            format!("{:.0}%", limit.saturation * 100.0),
            limit.reserved.to_string(),
            limit.until.map_or("now".to_owned(), |until| {
                format!("in {}", seconds((until - status.now) as f64))
            }),
        ]);
    }
    table
}

/// How many calls at once there may be, where that is found out.
pub(in crate::cli) fn windows(windows: &[WindowStatus]) -> Table {
    let mut table = Table::new([
        Column::cut("AUTO"),
        Column::cut("MODEL"),
        Column::whole("WINDOW"),
        Column::whole("SHARE"),
        Column::whole("IN FLIGHT"),
        Column::whole("CHANGES").leaves(1),
        Column::whole("WHY"),
    ]);
    for window in windows {
        table.row([
            window.upstream.clone(),
            window.model.clone(),
            window.window.to_string(),
            window.share.to_string(),
            window.in_flight.to_string(),
            window.generation.to_string(),
            window.reason.clone(),
        ]);
    }
    table
}

/// Batches of which lines go, or went, to a tier that takes only late lines.
fn late(status: &Status) -> Table {
    let mut table = Table::new([
        Column::whole("LATE BATCH"),
        Column::cut("MODEL").leaves(3),
        Column::whole("LATE"),
        Column::whole("TO SEND").leaves(2),
        Column::whole("DEFICIT"),
        Column::whole("LINES/S").leaves(1),
        Column::whole("LEFT"),
        Column::whole("SPILLED"),
    ]);
    for late in &status.late {
        table.row([
            late.batch_id.clone(),
            late.model.clone(),
            if late.late { "yes" } else { "no" }.to_owned(),
            late.lines.to_string(),
            late.deficit.to_string(),
            rate(late.lines_per_second),
            seconds(late.seconds_left),
            late.spilled.to_string(),
        ]);
    }
    table
}

/// Where there is no room for all columns, what is left out first is what `--json` is for.
fn live(status: &Status) -> Table {
    let mut table = Table::new([
        Column::whole("BATCH"),
        Column::cut("TENANT").leaves(1),
        Column::whole("STATUS"),
        Column::cut("MODEL").leaves(3),
        Column::whole("LINES").leaves(5),
        Column::whole("DONE"),
        Column::whole("FAILED").leaves(1),
        Column::whole("LINES/S").leaves(6),
        Column::whole("ETA").leaves(2),
        Column::whole("DEADLINE").leaves(4),
    ]);
    for batch in &status.live_batches {
        table.row([
            batch.id.clone(),
            batch.tenant.clone(),
            batch.status.clone(),
            batch.model.clone().unwrap_or_else(|| "-".to_owned()),
            format!("{}/{}", batch.done, batch.total),
            percent(batch),
            batch.failed.to_string(),
            rate(batch.lines_per_second),
            batch.eta_seconds.map_or("-".to_owned(), seconds),
            batch.expires_at.map_or("-".to_owned(), |at| {
                format!("in {}", seconds((at - status.now) as f64))
            }),
        ]);
    }
    table
}

fn ended(status: &Status) -> Table {
    let mut table = Table::new([
        Column::whole("ENDED BATCH"),
        Column::cut("TENANT").leaves(1),
        Column::whole("STATUS"),
        Column::cut("MODEL").leaves(3),
        Column::whole("LINES").leaves(4),
        Column::whole("DONE"),
        Column::whole("FAILED").leaves(1),
        Column::whole("LINES/S").leaves(6),
        Column::whole("TOOK").leaves(5),
        Column::whole("ENDED").leaves(2),
    ]);
    for batch in &status.ended_batches {
        let ended_at = batch.ended_at.unwrap_or(status.now);
        table.row([
            batch.id.clone(),
            batch.tenant.clone(),
            batch.status.clone(),
            batch.model.clone().unwrap_or_else(|| "-".to_owned()),
            format!("{}/{}", batch.done, batch.total),
            percent(batch),
            batch.failed.to_string(),
            rate(batch.lines_per_second),
            seconds((ended_at - batch.created_at) as f64),
            ago(status.now - ended_at),
        ]);
    }
    table
}

/// How much of a batch is done.
fn percent(batch: &BatchStatus) -> String {
    let percent = (batch.done * 100).checked_div(batch.total).unwrap_or(0);
    format!("{percent}%")
}

fn replicas(status: &Status) -> Table {
    let mut table = Table::new([
        Column::cut("REPLICA"),
        Column::whole("UP FOR"),
        Column::whole("LEASE"),
        Column::whole("CONFIGURATION"),
        Column::whole("READ"),
        Column::whole(""),
    ]);
    for replica in &status.replicas {
        table.row([
            replica.name.clone(),
            seconds((status.now - replica.started_at) as f64),
            format!("{:.0}s left", replica.lease_seconds_left),
            replica.configuration.clone().unwrap_or_default(),
            replica
                .loaded_at
                .map_or(String::new(), |at| ago(status.now - at)),
            if replica.answers { "answers here" } else { "" }.to_owned(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture_of(status: serde_json::Value, width: Option<usize>) -> String {
        let status: Status = serde_json::from_value(status).expect("is a status");
        picture(&status, width)
    }

    #[test]
    fn the_picture_has_aligned_tables() {
        let status = serde_json::json!({
            "version": "1", "now": 1000,
            "database": {"engine": "sqlite", "answers": true},
            "replicas": [{
                "name": "r", "started_at": 400, "lease_seconds_left": 9.7, "answers": true,
                "configuration": "0123456789ab", "loaded_at": 940
            }],
            "upstreams": [
                {"name": "gpu", "state": "up", "cause": null, "in_flight": 3, "share": 32, "limit": 64},
                {
                    "name": "b", "state": "down", "cause": "no", "in_flight": 0, "share": 8,
                    "limit": 8, "keys": [
                        {"name": "KEY_A", "state": "up", "cause": null, "until": null, "in_flight": 2},
                        {"name": "KEY_B", "state": "ejected", "cause": "401", "until": 1030, "in_flight": 0}
                    ]
                },
                {"name": "c", "state": "unknown", "cause": null, "in_flight": 0, "share": 8, "limit": 8},
            ],
            "models": [],
            "batches": {"in_progress": 1, "validating": 0},
            "live_batches": [{
                "id": "batch_1", "tenant": "t", "status": "in_progress", "model": "m",
                "total": 200, "done": 50, "failed": 1, "lines_per_second": 12.5,
                "eta_seconds": 12.0, "created_at": 0, "expires_at": 4600
            }],
            "ended_batches": [{
                "id": "batch_0", "tenant": "t", "status": "cancelled", "model": null,
                "total": 9, "done": 9, "failed": 0, "lines_per_second": 3.0,
                "eta_seconds": null, "created_at": 0, "expires_at": 4600, "ended_at": 400
            }],
            "lines_per_second": 12.5,
            "budget": {"used_bytes": 1_048_576, "limit_bytes": 67_108_864},
        });
        assert_eq!(
            picture_of(status, None),
            "nightshift 1 (r)   database sqlite (up)\n\
             this process: 12.5 lines/s   request budget 1.0 MiB of 64.0 MiB\n\
             batches: 1 in_progress\n\
             \n\
             UPSTREAM  STATE           CALLS  SHARE  LIMIT  CAUSE\n\
             gpu       up              3      32     64\n\
             b         down            0      8      8      no\n\
             c         not called yet  0      8      8\n\
             \n\
             KEY    OF  STATE    CALLS  TRIED   CAUSE\n\
             KEY_A  b   up       2\n\
             KEY_B  b   ejected  0      in 30s  401\n\
             \n\
             BATCH    TENANT  STATUS       MODEL  LINES   DONE  FAILED  LINES/S  ETA  DEADLINE\n\
             batch_1  t       in_progress  m      50/200  25%   1       12.5     12s  in 1h 00m\n\
             \n\
             ENDED BATCH  TENANT  STATUS     MODEL  LINES  DONE  FAILED  LINES/S  TOOK    ENDED\n\
             batch_0      t       cancelled  -      9/9    100%  0       3.0      6m 40s  10m ago\n\
             \n\
             REPLICA  UP FOR   LEASE     CONFIGURATION  READ\n\
             r        10m 00s  10s left  0123456789ab   1m ago  answers here\n"
        );
    }

    #[test]
    fn what_is_to_be_done_about_configurations_is_said() {
        let replica = |hash: &str| {
            serde_json::json!({
                "name": hash, "started_at": 0, "lease_seconds_left": 9.0, "answers": false,
                "configuration": hash, "loaded_at": 0
            })
        };
        let status = |hashes: [&str; 2], configuration: serde_json::Value| {
            let status = serde_json::json!({
                "version": "1", "now": 1000,
                "database": {"engine": "postgres", "answers": true},
                "replicas": hashes.map(replica), "upstreams": [], "models": [], "batches": {},
                "live_batches": [], "lines_per_second": 0.0,
                "budget": {"used_bytes": 0, "limit_bytes": 0}, "configuration": configuration,
            });
            configuration_of(&status)
        };
        let same = serde_json::json!({"hash": "a", "loaded_at": 0});
        assert_eq!(status(["a", "a"], same.clone()), [""; 0]);
        let differ = "the processes run by different configurations: see CONFIGURATION";
        assert_eq!(status(["a", "b"], same), [differ]);
        let bad = serde_json::json!({
            "hash": "a", "loaded_at": 0, "needs_restart": ["server.listen", "worker.name"],
            "faults": ["retry.x: is wrong", "y: is wrong"], "failed_at": 400,
        });
        assert_eq!(
            status(["a", "a"], bad),
            [
                "the configuration was read again 10m ago and has mistakes:",
                "  retry.x: is wrong",
                "  y: is wrong",
                "changed, and need a restart: server.listen, worker.name",
            ]
        );
    }

    fn configuration_of(status: &serde_json::Value) -> Vec<String> {
        configuration(&serde_json::from_value(status.clone()).expect("is a status"))
    }

    #[test]
    fn the_picture_fits_80_columns_and_no_id_is_cut() {
        let id = |number: u32| format!("batch_{number:032x}");
        let batch = |number: u32, status: &str| {
            serde_json::json!({
                "id": id(number), "tenant": "département-recherche", "status": status,
                "model": "meta-llama/Llama-3.3-70B-Instruct", "total": 1_000_000, "done": 999_999,
                "failed": 123_456, "lines_per_second": 1234.5, "eta_seconds": 50_000.0,
                "created_at": 0, "expires_at": 90_000, "ended_at": 100
            })
        };
        let cause = "the model server answered 503 with a body that is not JSON: <html>".to_owned();
        let status = serde_json::json!({
            "version": "1.22.333", "now": 3_000,
            "database": {"engine": "postgres", "answers": true},
            "replicas": [{
                "name": "nightshift-worker-7c9f8d6b5c-x2x4z.default.svc.cluster.local-and-more",
                "started_at": 0, "lease_seconds_left": 9.7, "answers": true
            }],
            "upstreams": [{
                "name": "gpu-cluster-in-frankfurt", "state": "unknown", "cause": cause,
                "in_flight": 60_000, "share": 60_000, "limit": 60_000,
                "closed": [{
                    "model": "meta-llama/Llama-3.3-70B-Instruct", "reason": "unavailable",
                    "cause": cause + "\u{1b}[2J", "until": 3_100
                }],
            }],
            "models": [{
                "model": "meta-llama/Llama-3.3-70B-Instruct", "in_flight": 60_000, "share": 60_000,
                "limit": 60_000, "waiting_units": 20_000, "leased_units": 1_000,
                "oldest_seconds": 80_000.0, "lines_per_second": 1234.5,
                "routes": [
                    {"upstream": "gpu-1", "tier": 0, "weight": 1, "skipped": "down", "until": 3_030},
                    {"upstream": "gpu-2", "tier": 0, "weight": 1, "skipped": null},
                    {"upstream": "vendor", "tier": 1, "weight": 1, "skipped": "tier"},
                ]
            }],
            "batches": {"in_progress": 1},
            "live_batches": [batch(1, "in_progress"), batch(2, "validating")],
            "ended_batches": [batch(3, "completed"), batch(4, "cancelled")],
            "lines_per_second": 1234.5,
            "budget": {"used_bytes": 1_048_576, "limit_bytes": 67_108_864},
        });
        let shown = picture_of(status.clone(), Some(80));
        for line in shown.lines() {
            let width = console::measure_text_width(line);
            assert!(width <= 80, "{width}: {line}");
        }
        for number in 1..=4 {
            assert!(shown.contains(&id(number)), "{shown}");
        }
        assert!(!shown.contains('\u{1b}'), "nobody steers the terminal");
        for word in [
            "in_progress",
            "cancelled",
            "99%",
            "48m ago",
            "not called yet",
        ] {
            assert!(shown.contains(word), "{word}: {shown}");
        }
        let wide = picture_of(status, None);
        for word in [
            "département-recherche",
            "Llama-3.3-70B-Instruct",
            "999999/1000000",
            "gpu-1   0     down  in 30s",
            "vendor  1     tier",
        ] {
            assert!(wide.contains(word), "{word}: {wide}");
        }
    }
}
