//! Where a run sends: the configuration, or the environment of OpenAI's clients.

use anyhow::bail;

use super::args::RunArgs;
use crate::cli::{has_mistakes, warn_of};
use crate::config::{Config, Environment, Overrides};

/// What OpenAI's clients read.
const BASE_URL: &str = "OPENAI_BASE_URL";
const API_KEY: &str = "OPENAI_API_KEY";

/// Reads the configuration, which must name an upstream; else the environment may, as it does for
/// OpenAI's clients.
pub(super) fn configure(args: &RunArgs, overrides: Overrides) -> anyhow::Result<Config> {
    let environment = Environment::capture();
    let load = |overrides: &Overrides| Config::load(overrides, &environment).map_err(has_mistakes);
    let is_named = overrides.upstream.is_some() || environment.get("NIGHTSHIFT_UPSTREAM").is_some();
    // A key without an address of its own is judged with the address of the environment.
    let own_key = Overrides {
        api_key_env: overrides.api_key_env.clone().filter(|_| is_named),
        ..overrides.clone()
    };
    let config = load(&own_key)?;
    // Only now is it known which variables the configuration names.
    warn_of(&environment.near_misses());
    if !config.upstreams.is_empty() {
        return if is_named {
            Ok(config)
        } else {
            load(&overrides)
        };
    }
    let Some(url) = environment.get(BASE_URL) else {
        bail!(
            "there is no upstream to send to: give one with --upstream URL, a configuration, or \
             the variable {BASE_URL}"
        );
    };
    let key = overrides.api_key_env.clone();
    let key = key.or_else(|| environment.get(API_KEY).map(|_| API_KEY.to_owned()));
    let with = key.as_deref().map_or_else(
        || "without a key".to_owned(),
        |name| format!("with the key in {name}"),
    );
    args.say(&format!("Sending to {url}, as {BASE_URL} says, {with}."));
    load(&Overrides {
        upstream: Some(url.to_owned()),
        api_key_env: key,
        ..overrides
    })
}
