//! An output that only takes bytes, such as a pipe: it gets the answers as they come.

use std::time::Duration;

use tokio::io::{AsyncWriteExt as _, BufWriter};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::answers::{Answers, Next, Sources, WRITE_BYTES};
use super::target::Target;
use crate::domain::file::Kind;

/// A write that is under way when the run stops gets so long: a reader may not read.
const LAST_WRITE: Duration = Duration::from_secs(1);

/// Writes the answers in input order, up to the first one that is missing. A reader that is slow
/// holds up nothing else. Dropped, it stops.
pub(super) struct Stream {
    state: watch::Sender<State>,
    stop: CancellationToken,
    /// `None`: it has failed.
    task: Option<JoinHandle<anyhow::Result<()>>>,
}

#[derive(Clone, Copy, Default)]
struct State {
    /// How many requests have ended.
    done: u64,
    /// The batch has ended: an answer that is missing will not come.
    has_ended: bool,
}

impl Stream {
    /// The output is opened when there is something to write.
    pub(super) async fn start(sources: &Sources, output: &Target) -> anyhow::Result<Stream> {
        let answers = Answers::open(sources, Kind::Output).await?;
        let (state, seen) = watch::channel(State::default());
        let stop = CancellationToken::new();
        let task = pour(answers, output.clone(), seen, stop.clone());
        Ok(Stream {
            state,
            stop,
            task: Some(tokio::spawn(task)),
        })
    }

    /// Tells that so many requests have ended. Fails where something could not be written.
    pub(super) async fn grow(&mut self, done: u64) -> anyhow::Result<()> {
        self.state.send_if_modified(|state| {
            let grows = done > state.done;
            state.done = done;
            grows
        });
        match self.task.take_if(|task| task.is_finished()) {
            Some(task) => task.await?,
            None => Ok(()),
        }
    }

    /// Writes the rest: the batch has ended.
    pub(super) async fn finish(mut self) -> anyhow::Result<()> {
        self.state.send_modify(|state| state.has_ended = true);
        match &mut self.task {
            Some(task) => task.await?,
            None => Ok(()),
        }
    }

    /// Stops behind the line that is being written.
    pub(super) async fn leave(mut self) {
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
    output: Target,
    mut seen: watch::Receiver<State>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let has_some = seen.wait_for(|state| state.done > 0 || state.has_ended);
    let Some(Ok(_)) = stop.run_until_cancelled(has_some).await else {
        return Ok(());
    };
    let opened = stop.run_until_cancelled(output.open_stream()).await;
    let Some(opened) = opened else {
        return Ok(());
    };
    let mut out = BufWriter::with_capacity(WRITE_BYTES, opened?);
    let cannot = |error| anyhow::Error::from(error).context(format!("cannot write {output}"));
    loop {
        let has_ended = seen.borrow_and_update().has_ended;
        let mut is_all = false;
        while !stop.is_cancelled() {
            match answers.next(has_ended).await? {
                Next::Line(line) => out.write_all(&line).await.map_err(cannot)?,
                Next::Missing => break,
                Next::End => {
                    is_all = true;
                    break;
                }
            }
        }
        out.flush().await.map_err(cannot)?;
        if is_all && has_ended {
            return Ok(());
        }
        let changed = stop.run_until_cancelled(seen.changed()).await;
        if !matches!(changed, Some(Ok(()))) {
            return Ok(());
        }
    }
}
