//! `nightshift upstreams`: what operators do with upstreams.

mod direct;
mod list;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;

use super::configuration::{ConfigArgs, load};
use super::figures::moment;
use super::remote::{Remote, RemoteArgs};
use super::table::width_of_output;
use super::trials;
use crate::api::admin::Status;
use crate::api::upstreams::{SwitchedUpstream, in_words};
use crate::config::{Config, Environment, Overrides};
use crate::upstream::{Options, Pool};
use direct::Direct;

/// How often the server is asked for whom a drain waits.
const TELL_EVERY: Duration = Duration::from_secs(1);

const EXAMPLE: &str = "\
Examples:
  nightshift upstreams list
  nightshift upstreams drain gpu-1
  nightshift upstreams enable gpu-1 --config nightshift.toml
  OPS_KEY=sk-ns-… nightshift upstreams reset openai \\
    --url https://batch.internal --api-key-env OPS_KEY";

/// Steer upstreams: enable, disable, drain and reset them.
///
/// The server at --url is asked. Where it asks for keys, it needs one made with `nightshift keys
/// create --scope admin`. With --config or --database, the database is asked instead: then no
/// server need run, and all servers that use that database follow within a second or so.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLE)]
pub(super) struct UpstreamsArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum Command {
    /// List the upstreams: how each is, and who has enabled or disabled it and when
    List {
        /// Print JSON; times are in Unix seconds
        #[arg(long)]
        json: bool,

        #[command(flatten)]
        place: PlaceArgs,
    },
    /// Send no more lines to an upstream: they go to others, or wait; calls in flight go on
    Disable {
        #[command(flatten)]
        which: Which,
    },
    /// Send lines to an upstream again
    Enable {
        #[command(flatten)]
        which: Which,
    },
    /// Disable an upstream, and wait until nothing is in flight there; interrupted, the wait ends
    /// and the upstream stays disabled
    Drain {
        #[command(flatten)]
        which: Which,
    },
    /// Send one tiny request by each route to an upstream, from here, and show status, latency and
    /// usage
    Test {
        /// The upstream's name
        name: String,

        #[command(flatten)]
        config: ConfigArgs,
    },
    /// List the models that an upstream has, asked from here
    Models {
        /// The upstream's name
        name: String,

        #[command(flatten)]
        config: ConfigArgs,
    },
    /// Send lines again at once to an upstream that is closed: its key, its account or its server
    /// is mended, or it asked for a longer wait than it needs
    Reset {
        /// The upstream's name, as `nightshift status` shows it
        name: String,

        #[command(flatten)]
        server: RemoteArgs,
    },
}

/// An upstream, and where it is known.
#[derive(Clone, Debug, clap::Args)]
struct Which {
    /// The upstream's name
    name: String,

    #[command(flatten)]
    place: PlaceArgs,
}

/// A server that runs, or a configuration and its database.
#[derive(Clone, Debug, clap::Args)]
struct PlaceArgs {
    /// Where the server is, `http://127.0.0.1:8080` if nothing is said
    #[arg(long, value_name = "URL", conflicts_with_all = ["config", "database"])]
    url: Option<String>,

    /// The environment variable that holds an operator's key
    #[arg(long, value_name = "NAME", conflicts_with_all = ["config", "database"])]
    api_key_env: Option<String>,

    /// Ask the database that this TOML file names, instead of a server
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Ask this database: `sqlite://PATH` or `postgres://user:password@host/name`
    #[arg(long, value_name = "URL")]
    database: Option<String>,
}

/// What is asked.
enum Place {
    Server(Remote),
    Store(Box<Direct>),
}

impl PlaceArgs {
    async fn open(self) -> anyhow::Result<Place> {
        let environment = Environment::capture();
        if self.config.is_some() || self.database.is_some() {
            let overrides = Overrides {
                config: self.config,
                database: self.database,
                ..Overrides::default()
            };
            let direct = Direct::open(&overrides, &environment).await?;
            return Ok(Place::Store(Box::new(direct)));
        }
        let server = RemoteArgs::new(self.url, self.api_key_env);
        Ok(Place::Server(Remote::new(&server, &environment)?))
    }
}

pub(super) async fn run(args: UpstreamsArgs) -> anyhow::Result<ExitCode> {
    match args.command {
        Command::List { json, place } => list(json, place.open().await?).await?,
        Command::Disable { which } => {
            let set = switch(which, "disable").await?;
            println!("{} is disabled{}", set.name, by_whom(&set));
        }
        Command::Enable { which } => {
            let set = switch(which, "enable").await?;
            println!("{} is enabled{}", set.name, by_whom(&set));
        }
        Command::Drain { which } => {
            let set = switch(which, "drain").await?;
            println!("{} is disabled, and nothing is in flight there", set.name);
        }
        Command::Test { name, config } => {
            let (pool, config) = pool_with(&name, config)?;
            pool.try_upstreams().await;
            if !trials::tell(&pool, &config, Some(&name)).await? {
                return Ok(ExitCode::FAILURE);
            }
        }
        Command::Models { name, config } => {
            let (pool, _) = pool_with(&name, config)?;
            let tried = pool.try_upstreams().await;
            let mut of_it = tried.into_iter().filter(|tried| tried.name == name);
            let best = of_it
                .by_ref()
                .reduce(|one, other| if one.models.is_ok() { one } else { other });
            let models = best.map_or(Ok(Vec::new()), |tried| tried.models);
            for model in models.map_err(|cause| anyhow::anyhow!("{name}: {cause}"))? {
                println!("{}", model.id);
            }
        }
        Command::Reset { name, server } => {
            let server = Remote::new(&server, &Environment::capture())?;
            server.post(&["admin", "upstreams", &name, "reset"]).await?;
            println!("{name} is open");
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The upstreams of the configuration, which has one of this name.
fn pool_with(name: &str, config: ConfigArgs) -> anyhow::Result<(Arc<Pool>, Config)> {
    let config = load(&config.overrides())?;
    direct::find(&config, name)?;
    let pool = Pool::new(&config.upstream_settings(), Options::default())?;
    Ok((pool, config))
}

async fn list(json: bool, place: Place) -> anyhow::Result<()> {
    let upstreams = match place {
        Place::Server(server) => {
            let status: Status = understood(&server.get("/admin/status").await?)?;
            list::of_server(status)
        }
        Place::Store(direct) => direct.list().await?,
    };
    let text = if json {
        serde_json::to_string_pretty(&upstreams)? + "\n"
    } else {
        list::table(&upstreams, width_of_output())
    };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

async fn switch(which: Which, what: &str) -> anyhow::Result<SwitchedUpstream> {
    let name = which.name;
    match which.place.open().await? {
        Place::Server(server) => {
            let path = ["admin", "upstreams", &name, what];
            let answer = if what == "drain" {
                let patient = server.patient();
                telling_whom(&server, &name, patient.post(&path)).await?
            } else {
                server.post(&path).await?
            };
            understood(&answer)
        }
        Place::Store(direct) => direct.switch(&name, what).await,
    }
}

/// The answer to a drain. Says meanwhile for whom it waits.
async fn telling_whom(
    server: &Remote,
    name: &str,
    drained: impl Future<Output = anyhow::Result<String>>,
) -> anyhow::Result<String> {
    let mut drained = std::pin::pin!(drained);
    let mut told = Vec::new();
    loop {
        tokio::select! {
            answer = &mut drained => return answer,
            () = tokio::time::sleep(TELL_EVERY) => {}
        }
        // A status that is not to be had is no reason to wait no longer.
        let Ok(status) = server.get("/admin/status").await else {
            continue;
        };
        let status: Status = understood(&status)?;
        let upstream = status.upstreams.into_iter().find(|one| one.name == name);
        let waits_for = upstream.map_or_else(Vec::new, |upstream| upstream.waits_for);
        if !waits_for.is_empty() && waits_for != told {
            tell!("Waiting for {}", in_words(&waits_for));
            told = waits_for;
        }
    }
}

/// Where somebody else has set it before, who that was.
fn by_whom(set: &SwitchedUpstream) -> String {
    format!(" (by {}, {} UTC)", set.changed_by, moment(set.changed_at))
}

fn understood<T: serde::de::DeserializeOwned>(answer: &str) -> anyhow::Result<T> {
    serde_json::from_str(answer).context("the server's answer is not understood: is it nightshift?")
}
