//! A result that only takes bytes, such as a pipe: it gets its lines as they come.

use std::time::Duration;

use tokio::io::{AsyncWriteExt as _, BufWriter};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::answers::{Answers, Next, Sources, WRITE_BYTES};
use super::target::{Target, Unwritable};
use crate::domain::file::Kind;

/// A write that is under way when the run stops gets so long: a reader may not read.
const LAST_WRITE: Duration = Duration::from_secs(1);

/// Writes the answers, or the lines that failed, in input order, up to the first request that has
/// not ended. A reader that is slow holds up nothing else. Dropped, it stops.
pub(in crate::cli::run) struct Stream {
    state: watch::Sender<State>,
    stop: CancellationToken,
    /// Returns how many lines were written. `None`: it has failed.
    task: Option<JoinHandle<anyhow::Result<u64>>>,
}

#[derive(Clone, Copy, Default)]
struct State {
    /// How many requests have ended.
    done: u64,
    /// The batch has ended: an answer that is missing will not come.
    has_ended: bool,
}

impl Stream {
    /// The target is opened when there is something to write.
    pub(in crate::cli::run) async fn start(
        sources: &Sources,
        kind: Kind,
        target: &Target,
    ) -> anyhow::Result<Stream> {
        let answers = Answers::open(sources, kind).await?;
        let (state, seen) = watch::channel(State::default());
        let stop = CancellationToken::new();
        let task = pour(answers, target.clone(), seen, stop.clone());
        Ok(Stream {
            state,
            stop,
            task: Some(tokio::spawn(task)),
        })
    }

    /// Tells that so many requests have ended. Fails where something could not be written.
    pub(in crate::cli::run) async fn grow(&mut self, done: u64) -> anyhow::Result<()> {
        self.state.send_if_modified(|state| {
            let grows = done > state.done;
            state.done = done;
            grows
        });
        match self.task.take_if(|task| task.is_finished()) {
            Some(task) => task.await?.map(drop),
            None => Ok(()),
        }
    }

    /// Writes the rest: the batch has ended. Returns how many lines were written in all.
    pub(in crate::cli::run) async fn finish(mut self) -> anyhow::Result<u64> {
        self.state.send_modify(|state| state.has_ended = true);
        match &mut self.task {
            Some(task) => task.await?,
            None => Ok(0),
        }
    }

    /// Stops behind the line that is being written.
    pub(in crate::cli::run) async fn leave(mut self) {
        self.stop.cancel();
        if let Some(task) = &mut self.task {
            // That it fails changes nothing any more.
            let _ = tokio::time::timeout(LAST_WRITE, task).await;
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

async fn pour(
    mut answers: Answers,
    target: Target,
    mut seen: watch::Receiver<State>,
    stop: CancellationToken,
) -> anyhow::Result<u64> {
    let cannot = |error| Unwritable::new(&target, error);
    let (mut out, mut written) = (None, 0);
    // Nothing is written of an input that turns out not to be valid.
    let has_some = seen.wait_for(|state| state.done > 0 || state.has_ended);
    let Some(Ok(_)) = stop.run_until_cancelled(has_some).await else {
        return Ok(written);
    };
    loop {
        let has_ended = seen.borrow_and_update().has_ended;
        let mut is_all = false;
        while !stop.is_cancelled() {
            match answers.next(has_ended).await? {
                Next::Line(line) => {
                    let out = if let Some(out) = &mut out {
                        out
                    } else {
                        let opened = stop.run_until_cancelled(target.open_stream()).await;
                        let Some(opened) = opened else {
                            return Ok(written);
                        };
                        out.insert(BufWriter::with_capacity(WRITE_BYTES, opened?))
                    };
                    out.write_all(&line).await.map_err(cannot)?;
                    written += 1;
                }
                Next::Missing => break,
                Next::End => {
                    is_all = true;
                    break;
                }
            }
        }
        if let Some(out) = &mut out {
            out.flush().await.map_err(cannot)?;
        }
        if is_all && has_ended {
            if out.is_none() && target.is_fifo() {
                // Its reader waits for an end.
                target.open_stream().await?;
            }
            return Ok(written);
        }
        let changed = stop.run_until_cancelled(seen.changed()).await;
        if !matches!(changed, Some(Ok(()))) {
            return Ok(written);
        }
    }
}
