//! What a run remembers beside its store: which input it is on, and which batch that is.

use std::fs;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use secrecy::ExposeSecret as _;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::generation::{Generation, is_store_lock, number_of, remove_where};
use super::result::written::Results;
use crate::config::Config;
use crate::domain::batch::Counts;

const NAME: &str = "run.json";
/// A copy of an input that cannot be read twice, while a run begins.
pub(super) const INPUT_COPY: &str = "input.tmp";

/// Written when the whole input is in the store: without it there is nothing to go on with.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Journal {
    #[serde(skip)]
    state: PathBuf,
    generation: u32,
    input_sha256: String,
    /// What flags changed in the input's lines.
    reshape: String,
    /// `None`: every answer is kept from earlier generations.
    batch_id: Option<String>,
    /// How many answers are kept from earlier generations.
    kept: u64,
    /// A hash of the upstreams and their keys, from which no key can be read.
    upstream: String,
    salt: String,
    #[serde(flatten)]
    pub(super) results: Results,
    /// The run whose place this one is to take. The earlier run stays whole until this one has an
    /// answer or its end, and takes its place again where this one stops before both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    earlier: Option<Box<Journal>>,
}

impl Journal {
    pub(super) fn new(
        generation: &Generation,
        input_sha256: String,
        batch_id: Option<String>,
        kept: u64,
        reshape: String,
    ) -> Journal {
        Journal {
            state: generation.state().to_owned(),
            generation: generation.number(),
            input_sha256,
            reshape,
            batch_id,
            kept,
            upstream: String::new(),
            salt: uuid::Uuid::new_v4().to_string(),
            results: Results::none(generation.state()),
            earlier: None,
        }
    }

    /// The same, in the place of an earlier run.
    pub(super) fn in_place_of(self, earlier: Journal) -> Journal {
        Journal {
            results: earlier.results.clone(),
            earlier: Some(Box::new(Journal {
                earlier: None,
                ..earlier
            })),
            ..self
        }
    }

    pub(super) fn state(&self) -> &Path {
        &self.state
    }

    /// Whether the run is on an input with this hash.
    pub(super) fn is_on(&self, input_sha256: &str) -> bool {
        self.input_sha256 == input_sha256
    }

    /// What flags changed in the input's lines.
    pub(super) fn reshape(&self) -> &str {
        &self.reshape
    }

    /// `None`: every answer is kept from earlier generations.
    pub(super) fn batch_id(&self) -> Option<&str> {
        self.batch_id.as_deref()
    }

    /// How many answers are kept from earlier generations.
    pub(super) fn kept(&self) -> u64 {
        self.kept
    }

    /// The files of this run's batch.
    pub(super) fn generation(&self) -> Generation {
        Generation::of(&self.state, self.generation)
    }

    /// Whether the run has an answer, where its batch has come to so much. Only an answer is an
    /// outcome for which an earlier run is given up: a request that failed gave nothing.
    pub(super) fn has_answers(&self, counts: Counts) -> bool {
        self.kept > 0 || counts.completed > 0
    }

    /// The run whose place this one is to take.
    pub(super) fn earlier(&self) -> Option<&Journal> {
        self.earlier.as_deref()
    }

    /// Whether an earlier run would take this one's place again.
    pub(super) fn has_earlier(&self) -> bool {
        self.earlier.is_some()
    }

    /// Gives the earlier run its place again, if there is one.
    pub(super) fn into_earlier(self) -> Option<Journal> {
        self.earlier.map(|earlier| *earlier)
    }

    /// Writes that this run has taken the place of the earlier one, of which nothing is left.
    pub(super) fn forget_earlier(&mut self) -> anyhow::Result<()> {
        if self.earlier.take().is_some() {
            self.write()?;
            self.remove_strays();
        }
        Ok(())
    }

    /// Removes what belongs neither to this run nor to the earlier one.
    pub(super) fn remove_strays(&self) {
        let earlier = self.earlier.as_ref().map(|earlier| earlier.generation);
        remove_where(&self.state, |name| {
            let number = number_of(name);
            number.is_some_and(|number| number != self.generation && Some(number) != earlier)
        });
    }

    /// Notes where lines go, and with which keys.
    pub(super) fn note_upstream(&mut self, config: &Config) {
        self.upstream = upstream(&self.salt, config);
    }

    /// Whether lines go where they went, with the same keys.
    pub(super) fn is_upstream(&self, config: &Config) -> bool {
        self.upstream == upstream(&self.salt, config)
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
        Ok(Some(journal.within(state)))
    }

    fn within(self, state: &Path) -> Journal {
        let within = |earlier: Box<Journal>| Box::new(earlier.within(state));
        Journal {
            state: state.to_owned(),
            results: self.results.within(state),
            earlier: self.earlier.map(within),
            ..self
        }
    }

    /// Writes it whole or not at all.
    pub(super) fn write(&self) -> anyhow::Result<()> {
        let path = self.state.join(NAME);
        let mut file = tempfile::NamedTempFile::new_in(&self.state)?;
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
        // One key, or none, as it was before there could be several.
        let none = upstream.keys.is_empty().then_some("");
        let keys = upstream.keys.iter().map(|key| key.secret.expose_secret());
        keys.chain(none).for_each(&mut add);
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
            "lines.jsonl",
            "index.jsonl",
            "kept",
            "state",
            "lines-02",
            "lines-1",
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
        Journal::new(&first.next(), String::new(), None, 0, String::new()).remove_strays();
        let others = [
            "errors.jsonl",
            "index.jsonl",
            "kept",
            "kept-list.jsonl",
            "lines-02",
            "lines-1",
            "lines.jsonl",
            "lines.txt",
            "run.json",
            "run.lock",
            "state",
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
