//! `nightshift usage`: what was used and what it cost, for people.

use std::cmp::Reverse;
use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Context as _;

use super::figures::count;
use super::remote::{Remote, RemoteArgs};
use super::table::{Column, Table, width_of_output};
use crate::api::usage::{AdminUsage, UsageEntry, UsageFigures};
use crate::config::Environment;

const EXAMPLE: &str = "\
Examples:
  nightshift usage
  nightshift usage --since 7d --by tenant,day
  OPS_KEY=sk-ns-… nightshift usage --url https://batch.internal \\
    --api-key-env OPS_KEY --since 2026-11-01 --until 2026-12-01 --csv";

/// Show what was used, and what it cost.
///
/// Tokens and costs are of all calls, those whose answers were thrown away among them. Where the
/// server asks for keys, it needs one made with `nightshift keys create --scope admin`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLE)]
pub(super) struct UsageArgs {
    #[command(flatten)]
    server: RemoteArgs,

    /// From when on: a time ago such as 7d, or a date
    #[arg(long, value_name = "TIME", default_value = "30d")]
    since: String,

    /// Until when, likewise
    #[arg(long, value_name = "TIME")]
    until: Option<String>,

    /// What to tell apart, with commas between: day, hour, tenant, key, model, upstream, task,
    /// endpoint, batch
    #[arg(long, value_name = "NAMES", default_value = "upstream,model")]
    by: String,

    /// Print what the server answers, as JSON
    #[arg(long, conflicts_with = "csv")]
    json: bool,

    /// Print the rows as CSV
    #[arg(long)]
    csv: bool,

    /// Cut nothing, however wide the table is
    #[arg(long)]
    wide: bool,
}

pub(super) async fn run(args: UsageArgs) -> anyhow::Result<ExitCode> {
    let server = Remote::new(&args.server, &Environment::capture())?;
    let format = if args.csv { "csv" } else { "json" };
    let mut query = vec![
        ("since", &*args.since),
        ("group_by", &*args.by),
        ("format", format),
    ];
    query.extend(args.until.as_deref().map(|until| ("until", until)));
    let text = server.get_with("/admin/usage", &query).await?;
    let shown = if args.csv || args.json {
        text.trim_end().to_owned() + "\n"
    } else {
        let usage = serde_json::from_str(&text);
        let usage = usage.context("the server's answer is not understood: is it nightshift?")?;
        let width = if args.wide { None } else { width_of_output() };
        table(&usage, &args.by, width)
    };
    std::io::stdout().write_all(shown.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

/// The table: in the order of time where time is told apart, and of as much the rows with the most
/// tokens first; with a total.
fn table(usage: &AdminUsage, by: &str, width: Option<usize>) -> String {
    if usage.data.is_empty() {
        return "nothing was used in that time\n".to_owned();
    }
    let mut rows: Vec<&UsageEntry> = usage.data.iter().collect();
    rows.sort_by_key(|row| {
        let tokens = row.figures.input_tokens + row.figures.output_tokens;
        (&row.day, &row.hour, Reverse(tokens))
    });
    let groups: Vec<&str> = by.split(',').map(str::trim).collect();
    let mut columns = vec![Column::whole("ID")];
    columns.extend(groups.iter().map(|name| column(name)));
    columns.extend([
        Column::whole("PROMPT TOKENS"),
        Column::whole("COMPLETION TOKENS"),
        Column::whole("TOTAL TOKENS"),
        Column::whole("REQUESTS").leaves(1),
        Column::whole("FAILED").leaves(3),
        Column::whole("RETRIES").leaves(4),
        Column::whole("REUSED").leaves(5),
        Column::whole("LOST").leaves(6),
        Column::whole("CACHED").leaves(7),
        Column::whole("REASONING").leaves(8),
        Column::whole("LATENCY").leaves(2),
        Column::whole("COST"),
    ]);
    let mut table = Table::new(columns);
    for (number, row) in (1_u64..).zip(rows) {
        let told_apart = groups.iter().map(|name| row.of_group(name).to_owned());
        let cells = std::iter::once(number.to_string()).chain(told_apart);
        table.row(cells.chain(figures(&row.figures, &usage.currency)));
    }
    let blank = groups.iter().map(|_| String::new());
    let cells = std::iter::once("total".to_owned()).chain(blank);
    table.row(cells.chain(figures(&usage.total, &usage.currency)));
    let mut text = String::new();
    table.write(&mut text, width);
    let unpriced = usage.total.unpriced;
    if unpriced > 0 {
        let unpriced = count(unpriced.unsigned_abs());
        text +=
            &format!("\nThe costs leave out {unpriced} calls whose price or usage is not known.\n");
    }
    text.trim_start().to_owned()
}

fn column(group: &str) -> Column {
    match group {
        "upstream" => Column::cut("PROVIDER"),
        "model" => Column::cut("MODEL"),
        "tenant" => Column::cut("TENANT"),
        "key" => Column::whole("KEY"),
        "task" => Column::cut("TASK"),
        "endpoint" => Column::cut("ENDPOINT"),
        "batch" => Column::whole("BATCH"),
        "day" => Column::whole("DAY"),
        _ => Column::whole("HOUR"),
    }
}

fn figures(figures: &UsageFigures, currency: &str) -> [String; 12] {
    let number = |number: i64| count(number.unsigned_abs());
    let latency = figures.latency_ms as f64 / figures.requests.max(1) as f64;
    let cost = figures.cost.as_ref();
    [
        number(figures.input_tokens),
        number(figures.output_tokens),
        number(figures.input_tokens + figures.output_tokens),
        number(figures.requests),
        number(figures.failed),
        number(figures.retries),
        number(figures.reused),
        number(figures.lost),
        number(figures.cached_tokens),
        number(figures.reasoning_tokens),
        format!("{latency:.0} ms"),
        cost.map_or_else(|| "unknown".to_owned(), |cost| format!("{cost} {currency}")),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_stand_by_their_tokens_and_have_a_total() {
        let entry = |upstream: &str, input_tokens, cost: Option<&str>| UsageEntry {
            upstream: Some(upstream.to_owned()),
            figures: UsageFigures {
                requests: 2,
                input_tokens,
                output_tokens: 5,
                latency_ms: 30,
                unpriced: i64::from(cost.is_none()),
                cost: cost.map(str::to_owned),
                ..UsageFigures::default()
            },
            ..UsageEntry::default()
        };
        let usage = AdminUsage {
            data: vec![entry("own", 10, None), entry("paid", 1000, Some("0.25"))],
            total: entry("", 1010, Some("0.25")).figures,
            currency: "usd".to_owned(),
        };
        let text = table(&usage, "upstream", Some(100));
        let lines: Vec<&str> = text.lines().collect();
        assert!(
            lines[0].starts_with("ID     PROVIDER  PROMPT TOKENS"),
            "{text}"
        );
        assert!(lines[1].starts_with("1      paid      1,000"), "{text}");
        assert!(lines[1].ends_with("15 ms    0.25 usd"), "{text}");
        assert!(lines[2].ends_with("unknown"), "{text}");
        assert!(lines[3].starts_with("total            1,010"), "{text}");
    }

    #[test]
    fn what_the_costs_leave_out_is_said() {
        let usage = AdminUsage {
            data: vec![UsageEntry::default()],
            total: UsageFigures {
                unpriced: 1200,
                ..UsageFigures::default()
            },
            currency: "usd".to_owned(),
        };
        let text = table(&usage, "model", None);
        assert!(text.ends_with("leave out 1,200 calls whose price or usage is not known.\n"));
        let nothing = table(&AdminUsage::default(), "model", None);
        assert_eq!(nothing, "nothing was used in that time\n");
    }
}
