//! Which files the runs with a state directory have written: only these may be overwritten.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};

use super::beside::{STATE, beside};
use super::fingerprint::Fingerprint;
use super::target::Target;

/// The files that runs have written. Paths are from the state directory, so that all files may be
/// moved together.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Results {
    #[serde(skip)]
    state: PathBuf,
    /// `None`: written by a version that did not note outputs.
    #[serde(default)]
    outputs: Option<Vec<PathBuf>>,
    #[serde(default)]
    errors: Vec<PathBuf>,
    /// Errors files as earlier versions noted them: from the root, or from where they ran.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    errors_files: Vec<PathBuf>,
    /// What the files were when they were written. A file may have two entries: the earlier one
    /// counts until the later content has taken its place.
    #[serde(default)]
    written: Vec<Written>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Written {
    file: PathBuf,
    #[serde(flatten)]
    content: Fingerprint,
}

impl Results {
    pub(super) fn none(state: &Path) -> Results {
        Results {
            outputs: Some(Vec::new()),
            ..Results::default().within(state)
        }
    }

    /// The same, read from that state directory.
    pub(super) fn within(self, state: &Path) -> Results {
        Results {
            state: state.to_owned(),
            ..self
        }
    }

    /// Whether a run wrote that output.
    pub(super) fn has_output(&self, output: &Target) -> bool {
        let Some(file) = output.file() else {
            return false;
        };
        match &self.outputs {
            Some(outputs) => outputs.contains(&relative(&self.state, file)),
            // Its own state directory is beside it.
            None => whole(&beside(file, STATE)) == whole(&self.state),
        }
    }

    /// Notes an output that is about to be written.
    pub(super) fn note_output(&mut self, output: &Target) {
        if let Some(file) = output.file() {
            let file = relative(&self.state, file);
            let outputs = self.outputs.get_or_insert_default();
            if !outputs.contains(&file) {
                outputs.push(file);
            }
        }
    }

    /// Whether a run wrote that errors file.
    pub(super) fn has_errors(&self, errors: &Target) -> bool {
        let Some(file) = errors.file() else {
            return false;
        };
        let of_old = |wrote: &PathBuf| whole(wrote) == whole(file);
        self.errors.contains(&relative(&self.state, file)) || self.errors_files.iter().any(of_old)
    }

    /// Notes an errors file that is about to be written.
    pub(super) fn note_errors(&mut self, errors: &Target) {
        if let Some(file) = errors.file() {
            self.errors.push(relative(&self.state, file));
        }
    }

    /// Notes the content that a file is about to have. The earlier content stays noted: until the
    /// new one has taken its place, the file has the earlier one.
    pub(super) fn note_content(&mut self, file: &Path, content: Fingerprint) {
        let file = relative(&self.state, file);
        let mut latest = None;
        self.written.retain(|written| {
            if written.file != file {
                return true;
            }
            latest = Some(written.clone());
            false
        });
        self.written.extend(latest);
        self.written.push(Written { file, content });
    }

    /// Forgets what a file was: it is about to be written in its place, and has any content until
    /// that is done.
    pub(super) fn forget_content(&mut self, file: &Path) {
        let file = relative(&self.state, file);
        self.written.retain(|written| written.file != file);
    }

    /// Notes what a file is now: its owner has given it up.
    pub(super) fn give_up(&mut self, target: &Target) -> anyhow::Result<()> {
        let Some(path) = target.file() else {
            return Ok(());
        };
        self.forget_content(path);
        if path.is_file() {
            let content = Fingerprint::of(path).with_context(|| format!("cannot read {target}"))?;
            self.note_content(path, content);
        }
        Ok(())
    }

    /// Refuses where a file was changed after a run wrote it. An empty file has nothing to lose.
    pub(super) fn must_be_unchanged(&self, target: &Target) -> anyhow::Result<()> {
        let Some(path) = target.file() else {
            return Ok(());
        };
        let file = relative(&self.state, path);
        let mut written = self.written.iter().filter(|written| written.file == file);
        let mut is_known = false;
        let is_empty = path.metadata().map_or(true, |found| found.len() == 0);
        let fits = written.try_fold(is_empty, |fits, written| {
            is_known = true;
            Ok::<_, std::io::Error>(fits || written.content.fits(path)?)
        });
        let fits = fits.with_context(|| format!("cannot read {target}"))?;
        if is_known && !fits {
            bail!(
                "{target} was changed after a run wrote it: move it away, and the same command \
                 writes a new one and sends nothing twice; or use --restart, which overwrites it \
                 and sends every request again"
            );
        }
        Ok(())
    }
}

/// A file's path from the state directory.
fn relative(state: &Path, file: &Path) -> PathBuf {
    let file = whole(file);
    let state = state.canonicalize().unwrap_or_else(|_| whole(state));
    pathdiff::diff_paths(&file, state).unwrap_or(file)
}

/// A path from the root, without symlinks but for its last part.
fn whole(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    match (path.parent().map(Path::canonicalize), path.file_name()) {
        (Some(Ok(directory)), Some(name)) => directory.join(name),
        _ => path,
    }
}
