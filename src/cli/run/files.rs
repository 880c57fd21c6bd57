//! The files of a run: none is overwritten by another, and each regular one is whole or not there.

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use tempfile::TempPath;
use tokio::fs::{File, OpenOptions};

use super::answers::{Answers, Sources};
use super::target::{self, Target};
use crate::domain::file::Kind;

/// What is added to a result's name while it is written.
const PARTIAL: &str = ".partial";
/// What is added to an output's name for the directory of what is needed to go on.
pub(super) const STATE: &str = ".nightshift";
/// Begins the name of a file that only shows that one can be made.
const PROBE: &str = ".nightshift-";
/// The mode of a file beside one that others may not be allowed to read.
const PRIVATE: u32 = 0o600;
/// The answers so far are written this often.
const GROWS_EVERY: Duration = Duration::from_secs(1);

/// Refuses to begin where one of the files would take another's place.
pub(super) fn must_differ(
    input: &Path,
    output: &Target,
    errors: Option<&Target>,
) -> anyhow::Result<()> {
    let same = if errors.is_some_and(|errors| output.is_same(errors)) {
        ("output", "errors file", output)
    } else if output.is_input(input) {
        ("input", "output", output)
    } else if let Some(errors) = errors.filter(|errors| errors.is_input(input)) {
        ("input", "errors file", errors)
    } else {
        return Ok(());
    };
    let (one, other, path) = same;
    bail!(
        "the {one} and the {other} are the same file, {path}: name another with --output or --errors"
    )
}

/// Refuses to begin where a result would take the place of a file that is not this program's. The
/// user may give up the file itself; nobody was asked about the one beside it.
pub(super) fn must_be_free(target: &Target, may_overwrite: bool) -> anyhow::Result<()> {
    let Some(path) = target.file() else {
        return Ok(());
    };
    if !may_overwrite && path.metadata().is_ok_and(|file| file.len() > 0) {
        bail!(
            "{target} is there already, and no run of this output wrote it: name another, or use \
             --restart to overwrite it"
        );
    }
    let partial = beside(path, PARTIAL);
    if partial.symlink_metadata().is_ok() {
        bail!(
            "{} is there already, and no run of this output wrote it: remove it, or name another \
             output",
            partial.display()
        );
    }
    Ok(())
}

/// Refuses to begin where a result could not be written in the end.
pub(super) fn must_be_writable(target: &Target) -> anyhow::Result<()> {
    target.try_device()?;
    let Some(path) = target.file() else {
        return Ok(());
    };
    if std::fs::File::options().write(true).open(path).is_ok() {
        return Ok(());
    }
    let directory = path.parent().unwrap_or(Path::new("/"));
    let made = tempfile::Builder::new()
        .prefix(PROBE)
        .tempfile_in(directory);
    made.map(drop)
        .with_context(|| format!("cannot write {target}"))
}

/// Removes the answers so far of an earlier run of this output.
pub(super) fn remove_partial(output: &Target) -> anyhow::Result<()> {
    let Some(path) = output.file() else {
        return Ok(());
    };
    let partial = beside(path, PARTIAL);
    remove_if_there(&partial).with_context(|| format!("cannot remove {}", partial.display()))
}

/// Writes the answers, or the lines that failed, of a run whose batch has ended.
///
/// A regular file is written beside its place and then renamed, with the mode and the owner of
/// the file that was there. Where that cannot be, it is written in its place.
pub(super) async fn write(sources: &Sources, kind: Kind, target: &Target) -> anyhow::Result<()> {
    let cannot = || format!("cannot write {target}");
    let Some(path) = target.file() else {
        let mut out = target.open_stream().await?;
        return fill(sources, kind, &mut out).await.with_context(cannot);
    };
    let old = path.metadata().ok();
    // A rename would leave the file's other names behind.
    let has_other_names = old.as_ref().is_some_and(|old| old.nlink() > 1);
    if !has_other_names {
        let replaced = replace(sources, kind, path, old.as_ref()).await;
        if replaced.with_context(cannot)? {
            return Ok(());
        }
    }
    let mut out = OpenOptions::new()
        .write(true)
        .truncate(true)
        .open(path)
        .await
        .with_context(cannot)?;
    fill(sources, kind, &mut out).await.with_context(cannot)?;
    out.sync_all().await.with_context(cannot)?;
    remove_if_there(&beside(path, PARTIAL)).with_context(cannot)
}

/// Writes a file beside its place and renames it. `false`: there is a file that this process
/// cannot replace.
async fn replace(
    sources: &Sources,
    kind: Kind,
    path: &Path,
    old: Option<&std::fs::Metadata>,
) -> anyhow::Result<bool> {
    let partial = beside(path, PARTIAL);
    let mut out = match create_partial(&partial, old.is_some()).await {
        Ok(out) => out,
        // Others may own the directory, and this process the file; or the file alone is on a disk
        // that can be written.
        Err(error) if old.is_some() && is_denied(&error) => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    // Removed, unless it is renamed.
    let partial = TempPath::try_from_path(partial)?;
    fill(sources, kind, &mut out).await?;
    out.sync_all().await?;
    if let Some(old) = old
        && !target::take_after(&out.into_std().await, old)?
    {
        return Ok(false);
    }
    match partial.persist(path) {
        Ok(()) => Ok(true),
        // A file that is mounted by itself, as containers do.
        Err(error) if old.is_some() && is_denied(&error.error) => Ok(false),
        Err(error) => Err(error.error.into()),
    }
}

/// Whether a file cannot be made or renamed in its directory, though it may be written itself.
fn is_denied(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem | ErrorKind::ResourceBusy
    )
}

/// Never through a symlink that is there.
async fn create_partial(partial: &Path, is_private: bool) -> std::io::Result<File> {
    remove_if_there(partial)?;
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    if is_private {
        options.mode(PRIVATE);
    }
    options.open(partial).await
}

async fn fill(sources: &Sources, kind: Kind, out: &mut File) -> anyhow::Result<()> {
    let mut answers = Answers::open(sources, kind).await?;
    answers.advance(out, true).await?;
    Ok(())
}

/// The answers so far, in input order up to the first one that is missing, for who looks into the
/// output's partial file while the run goes on, or after it was interrupted.
pub(super) struct Partial {
    path: PathBuf,
    /// There is an output already, which others may not be allowed to read.
    is_private: bool,
    answers: Answers,
    /// `None`: there was nothing to write yet.
    out: Option<File>,
    done: u64,
    next: Instant,
    /// Something went wrong: the run goes on without it.
    is_over: bool,
}

impl Partial {
    /// `None`: the output is no file.
    pub(super) async fn of(sources: &Sources, output: &Target) -> anyhow::Result<Option<Partial>> {
        let Some(path) = output.file() else {
            return Ok(None);
        };
        Ok(Some(Partial {
            path: beside(path, PARTIAL),
            is_private: path.exists(),
            answers: Answers::open(sources, Kind::Output).await?,
            out: None,
            done: 0,
            next: Instant::now(),
            is_over: false,
        }))
    }

    /// Writes what has come since, now and then.
    pub(super) async fn grow(&mut self, done: u64) {
        let now = Instant::now();
        if !self.is_over && done > self.done && now >= self.next {
            self.next = now + GROWS_EVERY;
            self.done = done;
            self.write().await;
        }
    }

    /// Writes what there is, and says where. `None`: there is nothing.
    pub(super) async fn leave(mut self) -> Option<PathBuf> {
        if !self.is_over {
            self.write().await;
        }
        self.out.map(|_| self.path)
    }

    async fn write(&mut self) {
        if let Err(error) = self.try_write().await {
            self.is_over = true;
            let path = self.path.display();
            tracing::warn!("cannot write {path}, and goes on without it: {error:#}");
        }
    }

    async fn try_write(&mut self) -> anyhow::Result<()> {
        let out = match &mut self.out {
            Some(out) => out,
            None => {
                let made = create_partial(&self.path, self.is_private).await?;
                self.out.insert(made)
            }
        };
        self.answers.advance(out, false).await?;
        Ok(())
    }
}

/// A path with something added to its name.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// `answers.jsonl` → `answers.errors.jsonl`.
pub(super) fn errors_path(output: &Path) -> PathBuf {
    output.with_extension("errors.jsonl")
}

/// Removes what an earlier run wrote. A symlink that the user made stays, and leads to an empty
/// file.
pub(super) fn remove(target: &Target) -> anyhow::Result<()> {
    let Some(path) = target.file() else {
        return Ok(());
    };
    let cannot = || format!("cannot remove the old {target}");
    if target.is_symlink() {
        let emptied = std::fs::File::options()
            .write(true)
            .truncate(true)
            .open(path);
        return match emptied {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error).with_context(cannot),
            _ => Ok(()),
        };
    }
    remove_if_there(path).with_context(cannot)
}

fn remove_if_there(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_file(path) {
        // In a directory that cannot be written, nothing is told of a file that is not there.
        Err(error) if path.symlink_metadata().is_ok() => Err(error),
        _ => Ok(()),
    }
}
