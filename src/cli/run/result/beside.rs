//! Files beside the output of a run, which have its name and something more.

use std::path::{Path, PathBuf};

use tokio::fs::{File, OpenOptions};

/// Added to a result's name while the result is written.
pub(in crate::cli::run) const PARTIAL: &str = ".partial";
/// Added to an output's name for the directory of what is needed to go on.
pub(in crate::cli::run) const STATE: &str = ".nightshift";

/// The mode of a file beside one that others may not be allowed to read.
const PRIVATE: u32 = 0o600;

/// A path with something added to its name.
pub(in crate::cli::run) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// `answers.jsonl` → `answers.errors.jsonl`.
pub(in crate::cli::run) fn errors_path(output: &Path) -> PathBuf {
    output.with_extension("errors.jsonl")
}

/// Makes a file, in the place of one that is there. A symlink is not followed.
pub(in crate::cli::run) async fn create(path: &Path, is_private: bool) -> std::io::Result<File> {
    remove_if_there(path)?;
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    if is_private {
        options.mode(PRIVATE);
    }
    options.open(path).await
}

pub(in crate::cli::run) fn remove_if_there(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_file(path) {
        // In a directory that cannot be written, the error does not say that no file is there.
        Err(error) if path.symlink_metadata().is_ok() => Err(error),
        _ => Ok(()),
    }
}
