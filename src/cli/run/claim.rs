//! The state directory of a run: one process has it for itself, and all else in it is left alone.

use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use rustix::fs::{Access, access};

use super::generation::{is_store_lock, remove_where};
use super::journal::Journal;
use crate::cli::exit::{NOT_VALID, OrExit as _};

const LOCK: &str = "run.lock";
/// What the lock's file holds: it tells a state directory from any other.
const MARK: &[u8] = b"The state of a nightshift run.\n";

/// A state directory that this process has for itself, until this is dropped.
pub(super) struct Claim {
    _lock: fs::File,
    /// The user made the directory.
    is_users: bool,
}

impl Claim {
    /// Removes what is in the state directory after a start that came to nothing, unless it has a
    /// journal: then there is something to go on with.
    pub(super) fn discard(self, state: &Path) {
        if matches!(Journal::read(state), Ok(None)) && Journal::clear(state).is_ok() {
            // What cannot be removed does no harm.
            remove_where(state, |name| name == LOCK || is_store_lock(name));
            if !self.is_users {
                let _ = fs::remove_dir(state);
            }
        }
    }

    /// Removes the state directory, with which there is nothing to go on.
    pub(super) fn remove(self, state: &Path) {
        // What cannot be removed does no harm.
        if Journal::clear(state).is_ok() {
            self.discard(state);
        }
    }
}

/// The name of a state directory for a run that nobody named one for.
pub(super) fn temporary() -> PathBuf {
    let name = format!("nightshift-run-{}", uuid::Uuid::new_v4().simple());
    tempfile::env::temp_dir().join(name)
}

/// Makes the state directory, private to its owner, and claims it for this process. One that is
/// there must be empty or have the mark of an earlier run: all else in it is somebody else's.
pub(super) fn claim(state: &Path) -> anyhow::Result<Claim> {
    let cannot = || format!("cannot use {}", state.display());
    let is_there = state.is_dir();
    if !is_there {
        fs::DirBuilder::new()
            .mode(0o700)
            .create(state)
            .with_context(cannot)
            .or_exit(NOT_VALID)?;
    }
    let path = state.join(LOCK);
    // Looked at first, so that nothing is made in a directory that is refused.
    if !path.exists() {
        must_be_ours(state)?;
    }
    let lock = fs::File::options()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(path);
    let mut lock = lock.with_context(cannot)?;
    must_be_alone(&lock, state)?;
    let has_mark = has_mark(&lock, state)?;
    if !has_mark {
        must_be_ours(state)?;
        lock.write_all(MARK).with_context(cannot)?;
    }
    Ok(Claim {
        _lock: lock,
        is_users: is_there && !has_mark,
    })
}

/// Refuses what [`claim`] would refuse, and changes nothing. While what it returns is held, no run
/// claims the directory.
pub(super) fn look(state: &Path) -> anyhow::Result<Option<fs::File>> {
    let cannot = || format!("cannot use {}", state.display());
    if !state.is_dir() {
        let directory = state.parent().filter(|parent| *parent != Path::new(""));
        let directory = directory.unwrap_or(Path::new("."));
        let is_free = state.symlink_metadata().is_err();
        let may_write = access(directory, Access::WRITE_OK | Access::EXEC_OK);
        return match may_write {
            Ok(()) if is_free => Ok(None),
            Ok(()) => Err(anyhow::anyhow!("it is no directory")),
            Err(error) => Err(std::io::Error::from(error).into()),
        }
        .with_context(cannot)
        .or_exit(NOT_VALID);
    }
    let lock = match fs::File::open(state.join(LOCK)) {
        Ok(lock) => lock,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            must_be_ours(state)?;
            return Ok(None);
        }
        Err(error) => return Err(error).with_context(cannot),
    };
    must_be_alone(&lock, state)?;
    if !has_mark(&lock, state)? {
        must_be_ours(state)?;
    }
    Ok(Some(lock))
}

/// Refuses where another run has the lock.
fn must_be_alone(lock: &fs::File, state: &Path) -> anyhow::Result<()> {
    match lock.try_lock() {
        Ok(()) => Ok(()),
        Err(fs::TryLockError::WouldBlock) => {
            bail!("another `nightshift run` is working on {}", state.display())
        }
        Err(fs::TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("cannot use {}", state.display()))
        }
    }
}

/// Whether the lock's file has the mark; one that has anything else is refused.
fn has_mark(lock: &fs::File, state: &Path) -> anyhow::Result<bool> {
    let mut mark = Vec::new();
    lock.take(MARK.len() as u64 + 1)
        .read_to_end(&mut mark)
        .with_context(|| format!("cannot use {}", state.display()))?;
    if mark != MARK && !mark.is_empty() {
        return not_ours(state);
    }
    Ok(mark == MARK)
}

/// Refuses a directory without a mark, unless it has nothing but a lock, or the journal of a
/// version that set no mark.
fn must_be_ours(state: &Path) -> anyhow::Result<()> {
    let entries = fs::read_dir(state).with_context(|| format!("cannot use {}", state.display()))?;
    for entry in entries {
        if entry?.file_name() != LOCK {
            return match Journal::read(state) {
                Ok(Some(_)) => Ok(()),
                _ => not_ours(state),
            };
        }
    }
    Ok(())
}

fn not_ours<T>(state: &Path) -> anyhow::Result<T> {
    let state = state.display();
    Err(anyhow::anyhow!(
        "{state} is not empty, and it is not the state of a run: name another directory with \
         --state, or remove what is in it"
    ))
    .or_exit(NOT_VALID)
}
