//! The files of a run: none is overwritten by another, and each is whole or not there.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use futures::StreamExt as _;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};

use super::TENANT;
use crate::store::Store;
use crate::transfer;

/// Refuses to begin where one of the files would take another's place.
pub(super) fn must_differ(input: &Path, output: &Path, errors: &Path) -> anyhow::Result<()> {
    let named = [
        ("input", input),
        ("output", output),
        ("errors file", errors),
    ];
    for (at, (one, path)) in named.iter().enumerate() {
        for (other, other_path) in &named[at + 1..] {
            if path.as_os_str() != "-" && is_same(path, other_path) {
                bail!(
                    "the {one} and the {other} are the same file, {}: name another with \
                     --output or --errors",
                    path.display()
                );
            }
        }
    }
    Ok(())
}

/// Refuses to begin where a result has no place to go, or would take the place of a file that is
/// not this program's.
pub(super) fn must_be_free(path: &Path) -> anyhow::Result<()> {
    if path.is_dir() {
        bail!("{} is a directory: name a file", path.display());
    }
    if path.metadata().is_ok_and(|file| file.len() > 0) {
        bail!(
            "{} is there already, and no run of this output wrote it: name another, or use \
             --restart to overwrite it",
            path.display()
        );
    }
    Ok(())
}

/// Refuses to begin where there is no directory for a result.
pub(super) fn must_have_place(path: &Path) -> anyhow::Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() && !parent.is_dir() => {
            bail!(
                "cannot write {}: there is no directory {}",
                path.display(),
                parent.display()
            )
        }
        _ => Ok(()),
    }
}

/// Whether two paths name one file, be it by another name. Neither need be there.
fn is_same(one: &Path, other: &Path) -> bool {
    let resolved = |path: &Path| {
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let whole = path.canonicalize().ok();
        whole.or_else(|| Some(parent.canonicalize().ok()?.join(path.file_name()?)))
    };
    match (resolved(one), resolved(other)) {
        (Some(one), Some(other)) => one == other,
        _ => one == other,
    }
}

/// Writes one of the batch's files beside its place and then renames it. Without an id, the batch
/// made none: then it is empty.
pub(super) async fn write(store: &Store, file_id: Option<&str>, path: &Path) -> anyhow::Result<()> {
    let cannot = || format!("cannot write {}", path.display());
    let partial = beside(path, ".partial");
    let mut out = tokio::fs::File::create(&partial)
        .await
        .with_context(cannot)?;
    if let Some(file_id) = file_id {
        let file = store
            .file(TENANT, file_id)
            .await?
            .context("the batch's file is gone")?;
        let length = u64::try_from(file.bytes).unwrap_or(0);
        let mut blocks = std::pin::pin!(transfer::content(store, &file, 0..length));
        while let Some(block) = blocks.next().await {
            out.write_all(&block?).await.with_context(cannot)?;
        }
    }
    out.flush().await.with_context(cannot)?;
    out.sync_all().await.with_context(cannot)?;
    tokio::fs::rename(&partial, path).await.with_context(cannot)
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

/// Removes a file that an earlier run wrote.
pub(super) fn remove(path: &Path) -> anyhow::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove the old {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Why the first line of an errors file failed, in short.
pub(super) async fn first_cause(errors: &Path) -> Option<String> {
    let file = tokio::fs::File::open(errors).await.ok()?;
    let mut line = String::new();
    BufReader::new(file).read_line(&mut line).await.ok()?;
    let line: Value = serde_json::from_str(&line).ok()?;
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
