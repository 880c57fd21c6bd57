//! What a run remembers beside its store: which input it is on, and which batch that is.

use std::fs;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use secrecy::ExposeSecret as _;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::files::{STATE, beside};
use super::generation::{Generation, is_store_lock, number_of, remove_where};
use super::target::Target;
use crate::config::Config;

const NAME: &str = "run.json";
/// A copy of an input that cannot be read twice, while a run begins.
pub(super) const INPUT_COPY: &str = "input.tmp";

/// Written when the whole input is in the store: without it there is nothing to go on with.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Journal {
    #[serde(skip)]
    pub state: PathBuf,
    pub generation: u32,
    pub input_sha256: String,
    /// What flags changed in the input's lines.
    pub reshape: String,
    /// `None`: every answer is kept from earlier generations.
    pub batch_id: Option<String>,
    /// How many answers are kept from earlier generations.
    pub kept: u64,
    /// Tells whether lines go to the same upstreams with the same keys, and tells no key.
    pub upstream: String,
    pub salt: String,
    /// Where answers went, from the state directory: so that all may be moved together. `None`:
    /// written by a version that did not note them.
    #[serde(default)]
    outputs: Option<Vec<PathBuf>>,
    /// The errors files that runs of this output wrote, from the state directory.
    #[serde(default)]
    errors: Vec<PathBuf>,
    /// The same, as earlier versions noted them: from the root, or from where they ran.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    errors_files: Vec<PathBuf>,
}

impl Journal {
    pub(super) fn new(
        generation: &Generation,
        input_sha256: String,
        batch_id: Option<String>,
        reshape: String,
    ) -> Journal {
        Journal {
            state: generation.state().to_owned(),
            generation: generation.number(),
            input_sha256,
            reshape,
            batch_id,
            kept: 0,
            upstream: String::new(),
            salt: uuid::Uuid::new_v4().to_string(),
            outputs: Some(Vec::new()),
            errors: Vec::new(),
            errors_files: Vec::new(),
        }
    }

    /// The same, knowing what earlier runs wrote.
    pub(super) fn after(self, earlier: Journal) -> Journal {
        Journal {
            outputs: earlier.outputs,
            errors: earlier.errors,
            errors_files: earlier.errors_files,
            ..self
        }
    }

    pub(super) fn generation(&self, state: &Path) -> Generation {
        Generation::of(state, self.generation)
    }

    /// Notes where lines go, and with which keys.
    pub(super) fn note_upstream(&mut self, config: &Config) {
        self.upstream = upstream(&self.salt, config);
    }

    /// Whether lines go where they went, with the same keys.
    pub(super) fn is_upstream(&self, config: &Config) -> bool {
        self.upstream == upstream(&self.salt, config)
    }

    /// Whether an earlier run with this state directory wrote that output.
    pub(super) fn wrote_output(&self, output: &Target) -> bool {
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

    /// Whether a run of this output wrote that errors file.
    pub(super) fn wrote_errors(&self, errors: &Target) -> bool {
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

    pub(super) fn read(state: &Path) -> anyhow::Result<Option<Journal>> {
        let path = state.join(NAME);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", path.display()));
            }
        };
        let journal: Result<Journal, _> = serde_json::from_slice(&text);
        let damaged = || format!("{} is damaged; --restart begins anew", path.display());
        let journal = journal.with_context(damaged)?;
        Ok(Some(Journal {
            state: state.to_owned(),
            ..journal
        }))
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
    /// nothing. Only files of this program's own names are touched, and none while a server has
    /// the store.
    pub(super) fn clear(state: &Path) -> anyhow::Result<()> {
        must_be_unused(state)?;
        let path = state.join(NAME);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", path.display()));
            }
            _ => {}
        }
        remove_where(state, |name| {
            name == INPUT_COPY || number_of(name).is_some()
        });
        Ok(())
    }
}

/// Refuses where another process has one of the stores.
pub(super) fn must_be_unused(state: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(state).into_iter().flatten().flatten() {
        if !entry.file_name().to_str().is_some_and(is_store_lock) {
            continue;
        }
        let lock = fs::File::options().write(true).open(entry.path());
        if let Ok(lock) = lock
            && matches!(lock.try_lock(), Err(fs::TryLockError::WouldBlock))
        {
            bail!("another nightshift server is using {}", state.display());
        }
    }
    Ok(())
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

/// A name of all upstreams, their keys and what they call the models.
fn upstream(salt: &str, config: &Config) -> String {
    let mut sha = Sha256::new();
    let mut add = |text: &str| {
        sha.update((text.len() as u64).to_le_bytes());
        sha.update(text);
    };
    add(salt);
    for upstream in &config.upstreams {
        add(&upstream.name);
        add(&upstream.base_url);
        add(upstream
            .api_key
            .as_ref()
            .map_or("", |key| key.expose_secret()));
        for (name, value) in &upstream.headers {
            add(name);
            add(value.expose_secret());
        }
    }
    for model in &config.models {
        add(&model.name);
        for route in &model.routes {
            add(&route.upstream);
            add(route.model.as_deref().unwrap_or_default());
        }
    }
    hex::encode(sha.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_of_a_generation_are_removed() {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path();
        let first = Generation::first(state);
        let names = [
            "state.db",
            "state.db-wal",
            "lines",
            "kept.jsonl",
            "index",
            "state-2.db",
            "lines-2",
            "kept-2.jsonl",
            "index-2",
            "run.json",
            "errors.jsonl",
            "lines.txt",
            "kept-list.jsonl",
            "state.db.lock",
            "run.lock",
        ];
        for name in names {
            fs::write(state.join(name), "").unwrap();
        }
        let left = || {
            let entries = fs::read_dir(state).unwrap();
            let mut left: Vec<_> = entries
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            left.sort();
            left
        };
        first.next().remove_others();
        let others = [
            "errors.jsonl",
            "kept-list.jsonl",
            "lines.txt",
            "run.json",
            "run.lock",
            "state.db.lock",
        ];
        let second = ["index-2", "kept-2.jsonl", "lines-2", "state-2.db"];
        let mut expected = [&others[..], &second].concat();
        expected.sort_unstable();
        assert_eq!(left(), expected);
        Journal::clear(state).unwrap();
        assert_eq!(
            left(),
            others
                .into_iter()
                .filter(|name| *name != "run.json")
                .collect::<Vec<_>>()
        );
    }
}
