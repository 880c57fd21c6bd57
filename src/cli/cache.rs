//! `nightshift cache`: the answers that are kept to be given to equal requests.

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Context as _;

use super::figures::size;
use super::remote::{Remote, RemoteArgs};
use super::table::{Column, Table, width_of_output};
use crate::api::cache::{CacheStatus, ClearedCache};
use crate::config::Environment;

const EXAMPLE: &str = "\
Examples:
  nightshift cache stats
  nightshift cache clear --tenant acme
  OPS_KEY=sk-ns-… nightshift cache clear \\
    --url https://batch.internal --api-key-env OPS_KEY";

/// Show and remove the answers that are kept to be given to equal requests ([reuse]).
///
/// Where the server asks for keys, it needs one made with `nightshift keys create --scope admin`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLE)]
pub(super) struct CacheArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum Command {
    /// Show how many answers are kept, of which tenants, and what their bytes come to
    Stats {
        /// Print what the server answers, as JSON
        #[arg(long)]
        json: bool,

        #[command(flatten)]
        server: RemoteArgs,
    },
    /// Remove all kept answers, or those of one tenant: their lines are sent again from then on
    Clear {
        /// Whose answers; left out, those of all tenants
        #[arg(long, value_name = "NAME")]
        tenant: Option<String>,

        #[command(flatten)]
        server: RemoteArgs,
    },
}

pub(super) async fn run(args: CacheArgs) -> anyhow::Result<ExitCode> {
    let environment = Environment::capture();
    let text = match args.command {
        Command::Stats { json, server } => {
            let server = Remote::new(&server, &environment)?;
            let answer = server.get("/admin/cache").await?;
            if json {
                answer.trim_end().to_owned() + "\n"
            } else {
                let status = serde_json::from_str(&answer);
                let status = status.context(NOT_UNDERSTOOD)?;
                picture(&status, width_of_output())
            }
        }
        Command::Clear { tenant, server } => {
            // There may be many answers.
            let server = Remote::new(&server, &environment)?.patient();
            let query: Vec<(&str, &str)> = tenant.iter().map(|name| ("tenant", &**name)).collect();
            let answer = server.delete("/admin/cache", &query).await?;
            let cleared: ClearedCache = serde_json::from_str(&answer).context(NOT_UNDERSTOOD)?;
            let (answers, bytes) = (cleared.answers, bytes(cleared.bytes));
            format!("removed {answers} kept answers ({bytes})\n")
        }
    };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

const NOT_UNDERSTOOD: &str = "the server's answer is not understood: is it nightshift?";

/// What is kept, for people.
pub(super) fn picture(status: &CacheStatus, width: Option<usize>) -> String {
    let mut text = summary(status) + "\n";
    let mut table = Table::new([
        Column::cut("TENANT"),
        Column::whole("ANSWERS"),
        Column::whole("BYTES"),
    ]);
    for one in &status.tenants {
        let (answers, bytes) = (one.answers.to_string(), bytes(one.bytes));
        table.row([one.tenant.clone(), answers, bytes]);
    }
    table.write(&mut text, width);
    text
}

/// Such as `reuse: deterministic   12 answers, 1.0 MiB of 1.0 GiB`.
pub(super) fn summary(status: &CacheStatus) -> String {
    format!(
        "reuse: {}   {} answers, {} of {}",
        status.mode,
        status.answers,
        bytes(status.bytes),
        bytes(status.max_bytes)
    )
}

fn bytes(count: u64) -> String {
    size(usize::try_from(count).unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_shown_by_tenant() {
        let status = serde_json::from_value(serde_json::json!({
            "mode": "all", "ttl_seconds": 60, "max_bytes": 1_073_741_824, "answers": 3,
            "bytes": 3_145_728, "tenants": [
                {"tenant": "acme", "answers": 2, "bytes": 2_097_152},
                {"tenant": "b", "answers": 1, "bytes": 1_048_576},
            ],
        }));
        assert_eq!(
            picture(&status.expect("a status"), None),
            "reuse: all   3 answers, 3.0 MiB of 1024.0 MiB\n\
             \n\
             TENANT  ANSWERS  BYTES\n\
             acme    2        2.0 MiB\n\
             b       1        1.0 MiB\n"
        );
    }
}
