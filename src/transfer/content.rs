//! A file's bytes, from any place to any other, as a stream of blocks.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, Stream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::task::AbortOnDropHandle;

use super::chunk::{Chunk, FETCHED_BYTES_MAX};
use super::damaged;
use crate::domain::file::Kind;
use crate::store::{Result, Store, StoredFile};

/// Blocks that are read and wait have at most so many bytes together. A block may be part of a
/// frame up to twice its size.
const AHEAD_BYTES: usize = 1 << 20;
/// Chunks of an output file that are looked up together have so many bytes, but for one that has
/// more by itself, as are read with their data even if they did not become smaller, …
const TOGETHER_BYTES: u64 = FETCHED_BYTES_MAX as u64;
/// … and stand within a row of so many.
const TOGETHER: i64 = 16;

/// The bytes of a file within `range`, which must lie within the file, in blocks of about 1 MiB
/// at most (a longer line of an output file is one block). While one is looked at, the next are
/// read, about 1 MiB of them; nothing of the database is held in between.
///
/// The stream yields exactly the range, or an error: never less.
pub fn content(
    store: &Store,
    file: &StoredFile,
    range: Range<u64>,
) -> impl Stream<Item = Result<Bytes>> + Send + use<> {
    let source = match file.made_by() {
        None => Source::Uploaded { place: None },
        Some((batch_id, kind)) => Source::BatchOutput(Box::new(BatchOutput {
            batch_id: batch_id.to_owned(),
            kind,
            chunks: None,
            open: VecDeque::new(),
            next: None,
        })),
    };
    let reader = Reader {
        store: store.clone(),
        file_id: file.id.clone(),
        range,
        source,
    };
    stream::try_unfold(Content::Unread(reader), |content| async move {
        let mut ahead = match content {
            Content::Unread(reader) => Prefetch::of(reader),
            Content::Prefetch(ahead) => ahead,
        };
        let block = ahead.next().await?;
        Ok(block.map(|block| (block, Content::Prefetch(ahead))))
    })
}

enum Content {
    Unread(Reader),
    Prefetch(Prefetch),
}

/// Blocks that are read while others are on their way to the client.
struct Prefetch {
    /// Bytes that are still to come.
    left: u64,
    blocks: mpsc::UnboundedReceiver<Result<ReadBlock>>,
    _reading: AbortOnDropHandle<()>,
}

/// A block, and its part of the room for blocks that wait.
type ReadBlock = (Bytes, OwnedSemaphorePermit);

impl Prefetch {
    fn of(reader: Reader) -> Self {
        let left = reader.range.end - reader.range.start;
        let (read, blocks) = mpsc::unbounded_channel();
        Self {
            left,
            blocks,
            _reading: AbortOnDropHandle::new(tokio::spawn(reader.read_ahead(read))),
        }
    }

    async fn next(&mut self) -> Result<Option<Bytes>> {
        if self.left == 0 {
            return Ok(None);
        }
        let ended = || damaged("content", "reading it ended before its end");
        let (block, _room) = self.blocks.recv().await.ok_or_else(ended)??;
        self.left -= block.len() as u64;
        Ok(Some(block))
    }
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
    BatchOutput(Box<BatchOutput>),
}

type Chunks = VecDeque<Result<Chunk>>;

/// The place within a file that a batch made.
struct BatchOutput {
    batch_id: String,
    kind: Kind,
    /// Those still to be read, with the bytes that each gave; `None` before the first.
    chunks: Option<VecDeque<(i64, u64)>>,
    /// Those that are looked up: the first is being read. One that is damaged is an error when it
    /// is reached, and costs those before it nothing.
    open: Chunks,
    /// Those behind them, while these are read.
    next: Option<AbortOnDropHandle<Result<Chunks>>>,
}

impl Reader {
    /// Reads to the end, or until nobody wants the rest.
    async fn read_ahead(mut self, read: mpsc::UnboundedSender<Result<ReadBlock>>) {
        let room = Arc::new(Semaphore::new(AHEAD_BYTES));
        loop {
            let block = match self.next().await {
                Ok(Some(block)) => block,
                Ok(None) => return,
                Err(error) => {
                    read.send(Err(error)).ok();
                    return;
                }
            };
            // A longer block waits until it is alone.
            let bytes = block.len().min(AHEAD_BYTES) as u32;
            let Ok(room) = Arc::clone(&room).acquire_many_owned(bytes).await else {
                return;
            };
            if read.send(Ok((block, room))).is_err() {
                return;
            }
        }
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
            Source::BatchOutput(made) => made.next(store, file_id, range.start, wanted).await?,
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

impl BatchOutput {
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
            let mut skip = 0;
            if self.chunks.is_none() {
                skip = self.find(store, file_id, at).await?;
                self.look_up(store, file_id, skip.saturating_add(wanted as u64));
            }
            let Some(next) = self.next.take() else {
                return Ok(None);
            };
            let gone = |error| damaged(format!("content of {file_id}"), error);
            self.open = next.await.map_err(gone)??;
            if let Some(Ok(first)) = self.open.front_mut() {
                first.skip(skip);
            }
            let found: u64 = self.open.iter().flatten().map(Chunk::size).sum();
            if found < wanted as u64 {
                self.look_up(store, file_id, wanted as u64 - found);
            }
        }
    }

    /// Begins to look up the next chunks, if there are any.
    fn look_up(&mut self, store: &Store, file_id: &str, wanted: u64) {
        let Some(chunks) = self.take_chunks(wanted) else {
            return;
        };
        let open = open(
            store.clone(),
            file_id.to_owned(),
            (self.batch_id.clone(), self.kind),
            chunks,
        );
        self.next = Some(AbortOnDropHandle::new(tokio::spawn(open)));
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

/// Looks up chunks of what a batch made, each of which must be as it was when the file was made.
async fn open(
    store: Store,
    file_id: String,
    (batch_id, kind): (String, Kind),
    chunks: Vec<(i64, u64)>,
) -> Result<Chunks> {
    let (Some((first, _)), Some((last, _))) = (chunks.first(), chunks.last()) else {
        return Ok(Chunks::new());
    };
    // Others between them have lines of the other file only.
    let mut found = Chunk::segments(&store, &batch_id, *first..=*last).await?;
    let open = chunks.into_iter().map(|(number, size)| {
        let segments = found.remove(&number).unwrap_or_default();
        let chunk = Chunk::open(&batch_id, number, Some(kind), segments)?;
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

#[cfg(test)]
mod tests;
