//! The input of a run, which may be read more than once.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt as _};

pub(super) const READ_BYTES: usize = 256 << 10;

/// An input that may be read more than once.
pub(super) struct Input {
    /// What messages call it.
    pub(super) name: PathBuf,
    /// Where its bytes are: the file itself, or a copy of what cannot be read again.
    pub(super) path: Option<PathBuf>,
}

impl Input {
    pub(super) fn of(path: &Path) -> anyhow::Result<Input> {
        if path.as_os_str() == "-" {
            return Ok(Input {
                name: path.to_owned(),
                path: None,
            });
        }
        let cannot = || format!("cannot open {}", path.display());
        // Opened first: what cannot be read is told before anything is done.
        File::open(path).with_context(cannot)?;
        let is_file = path.metadata().with_context(cannot)?.is_file();
        if path.is_dir() {
            bail!("{} is a directory: name a file", path.display());
        }
        Ok(Input {
            name: path.to_owned(),
            path: is_file.then(|| path.to_owned()),
        })
    }

    pub(super) async fn open(&self) -> anyhow::Result<Box<dyn AsyncRead + Send + Unpin>> {
        let path = match &self.path {
            None if self.name.as_os_str() == "-" => return Ok(Box::new(tokio::io::stdin())),
            None => &self.name,
            Some(path) => path,
        };
        let file = tokio::fs::File::open(path).await;
        let file = file.with_context(|| format!("cannot open {}", path.display()))?;
        Ok(Box::new(file))
    }

    /// Hashes the input. One that cannot be read again is copied meanwhile.
    pub(super) async fn hash(&mut self, copy: &Path) -> anyhow::Result<String> {
        let mut input = self.open().await?;
        let mut copied = match self.path {
            Some(_) => None,
            None => Some(BufWriter::new(File::create(copy)?)),
        };
        let mut hashing = Hashing::default();
        let mut buffer = Vec::with_capacity(READ_BYTES);
        while input.read_buf(&mut buffer).await? > 0 {
            hashing.update(&buffer);
            if let Some(copied) = &mut copied {
                copied.write_all(&buffer)?;
            }
            buffer.clear();
        }
        if let Some(mut copied) = copied {
            copied.flush()?;
            self.path = Some(copy.to_owned());
        }
        Ok(hashing.finish())
    }
}

/// The hash of an input, as it is read.
#[derive(Default)]
pub(super) struct Hashing(Sha256);

impl Hashing {
    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(super) fn finish(self) -> String {
        hex::encode(self.0.finalize())
    }
}
