//! A file on its way into the store: bytes become chunks, and chunks are written in groups. At the
//! end the file is published, or all that was written is removed.

use std::io;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use super::budget::{Part, UploadBudget};
use super::duplicates;
use super::pace::Pace;
use super::packed::{NoContent, Packing, Unpacked, Unreadable};
use crate::domain::file::Purpose;
use crate::domain::id;
use crate::domain::jsonl::NotJsonl;
use crate::intake::{Contents, Intake, Limits, Piece, Report};
use crate::store::{self, Claim, NewUpload, PublishedUpload, Rest, Store, StoredFile};

/// Bytes are cut and compressed in batches of at least this size, because each batch costs a change
/// of threads.
const BATCH_BYTES: usize = 256 << 10;
/// A file of at most so many bytes takes less time than a change of threads.
const DONE_HERE_MAX: u64 = 64 << 10;
/// Pieces of chunks are written once they are together this large (compressed), or this many.
const GROUP_BYTES: usize = 2 << 20;
const GROUP_PIECES: usize = 64;
/// A line is held in memory until it ends. When it grows longer than this, it needs a part of the
/// [`UploadBudget`], and keeps that part until it has ended and is written.
const LONG_LINE_BYTES: usize = 1 << 20;
/// How often an upload's row is touched, so that the upload is not taken for an abandoned one.
const TOUCHED_EVERY: Duration = Duration::from_secs(20);

/// Why a file was not taken in. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// For [`Purpose::Batch`]: it is empty, or does not begin with a line of JSON.
    #[error("{0}")]
    NotJsonl(NotJsonl),
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    /// Its content has more bytes than a file may have.
    #[error("the file is larger than {0} bytes")]
    TooLarge(u64),
    #[error(transparent)]
    Store(#[from] store::Error),
    /// Compressing failed, or temporary disk did.
    #[error("cannot take the file in: {0}")]
    Io(#[from] io::Error),
    /// Others wait for the memory that a long line of it holds, and its bytes come too slowly.
    #[error("the file's long line came too slowly while other files waited for the memory it held")]
    TooSlow,
}

/// What a file is published as.
#[derive(Clone, Debug)]
pub struct Finish {
    pub purpose: Purpose,
    pub filename: String,
    /// Both in milliseconds.
    pub created_at: i64,
    pub expires_at: Option<i64>,
}

/// The answer for an `Idempotency-Key`, which is stored when the file is published.
#[derive(Clone, Debug)]
pub struct Answer {
    pub claim: Claim,
    pub body: fn(&StoredFile) -> serde_json::Result<String>,
}

/// A file that is being written. When it is dropped before [`Ingest::finish`] has ended, what was
/// written is removed in the background.
pub struct Ingest {
    store: Store,
    upload: NewUpload,
    /// Whether the file has a row. It gets one with its first pieces: a small file is written and
    /// shown by one transaction.
    has_begun: Arc<AtomicBool>,
    limits: Limits,
    /// Bytes that were received and not handed to the intake yet.
    gathered: Vec<Bytes>,
    gathered_bytes: usize,
    intake: Work,
    /// What its long lines hold.
    part: Arc<Part>,
    pace: Pace,
    /// All that writes runs in here, so that a write that has begun is always waited for.
    tasks: TaskTracker,
    /// Whether the file is published. If it is not, the drop removes what was written.
    shown: bool,
    _alive: AbortOnDropHandle<()>,
}

/// Where the intake is. While it works on what was handed over, the next bytes are received.
enum Work {
    Idle(Box<State>),
    Busy(JoinHandle<Result<Box<State>, Error>>),
    /// It failed, or the file has ended.
    Gone,
}

struct State {
    store: Store,
    upload: NewUpload,
    intake: Intake,
    part: Arc<Part>,
    /// Pieces of chunks that are not written yet.
    group: Vec<Piece>,
    has_begun: Arc<AtomicBool>,
}

impl Ingest {
    /// Begins a file. `contents`: requests, if the file may be for a batch. Its long lines and
    /// hashes are held within the budget.
    ///
    #[must_use]
    pub fn begin(
        store: &Store,
        tenant: &str,
        limits: Limits,
        contents: Contents,
        budget: &Arc<UploadBudget>,
    ) -> Ingest {
        let upload = NewUpload {
            file_id: id::file(),
            tenant: tenant.to_owned(),
            max_stored: None,
        };
        let part = Arc::new(budget.part(tenant, limits.max_line_bytes));
        let mut hashes = budget.hashes();
        let may_hold = Box::new(move |bytes| hashes.may_hold(bytes));
        let has_begun = Arc::new(AtomicBool::new(false));
        let state = State {
            store: store.clone(),
            upload: upload.clone(),
            intake: Intake::within(limits, contents, may_hold),
            part: Arc::clone(&part),
            group: Vec::new(),
            has_begun: Arc::clone(&has_begun),
        };
        let alive = stay_alive(store.clone(), upload.file_id.clone(), has_begun.clone());
        Ingest {
            store: store.clone(),
            upload,
            has_begun,
            limits,
            gathered: Vec::new(),
            gathered_bytes: 0,
            intake: Work::Idle(Box::new(state)),
            part,
            pace: Pace::default(),
            tasks: TaskTracker::new(),
            shown: false,
            _alive: AbortOnDropHandle::new(tokio::spawn(alive)),
        }
    }

    /// Lets the file be published only where the tenant's files then have at most so many bytes.
    #[must_use]
    pub fn within(mut self, max_stored: Option<u64>) -> Self {
        self.upload.max_stored = max_stored;
        self
    }

    /// Stores the file without a check of its lines, because its first bytes show that it has none.
    /// Called before those bytes are written.
    pub fn leave_unchecked(&mut self) {
        if let Work::Idle(state) = &mut self.intake {
            state.intake.leave_unchecked();
        }
    }

    /// Waits for the client's next bytes. While the file holds a part of the budget, and another
    /// file waits for some, the client must send at a least rate ([`Pace`]).
    ///
    /// # Errors
    /// When the client is slower than that. The file is then lost.
    pub async fn receive<T>(&mut self, next: impl Future<Output = T>) -> Result<T, Error> {
        if !self.part.holds_some() {
            self.pace = Pace::default();
            return Ok(next.await);
        }
        self.pace.begin_window();
        let begun = Instant::now();
        let received = tokio::select! {
            biased;
            received = next => received,
            () = is_too_slow(self.pace, &self.part) => return Err(Error::TooSlow),
        };
        self.pace.waited(begun.elapsed());
        Ok(received)
    }

    /// Takes the file's next bytes. Within a long line, this may wait until other files' long
    /// lines have ended.
    ///
    /// # Errors
    /// When the database or temporary disk fails, be it for bytes that were taken before. The
    /// file is then lost.
    pub async fn write(&mut self, bytes: Bytes) -> Result<(), Error> {
        self.pace.received(bytes.len());
        self.gathered_bytes += bytes.len();
        self.gathered.push(bytes);
        if self.gathered_bytes < BATCH_BYTES {
            return Ok(());
        }
        let state = self.idle().await?;
        let line_bytes = state.intake.line_bytes();
        if line_bytes > LONG_LINE_BYTES {
            self.part.grow(line_bytes + self.gathered_bytes).await;
        }
        self.gathered_bytes = 0;
        let work = state.take(mem::take(&mut self.gathered));
        self.intake = Work::Busy(self.tasks.spawn(work));
        Ok(())
    }

    /// Ends the file and publishes it, and stores the answer with it. If this future is dropped
    /// meanwhile, the file is either published whole or removed whole.
    ///
    /// # Errors
    /// When the file is not what its purpose asks for, or the database or temporary disk fails.
    pub async fn finish(
        mut self,
        finish: Finish,
        answer: Option<Answer>,
    ) -> Result<StoredFile, Error> {
        let state = self.idle().await?;
        let rest = mem::take(&mut self.gathered);
        let (report, rest) = self.run(state.end(rest)).await?;
        let rest = if report.suspects.is_empty() {
            rest
        } else {
            // The ids of lines are compared, and for that the lines are read from the store.
            self.write_rest(rest).await?
        };
        let upload = self.check(report, finish).await?;
        let (store, file) = (self.store.clone(), self.upload.clone());
        let show = show(store, file, upload, rest, answer);
        let file = self.run(show).await?;
        self.shown = true;
        Ok(file)
    }

    /// Decompresses this file into a new one. The new file is whole and not published yet, and this
    /// one is removed. Needed where a form names the purpose `batch` behind the file, and for
    /// packings whose decoder needs much memory.
    ///
    /// # Errors
    /// When the content cannot be read, has more than `max_bytes`, or the database or temporary
    /// disk fails. Nothing is left then.
    pub async fn unpack(
        mut self,
        packing: Packing,
        limits: Limits,
        max_bytes: u64,
        budget: &Arc<UploadBudget>,
    ) -> Result<Ingest, Error> {
        let state = self.idle().await?;
        let rest = mem::take(&mut self.gathered);
        let (_, rest) = self.run(state.end(rest)).await?;
        self.write_rest(rest).await?;
        let _permit = if packing.is_light() {
            None
        } else {
            budget.heavy_decoder().await
        };
        let store = &self.store;
        let NewUpload {
            file_id,
            tenant,
            max_stored,
        } = &self.upload;
        let content = Ingest::begin(store, tenant, limits, Contents::Requests, budget);
        let mut content = content.within(*max_stored);
        let packed = stream::try_unfold((0, 0), |place| async move {
            let piece = store.piece(file_id, place).await?;
            Ok(piece.map(|piece| (Bytes::from(piece.bytes), piece.next)))
        });
        let mut unpacked = Unpacked::<store::Error>::new(packing, packed);
        let mut length = 0;
        while let Some(bytes) = unpacked.next().await? {
            length += bytes.len() as u64;
            if length > max_bytes {
                return Err(Error::TooLarge(max_bytes));
            }
            content.write(bytes).await?;
        }
        Ok(content)
    }

    /// Waits until the intake has done what was handed to it, and returns its state.
    async fn idle(&mut self) -> Result<Box<State>, Error> {
        match mem::replace(&mut self.intake, Work::Gone) {
            Work::Idle(state) => Ok(state),
            Work::Busy(task) => task.await.map_err(io::Error::from)?,
            Work::Gone => Err(Error::Io(io::Error::other("it has failed before"))),
        }
    }

    async fn write_rest(&self, rest: Rest) -> Result<Rest, Error> {
        let (store, upload) = (self.store.clone(), self.upload.clone());
        let has_begun = Arc::clone(&self.has_begun);
        self.run(write_rest(store, upload, has_begun, rest)).await
    }

    /// Runs a task that writes. The task runs to its end, even if this future is dropped meanwhile.
    async fn run<T: Send + 'static>(
        &self,
        task: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        self.tasks.spawn(task).await.map_err(io::Error::from)?
    }

    /// What the file is published as, or why it must not be.
    async fn check(&self, report: Report, finish: Finish) -> Result<PublishedUpload, Error> {
        let mut upload = PublishedUpload {
            purpose: finish.purpose,
            filename: finish.filename,
            bytes: report.bytes,
            created_at: finish.created_at,
            expires_at: finish.expires_at,
            requests: 0,
            findings: None,
            models: Vec::new(),
        };
        if finish.purpose != Purpose::Batch {
            return Ok(upload);
        }
        let empty = (report.bytes == 0).then_some(NotJsonl::EMPTY);
        if let Some(what) = empty.or(report.not_jsonl) {
            return Err(Error::NotJsonl(what));
        }
        let mut findings = report.findings;
        if report.too_many_models {
            findings.too_many_models(self.limits.max_models);
        }
        duplicates::confirm(
            &self.store,
            &self.upload.file_id,
            &report.suspects,
            &mut findings,
        )
        .await?;
        upload.requests = report.requests;
        upload.models = report.models;
        upload.findings = Some(serde_json::to_string(&findings).map_err(io::Error::from)?);
        Ok(upload)
    }
}

impl From<NoContent<store::Error>> for Error {
    fn from(cause: NoContent<store::Error>) -> Self {
        match cause {
            NoContent::Source(error) => Error::Store(error),
            NoContent::Unreadable(why) => Error::Unreadable(why),
        }
    }
}

impl Drop for Ingest {
    fn drop(&mut self) {
        if self.shown {
            return;
        }
        self.tasks.close();
        let (store, tasks) = (self.store.clone(), self.tasks.clone());
        let file_id = mem::take(&mut self.upload.file_id);
        // Without a runtime the process is ending, and the sweep finds the file.
        let Ok(runtime) = Handle::try_current() else {
            return;
        };
        runtime.spawn(async move {
            tasks.wait().await;
            if let Err(error) = store.discard_upload(&file_id).await {
                tracing::debug!(%error, file.id = file_id, "an upload is left to the sweep");
            }
        });
    }
}

impl State {
    /// Takes bytes, and writes what they complete.
    async fn take(mut self: Box<Self>, bytes: Vec<Bytes>) -> Result<Box<Self>, Error> {
        let given: usize = bytes.iter().map(Bytes::len).sum();
        let all_bytes = self.intake.taken_bytes() + given as u64;
        self = cpu_work(all_bytes, move || {
            for bytes in &bytes {
                self.intake.push(bytes, &mut self.group)?;
            }
            Ok(self)
        })
        .await?;
        if !fits(&self.group) {
            let group = mem::take(&mut self.group);
            write(&self.store, &self.upload, &self.has_begun, &group).await?;
        }
        if self.intake.line_bytes() <= LONG_LINE_BYTES {
            self.part.give_back();
        }
        Ok(self)
    }

    /// Takes the last bytes. What one transaction can write is left to the one that shows the file.
    async fn end(self: Box<Self>, bytes: Vec<Bytes>) -> Result<(Report, Rest), Error> {
        let State {
            store,
            upload,
            intake,
            part,
            mut group,
            has_begun,
        } = *self.take(bytes).await?;
        let (report, mut group) = cpu_work(intake.taken_bytes(), move || {
            let report = intake.finish(&mut group)?;
            Ok((report, group))
        })
        .await?;
        if !fits(&group) {
            write(&store, &upload, &has_begun, &mem::take(&mut group)).await?;
        }
        part.give_back();
        let rest = Rest {
            has_begun: has_begun.load(Ordering::Relaxed),
            pieces: group,
        };
        Ok((report, rest))
    }
}

/// Whether pieces are few enough for one group.
fn fits(pieces: &[Piece]) -> bool {
    let size: usize = pieces.iter().map(|piece| piece.data.len()).sum();
    size < GROUP_BYTES && pieces.len() < GROUP_PIECES
}

/// Waits until the client has been too slow and another file waits for room.
async fn is_too_slow(mut pace: Pace, part: &Part) {
    while !pace.is_slow {
        let left = pace.left();
        tokio::time::sleep(left).await;
        pace.waited(left);
        pace.begin_window();
    }
    part.is_needed().await;
    if !part.holds_some() {
        // The line has just ended and given its room back, so nobody waits for this client.
        std::future::pending::<()>().await;
    }
}

/// Does the work on what is cut and compressed of a file of so many bytes so far.
async fn cpu_work<T: Send + 'static>(
    file_bytes: u64,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    if file_bytes <= DONE_HERE_MAX {
        return work();
    }
    tokio::task::spawn_blocking(work).await?
}

/// Writes pieces, in groups that are no larger than they need to be. The first group of a file
/// comes with the file's row.
async fn write(
    store: &Store,
    upload: &NewUpload,
    has_begun: &AtomicBool,
    mut pieces: &[Piece],
) -> Result<(), Error> {
    while !pieces.is_empty() {
        let mut size = 0;
        let fitting = pieces.iter().take(GROUP_PIECES).take_while(|piece| {
            let fits = size < GROUP_BYTES;
            size += piece.data.len();
            fits
        });
        let (group, rest) = pieces.split_at(fitting.count());
        if has_begun.load(Ordering::Relaxed) {
            store.add_pieces(&upload.file_id, group).await?;
        } else {
            store.begin_upload(upload, group).await?;
            has_begun.store(true, Ordering::Relaxed);
        }
        pieces = rest;
    }
    Ok(())
}

/// Writes what was left to the transaction that shows the file.
async fn write_rest(
    store: Store,
    upload: NewUpload,
    has_begun: Arc<AtomicBool>,
    rest: Rest,
) -> Result<Rest, Error> {
    write(&store, &upload, &has_begun, &rest.pieces).await?;
    Ok(Rest {
        has_begun: has_begun.load(Ordering::Relaxed),
        pieces: Vec::new(),
    })
}

/// Publishes the file. If the database fails and it is not known whether the transaction was
/// committed, looks whether the file is there.
async fn show(
    store: Store,
    upload: NewUpload,
    published: PublishedUpload,
    rest: Rest,
    answer: Option<Answer>,
) -> Result<StoredFile, Error> {
    let NewUpload {
        file_id, tenant, ..
    } = &upload;
    let file = published.clone().into_file(file_id, tenant);
    let body = answer.as_ref().map(|answer| (answer.body)(&file));
    let body = body.transpose().map_err(io::Error::from)?;
    let remembered = answer
        .as_ref()
        .map(|answer| &answer.claim)
        .zip(body.as_deref());
    let publish = store.publish_upload(&upload, &published, &rest, remembered);
    match publish.await {
        Ok(()) => Ok(file),
        Err(error) => match store.file(tenant, file_id).await {
            Ok(Some(file)) => Ok(file),
            Ok(None) | Err(_) => Err(error.into()),
        },
    }
}

/// Touches the file's row regularly, however slowly its bytes come, so that no sweep removes the
/// file.
async fn stay_alive(store: Store, file_id: String, has_begun: Arc<AtomicBool>) {
    loop {
        tokio::time::sleep(TOUCHED_EVERY).await;
        if !has_begun.load(Ordering::Relaxed) {
            continue;
        }
        if let Err(error) = store.touch_upload(&file_id).await {
            tracing::warn!(%error, file.id = file_id, "an upload could not be kept alive");
        }
    }
}

#[cfg(test)]
mod tests;
