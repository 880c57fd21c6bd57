//! Where the answers so far go while a run goes on.

use std::path::PathBuf;

use super::answers::Sources;
use super::partial::Partial;
use super::stream::Stream;
use super::target::Target;

/// The answers so far, in the order of the input.
pub(super) enum Growing {
    /// They are in a file beside the output, which is replaced at the end.
    File(Box<Partial>),
    /// They are written into the output itself.
    Stream(Stream),
}

impl Growing {
    pub(super) async fn of(sources: &Sources, output: &Target) -> anyhow::Result<Growing> {
        Ok(match output.file() {
            Some(path) => Growing::File(Box::new(Partial::of(sources, path).await?)),
            None => Growing::Stream(Stream::start(sources, output).await?),
        })
    }

    /// Writes what has come, where so many requests have ended. Fails where the output itself
    /// cannot be written.
    pub(super) async fn grow(&mut self, done: u64) -> anyhow::Result<()> {
        match self {
            Growing::File(partial) => partial.grow(done).await,
            Growing::Stream(stream) => stream.grow(done).await?,
        }
        Ok(())
    }

    /// Ends before the batch does. Returns the file that has the answers so far.
    pub(super) async fn leave(self, has_answers: bool) -> Option<PathBuf> {
        match self {
            Growing::File(partial) => partial.leave(has_answers).await,
            Growing::Stream(stream) => {
                stream.leave().await;
                None
            }
        }
    }

    /// What is to get the rest of the answers once the batch has ended.
    pub(super) fn into_stream(self) -> Option<Stream> {
        match self {
            Growing::File(_) => None,
            Growing::Stream(stream) => Some(stream),
        }
    }
}
