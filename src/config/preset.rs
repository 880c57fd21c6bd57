//! `preset`: what is known of a server by its name. That is data: `presets.toml`.

use reqwest::Url;

use super::error::nearest;
use super::reader::{Item, Reader};
use super::value::read_presets;

const PRESETS: &str = include_str!("presets.toml");

/// Each names a key, so that a preset names none beside it.
const KEYS: [&str; 4] = [
    "api_key_env",
    "api_key_file",
    "api_key_envs",
    "api_key_files",
];
const NAMED_KEY: &str = KEYS[0];

/// An upstream with a preset, and what the preset filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Preset {
    /// The upstream's name.
    pub upstream: String,
    /// The preset's.
    pub name: String,
    /// Each key that it filled in, as it is written: `provider = "openai"`.
    pub filled: Vec<String>,
}

/// What a preset says that no key of an upstream does.
#[derive(Default)]
pub(super) struct Known {
    pub(super) preset: Option<Preset>,
    /// A URL as each user has one of their own.
    pub(super) example: Option<String>,
    /// Stands behind a `base_url` that has no path.
    pub(super) path: Option<String>,
}

/// Reads `preset`, and fills in what is not written.
pub(super) fn fill(reader: &mut Reader<'_>, upstream: &str) -> Known {
    let Some(item) = reader.take("preset") else {
        return Known::default();
    };
    let Some(name) = item.string() else {
        return Known::default();
    };
    let mut all = read_presets(PRESETS);
    let Some(mut preset) = all.remove(&name) else {
        unknown(&item, &name, all.keys().map(String::as_str));
        return Known::default();
    };
    let example = preset.remove("example");
    let example = example.and_then(|node| node.as_str().map(str::to_owned));
    let base_url = preset.get("base_url").and_then(|node| node.as_str());
    let path = example.as_deref().or(base_url).and_then(path_of);
    if KEYS.iter().any(|key| reader.has(key)) {
        preset.remove(NAMED_KEY);
    }
    let filled = reader.fill(preset);
    Known {
        preset: Some(Preset {
            upstream: upstream.to_owned(),
            name,
            filled,
        }),
        example,
        path,
    }
}

fn unknown<'p>(item: &Item<'_>, name: &str, known: impl Iterator<Item = &'p str>) {
    let nearest = nearest(name, known).unwrap_or_default();
    item.fault(format!("unknown preset; the nearest is {nearest}"));
}

fn path_of(url: &str) -> Option<String> {
    let url = Url::parse(url).ok()?;
    let path = url.path().trim_end_matches('/');
    (!path.is_empty()).then(|| path.to_owned())
}
