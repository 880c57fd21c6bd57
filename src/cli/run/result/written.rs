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
pub(in crate::cli::run) struct Results {
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
    pub(in crate::cli::run) fn none(state: &Path) -> Results {
        Results {
            outputs: Some(Vec::new()),
            ..Results::default().within(state)
        }
    }

    /// The same, read from that state directory.
    pub(in crate::cli::run) fn within(self, state: &Path) -> Results {
        Results {
            state: state.to_owned(),
            ..self
        }
    }

    /// Whether a run wrote that output.
    pub(in crate::cli::run) fn has_output(&self, output: &Target) -> bool {
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
    pub(in crate::cli::run) fn note_output(&mut self, output: &Target) {
        if let Some(file) = output.file() {
            let file = relative(&self.state, file);
            let outputs = self.outputs.get_or_insert_default();
            if !outputs.contains(&file) {
                outputs.push(file);
            }
        }
    }

    /// Whether a run wrote that errors file.
    pub(in crate::cli::run) fn has_errors(&self, errors: &Target) -> bool {
        let Some(file) = errors.file() else {
            return false;
        };
        let of_old = |wrote: &PathBuf| whole(wrote) == whole(file);
        self.errors.contains(&relative(&self.state, file)) || self.errors_files.iter().any(of_old)
    }

    /// Notes an errors file that is about to be written.
    pub(in crate::cli::run) fn note_errors(&mut self, errors: &Target) {
        if let Some(file) = errors.file() {
            let file = relative(&self.state, file);
            if !self.errors.contains(&file) {
                self.errors.push(file);
            }
        }
    }

    /// Notes that a file is empty or not there, and that no run has written it: whatever appears
    /// at its name before this run writes it is somebody else's.
    pub(in crate::cli::run) fn note_free(&mut self, target: &Target) {
        if let Some(path) = target.file() {
            self.forget_content(path);
            self.note_content(path, Fingerprint::empty());
        }
    }

    /// Notes the content that a file is about to have. The content that the file has stays noted:
    /// until the new one has taken its place, the file has the earlier one.
    pub(in crate::cli::run) fn note_content(&mut self, path: &Path, content: Fingerprint) {
        let file = relative(&self.state, path);
        let (of_file, mut others): (Vec<_>, Vec<_>) = std::mem::take(&mut self.written)
            .into_iter()
            .partition(|written| written.file == file);
        // A run that was killed before a rename has noted a content that the file never had.
        let has = |written: &&Written| written.content.fits(path).unwrap_or(false);
        let current = of_file.iter().rev().find(has).or(of_file.last());
        others.extend(current.cloned());
        others.push(Written { file, content });
        self.written = others;
    }

    /// Forgets what a file was: it is about to be written in its place, and has any content until
    /// that is done.
    pub(in crate::cli::run) fn forget_content(&mut self, file: &Path) {
        let file = relative(&self.state, file);
        self.written.retain(|written| written.file != file);
    }

    /// Notes what a file is now: its owner has given it up.
    pub(in crate::cli::run) fn give_up(&mut self, target: &Target) -> anyhow::Result<()> {
        self.note_free(target);
        if let Some(path) = target.file()
            && path.is_file()
        {
            let content = Fingerprint::of(path).with_context(|| format!("cannot read {target}"))?;
            self.note_content(path, content);
        }
        Ok(())
    }

    /// Whether a file's owner has given it up, and the file is what it was then. That a run wrote
    /// the file is the same.
    pub(in crate::cli::run) fn is_given_up(&self, target: &Target) -> bool {
        target.file().is_some_and(|path| {
            let file = relative(&self.state, path);
            let mut of_file = self.written.iter().filter(|written| written.file == file);
            of_file.any(|written| {
                !written.content.is_empty() && written.content.fits(path).unwrap_or(false)
            })
        })
    }

    /// Refuses where a file was changed after a run wrote it. An empty file has nothing to lose.
    pub(in crate::cli::run) fn must_be_unchanged(&self, target: &Target) -> anyhow::Result<()> {
        let Some(path) = target.file() else {
            return Ok(());
        };
        let file = relative(&self.state, path);
        let mut written = self.written.iter().filter(|written| written.file == file);
        let (mut is_known, mut was_free) = (false, true);
        let is_empty = path.metadata().map_or(true, |found| found.len() == 0);
        let fits = written.try_fold(is_empty, |fits, written| {
            is_known = true;
            was_free &= written.content.is_empty();
            Ok::<_, std::io::Error>(fits || written.content.fits(path)?)
        });
        let fits = fits.with_context(|| format!("cannot read {target}"))?;
        if is_known && !fits {
            let what = if was_free {
                "has appeared, and no run wrote it"
            } else {
                "was changed after a run wrote it"
            };
            bail!(
                "{target} {what}: move it away, and the same command \
                 writes a new one and sends nothing twice; or use --restart, which overwrites it \
                 and sends every request again"
            );
        }
        Ok(())
    }
}

/// Whether a file is in the state directory.
pub(in crate::cli::run) fn is_within(state: &Path, file: &Path) -> bool {
    whole(file).starts_with(whole_state(state))
}

/// A file's path from the state directory.
fn relative(state: &Path, file: &Path) -> PathBuf {
    let file = whole(file);
    pathdiff::diff_paths(&file, whole_state(state)).unwrap_or(file)
}

fn whole_state(state: &Path) -> PathBuf {
    state.canonicalize().unwrap_or_else(|_| whole(state))
}

/// A path from the root, without symlinks but for its last part.
fn whole(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    match (path.parent().map(Path::canonicalize), path.file_name()) {
        (Some(Ok(directory)), Some(name)) => directory.join(name),
        _ => path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_file_holds_stays_noted_where_two_writes_in_a_row_are_cut_off() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("out.jsonl");
        let content = |text: &str| {
            let other = directory.path().join("other");
            std::fs::write(&other, text).unwrap();
            Fingerprint::of(&other).unwrap()
        };
        let mut results = Results::none(directory.path());
        let target = Target::of(&path).unwrap();
        results.note_free(&target);
        std::fs::write(&path, "first").unwrap();
        assert!(results.must_be_unchanged(&target).is_err(), "it appeared");
        results.note_content(&path, content("first"));
        assert!(results.must_be_unchanged(&target).is_ok());
        // Neither of these takes its place.
        results.note_content(&path, content("the second"));
        results.note_content(&path, content("and the third"));
        assert!(results.must_be_unchanged(&target).is_ok());
        std::fs::write(&path, "the second").unwrap();
        assert!(results.must_be_unchanged(&target).is_err());
        std::fs::write(&path, "and the third").unwrap();
        assert!(results.must_be_unchanged(&target).is_ok());
    }
}
