//! The engine at work on the batch of a run.

use std::path::PathBuf;

use tokio_util::sync::CancellationToken;

use super::args::RunArgs;
use super::journal::Journal;
use super::places::Places;
use super::result::answers::Sources;
use super::result::growing::{Growing, Streams};
use super::watch::{Ended, Stopped, Watch, find, snapshot};
use crate::app;
use crate::cli::configuration::warn_of;
use crate::cli::exit::{NOT_VALID, OrExit as _};
use crate::cli::machine;
use crate::config::Config;
use crate::domain::batch::Status;
use crate::domain::clock::Clock;
use crate::domain::tenant::CurrentTenants;
use crate::store::Store;
use crate::upstream::{CallRate, FailFast, Options, Pool};
use crate::worker::Worker;

/// After so many calls that all fail alike, as only a person can mend it, the command stops.
const ALIKE_MAX: usize = 20;

/// What the work on a batch has left.
pub(super) struct Worked {
    pub(super) ended: Ended,
    /// What takes the rest of the lines of a batch that has ended.
    pub(super) streams: Streams,
    /// The file that has the answers so far of a batch that has not ended.
    pub(super) partial: Option<PathBuf>,
}

impl Worked {
    fn without_work(ended: Ended) -> Worked {
        Worked {
            ended,
            streams: Streams::default(),
            partial: None,
        }
    }

    pub(super) fn stopped(stopped: Stopped) -> Worked {
        Worked::without_work(Ended::Stopped(stopped))
    }
}

/// Works until the batch ends, or there is a reason to stop.
pub(super) async fn work(
    args: &RunArgs,
    config: &Config,
    store: &Store,
    journal: &Journal,
    places: &Places,
    stop: CancellationToken,
) -> anyhow::Result<Worked> {
    let Some(batch_id) = journal.batch_id() else {
        return Ok(Worked::without_work(Ended::Batch));
    };
    let batch = find(store, batch_id).await?;
    if batch.state.status.is_terminal() {
        if batch.state.status != Status::Failed {
            args.say(&had_ended(batch.counts.failed > 0));
        }
        return Ok(Worked::without_work(Ended::Batch));
    }
    let mut growing = Growing::of(&Sources::of(store, journal), places).await?;
    let options = Options {
        fail_fast: Some(FailFast {
            calls: ALIKE_MAX,
            has_succeeded: batch.counts.completed > 0,
        }),
        rate: args.rate.map(|interval| CallRate {
            interval,
            stop: stop.clone(),
        }),
        ..Options::default()
    };
    warn_of(&config.warnings());
    warn_of(&machine::warnings(config, false));
    let pool = Pool::new(&config.upstream_settings(), options);
    let pool = pool.map_err(anyhow::Error::from).or_exit(NOT_VALID)?;
    let settings = app::settings(
        config,
        store,
        CurrentTenants::default(),
        app::configuration_of(config, &Clock::default()),
    );
    let mut worker = Worker::start(store.clone(), pool.clone(), Clock::default(), settings).await?;
    let observer = worker.observer();
    let watch = Watch {
        args,
        store,
        pool: &pool,
        observer: &observer,
        before: snapshot(&batch, journal.kept()),
        journal,
        places,
        stop: &stop,
    };
    let ended = tokio::select! {
        ended = watch.run(&mut growing) => ended,
        name = worker.failed() => Err(anyhow::anyhow!("the task {name} failed")),
    };
    let ended = ended.unwrap_or_else(|error| Ended::Stopped(Stopped::Fault(error)));
    match &ended {
        Ended::Stopped(Stopped::Interrupted) => {
            args.say("Stopping: waiting for calls in flight. Ctrl-C again stops at once.");
        }
        Ended::Stopped(Stopped::ReaderGone(_)) => {
            args.say("The reader has gone: waiting for calls in flight.");
        }
        _ => {}
    }
    worker.stop().await;
    Ok(match ended {
        Ended::Batch => Worked {
            ended,
            streams: growing.into_streams(),
            partial: None,
        },
        Ended::Stopped(_) => {
            let has_answers = find(store, batch_id).await?.counts.completed > 0;
            Worked {
                ended,
                streams: Streams::default(),
                partial: growing.leave(has_answers).await,
            }
        }
    })
}

/// What is said of a run that has nothing to do.
pub(super) fn had_ended(has_failed: bool) -> String {
    let hint = if has_failed {
        "--retry-failed sends what failed again, and "
    } else {
        ""
    };
    format!("This run had ended before: nothing is sent; {hint}--restart begins anew.")
}
