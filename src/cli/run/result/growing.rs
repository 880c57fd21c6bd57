//! Where the results so far go while a run goes on.

use std::path::PathBuf;

use super::answers::Sources;
use super::partial::Partial;
use super::stream::Stream;
use crate::cli::run::places::Places;
use crate::domain::file::Kind;

/// The results so far, in the order of the input.
pub(in crate::cli::run) struct Growing {
    output: Output,
    /// `None`: the errors file is written at the end.
    errors: Option<Stream>,
}

enum Output {
    /// The answers are in a file beside the output, which is replaced at the end.
    File(Box<Partial>),
    /// They are written into the output itself.
    Stream(Stream),
}

/// What is to get the rest of its lines once the batch has ended: the results that are no files,
/// if they had their first lines before.
#[derive(Default)]
pub(in crate::cli::run) struct Streams {
    pub(in crate::cli::run) output: Option<Stream>,
    pub(in crate::cli::run) errors: Option<Stream>,
}

impl Growing {
    pub(in crate::cli::run) async fn of(
        sources: &Sources,
        places: &Places,
    ) -> anyhow::Result<Growing> {
        let Places { output, errors, .. } = places;
        Ok(Growing {
            output: match output.file() {
                Some(path) => Output::File(Box::new(Partial::of(sources, path).await?)),
                None => Output::Stream(Stream::start(sources, Kind::Output, output).await?),
            },
            errors: match errors.file() {
                Some(_) => None,
                None => Some(Stream::start(sources, Kind::Error, errors).await?),
            },
        })
    }

    /// Writes what has come, where so many requests have ended. Fails where a result that is no
    /// file cannot be written.
    pub(in crate::cli::run) async fn grow(&mut self, done: u64) -> anyhow::Result<()> {
        match &mut self.output {
            Output::File(partial) => partial.grow(done).await,
            Output::Stream(stream) => stream.grow(done).await?,
        }
        match &mut self.errors {
            Some(errors) => errors.grow(done).await,
            None => Ok(()),
        }
    }

    /// Ends before the batch does. Returns the file that has the answers so far.
    pub(in crate::cli::run) async fn leave(self, has_answers: bool) -> Option<PathBuf> {
        if let Some(errors) = self.errors {
            errors.leave().await;
        }
        match self.output {
            Output::File(partial) => partial.leave(has_answers).await,
            Output::Stream(stream) => {
                stream.leave().await;
                None
            }
        }
    }

    pub(in crate::cli::run) fn into_streams(self) -> Streams {
        Streams {
            output: match self.output {
                Output::File(_) => None,
                Output::Stream(stream) => Some(stream),
            },
            errors: self.errors,
        }
    }
}
