//! A file's bytes, from any place to any other, as a stream of blocks.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, Stream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::task::AbortOnDropHandle;

use super::chunk::{Chunk, FETCHED_BYTES_MAX};
use super::damaged::damaged;
use crate::domain::file::Kind;
use crate::store::{Result, Store, StoredFile};

/// The blocks that are prefetched and wait for the client have at most so many bytes together. A
/// block may be part of a frame up to twice its size.
const PREFETCH_BYTES: usize = 1 << 20;
/// One statement looks up chunks of an output file of at most so many raw bytes. So their data is
/// read with them, even if it did not become smaller by compression. A larger chunk is looked up
/// alone.
const TOGETHER_BYTES: u64 = FETCHED_BYTES_MAX as u64;
/// One statement looks up chunks whose numbers differ by less than this.
const TOGETHER: i64 = 16;

/// The bytes of a file within `range`, which must lie within the file, in blocks of about 1 MiB
/// at most (a longer line of an output file is one block). While the caller has one block, about
/// 1 MiB of the next blocks are prefetched. No connection and no transaction is held between two
/// blocks.
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
        file: file.clone(),
        range,
        source,
    };
    stream::try_unfold(Content::Unread(Box::new(reader)), |content| async move {
        let mut prefetch = match content {
            Content::Unread(reader) => Prefetch::start(*reader),
            Content::Prefetch(prefetch) => prefetch,
        };
        let block = prefetch.next().await?;
        Ok(block.map(|block| (block, Content::Prefetch(prefetch))))
    })
}

enum Content {
    /// Nothing was asked for yet, so nothing is read.
    Unread(Box<Reader>),
    Prefetch(Prefetch),
}

/// Reads blocks while earlier ones are on their way to the client. Dropped, it stops reading.
struct Prefetch {
    /// Bytes that the client has not had yet.
    left: u64,
    blocks: mpsc::UnboundedReceiver<Result<ReadBlock>>,
    _reading: AbortOnDropHandle<()>,
}

/// A block, and its part of the room for blocks that wait.
type ReadBlock = (Bytes, OwnedSemaphorePermit);

impl Prefetch {
    /// Begins to read.
    fn start(reader: Reader) -> Self {
        let left = reader.range.end - reader.range.start;
        let (read, blocks) = mpsc::unbounded_channel();
        Self {
            left,
            blocks,
            _reading: AbortOnDropHandle::new(tokio::spawn(reader.read_ahead(read))),
        }
    }

    /// The next block; `None` at the end of the range.
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

/// Reads a file block by block.
struct Reader {
    store: Store,
    file: StoredFile,
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

/// An output or error file, which is put together from its batch's segments, and how far it is
/// read.
struct BatchOutput {
    batch_id: String,
    kind: Kind,
    /// The chunks that are not looked up yet: number and bytes of each. `None` before the first
    /// read.
    chunks: Option<VecDeque<(i64, u64)>>,
    /// The chunks that are looked up. The first of them is being read. A damaged chunk is an error
    /// when the reader reaches it, so the chunks before it are still served.
    open: Chunks,
    /// The chunks behind these, which are being looked up meanwhile.
    next: Option<AbortOnDropHandle<Result<Chunks>>>,
}

impl Reader {
    /// Reads to the end of the range, or until the client is gone.
    async fn read_ahead(mut self, read: mpsc::UnboundedSender<Result<ReadBlock>>) {
        let room = Arc::new(Semaphore::new(PREFETCH_BYTES));
        loop {
            let block = match self.next().await {
                Ok(Some(block)) => block,
                Ok(None) => return,
                Err(error) => {
                    read.send(Err(error)).ok();
                    return;
                }
            };
            // A block that is longer than the whole room waits until no other block does.
            let bytes = block.len().min(PREFETCH_BYTES) as u32;
            let Ok(room) = Arc::clone(&room).acquire_many_owned(bytes).await else {
                return;
            };
            if read.send(Ok((block, room))).is_err() {
                return;
            }
        }
    }

    /// The next block; `None` at the end of the range.
    async fn next(&mut self) -> Result<Option<Bytes>> {
        if self.range.is_empty() {
            return Ok(None);
        }
        let Reader {
            store,
            file,
            range,
            source,
        } = self;
        let wanted = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        let block = match source {
            Source::Uploaded { place } => uploaded(store, &file.id, place, range.start).await?,
            Source::BatchOutput(made) => made.next(store, file, range.start, wanted).await?,
        };
        let mut block = block
            .filter(|block| !block.is_empty())
            .ok_or_else(|| damaged(format!("content of {}", file.id), "it ends too early"))?;
        block.truncate(wanted);
        range.start += block.len() as u64;
        Ok(Some(block))
    }
}

/// The rest, from the byte `at` on, of the piece of an uploaded file that holds this byte.
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
    /// The block that begins at the byte `at` of the file, where the last block ended. Nobody wants
    /// more than `wanted` bytes of it.
    async fn next(
        &mut self,
        store: &Store,
        file: &StoredFile,
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
                skip = self.find(store, file, at).await?;
                self.look_up(store, &file.id, skip.saturating_add(wanted as u64));
            }
            let Some(next) = self.next.take() else {
                return Ok(None);
            };
            let gone = |error| damaged(format!("content of {}", file.id), error);
            self.open = next.await.map_err(gone)??;
            if let Some(Ok(first)) = self.open.front_mut() {
                first.skip(skip);
            }
            let found: u64 = self.open.iter().flatten().map(Chunk::size).sum();
            if found < wanted as u64 {
                self.look_up(store, &file.id, wanted as u64 - found);
            }
        }
    }

    /// Begins to look up the next chunks, of about `wanted` bytes, if there are any.
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

    /// Takes out the chunks that are looked up next. `None` if none is left.
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
    async fn find(&mut self, store: &Store, file: &StoredFile, at: u64) -> Result<u64> {
        let sizes = store.chunk_sizes(file).await?;
        let mut chunks = Vec::with_capacity(sizes.len());
        for (number, size) in sizes {
            let size = u64::try_from(size)
                .map_err(|error| damaged(format!("table of {}", file.id), error))?;
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

/// Looks up chunks of an output or error file. Each must be as long as it was when the file was
/// published.
async fn open(
    store: Store,
    file_id: String,
    (batch_id, kind): (String, Kind),
    chunks: Vec<(i64, u64)>,
) -> Result<Chunks> {
    let (Some((first, _)), Some((last, _))) = (chunks.first(), chunks.last()) else {
        return Ok(Chunks::new());
    };
    // Chunks between them that are not asked for have lines of the other file only.
    let mut found = Chunk::segments(&store, &batch_id, *first..=*last, FETCHED_BYTES_MAX).await?;
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
