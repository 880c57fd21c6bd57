//! A file's bytes, from any place to any other, as a stream of blocks.

use std::collections::VecDeque;
use std::ops::Range;

use bytes::Bytes;
use futures::stream::{self, Stream};
use tokio::task::JoinError;
use tokio_util::task::AbortOnDropHandle;

use super::chunk::Chunk;
use super::damaged;
use crate::domain::file::Kind;
use crate::store::{Error, Result, Store, StoredFile};

/// Chunks of an output file that are looked up together have so many bytes, but for one that has
/// more by itself, …
const TOGETHER_BYTES: u64 = 1 << 20;
/// … and stand within a row of so many.
const TOGETHER: i64 = 16;

/// The bytes of a file within `range`, which must lie within the file, in blocks of about 1 MiB
/// at most (a longer line of an output file is one block). While one is looked at the next is read,
/// and no more; nothing of the database is held in between.
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
            open: VecDeque::new(),
        })),
    };
    let reader = Reader {
        store: store.clone(),
        file_id: file.id.clone(),
        range,
        source,
    };
    stream::try_unfold(Ahead::At(reader), |ahead| async move {
        let (reader, block) = match ahead {
            Ahead::At(reader) => reader.read().await,
            Ahead::Reading(reading) => reading.await.unwrap_or_else(|gone| Err(stopped(gone))),
        }?;
        Ok(block.map(|block| {
            let ahead = if reader.range.is_empty() {
                Ahead::At(reader)
            } else {
                Ahead::Reading(AbortOnDropHandle::new(tokio::spawn(reader.read())))
            };
            (block, ahead)
        }))
    })
}

/// A reader, or one that reads the next block by now.
enum Ahead {
    At(Reader),
    Reading(AbortOnDropHandle<Result<(Reader, Option<Bytes>)>>),
}

fn stopped(gone: JoinError) -> Error {
    damaged("content".to_owned(), gone)
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
    chunks: Option<VecDeque<(i64, u64)>>,
    /// Those that are looked up: the first is being read. One that is damaged is an error when it is
    /// reached, and costs those before it nothing.
    open: VecDeque<Result<Chunk>>,
}

impl Reader {
    async fn read(mut self) -> Result<(Self, Option<Bytes>)> {
        let block = self.next().await?;
        Ok((self, block))
    }

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
            while let Some(chunk) = self.open.pop_front() {
                let mut chunk = chunk?;
                if let Some(block) = chunk.next(store, wanted).await? {
                    self.open.push_front(Ok(chunk));
                    return Ok(Some(block));
                }
            }
            let skip = if self.chunks.is_none() {
                self.find(store, file_id, at).await?
            } else {
                0
            };
            let wanted = skip.saturating_add(wanted as u64);
            let Some(chunks) = self.take_chunks(wanted) else {
                return Ok(None);
            };
            self.open = self.open(store, file_id, &chunks).await?;
            if let Some(Ok(first)) = self.open.front_mut() {
                first.skip(skip);
            }
        }
    }

    /// Takes out the chunks that are looked up next; never an empty row.
    fn take_chunks(&mut self, wanted: u64) -> Option<Vec<(i64, u64)>> {
        let left = self.chunks.as_mut()?;
        let &(first, _) = left.front()?;
        let (mut bytes, mut taken) = (0, 0);
        for &(number, size) in left.iter() {
            let is_far = number - first >= TOGETHER;
            if taken > 0 && (is_far || bytes >= wanted || bytes + size > TOGETHER_BYTES) {
                break;
            }
            bytes += size;
            taken += 1;
        }
        Some(left.drain(..taken).collect())
    }

    /// Looks up chunks, each of which must be as it was when the file was made.
    async fn open(
        &self,
        store: &Store,
        file_id: &str,
        chunks: &[(i64, u64)],
    ) -> Result<VecDeque<Result<Chunk>>> {
        let (Some((first, _)), Some((last, _))) = (chunks.first(), chunks.last()) else {
            return Ok(VecDeque::new());
        };
        // Others between them have lines of the other file only.
        let mut found = Chunk::segments(store, &self.batch_id, *first..=*last).await?;
        let open = chunks.iter().map(|&(number, size)| {
            let segments = found.remove(&number).unwrap_or_default();
            let chunk = Chunk::open(&self.batch_id, number, self.kind, segments)?;
            if chunk.size() == size {
                Ok(chunk)
            } else {
                Err(damaged(
                    format!("chunk {number} of {file_id}"),
                    "its lines are not as long as they were",
                ))
            }
        });
        Ok(open.collect())
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
        self.chunks = Some(chunks.split_off(first).into());
        Ok(skip)
    }
}

#[cfg(test)]
mod tests;
