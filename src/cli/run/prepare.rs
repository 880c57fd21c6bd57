//! What comes before the calls: the batch of an earlier run is gone on with, or a batch is made of
//! what has no answer yet.

use anyhow::Context as _;
use tokio_util::sync::CancellationToken;

use super::args::RunArgs;
use super::begin::begin;
use super::change::Change;
use super::generation::{Generation, TENANT};
use super::input::Input;
use super::input::reshape::Reshape;
use super::journal::{INPUT_COPY, Journal, must_be_unused};
use super::keep::{Keep, keep_answers, survey};
use super::places::Places;
use super::result::files;
use super::stopped::give_back;
use crate::app;
use crate::cli::exit::{NOT_VALID, OrExit as _};
use crate::config::Config;
use crate::domain::batch::Counts;
use crate::domain::clock::Clock;
use crate::store::Store;

/// Finds the batch of an earlier run on the same input, or begins one. `None`: interrupted.
pub(super) async fn prepare(
    args: &RunArgs,
    places: &Places,
    reshape: &Reshape,
    config: &mut Config,
    stop: &CancellationToken,
) -> anyhow::Result<Option<Journal>> {
    let state = &places.state;
    let mut input =
        Input::of(&args.input, config.limits.max_file_bytes, stop).or_exit(NOT_VALID)?;
    let earlier = earlier(args, places)?;
    admit(args, places, earlier.as_ref()).or_exit(NOT_VALID)?;
    // A signal ends each wait for the input. A store that is being opened or written is closed as
    // ever, so that its files can be removed.
    let prepared = async {
        let Some(journal) = earlier else {
            Journal::clear(state)?;
            return begin(&Generation::first(state), reshape, config, &input, None).await;
        };
        if args.restart {
            return begin_anew(journal, reshape, config, &input).await;
        }
        input.make_lasting(&state.join(INPUT_COPY)).await?;
        go_on(args, places, journal, reshape, config, &input).await
    };
    let prepared = prepared.await;
    let _ = std::fs::remove_file(state.join(INPUT_COPY));
    if prepared.is_err() && stop.is_cancelled() {
        return Ok(None);
    }
    let mut journal = prepared?;
    note_results(args, places, &mut journal)?;
    journal.write()?;
    journal.remove_strays();
    config.database.move_to(&journal.generation().database());
    Ok(Some(journal))
}

/// The run that is there already.
pub(super) fn earlier(args: &RunArgs, places: &Places) -> anyhow::Result<Option<Journal>> {
    match Journal::read(&places.state) {
        Err(_) if args.restart => Ok(None),
        earlier => earlier,
    }
}

/// Refuses to begin where a file of somebody else would be overwritten, or a result could not be
/// written in the end.
pub(super) fn admit(
    args: &RunArgs,
    places: &Places,
    earlier: Option<&Journal>,
) -> anyhow::Result<()> {
    let Places { output, errors, .. } = places;
    let results = earlier.map(|earlier| &earlier.results);
    for (target, is_ours) in [
        (
            output,
            results.is_some_and(|wrote| wrote.has_output(output)),
        ),
        (
            errors,
            results.is_some_and(|wrote| wrote.has_errors(errors) || wrote.is_given_up(errors)),
        ),
    ] {
        match results {
            Some(results) if is_ours => {
                if !args.restart {
                    results.must_be_unchanged(target)?;
                }
            }
            _ => files::must_be_free(target, args.restart)?,
        }
    }
    files::must_be_writable(output)?;
    files::must_be_writable(errors)
}

/// Notes which files the run may overwrite, before it writes any.
fn note_results(args: &RunArgs, places: &Places, journal: &mut Journal) -> anyhow::Result<()> {
    let Places { output, errors, .. } = places;
    let results = &mut journal.results;
    if args.restart {
        results.give_up(output)?;
        results.give_up(errors)?;
    } else {
        if !results.has_output(output) {
            results.note_free(output);
        }
        if !results.has_errors(errors) && !results.is_given_up(errors) {
            results.note_free(errors);
        }
    }
    results.note_output(output);
    Ok(())
}

/// Begins a run beside the earlier one, which is whole until the new one has an outcome.
async fn begin_anew(
    earlier: Journal,
    reshape: &Reshape,
    config: &mut Config,
    input: &Input,
) -> anyhow::Result<Journal> {
    must_be_unused(earlier.state())?;
    let new = earlier.generation().next();
    new.remove();
    let replaced = if earlier.has_earlier() && !has_outcome(&earlier, config).await {
        // A run that was killed before it came to anything.
        earlier.into_earlier()
    } else {
        Some(earlier)
    };
    let begun = begin(&new, reshape, config, input, None).await;
    if begun.is_err() {
        new.remove();
    }
    let begun = begun?;
    Ok(match replaced {
        Some(replaced) => begun.in_place_of(replaced),
        None => begun,
    })
}

/// Whether a run has an answer. A store that cannot be read has nothing to go back to.
async fn has_outcome(journal: &Journal, config: &mut Config) -> bool {
    config.database.move_to(&journal.generation().database());
    let Ok(store) = app::open_store_alone(config, Clock::default()).await else {
        return false;
    };
    let counts = counts(journal, &store).await.unwrap_or_default();
    store.close().await;
    journal.has_answers(counts)
}

/// What the batch of a run has come to.
pub(super) async fn counts(journal: &Journal, store: &Store) -> anyhow::Result<Counts> {
    let Some(batch_id) = journal.batch_id() else {
        return Ok(Counts::default());
    };
    let batch = store.batch(TENANT, batch_id).await?;
    Ok(batch.map(|batch| batch.counts).unwrap_or_default())
}

/// Decides whether an earlier run's batch is gone on with, or what it lacks is sent anew.
async fn go_on(
    args: &RunArgs,
    places: &Places,
    mut journal: Journal,
    reshape: &Reshape,
    config: &mut Config,
    input: &Input,
) -> anyhow::Result<Journal> {
    let input_sha256 = input.hash().await?;
    let (why, change, store) = loop {
        let change = Change::since(&journal, &input_sha256, reshape);
        config.database.move_to(&journal.generation().database());
        let store = app::open_store_alone(config, Clock::default()).await?;
        let counts = counts(&journal, &store).await?;
        let Some(why) = why_anew(args, &journal, &change, counts, config) else {
            store.close().await;
            journal.note_upstream(config);
            return Ok(journal);
        };
        if journal.has_answers(counts) || !journal.has_earlier() {
            break (why, change, store);
        }
        // The run was killed before it had an answer. Those of the run before it are paid for.
        store.close().await;
        journal = back_to_earlier(args, places, journal)?;
    };
    let new = journal.generation().next();
    new.remove();
    let answers = keep_answers(&journal, &new, &store, Keep::Answers).await;
    store.close().await;
    let answers = answers?;
    let found = survey(&new, reshape, config, input).await?;
    if change.is_some() && answers > 0 && found.kept == 0 {
        new.remove();
        return Err(anyhow::anyhow!(change.keeps_nothing(&journal))).or_exit(NOT_VALID);
    }
    args.say(&format!(
        "{why}: {} answers are kept, {} requests are sent.",
        found.kept, found.sent
    ));
    let begun = begin(&new, reshape, config, input, Some(found)).await?;
    Ok(begun.in_place_of(journal))
}

/// Gives the run before a run without an answer its place again, in the state directory too.
fn back_to_earlier(args: &RunArgs, places: &Places, journal: Journal) -> anyhow::Result<Journal> {
    give_back(journal)?;
    let earlier =
        Journal::read(&places.state)?.context("the journal of the earlier run is gone")?;
    // What may be overwritten is what the earlier run wrote.
    admit(args, places, Some(&earlier)).or_exit(NOT_VALID)?;
    args.say("The last run was stopped before it had an answer: the run before it has its place.");
    Ok(earlier)
}

/// Why an earlier run's batch is not gone on with as it is; `None`: it is.
pub(super) fn why_anew(
    args: &RunArgs,
    journal: &Journal,
    change: &Change,
    counts: Counts,
    config: &Config,
) -> Option<String> {
    if change.is_some() {
        return Some(change.in_words());
    }
    let why = if args.retry_failed {
        "What failed is sent again"
    } else if counts.failed > 0 && !journal.is_upstream(config) {
        "The upstream or its key has changed, so what failed is sent again"
    } else {
        return None;
    };
    Some(why.to_owned())
}
