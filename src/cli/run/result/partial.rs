//! The answers so far of a run, in a file beside its output.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::fs::File;
use tokio::io::{AsyncWriteExt as _, BufWriter};

use super::answers::{Answers, Next, Sources, WRITE_BYTES};
use super::beside::{PARTIAL, beside, create, remove_if_there};
use super::target::Target;
use crate::domain::file::Kind;

/// The answers so far are written this often.
const GROWS_EVERY: Duration = Duration::from_secs(1);

/// The answers so far, in input order up to the first one that is missing, for who looks into the
/// output's partial file while the run goes on, or after it was interrupted.
pub(in crate::cli::run) struct Partial {
    path: PathBuf,
    /// There is an output already, which others may not be allowed to read.
    is_private: bool,
    answers: Answers,
    /// `None`: there was nothing to write yet.
    out: Option<BufWriter<File>>,
    done: u64,
    next: Instant,
    /// Something went wrong: the run goes on without it.
    is_over: bool,
}

impl Partial {
    pub(in crate::cli::run) async fn of(
        sources: &Sources,
        output: &Path,
    ) -> anyhow::Result<Partial> {
        Ok(Partial {
            path: beside(output, PARTIAL),
            is_private: output.exists(),
            answers: Answers::open(sources, Kind::Output).await?,
            out: None,
            done: 0,
            next: Instant::now(),
            is_over: false,
        })
    }

    /// Writes what has come since, now and then.
    pub(in crate::cli::run) async fn grow(&mut self, done: u64) {
        let now = Instant::now();
        if !self.is_over && done > self.done && now >= self.next {
            self.next = now + GROWS_EVERY;
            self.done = done;
            self.write().await;
        }
    }

    /// Writes what there is, and says where. `None`: there is nothing.
    pub(in crate::cli::run) async fn leave(mut self, has_answers: bool) -> Option<PathBuf> {
        if !self.is_over && has_answers {
            self.write().await;
        }
        self.out.map(|_| self.path)
    }

    async fn write(&mut self) {
        if let Err(error) = self.try_write().await {
            self.is_over = true;
            let path = self.path.display();
            tracing::warn!("cannot write {path}, and goes on without it: {error:#}");
        }
    }

    /// Writes what has ended since, in input order, up to the first line that has not ended.
    async fn try_write(&mut self) -> anyhow::Result<()> {
        let out = if let Some(out) = &mut self.out {
            out
        } else {
            let made = create(&self.path, self.is_private).await?;
            self.out.insert(BufWriter::with_capacity(WRITE_BYTES, made))
        };
        while let Next::Line(line) = self.answers.next(false).await? {
            out.write_all(&line).await?;
        }
        Ok(out.flush().await?)
    }
}

/// Removes the answers so far of an earlier run of this output.
pub(in crate::cli::run) fn remove(output: &Target) {
    if let Some(path) = output.file() {
        // One that cannot be removed is replaced or said to be there later.
        let _ = remove_if_there(&beside(path, PARTIAL));
    }
}
