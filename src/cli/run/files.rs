//! The files of a run: none is overwritten by another, and each regular one is whole or not there.

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use futures::StreamExt as _;
use serde_json::Value;
use tokio::fs::{File, OpenOptions};
use tokio::io::AsyncWriteExt as _;

use super::TENANT;
use super::target::{self, Target};
use crate::store::Store;
use crate::transfer;

/// What is added to a result's name while it is written.
const PARTIAL: &str = ".partial";
/// A line of an errors file that is longer is not looked at.
const FIRST_LINE_MAX: u64 = 1 << 20;

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

/// Refuses to begin where a result would take the place of a file that is not this program's.
pub(super) fn must_be_free(target: &Target) -> anyhow::Result<()> {
    let Some(path) = target.file() else {
        return Ok(());
    };
    if path.metadata().is_ok_and(|file| file.len() > 0) {
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

/// Writes one of the batch's files. Without an id, the batch made none: then it is empty.
///
/// A regular file is written beside its place and then renamed, with the mode and the owner of
/// the file that was there. Where that cannot be, it is written in its place.
pub(super) async fn write(
    store: &Store,
    file_id: Option<&str>,
    target: &Target,
) -> anyhow::Result<()> {
    let cannot = || format!("cannot write {target}");
    let Some(path) = target.file() else {
        let mut out = target.open_stream().await?;
        return fill(store, file_id, &mut out).await.with_context(cannot);
    };
    let old = path.metadata().ok();
    // A rename would leave the file's other names behind.
    let has_other_names = old.as_ref().is_some_and(|old| old.nlink() > 1);
    if !has_other_names
        && replace(store, file_id, path, old.as_ref())
            .await
            .with_context(cannot)?
    {
        return Ok(());
    }
    let mut out = OpenOptions::new()
        .write(true)
        .truncate(true)
        .open(path)
        .await
        .with_context(cannot)?;
    fill(store, file_id, &mut out).await.with_context(cannot)?;
    out.sync_all().await.with_context(cannot)
}

/// Writes a file beside its place and renames it. `false`: there is a file that this process
/// cannot replace.
async fn replace(
    store: &Store,
    file_id: Option<&str>,
    path: &Path,
    old: Option<&std::fs::Metadata>,
) -> anyhow::Result<bool> {
    let partial = beside(path, PARTIAL);
    // Never through a symlink that is there.
    remove_if_there(&partial)?;
    let created = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&partial)
        .await;
    let mut out = match created {
        Ok(out) => out,
        // Others may own the directory, and this process the file.
        Err(error) if old.is_some() && error.kind() == ErrorKind::PermissionDenied => {
            return Ok(false);
        }
        Err(error) => return Err(error.into()),
    };
    fill(store, file_id, &mut out).await?;
    out.sync_all().await?;
    if let Some(old) = old
        && !target::take_after(&out.into_std().await, old)?
    {
        remove_if_there(&partial)?;
        return Ok(false);
    }
    match tokio::fs::rename(&partial, path).await {
        Ok(()) => Ok(true),
        // A file that is mounted by itself, as containers do.
        Err(error) if old.is_some() && error.kind() == ErrorKind::ResourceBusy => {
            remove_if_there(&partial)?;
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}

async fn fill(store: &Store, file_id: Option<&str>, out: &mut File) -> anyhow::Result<()> {
    if let Some(file_id) = file_id {
        let file = store
            .file(TENANT, file_id)
            .await?
            .context("the batch's file is gone")?;
        let length = u64::try_from(file.bytes).unwrap_or(0);
        let mut blocks = std::pin::pin!(transfer::content(store, &file, 0..length));
        while let Some(block) = blocks.next().await {
            out.write_all(&block?).await?;
        }
    }
    Ok(out.flush().await?)
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
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Why the first line of an errors file failed, in short.
pub(super) async fn first_cause(store: &Store, file_id: &str) -> Option<String> {
    let file = store.file(TENANT, file_id).await.ok()??;
    let length = u64::try_from(file.bytes).unwrap_or(0).min(FIRST_LINE_MAX);
    let mut blocks = std::pin::pin!(transfer::content(store, &file, 0..length));
    let mut line = Vec::new();
    while !line.contains(&b'\n')
        && let Some(block) = blocks.next().await
    {
        line.extend_from_slice(&block.ok()?);
    }
    let line: Value = serde_json::from_slice(line.split(|&byte| byte == b'\n').next()?).ok()?;
    let custom_id = line["custom_id"].as_str()?;
    let (code, message) = match &line["error"] {
        Value::Null => {
            let response = &line["response"];
            let message = &response["body"]["error"]["message"];
            (response["status_code"].to_string(), message)
        }
        error => (error["code"].as_str()?.to_owned(), &error["message"]),
    };
    let message: String = message
        .as_str()
        .unwrap_or_default()
        .chars()
        .take(200)
        .collect();
    Some(format!("{custom_id}: {code} {message}"))
}
