//! The files of a run: none is overwritten by another, and each regular one is whole or not there.

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::{Context as _, bail};
use tempfile::TempPath;
use tokio::fs::OpenOptions;
use tokio::io::{AsyncWrite, AsyncWriteExt as _, BufWriter};

use super::answers::{Answers, Next, Sources, WRITE_BYTES};
use super::beside::{PARTIAL, beside, create, remove_if_there};
use super::fingerprint::{Fingerprint, Hashing};
use super::target::{self, Target};
use crate::cli::run::journal::Journal;
use crate::domain::file::Kind;

/// Begins the name of a file that only shows that one can be made.
const PROBE: &str = ".nightshift-";

/// Refuses to begin where one of the files would take another's place.
pub(in crate::cli::run) fn must_differ(
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
pub(in crate::cli::run) fn must_be_free(
    target: &Target,
    may_overwrite: bool,
) -> anyhow::Result<()> {
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
pub(in crate::cli::run) fn must_be_writable(target: &Target) -> anyhow::Result<()> {
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

/// Writes the answers, or the lines that failed, of a run whose batch has ended, into a regular
/// file. `lines`: how many there must be; with another number the file stays as it is.
///
/// The file is written beside its place and then renamed, with the mode and the owner of the file
/// that was there. Where that cannot be, it is written in its place.
pub(in crate::cli::run) async fn write(
    sources: &Sources,
    (kind, lines): (Kind, u64),
    target: &Target,
    path: &Path,
    journal: &mut Journal,
) -> anyhow::Result<()> {
    let cannot = || format!("cannot write {target}");
    let old = path.metadata().ok();
    // A rename would leave the file's other names behind.
    let has_other_names = old.as_ref().is_some_and(|old| old.nlink() > 1);
    if !has_other_names {
        let replaced = replace(sources, (kind, lines), path, old.as_ref(), journal).await;
        if replaced.with_context(cannot)? {
            return Ok(());
        }
    }
    // What is written in its place cannot be taken back.
    let counted = fill(sources, (kind, lines), tokio::io::sink()).await;
    counted.with_context(cannot)?;
    // Half written, it is still a run's.
    journal.results.forget_content(path);
    journal.write()?;
    let out = OpenOptions::new()
        .write(true)
        .truncate(true)
        .open(path)
        .await
        .with_context(cannot)?;
    let (out, hash) = fill(sources, (kind, lines), out)
        .await
        .with_context(cannot)?;
    out.sync_all().await.with_context(cannot)?;
    let written = out.metadata().await.with_context(cannot)?;
    let content = Fingerprint::written(&written, hash);
    journal.results.note_content(path, content);
    journal.write()?;
    remove_if_there(&beside(path, PARTIAL)).with_context(cannot)
}

/// Writes a file beside its place and renames it. `false`: there is a file that this process
/// cannot replace.
async fn replace(
    sources: &Sources,
    lines: (Kind, u64),
    path: &Path,
    old: Option<&std::fs::Metadata>,
    journal: &mut Journal,
) -> anyhow::Result<bool> {
    let partial = beside(path, PARTIAL);
    let out = match create(&partial, old.is_some()).await {
        Ok(out) => out,
        // Others may own the directory, and this process the file; or the file alone is on a disk
        // that can be written.
        Err(error) if old.is_some() && is_denied(&error) => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    // Removed, unless it is renamed.
    let partial = TempPath::try_from_path(partial)?;
    let (out, hash) = fill(sources, lines, out).await?;
    out.sync_all().await?;
    let out = out.into_std().await;
    if let Some(old) = old
        && !target::take_after(&out, old)?
    {
        return Ok(false);
    }
    // Noted first: a process that is killed behind the rename has still said whose the file is.
    let content = Fingerprint::written(&out.metadata()?, hash);
    journal.results.note_content(path, content);
    journal.write()?;
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

async fn fill<W: AsyncWrite + Unpin>(
    sources: &Sources,
    (kind, lines): (Kind, u64),
    out: W,
) -> anyhow::Result<(W, Hashing)> {
    let mut answers = Answers::open(sources, kind).await?;
    let mut out = BufWriter::with_capacity(WRITE_BYTES, out);
    let mut hash = Hashing::default();
    let mut written = 0;
    while let Next::Line(line) = answers.next(true).await? {
        hash.update(&line);
        out.write_all(&line).await?;
        written += 1;
    }
    out.flush().await?;
    must_be_all(written, lines)?;
    Ok((out.into_inner(), hash))
}

/// Refuses a result that lacks lines, or has more than the batch counts.
pub(in crate::cli::run) fn must_be_all(written: u64, lines: u64) -> anyhow::Result<()> {
    if written != lines {
        bail!(
            "{written} lines are there, and the batch counts {lines}: what the run keeps is \
             damaged; --retry-failed sends again what is missing, --restart everything"
        );
    }
    Ok(())
}

/// Removes what an earlier run wrote. A symlink that the user made stays, and leads to an empty
/// file.
pub(in crate::cli::run) fn remove(target: &Target) -> anyhow::Result<()> {
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
