//! What comes before the calls: the batch of an earlier run is gone on with, or a batch is made of
//! what has no answer yet.

use tokio_util::sync::CancellationToken;

use super::args::RunArgs;
use super::begin::begin;
use super::exit::NOT_VALID;
use super::files;
use super::generation::{Generation, TENANT};
use super::input::Input;
use super::journal::{INPUT_COPY, Journal, must_be_unused};
use super::keep::{keep_answers, survey};
use super::places::Places;
use super::reshape::Reshape;
use super::target::Target;
use crate::app;
use crate::cli::OrExit as _;
use crate::config::Config;
use crate::domain::clock::Clock;
use crate::intake::Limits;

/// Finds the batch of an earlier run on the same input, or begins one. `None`: interrupted.
pub(super) async fn prepare(
    args: &RunArgs,
    places: &Places,
    reshape: &Reshape,
    config: &mut Config,
    stop: &CancellationToken,
) -> anyhow::Result<Option<Journal>> {
    let state = &places.state;
    let mut input = Input::of(&args.input).or_exit(NOT_VALID)?;
    let earlier = match Journal::read(state) {
        Err(_) if args.restart => None,
        earlier => earlier?,
    };
    let wrote = |wrote: fn(&Journal, &Target) -> bool, target: &Target| {
        earlier
            .as_ref()
            .is_some_and(|earlier| wrote(earlier, target))
    };
    let wrote_output = wrote(Journal::wrote_output, &places.output);
    if !wrote_output {
        files::must_be_free(&places.output, args.restart).or_exit(NOT_VALID)?;
    }
    if !wrote(Journal::wrote_errors, &places.errors) {
        files::must_be_free(&places.errors, args.restart).or_exit(NOT_VALID)?;
    }
    for target in [&places.output, &places.errors] {
        files::must_be_writable(target).or_exit(NOT_VALID)?;
    }
    if args.restart && wrote_output {
        files::remove_partial(&places.output)?;
    }
    let prepared = stop.run_until_cancelled(async {
        let Some(journal) = earlier else {
            Journal::clear(state)?;
            return begin(&Generation::first(state), reshape, config, &input, None).await;
        };
        if args.restart {
            must_be_unused(state)?;
            // Beside the old one, which is whole until the new one is noted.
            let new = journal.generation(state).next();
            new.remove();
            let begun = begin(&new, reshape, config, &input, None).await;
            if begun.is_err() {
                new.remove();
            }
            return Ok(begun?.after(journal));
        }
        let copy = state.join(INPUT_COPY);
        let hash = input.hash(&copy).await?;
        let is_changed = hash != journal.input_sha256 || reshape.name() != journal.reshape;
        go_on(args, journal, is_changed, reshape, config, &input).await
    });
    let prepared = prepared.await;
    let _ = std::fs::remove_file(state.join(INPUT_COPY));
    let Some(prepared) = prepared else {
        return Ok(None);
    };
    let mut journal = prepared?;
    // Noted first: only what a run of this state wrote is ever overwritten.
    journal.note_output(&places.output);
    journal.write(state)?;
    journal.generation(state).remove_others();
    config
        .database
        .move_to(&journal.generation(state).database());
    Ok(Some(journal))
}

/// Decides whether an earlier run's batch is gone on with, or what it lacks is sent anew.
async fn go_on(
    args: &RunArgs,
    mut journal: Journal,
    is_changed: bool,
    reshape: &Reshape,
    config: &mut Config,
    input: &Input,
) -> anyhow::Result<Journal> {
    let state = journal.state.clone();
    let old = journal.generation(&state);
    config.database.move_to(&old.database());
    let store = app::open_store_alone(config, Clock::default()).await?;
    let batch = match &journal.batch_id {
        Some(batch_id) => store.batch(TENANT, batch_id).await?,
        None => None,
    };
    let failed = batch.map_or(0, |batch| batch.counts.failed);
    let is_elsewhere = !journal.is_upstream(config);
    let is_anew = is_changed || args.retry_failed || (failed > 0 && is_elsewhere);
    if !is_anew {
        store.close().await;
        journal.note_upstream(config);
        return Ok(journal);
    }
    let new = old.next();
    new.remove();
    let answers = keep_answers(&journal, &old, &new, &store).await;
    store.close().await;
    let answers = answers?;
    let limits = Limits {
        max_line_bytes: config.limits.max_line_bytes,
        max_models: config.limits.max_models_per_file,
    };
    let found = survey(&new, reshape, config, input, limits).await?;
    if is_changed && answers > 0 && found.kept == 0 {
        new.remove();
        return Err(anyhow::anyhow!(
            "{} belongs to a run on another input, of which no line is in this one; use another \
             output, or --restart to throw its answers away",
            state.display()
        ))
        .or_exit(NOT_VALID);
    }
    let why = if is_changed {
        "The input has changed"
    } else if args.retry_failed {
        "What failed is sent again"
    } else {
        "The upstream or its key has changed, so what failed is sent again"
    };
    args.say(&format!(
        "{why}: {} answers are kept, {} requests are sent.",
        found.kept, found.sent
    ));
    let begun = begin(&new, reshape, config, input, Some(found)).await?;
    Ok(begun.after(journal))
}
