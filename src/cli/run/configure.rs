//! Where a run sends: the configuration, or the environment of OpenAI's clients.

use anyhow::bail;

use super::args::RunArgs;
use super::words::Words;
use crate::cli::configuration::{has_mistakes, warn_of};
use crate::config::{Config, ConfigError, ConfigErrors, Environment, Overrides};

/// What OpenAI's clients read.
const BASE_URL: &str = "OPENAI_BASE_URL";
const API_KEY: &str = "OPENAI_API_KEY";
const UPSTREAM: &str = "NIGHTSHIFT_UPSTREAM";

/// Reads the configuration, which must name an upstream; else the environment may, as it does for
/// OpenAI's clients.
pub(super) fn configure(args: &RunArgs, overrides: Overrides) -> anyhow::Result<(Config, Words)> {
    let environment = Environment::capture();
    let load = |overrides: &Overrides, words: &Words| {
        Config::load(overrides, &environment).map_err(|errors| mistakes(errors, words))
    };
    let named = if overrides.upstream.is_some() {
        Some(Words::of_flags())
    } else {
        let variable = environment.get(UPSTREAM);
        variable.map(|_| Words::of(UPSTREAM, "--api-key-env"))
    };
    // A key without an address of its own is judged with the address of the environment.
    let own_key = Overrides {
        api_key_env: overrides.api_key_env.clone().filter(|_| named.is_some()),
        ..overrides.clone()
    };
    let words = named.clone().unwrap_or_default();
    let config = load(&own_key, &words)?;
    // Only now is it known which variables the configuration names.
    warn_of(&environment.near_misses());
    if !config.upstreams.is_empty() {
        return Ok(match named {
            Some(_) => (config, words),
            None => (load(&overrides, &words)?, words),
        });
    }
    let Some(url) = environment.get(BASE_URL) else {
        bail!(
            "there is no upstream to send to: give one with --upstream URL, a configuration, or \
             the variable {BASE_URL}"
        );
    };
    let (key, key_word) = match &overrides.api_key_env {
        Some(name) => (Some(name.clone()), "--api-key-env"),
        None => (
            environment.get(API_KEY).map(|_| API_KEY.to_owned()),
            API_KEY,
        ),
    };
    let with = key.as_deref().map_or_else(
        || "without a key".to_owned(),
        |name| format!("with the key in {name}"),
    );
    args.say(&format!("Sending to {url}, as {BASE_URL} says, {with}."));
    let words = Words::of(BASE_URL, key_word);
    let overrides = Overrides {
        upstream: Some(url.to_owned()),
        api_key_env: key,
        ..overrides
    };
    Ok((load(&overrides, &words)?, words))
}

fn mistakes(errors: ConfigErrors, words: &Words) -> anyhow::Error {
    let errors = errors.0.into_iter().map(|error| ConfigError {
        // Another place is the configuration's, and is where its key is.
        place: if error.place.starts_with("--") {
            words.in_flags(&error.place)
        } else {
            error.place
        },
        message: words.in_flags(&error.message),
    });
    has_mistakes(ConfigErrors(errors.collect()))
}
