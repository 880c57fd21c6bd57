//! `nightshift run`: one batch without a server.
//!
//! It runs on the same store and worker as a server, in a directory beside the output. What that
//! directory says decides what happens at the next start: go on, or nothing.

mod args;
mod begin;
mod change;
mod claim;
mod conclude;
mod configure;
mod dry;
mod flags;
mod generation;
mod input;
mod journal;
mod keep;
mod listed;
mod places;
mod prepare;
mod report;
mod result;
mod stopped;
mod summary;
mod watch;
mod words;
mod work;

use std::path::PathBuf;
use std::process::ExitCode;

use super::exit::{NOT_VALID, OrExit as _};
use crate::config::{Config, Overrides};
use crate::domain::batch::Status;
use crate::domain::clock::Clock;
use crate::shutdown::{self, Hangup};
use crate::store::{Batch, Store};
use crate::{app, telemetry};
pub(super) use args::RunArgs;
use conclude::conclude;
use configure::configure;
use generation::Generation;
use input::faults::Faults;
use journal::Journal;
use places::Places;
use report::Report;
use stopped::{Left, Standing, give_back};
use summary::Summary;
use watch::{Ended, Stopped, find, stopped_by};
use words::Words;
use work::{Worked, work};

pub(super) async fn run(args: RunArgs) -> anyhow::Result<ExitCode> {
    let report = Report::of(&args);
    let outcome = attempt(&args, &report).await;
    if let Err(error) = &outcome {
        report.failed(error)?;
    }
    outcome
}

async fn attempt(args: &RunArgs, report: &Report) -> anyhow::Result<ExitCode> {
    let places = Places::of(args).or_exit(NOT_VALID)?;
    let state = &places.state;
    let database_file = if args.dry_run {
        // Nothing is stored.
        PathBuf::new()
    } else {
        Generation::first(state).database()
    };
    let overrides = Overrides {
        database_file: Some(database_file),
        ..args.overrides()
    };
    let (mut config, words) = configure(args, overrides).or_exit(NOT_VALID)?;
    if config.log.filter == "info" {
        // The progress says what there is to say.
        "warn".clone_into(&mut config.log.filter);
    }
    telemetry::start(&config.log);
    if args.dry_run {
        return dry::dry_run(args, &places, &mut config, &words, report).await;
    }
    let claim = claim::claim(state).map_err(|error| {
        if places.state_is_temporary {
            error.context("cannot keep what is needed to go on: name a directory with --state")
        } else {
            error
        }
    })?;
    let code = run_in(args, &places, config, &words, report).await;
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

async fn run_in(
    args: &RunArgs,
    places: &Places,
    mut config: Config,
    words: &Words,
    report: &Report,
) -> anyhow::Result<ExitCode> {
    let stopping = shutdown::on_signal(Hangup::Stops)?;
    let stop = stopping.token().clone();
    let reshape = args.reshape();
    let prepared = prepare::prepare(args, places, &reshape, &mut config, &stop).await?;
    let Some(mut journal) = prepared else {
        let summary = Summary::new("interrupted", None, 0, report.elapsed());
        report.print(&summary.because("interrupted by a signal".to_owned()))?;
        return Ok(ExitCode::from(stopping.code()));
    };
    if places.state_is_temporary {
        // Said now: a process that is killed says nothing.
        let state = places.state.display();
        args.say(&format!(
            "If this run is stopped, it goes on with --state {state}."
        ));
    }
    let store = app::open_store_alone(&config, Clock::default()).await?;
    let worked = work(args, &config, &store, &journal, places, stop.clone()).await;
    let Worked {
        ended,
        streams,
        partial,
    } = worked.unwrap_or_else(|error| Worked::stopped(Stopped::Fault(error)));
    let batch = match journal.batch_id() {
        Some(batch_id) => Some(find(&store, batch_id).await?),
        None => None,
    };
    let batch = batch.as_ref();
    let stopped = match ended {
        Ended::Stopped(stopped) => Err(stopped),
        Ended::Batch => match batch {
            Some(batch) if batch.state.status == Status::Failed => {
                return refuse(&store, batch, journal, report).await;
            }
            batch => {
                // A pipe may have no reader, or one that does not read.
                let concluded =
                    conclude(args, places, &store, batch, streams, &mut journal, report);
                match stop.run_until_cancelled(concluded).await {
                    Some(Ok(code)) => Ok(code),
                    Some(Err(error)) => Err(stopped_by(error)),
                    None => Err(Stopped::Interrupted),
                }
            }
        },
    };
    let code = match stopped {
        Ok(code) => {
            journal.forget_earlier()?;
            Ok(code)
        }
        Err(stopped) => {
            let left = Left {
                args,
                places,
                words,
                batch,
                partial,
            };
            left.tell(stopped, journal, &stopping, report)
        }
    };
    store.close().await;
    code
}

/// Says what is wrong with an input. Nothing was sent: once the input is mended, there is nothing
/// to go on with but the earlier run, or answers that an earlier version kept without it.
async fn refuse(
    store: &Store,
    batch: &Batch,
    journal: Journal,
    report: &Report,
) -> anyhow::Result<ExitCode> {
    let faults = Faults::of(store, batch).await?;
    faults.print();
    let summary = Summary::new("invalid", Some(batch), journal.kept(), report.elapsed());
    report.print(&summary.because(faults.in_short()))?;
    store.close().await;
    let (state, kept) = (journal.state().to_owned(), journal.kept());
    if give_back(journal)? == Standing::ThisRun && kept == 0 {
        Journal::forget(&state)?;
    }
    Ok(ExitCode::from(NOT_VALID))
}
