//! What a run remembers beside its store: which input it is on, and which batch that is.

use std::fs;
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::target::Target;

const NAME: &str = "run.json";
/// The store's file.
pub(super) const DATABASE: &str = "state.db";

/// Written when the whole input is in the store: without it there is nothing to go on with.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Journal {
    pub input_sha256: String,
    pub batch_id: String,
    /// The errors files that runs of this output wrote.
    #[serde(default)]
    pub errors_files: Vec<PathBuf>,
}

impl Journal {
    /// Whether a run of this output wrote that errors file.
    pub(super) fn wrote(&self, errors: &Target) -> bool {
        let file = errors.file();
        file.is_some_and(|file| self.errors_files.iter().any(|wrote| wrote == file))
    }

    pub(super) fn read(state: &Path) -> anyhow::Result<Option<Journal>> {
        let path = state.join(NAME);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", path.display()));
            }
        };
        let journal = serde_json::from_slice(&text);
        let damaged = || format!("{} is damaged; --restart begins anew", path.display());
        journal.with_context(damaged).map(Some)
    }

    /// Writes it whole or not at all.
    pub(super) fn write(&self, state: &Path) -> anyhow::Result<()> {
        let path = state.join(NAME);
        let mut file = tempfile::NamedTempFile::new_in(state)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        file.as_file().sync_all()?;
        file.persist(&path)
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(())
    }

    /// Leaves nothing to go on with: the next start begins anew.
    pub(super) fn forget(state: &Path) -> anyhow::Result<()> {
        let path = state.join(NAME);
        fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))
    }

    /// Removes what an earlier run left, the journal first: without it the rest counts for
    /// nothing. Only files of this program's own names are touched.
    pub(super) fn clear(state: &Path) -> anyhow::Result<()> {
        for name in [NAME, DATABASE, "state.db-wal", "state.db-shm"] {
            let path = state.join(name);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("cannot remove {}", path.display()));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Removes the state directory after a start that came to nothing, unless it has a journal: then
/// there is something to go on with.
pub(super) fn discard(state: &Path) {
    if matches!(Journal::read(state), Ok(None)) && Journal::clear(state).is_ok() {
        // What cannot be removed does no harm.
        for name in ["run.lock", "state.db.lock"] {
            let _ = fs::remove_file(state.join(name));
        }
        let _ = fs::remove_dir(state);
    }
}

/// Makes a state directory for a run that nobody named one for.
pub(super) fn temporary() -> anyhow::Result<PathBuf> {
    let directory = tempfile::Builder::new().prefix("nightshift-run-").tempdir();
    Ok(directory
        .context("cannot make a directory for temporary files: name one with --state")?
        .keep())
}

/// Removes a state directory with which there is nothing to go on.
pub(super) fn remove(state: &Path) {
    // What cannot be removed does no harm.
    if Journal::clear(state).is_ok() {
        discard(state);
    }
}

/// Makes the state directory, private to its owner, and claims it for this process: until the
/// file that is returned is dropped.
pub(super) fn claim(state: &Path) -> anyhow::Result<fs::File> {
    let cannot = || format!("cannot use {}", state.display());
    if !state.is_dir() {
        fs::DirBuilder::new()
            .mode(0o700)
            .create(state)
            .with_context(cannot)?;
    }
    let lock = state.join("run.lock");
    let lock = fs::File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(lock);
    let lock = lock.with_context(cannot)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(fs::TryLockError::WouldBlock) => {
            bail!("another `nightshift run` is working on {}", state.display())
        }
        Err(fs::TryLockError::Error(error)) => Err(error).with_context(cannot),
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
        self.0
            .finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }
}
