//! `nightshift serve`: the HTTP server and the worker pool.

use std::io::Write as _;
use std::process::ExitCode;
use std::sync::Arc;

use super::configuration::{ConfigArgs, has_mistakes, load_quietly, warn_of};
use super::machine;
use crate::app::App;
use crate::config::{Config, Overrides, shown_url};
use crate::domain::clock::Clock;
use crate::shutdown::{self, Hangup};
use crate::telemetry;

const EXAMPLE: &str = "\
Examples:
  nightshift serve --upstream http://localhost:8000/v1
  nightshift serve --config nightshift.toml \\
    --database postgres://nightshift@localhost/nightshift

  export OPENAI_BASE_URL=http://127.0.0.1:8080/v1 OPENAI_API_KEY=unused";

/// Start the server, and the workers that send each line to its model server.
///
/// With no configuration at all it keeps its data in nightshift-data/ and listens on
/// 127.0.0.1:8080. The address is printed on standard output.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLE)]
pub(super) struct ServeArgs {
    #[command(flatten)]
    config: ConfigArgs,

    /// Where to listen; port 0 takes a free one [default: 127.0.0.1:8080]
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<String>,

    /// Send every model to this server, instead of what the configuration says; the variable
    /// `NIGHTSHIFT_UPSTREAM` says the same
    #[arg(long, value_name = "URL")]
    upstream: Option<String>,

    /// The environment variable that holds the key of --upstream
    #[arg(long, value_name = "NAME")]
    api_key_env: Option<String>,

    /// Which half to run: api answers requests, worker does the work, each without the other;
    /// both need Postgres [default: all]
    #[arg(long, value_parser = ["all", "api", "worker"])]
    role: Option<String>,
}

pub(super) async fn run(args: ServeArgs) -> anyhow::Result<ExitCode> {
    let overrides = Overrides {
        listen: args.listen,
        upstream: args.upstream,
        api_key_env: args.api_key_env,
        role: args.role,
        ..args.config.overrides()
    };
    let (config, near_misses) = load_quietly(&overrides);
    let config = match config {
        Ok(config) => config,
        Err(errors) => {
            // One of them may be why something is missing.
            warn_of(&near_misses);
            return Err(has_mistakes(errors));
        }
    };
    let exporter = telemetry::start_exporting(&config.log, &config.telemetry)?;
    for near_miss in near_misses {
        tracing::warn!("{near_miss}");
    }
    let served = serve(&config).await;
    if let Some(exporter) = exporter {
        exporter.shutdown().await;
    }
    served?;
    Ok(ExitCode::SUCCESS)
}

/// Each upstream's name and address.
fn upstreams(config: &Config) -> String {
    let upstreams = config.upstreams.iter();
    let shown = upstreams.map(|upstream| {
        let url = shown_url(&upstream.base_url);
        format!("{} {url}", upstream.name)
    });
    let shown: Vec<_> = shown.collect();
    if shown.is_empty() {
        return "none".to_owned();
    }
    shown.join(", ")
}

async fn serve(config: &Config) -> anyhow::Result<()> {
    let stop = shutdown::on_signal(Hangup::Reloads)?;
    // Before anything is tried: whoever looks for why a server does not start reads this first.
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        role = config.server.role.as_str(),
        database = config.database.shown(),
        upstreams = upstreams(config),
        models = config.models.len(),
        "nightshift starts"
    );
    if config.server.role.works() {
        let of_machine = machine::warnings(config, true);
        for warning in config.warnings().into_iter().chain(of_machine) {
            tracing::warn!("{warning}");
        }
    }
    let app = App::start(config, Clock::default()).await?;
    tracing::info!(listen = %app.address(), "nightshift serves");
    // A reader that has gone away is no reason not to serve.
    let _ = writeln!(std::io::stdout(), "Listening on http://{}", app.address());
    let reloads = Arc::clone(stop.reloads());
    app.serve_until(stop.token().clone(), reloads).await
}
