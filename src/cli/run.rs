//! `nightshift run`: one batch without a server.
//!
//! It runs on the same store and duties as a server, in a directory beside the output. What that
//! directory says decides what happens at the next start: go on, or nothing.

mod answers;
mod args;
mod begin;
mod claim;
mod conclude;
mod configure;
mod dry;
mod exit;
mod faults;
mod files;
mod flags;
mod generation;
mod input;
mod journal;
mod keep;
mod lines;
mod places;
mod prepare;
mod reshape;
mod summary;
mod target;
mod work;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use super::OrExit as _;
use crate::config::{Config, Overrides};
use crate::domain::clock::Clock;
use crate::shutdown::{self, Hangup};
use crate::{app, telemetry};
pub(super) use args::RunArgs;
use conclude::conclude;
use configure::configure;
use exit::NOT_VALID;
use generation::Generation;
use journal::Journal;
use places::Places;
use summary::Summary;
use work::{Ended, find, work};

pub(super) async fn run(args: RunArgs) -> anyhow::Result<ExitCode> {
    if args.dry_run {
        let overrides = Overrides {
            // Nothing is stored.
            database_file: Some(PathBuf::new()),
            ..args.overrides()
        };
        let config = configure(&args, overrides).or_exit(NOT_VALID)?;
        return dry::dry_run(&args, &config).await.or_exit(NOT_VALID);
    }
    let places = Places::of(&args).or_exit(NOT_VALID)?;
    let state = &places.state;
    let overrides = Overrides {
        database_file: Some(Generation::first(state).database()),
        ..args.overrides()
    };
    let config = configure(&args, overrides).or_exit(NOT_VALID)?;
    let claim = claim::claim(state).map_err(|error| match places.state_is_temporary {
        true => error.context("cannot keep what is needed to go on: name a directory with --state"),
        false => error,
    })?;
    let code = run_in(&args, &places, config).await;
    if !matches!(Journal::read(state), Ok(None)) {
        if !places.state_is_temporary {
            return code;
        }
        if matches!(code, Ok(code) if code == ExitCode::SUCCESS) {
            claim.remove(state);
        } else {
            let state = state.display();
            tell!("What is needed to go on is kept: add --state {state}.");
        }
        return code;
    }
    // Nothing was sent, so there is nothing to go on with.
    claim.discard(state);
    code
}

async fn run_in(args: &RunArgs, places: &Places, mut config: Config) -> anyhow::Result<ExitCode> {
    let state = &places.state;
    let started = Instant::now();
    if config.log.filter == "info" {
        // The progress says what there is to say.
        "warn".clone_into(&mut config.log.filter);
    }
    telemetry::start(&config.log);
    let stopping = shutdown::on_signal(Hangup::Stops)?;
    let stop = stopping.token().clone();
    let reshape = args.reshape();
    let prepared = prepare::prepare(args, places, &reshape, &mut config, &stop).await?;
    let Some(mut journal) = prepared else {
        return Ok(ExitCode::from(stopping.code()));
    };
    if places.state_is_temporary {
        // Said now: a process that is killed says nothing.
        let state = state.display();
        args.say(&format!(
            "If this run is stopped, it goes on with --state {state}."
        ));
    }
    let store = app::open_store_alone(&config, Clock::default()).await?;
    let output = &places.output;
    let ended = work(args, &config, &store, &journal, output, stop.clone()).await;
    let batch = match (&ended, &journal.batch_id) {
        (Ok(Ended::Batch(_)), _) | (_, None) => None,
        (_, Some(batch_id)) => Some(find(&store, batch_id).await?),
    };
    let kept = journal.kept;
    let summary =
        |status: &'static str| Summary::new(status, batch.as_ref(), kept, started.elapsed());
    let ended = match ended {
        Ok(ended) => ended,
        Err(error) => {
            args.report(&places.output, &summary("stopped"))?;
            return Err(error);
        }
    };
    let interrupted = |summary: &Summary<'_>, partial: Option<PathBuf>| {
        args.say(&format!("Interrupted. {}", places.how_to_go_on()));
        if let Some(partial) = partial {
            args.say(&format!("The answers so far: {}", partial.display()));
        }
        args.report(output, summary)?;
        anyhow::Ok(ExitCode::from(stopping.code()))
    };
    let code = match ended {
        Ended::Interrupted(partial) => interrupted(&summary("interrupted"), partial),
        Ended::Batch(batch) => {
            let batch = batch.as_deref();
            // A pipe may have no reader, or one that does not read.
            let concluded = conclude(args, places, &store, batch, &mut journal, started);
            match stop.run_until_cancelled(concluded).await {
                Some(code) => code,
                None => {
                    let summary = Summary::new("interrupted", batch, kept, started.elapsed());
                    interrupted(&summary, None)
                }
            }
        }
    };
    store.close().await;
    code
}
