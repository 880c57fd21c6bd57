//! The files of one batch of a run, in its state directory.

use std::fs;
use std::path::{Path, PathBuf};

/// The tenant of a store that belongs to one user.
pub(super) const TENANT: &str = "default";
/// How the names of what a generation has begin and end; between the two is its number.
const GENERATION_FILES: [(&str, &str); 6] = [
    ("state", ".db"),
    ("state", ".db-wal"),
    ("state", ".db-shm"),
    ("lines", ""),
    ("kept", ".jsonl"),
    ("index", ""),
];

/// The files of one batch of a run. A run that begins anew, sends again what has no answer, or has
/// a changed input begins a new generation beside the old one. The old one is removed once the new
/// one has an outcome: so at any moment one is whole.
#[derive(Clone, Debug)]
pub(super) struct Generation {
    state: PathBuf,
    number: u32,
}

impl Generation {
    pub(super) fn first(state: &Path) -> Generation {
        Generation::of(state, 1)
    }

    pub(super) fn of(state: &Path, number: u32) -> Generation {
        Generation {
            state: state.to_owned(),
            number,
        }
    }

    pub(super) fn state(&self) -> &Path {
        &self.state
    }

    pub(super) fn number(&self) -> u32 {
        self.number
    }

    pub(super) fn next(&self) -> Generation {
        Generation {
            state: self.state.clone(),
            number: self.number + 1,
        }
    }

    /// The store's file.
    pub(super) fn database(&self) -> PathBuf {
        self.file("state", ".db")
    }

    /// What is known of each line of the input.
    pub(super) fn lines(&self) -> PathBuf {
        self.file("lines", "")
    }

    /// Answers of earlier generations, …
    pub(super) fn kept(&self) -> PathBuf {
        self.file("kept", ".jsonl")
    }

    /// … and what each of them answers.
    pub(super) fn index(&self) -> PathBuf {
        self.file("index", "")
    }

    fn file(&self, name: &str, ending: &str) -> PathBuf {
        let number = match self.number {
            1 => String::new(),
            number => format!("-{number}"),
        };
        self.state.join(format!("{name}{number}{ending}"))
    }

    fn has(&self, name: &str) -> bool {
        number_of(name) == Some(self.number)
    }

    /// Removes what this generation has. What cannot be removed does no harm.
    pub(super) fn remove(&self) {
        remove_where(&self.state, |name| self.has(name));
    }
}

/// Whether a file is the lock of a generation's store.
pub(super) fn is_store_lock(name: &str) -> bool {
    let store = name.strip_suffix(".lock");
    store.is_some_and(|store| {
        std::path::Path::new(store)
            .extension()
            .is_some_and(|ext| ext.eq_ignore_ascii_case("db"))
            && number_of(store).is_some()
    })
}

/// The number of the generation that gives a file such a name; `None`: none does.
pub(super) fn number_of(name: &str) -> Option<u32> {
    GENERATION_FILES.iter().find_map(|(kind, ending)| {
        let number = name.strip_prefix(kind)?.strip_suffix(ending)?;
        if number.is_empty() {
            return Some(1);
        }
        let digits = number.strip_prefix('-')?;
        let number: u32 = digits.parse().ok()?;
        // As it is written: no sign, no leading zero, and the first has none.
        (number > 1 && number.to_string() == digits).then_some(number)
    })
}

pub(super) fn remove_where(state: &Path, goes: impl Fn(&str) -> bool) {
    for entry in fs::read_dir(state).into_iter().flatten().flatten() {
        if entry.file_name().to_str().is_some_and(&goes) {
            let _ = fs::remove_file(entry.path());
        }
    }
}
