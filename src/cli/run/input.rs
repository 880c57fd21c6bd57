//! The input of a run: JSON Lines, plain or compressed, which may be read more than once.

pub(super) mod checked;
pub(super) mod faults;
pub(super) mod feed;
pub(super) mod lines;
pub(super) mod reshape;

use std::fs::File;
use std::io::Cursor;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use futures::StreamExt as _;
use rustix::fs::{Access, access};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio_util::io::ReaderStream;
use tokio_util::sync::CancellationToken;

use super::result::fingerprint::Hashing;
use crate::cli::exit::{NOT_VALID, OrExit as _};
use crate::transfer::{NoContent, Packing, Unpacked, Unreadable};

const READ_BYTES: usize = 256 << 10;

type Raw = Box<dyn AsyncRead + Send + Unpin>;

/// An input that may be read more than once.
pub(super) struct Input {
    /// What messages call it.
    name: PathBuf,
    /// Where its bytes are: the file itself, or a copy of what cannot be read again.
    path: Option<PathBuf>,
    /// What a compressed input may hold.
    max_bytes: u64,
    /// Ends each wait for the input. Whoever reads it may finish what else is under way.
    stop: CancellationToken,
}

impl Input {
    pub(super) fn of(
        path: &Path,
        max_bytes: u64,
        stop: &CancellationToken,
    ) -> anyhow::Result<Input> {
        let input = |whole| Input {
            name: path.to_owned(),
            path: whole,
            max_bytes,
            stop: stop.clone(),
        };
        if path.as_os_str() == "-" {
            return Ok(input(None));
        }
        let cannot = || format!("cannot open {}", path.display());
        let found = path.metadata().with_context(cannot)?;
        // What cannot be read is reported before anything is done.
        if found.file_type().is_fifo() {
            // To open a FIFO waits for its writer, and to close it ends that writer: it is opened
            // once, when it is read.
            let may_read = access(path, Access::READ_OK).map_err(std::io::Error::from);
            may_read.with_context(cannot)?;
        } else {
            File::open(path).with_context(cannot)?;
        }
        if found.is_dir() {
            bail!("{} is a directory: name a file", path.display());
        }
        Ok(input(found.is_file().then(|| path.to_owned())))
    }

    /// What messages call it.
    pub(super) fn shown(&self) -> String {
        match self.name.as_os_str().to_str() {
            Some("-") => "standard input".to_owned(),
            _ => self.name.display().to_string(),
        }
    }

    /// The name of the file without its directories.
    pub(super) fn filename(&self) -> String {
        let name = self.name.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    async fn raw(&self) -> anyhow::Result<Raw> {
        let path = match &self.path {
            None if self.name.as_os_str() == "-" => return Ok(Box::new(tokio::io::stdin())),
            None => &self.name,
            Some(path) => path,
        };
        let file = unless_stopped(&self.stop, tokio::fs::File::open(path)).await?;
        let file = file.with_context(|| format!("cannot open {}", path.display()))?;
        Ok(Box::new(file))
    }

    /// Its content from the first byte. Whether it is compressed, its first bytes say.
    pub(super) async fn open(&self) -> anyhow::Result<Content> {
        let mut raw = self.raw().await?;
        let mut beginning = Vec::with_capacity(Packing::SIGNATURE_BYTES);
        let signature = (&mut raw).take(Packing::SIGNATURE_BYTES as u64);
        let mut signature = { signature };
        unless_stopped(&self.stop, signature.read_to_end(&mut beginning))
            .await?
            .with_context(|| format!("cannot read {}", self.shown()))?;
        let packing = Packing::of(&beginning);
        let whole: Raw = Box::new(Cursor::new(beginning).chain(raw));
        let stream = ReaderStream::with_capacity(whole, READ_BYTES);
        Ok(Content {
            name: self.shown(),
            bytes: match packing {
                None => Source::Plain(stream),
                Some(packing) => Source::Packed {
                    unpacked: Unpacked::new(packing, stream),
                    left: self.max_bytes,
                },
            },
            max_bytes: self.max_bytes,
            stop: self.stop.clone(),
        })
    }

    /// Whether it can be read again.
    pub(super) fn is_lasting(&self) -> bool {
        self.path.is_some()
    }

    /// Copies an input that cannot be read again, so that it can.
    pub(super) async fn make_lasting(&mut self, copy: &Path) -> anyhow::Result<()> {
        if self.path.is_some() {
            return Ok(());
        }
        let mut raw = self.raw().await?;
        let cannot = || format!("cannot copy {} to {}", self.shown(), copy.display());
        let mut copied = tokio::fs::File::create(copy).await.with_context(cannot)?;
        let done = unless_stopped(&self.stop, tokio::io::copy(&mut raw, &mut copied)).await?;
        done.with_context(cannot)?;
        copied.sync_data().await.with_context(cannot)?;
        self.path = Some(copy.to_owned());
        Ok(())
    }

    /// Hashes the content.
    pub(super) async fn hash(&self) -> anyhow::Result<String> {
        let mut content = self.open().await?;
        let mut hashing = Hashing::default();
        while let Some(bytes) = content.next().await? {
            hashing.update(&bytes);
        }
        Ok(hashing.finish())
    }
}

/// What an input holds, block by block.
pub(super) struct Content {
    name: String,
    bytes: Source,
    max_bytes: u64,
    stop: CancellationToken,
}

/// Waits for an input, unless a signal comes first.
async fn unless_stopped<T>(
    stop: &CancellationToken,
    input: impl Future<Output = T>,
) -> anyhow::Result<T> {
    let read = stop.run_until_cancelled(input).await;
    read.context("a signal came before the input was read")
}

enum Source {
    Plain(ReaderStream<Raw>),
    Packed {
        unpacked: Unpacked<'static, std::io::Error>,
        /// What may still come.
        left: u64,
    },
}

impl Content {
    /// The next bytes; `None` at the end. An error where a signal comes first.
    pub(super) async fn next(&mut self) -> anyhow::Result<Option<Bytes>> {
        let stop = self.stop.clone();
        unless_stopped(&stop, self.next_block()).await?
    }

    async fn next_block(&mut self) -> anyhow::Result<Option<Bytes>> {
        let cannot = || format!("cannot read {}", self.name);
        let (unpacked, left) = match &mut self.bytes {
            Source::Plain(stream) => return stream.next().await.transpose().with_context(cannot),
            Source::Packed { unpacked, left } => (unpacked, left),
        };
        let bytes = match unpacked.next().await {
            Ok(None) => return Ok(None),
            Ok(Some(bytes)) => bytes,
            Err(NoContent::Source(error)) => return Err(error).with_context(cannot),
            Err(NoContent::Unreadable(why)) => {
                let text = unreadable(&self.name, &why);
                return Err(anyhow::anyhow!(text)).or_exit(NOT_VALID);
            }
        };
        let Some(rest) = left.checked_sub(bytes.len() as u64) else {
            let (name, most) = (&self.name, self.max_bytes);
            return Err(anyhow::anyhow!(
                "{name} holds more than {most} bytes, as much as a compressed file may hold: \
                 decompress it first, or raise [limits] max_file_bytes"
            ))
            .or_exit(NOT_VALID);
        };
        *left = rest;
        Ok(Some(bytes))
    }
}

fn unreadable(name: &str, why: &Unreadable) -> String {
    match why {
        Unreadable::CutOff(packing) => {
            format!("{name} ends within its {packing} data: it was cut off")
        }
        Unreadable::LargeWindow => format!(
            "the zstd window of {name} is larger than 8 MiB: compress it without --long and --ultra"
        ),
        Unreadable::Damaged { packing, cause } => {
            format!("{name} begins as {packing} data does, but cannot be decompressed ({cause})")
        }
    }
}
