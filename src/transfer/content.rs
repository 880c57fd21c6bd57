//! A file's bytes, from any place to any other, as a stream of blocks.

use std::ops::Range;

use bytes::Bytes;
use futures::stream::{self, Stream};

use super::chunk::Chunk;
use super::damaged;
use crate::domain::file::Kind;
use crate::store::{Result, Store, StoredFile};

/// The bytes of a file within `range`, which must lie within the file, in blocks of about 1 MiB
/// at most (a longer line of an output file is one block). Nothing is read before it is asked
/// for, and nothing is held open in between.
///
/// The stream yields exactly the range, or an error: never less.
pub fn content(
    store: &Store,
    file: &StoredFile,
    range: Range<u64>,
) -> impl Stream<Item = Result<Bytes>> + Send + use<> {
    let source = match file.made_by() {
        None => Source::Uploaded { place: None },
        Some((batch_id, kind)) => Source::Made(Box::new(Made {
            batch_id: batch_id.to_owned(),
            kind,
            chunks: None,
            open: None,
        })),
    };
    let reader = Reader {
        store: store.clone(),
        file_id: file.id.clone(),
        range,
        source,
    };
    stream::try_unfold(reader, |mut reader| async move {
        let block = reader.next().await?;
        Ok(block.map(|block| (block, reader)))
    })
}

struct Reader {
    store: Store,
    file_id: String,
    /// What is still to be read.
    range: Range<u64>,
    source: Source,
}

enum Source {
    /// Chunk and piece that come next; `None` before the first.
    Uploaded {
        place: Option<(i64, i64)>,
    },
    Made(Box<Made>),
}

/// The place within a file that a batch made.
struct Made {
    batch_id: String,
    kind: Kind,
    /// Those still to be read, with the bytes that each gave; `None` before the first.
    chunks: Option<std::vec::IntoIter<(i64, u64)>>,
    open: Option<Chunk>,
}

impl Reader {
    async fn next(&mut self) -> Result<Option<Bytes>> {
        if self.range.is_empty() {
            return Ok(None);
        }
        let Reader {
            store,
            file_id,
            range,
            source,
        } = self;
        let wanted = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        let block = match source {
            Source::Uploaded { place } => uploaded(store, file_id, place, range.start).await?,
            Source::Made(made) => made.next(store, file_id, range.start, wanted).await?,
        };
        let mut block = block
            .filter(|block| !block.is_empty())
            .ok_or_else(|| damaged(format!("content of {file_id}"), "it ends too early"))?;
        block.truncate(wanted);
        range.start += block.len() as u64;
        Ok(Some(block))
    }
}

/// What an uploaded file's piece holds from the byte `at` on.
async fn uploaded(
    store: &Store,
    file_id: &str,
    place: &mut Option<(i64, i64)>,
    at: u64,
) -> Result<Option<Bytes>> {
    if place.is_none() {
        *place = store.piece_at(file_id, at).await?;
    }
    let Some(next) = *place else { return Ok(None) };
    let Some(piece) = store.piece(file_id, next).await? else {
        return Ok(None);
    };
    *place = Some(piece.next);
    let skip = at
        .checked_sub(piece.offset)
        .and_then(|skip| usize::try_from(skip).ok())
        .filter(|&skip| skip < piece.bytes.len());
    Ok(skip.map(|skip| Bytes::from(piece.bytes).slice(skip..)))
}

impl Made {
    /// What comes at the byte `at` of the file, which is where the last block ended. It need not
    /// be longer than `wanted`.
    async fn next(
        &mut self,
        store: &Store,
        file_id: &str,
        at: u64,
        wanted: usize,
    ) -> Result<Option<Bytes>> {
        loop {
            if let Some(chunk) = &mut self.open {
                if let Some(block) = chunk.next(store, wanted).await? {
                    return Ok(Some(block));
                }
                self.open = None;
            }
            let skip = if self.chunks.is_none() {
                self.find(store, file_id, at).await?
            } else {
                0
            };
            let Some((number, size)) = self.chunks.as_mut().and_then(Iterator::next) else {
                return Ok(None);
            };
            let mut chunk = Chunk::open(store, &self.batch_id, number, self.kind).await?;
            if chunk.size() != size {
                return Err(damaged(
                    format!("chunk {number} of {file_id}"),
                    "its lines are not as long as they were",
                ));
            }
            chunk.skip(skip);
            self.open = Some(chunk);
        }
    }

    /// Finds the chunk that holds the byte `at`, and returns how far within it that is.
    async fn find(&mut self, store: &Store, file_id: &str, at: u64) -> Result<u64> {
        let sizes = store.chunk_sizes(file_id).await?;
        let mut chunks = Vec::with_capacity(sizes.len());
        for (number, size) in sizes {
            let size = u64::try_from(size)
                .map_err(|error| damaged(format!("table of {file_id}"), error))?;
            chunks.push((number, size));
        }
        let mut skip = at;
        let first = chunks
            .iter()
            .position(|&(_, size)| {
                let within = skip < size;
                if !within {
                    skip -= size;
                }
                within
            })
            .unwrap_or(chunks.len());
        self.chunks = Some(chunks.split_off(first).into_iter());
        Ok(skip)
    }
}

#[cfg(test)]
mod tests;
