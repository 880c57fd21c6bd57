//! An engine's prefix cache: what it has computed of how requests begin, and need not compute again
//! for the next one that begins so.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::call::{Input, Item};

/// How a request begins: its first message, whatever its endpoint calls that.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Beginning {
    model: Option<String>,
    system: Option<Input>,
    instructions: Option<Input>,
    messages: Option<Input>,
    prompt: Option<Input>,
    input: Option<Input>,
}

impl Beginning {
    fn first(&self) -> Option<Item> {
        let all = [
            &self.system,
            &self.instructions,
            &self.messages,
            &self.prompt,
            &self.input,
        ];
        all.into_iter().flatten().find_map(Input::first)
    }
}

/// The beginnings that came last.
pub(super) struct PrefixCache {
    entries: usize,
    pages: Mutex<Pages>,
}

#[derive(Default)]
struct Pages {
    /// That which came last stands last.
    kept: VecDeque<(String, u64)>,
    stats: PrefixStats,
}

/// How often a request began like one that was kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PrefixStats {
    pub hits: u64,
    pub misses: u64,
}

impl PrefixCache {
    /// Keeps so many beginnings.
    pub(super) fn of(entries: usize) -> Self {
        Self {
            entries,
            pages: Mutex::default(),
        }
    }

    /// A request comes: how many of its tokens need not be computed.
    pub(super) fn enter(&self, body: &[u8]) -> usize {
        let beginning: Beginning = serde_json::from_slice(body).unwrap_or_default();
        let Some(first) = beginning.first() else {
            return 0;
        };
        let key = (beginning.model.unwrap_or_default(), first.fingerprint);
        let mut pages = self.pages();
        let known = pages.kept.iter().position(|one| *one == key);
        match known {
            Some(place) => {
                pages.kept.remove(place);
                pages.stats.hits += 1;
            }
            None => pages.stats.misses += 1,
        }
        pages.kept.push_back(key);
        if pages.kept.len() > self.entries {
            pages.kept.pop_front();
        }
        known.map_or(0, |_| first.tokens)
    }

    pub(super) fn stats(&self) -> PrefixStats {
        self.pages().stats
    }

    /// Counts from zero again, and keeps nothing.
    pub(super) fn reset(&self) {
        *self.pages() = Pages::default();
    }

    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_beginnings_that_came_last_are_kept() {
        let cache = PrefixCache::of(2);
        let chat = |system: &str, user: &str| {
            let body = serde_json::json!({
                "model": "m",
                "messages": [{"role": "system", "content": system}, {"content": user}],
            });
            cache.enter(body.to_string().as_bytes()) > 0
        };
        assert!(!chat("a", "1"));
        assert!(chat("a", "2"));
        assert!(!chat("b", "1"));
        assert!(chat("a", "3"));
        assert!(!chat("c", "1"), "takes the place of b");
        assert!(chat("a", "4"));
        assert!(!chat("b", "2"));
        assert_eq!(cache.stats(), PrefixStats { hits: 3, misses: 4 });
        let of_another = br#"{"model":"n","messages":[{"role":"system","content":"b"}]}"#;
        assert_eq!(cache.enter(of_another), 0);
        let long = br#"{"model":"m","instructions":"12345678","input":"a"}"#;
        assert_eq!((cache.enter(long), cache.enter(long)), (0, 2));
    }
}
