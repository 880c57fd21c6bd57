//! `nightshift check`: the configuration, tried.

mod store;

use std::io::Write as _;
use std::process::ExitCode;

use super::configuration::{ConfigArgs, load_quietly};
use super::machine;
use super::prices;
use super::trials;
use crate::app;
use crate::config::{Config, Overrides, Preset, nearest, shown_url};
use crate::domain::batch::PRIORITIES;
use crate::domain::clock::Clock;
use crate::domain::tenant::{Allowance, ModelPattern, grouped};
use crate::upstream::{
    ModelInfo, ModelSettings, Options, Pool, RouteSettings, TaskSettings, is_listed,
};

/// Names of an upstream's models that are printed; of more it is said how many there are.
const SHOWN_MAX: usize = 20;

const EXAMPLE: &str = "\
Examples:
  nightshift check --config nightshift.toml
  nightshift check --call
  nightshift check --store \\
    --database postgres://nightshift@localhost/nightshift";

/// Read the configuration, report every mistake at once, and try each upstream and the database.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLE)]
pub(super) struct CheckArgs {
    #[command(flatten)]
    config: ConfigArgs,

    /// Check this server instead of the configured upstreams
    #[arg(long, value_name = "URL")]
    upstream: Option<String>,

    /// The environment variable that holds the key of --upstream
    #[arg(long, value_name = "NAME")]
    api_key_env: Option<String>,

    /// Send one tiny request by each route, too, and show status, latency, usage and price
    #[arg(long, conflicts_with = "store")]
    call: bool,

    /// Look over all that is stored, in place of the upstreams; this reads the whole database,
    /// beside a running server if there is one
    #[arg(long, conflicts_with_all = ["upstream", "api_key_env"])]
    store: bool,
}

pub(super) async fn run(args: CheckArgs) -> anyhow::Result<ExitCode> {
    let overrides = Overrides {
        upstream: args.upstream,
        api_key_env: args.api_key_env,
        ..args.config.overrides()
    };
    let mut out = std::io::stdout();
    let (config, near_misses) = load_quietly(&overrides);
    for near_miss in near_misses {
        writeln!(out, "warn  environment    {near_miss}")?;
    }
    let config = match config {
        Ok(config) => config,
        Err(errors) => {
            for error in &errors.0 {
                writeln!(out, "FAIL  configuration  {error}")?;
            }
            return Ok(ExitCode::FAILURE);
        }
    };
    writeln!(out, "ok    configuration")?;
    let mut good = true;
    if let Err(error) = app::check_role(&config) {
        good = false;
        writeln!(out, "FAIL  role           {error}")?;
    }
    good &= try_database(&config, args.store).await?;
    if args.store {
        return Ok(exit_code(good));
    }
    if config.upstreams.is_empty() {
        writeln!(
            out,
            "warn  upstreams      none is configured: no model can be served"
        )?;
    }
    for warning in config.warnings() {
        writeln!(out, "warn  upstreams      {warning}")?;
    }
    for warning in machine::warnings(&config, true) {
        writeln!(out, "warn  machine        {warning}")?;
    }
    tell_presets(&config)?;
    tell_routes(&config)?;
    tell_tasks(&config)?;
    tell_tenants(&config)?;
    let pool = Pool::new(&config.upstream_settings(), Options::default())?;
    for tried in pool.try_upstreams().await {
        let subject = tried.subject();
        match tried.models {
            Ok(models) => {
                let listed = named(&models);
                writeln!(out, "ok    upstream       {subject}: {listed}")?;
                tell_unlisted(&config, &tried.name, &models)?;
            }
            Err(cause) => {
                good = false;
                writeln!(out, "FAIL  upstream       {subject}: {cause}")?;
            }
        }
    }
    if args.call {
        good &= trials::tell(&pool, &config, None).await?;
    }
    Ok(exit_code(good))
}

/// Opens the database if there is one: whether that went well. A file that is not there is not
/// created, for nobody asks for it here.
async fn try_database(config: &Config, looks_it_over: bool) -> anyhow::Result<bool> {
    let mut out = std::io::stdout();
    if let Some(file) = app::missing_file(config) {
        let mark = if looks_it_over { "FAIL" } else { "note" };
        writeln!(
            out,
            "{mark}  database       there is none at {}: `nightshift serve` creates it",
            file.display()
        )?;
        return Ok(!looks_it_over);
    }
    let store = match app::open_store(config, Clock::default()).await {
        Ok(store) => store,
        Err(error) => {
            writeln!(out, "FAIL  database       {error:#}")?;
            return Ok(false);
        }
    };
    let shown = match config.database.sqlite_path() {
        // Absolute: what is wrong may be the directory that the command was given in.
        Some(file) => std::path::absolute(file)?.display().to_string(),
        None => config.database.shown(),
    };
    writeln!(out, "ok    database       {shown}")?;
    let good = !looks_it_over || store::check(&store, config).await?;
    store.close().await;
    Ok(good)
}

/// Shows what presets filled in, and which URL came of it.
fn tell_presets(config: &Config) -> std::io::Result<()> {
    let mut out = std::io::stdout();
    for Preset {
        upstream,
        name,
        filled,
    } in &config.presets
    {
        let mut upstreams = config.upstreams.iter();
        let found = upstreams.find(|one| one.name == *upstream);
        let url = found.map_or_else(String::new, |one| shown_url(&one.base_url));
        writeln!(out, "ok    preset         {upstream}: {name}, {url}")?;
        for key in filled {
            writeln!(out, "      filled in      {key}")?;
        }
        if let Some(url) = found.and_then(|one| one.metrics_url.as_deref()) {
            writeln!(out, "      metrics        {}", shown_url(url))?;
        }
    }
    Ok(())
}

/// Shows each model with its routes, in the order in which they are considered.
fn tell_routes(config: &Config) -> std::io::Result<()> {
    let mut out = std::io::stdout();
    for model in &config.models {
        let (balance, spill) = (model.balance.as_str(), model.spill.as_str());
        let mut routes: Vec<&RouteSettings> = model.routes.iter().collect();
        routes.sort_by_key(|route| route.tier);
        let first = routes.first().map_or(0, |route| route.tier);
        let has_tiers = routes.iter().any(|route| route.tier != first);
        let spill = if has_tiers {
            format!(", spill {spill}")
        } else {
            String::new()
        };
        writeln!(out, "ok    model          {}: {balance}{spill}", model.name)?;
        for route in routes {
            writeln!(
                out,
                "      route          {}",
                shown_route(config, model, route)
            )?;
            let own = model.prefix().is_none().then_some(model.name.as_str());
            if let Some(sent_as) = route.model.as_deref().or(own) {
                let known = prices::of_route(config, &route.upstream, sent_as, Some(route));
                for said in prices::shown(config, &known) {
                    writeln!(out, "                     {said}")?;
                }
            }
        }
    }
    Ok(())
}

/// Shows each `[[tasks]]` section: the models that do it, and what is set in its requests.
fn tell_tasks(config: &Config) -> std::io::Result<()> {
    let mut out = std::io::stdout();
    for task in &config.tasks {
        let TaskSettings {
            name,
            models,
            balance,
            defaults,
            overrides,
        } = task;
        let (balance, models) = (balance.as_str(), models.join(", "));
        writeln!(out, "ok    task           {name}: {balance}, by {models}")?;
        for (what, set) in [("defaults", defaults), ("overrides", overrides)] {
            let pairs = set.iter().map(|(key, value)| format!("{key} = {value}"));
            let pairs: Vec<String> = pairs.collect();
            if !pairs.is_empty() {
                writeln!(out, "      {what:<13}  {}", pairs.join(", "))?;
            }
        }
    }
    Ok(())
}

/// What each `[[tenants]]` section allows.
fn tell_tenants(config: &Config) -> std::io::Result<()> {
    let mut out = std::io::stdout();
    for tenant in &config.tenants {
        let Allowance {
            weight,
            concurrency,
            models,
            max_enqueued_requests,
            max_enqueued_tokens,
            max_storage_bytes,
            max_priority,
        } = &tenant.allowance;
        let mut said = vec![format!("weight {weight}")];
        said.extend(concurrency.map(|calls| format!("{calls} calls at once")));
        said.extend(tenant.rates.rate_limits.iter().map(|limit| {
            let (kind, period) = (limit.kind.as_str().replace('_', " "), limit.period);
            format!("{} {kind} in {period:?}", grouped(limit.limit))
        }));
        said.extend(models.as_ref().map(|models| {
            let models: Vec<&str> = models.iter().map(ModelPattern::as_str).collect();
            format!("models {}", models.join(" "))
        }));
        said.extend(
            max_enqueued_requests.map(|most| format!("{} requests enqueued", grouped(most))),
        );
        said.extend(max_enqueued_tokens.map(|most| format!("{} tokens enqueued", grouped(most))));
        said.extend(max_storage_bytes.map(|most| format!("{} bytes stored", grouped(most))));
        let is_bound = max_priority < PRIORITIES.end();
        said.extend(is_bound.then(|| format!("priority up to {max_priority}")));
        writeln!(
            out,
            "ok    tenant         {}: {}",
            tenant.name,
            said.join(", ")
        )?;
    }
    Ok(())
}

/// Such as `tier 0, weight 3: gpu-1, http://10.0.0.5:8000/v1, as meta-llama/Llama-3.1-8B-Instruct`.
fn shown_route(config: &Config, model: &ModelSettings, route: &RouteSettings) -> String {
    let mut upstreams = config.upstreams.iter();
    let upstream = upstreams.find(|upstream| upstream.name == route.upstream);
    let url = upstream.map_or_else(String::new, |upstream| shown_url(&upstream.base_url));
    let concurrency = route.concurrency;
    let concurrency =
        concurrency.map_or_else(String::new, |calls| format!(", concurrency {calls}"));
    let sent_as = match (&route.model, model.prefix()) {
        (Some(name), _) => name,
        (None, Some(_)) => "the line names it",
        (None, None) => &model.name,
    };
    format!(
        "tier {}, weight {}{concurrency}: {}, {url}, as {sent_as}",
        route.tier, route.weight, route.upstream
    )
}

/// How many models an upstream lists, and which.
fn named(models: &[ModelInfo]) -> String {
    let count = models.len();
    let shown: Vec<&str> = models
        .iter()
        .map(|model| &*model.id)
        .take(SHOWN_MAX)
        .collect();
    let shown = shown.join(", ");
    match count {
        0 => "no models".to_owned(),
        1 => format!("1 model: {shown}"),
        _ if count <= SHOWN_MAX => format!("{count} models: {shown}"),
        _ => format!("{count} models: {shown}, and {} more", count - SHOWN_MAX),
    }
}

/// Warns of each route to an upstream that names a model which is not in the upstream's list. That
/// is no failure: some servers take models that they do not list.
fn tell_unlisted(config: &Config, upstream: &str, models: &[ModelInfo]) -> std::io::Result<()> {
    let mut out = std::io::stdout();
    for model in &config.models {
        for route in model
            .routes
            .iter()
            .filter(|route| route.upstream == upstream)
        {
            // What a pattern stands for is not known.
            let own = model.prefix().is_none().then_some(&model.name);
            let Some(name) = route.model.as_ref().or(own) else {
                continue;
            };
            if is_listed(models, name) {
                continue;
            }
            let known = models.iter().map(|known| known.id.as_str());
            let nearest = nearest(name, known).map(|nearest| format!("; the nearest is {nearest}"));
            writeln!(
                out,
                "warn  model          {}: {upstream} lists no model {name}{}",
                model.name,
                nearest.unwrap_or_default()
            )?;
        }
    }
    Ok(())
}

fn exit_code(good: bool) -> ExitCode {
    if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
