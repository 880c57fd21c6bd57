//! What a model can do, as far as a request depends on it. That is data: `models.toml`.

use std::sync::LazyLock;

use serde::Deserialize;

use crate::upstream::settings::{Capabilities, CapabilitySettings};

/// What the models can do that this version of the program knows.
static KNOWN: LazyLock<Vec<Entry>> = LazyLock::new(|| {
    #[derive(Deserialize)]
    struct File {
        models: Vec<Entry>,
    }
    // A test reads the file.
    toml::from_str::<File>(include_str!("models.toml")).map_or_else(|_| Vec::new(), |it| it.models)
});

/// How a model is asked to think.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Thinking {
    /// It does not think.
    #[default]
    None,
    /// With a number of tokens.
    Budget,
    /// With a word.
    Effort,
}

/// What a model can do. The keys are explained in `models.toml`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact by itself")]
pub(super) struct Abilities {
    pub(super) sampling: bool,
    pub(super) sampling_both: bool,
    pub(super) structured: bool,
    pub(super) forced_tools: bool,
    pub(super) prefill: bool,
    pub(super) system_midway: bool,
    pub(super) thinks_unasked: bool,
    pub(super) thinks_always: bool,
    pub(super) thinking: Thinking,
    pub(super) efforts: Vec<String>,
    pub(super) max_output: u64,
    /// Whether the model's own limit is known.
    pub(super) is_known: bool,
}

/// An entry of `models.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    #[serde(default)]
    families: Vec<String>,
    from: Option<String>,
    sampling: Option<bool>,
    sampling_both: Option<bool>,
    structured: Option<bool>,
    forced_tools: Option<bool>,
    prefill: Option<bool>,
    system_midway: Option<bool>,
    thinks_unasked: Option<bool>,
    thinks_always: Option<bool>,
    thinking: Option<Thinking>,
    efforts: Option<Vec<String>>,
    max_output: Option<u64>,
}

impl Entry {
    fn is_for(&self, name: Option<&Name<'_>>) -> bool {
        let Some(from) = &self.from else {
            return true;
        };
        name.is_some_and(|name| {
            let is_of_family = |family: &String| name.family == Some(family);
            (self.families.is_empty() || self.families.iter().any(is_of_family))
                && name.version >= version(from)
        })
    }

    fn write_over(&self, all: &mut Abilities) {
        fn set<T: Clone>(to: &mut T, from: Option<&T>) {
            if let Some(from) = from {
                to.clone_from(from);
            }
        }
        set(&mut all.sampling, self.sampling.as_ref());
        set(&mut all.sampling_both, self.sampling_both.as_ref());
        set(&mut all.structured, self.structured.as_ref());
        set(&mut all.forced_tools, self.forced_tools.as_ref());
        set(&mut all.prefill, self.prefill.as_ref());
        set(&mut all.system_midway, self.system_midway.as_ref());
        set(&mut all.thinks_unasked, self.thinks_unasked.as_ref());
        set(&mut all.thinks_always, self.thinks_always.as_ref());
        set(&mut all.thinking, self.thinking.as_ref());
        set(&mut all.efforts, self.efforts.as_ref());
        set(&mut all.max_output, self.max_output.as_ref());
    }
}

impl Abilities {
    /// What the model of this name can do; what the configuration says of it wins.
    pub(super) fn of(model: &str, says: &[CapabilitySettings]) -> Self {
        let name = Name::read(model);
        let mut all = Self {
            is_known: name.is_some(),
            ..Self::default()
        };
        let entries = KNOWN.iter();
        for entry in entries.filter(|entry| entry.is_for(name.as_ref())) {
            entry.write_over(&mut all);
        }
        let said = Capabilities::said(says, model);
        if let Some(output) = said.output {
            all.max_output = output;
            all.is_known = true;
        }
        if said.refuses("temperature") || said.refuses("top_p") {
            all.sampling = false;
        }
        if said.reasoning == Some(false) {
            all.thinking = Thinking::None;
            all.thinks_unasked = false;
        }
        all
    }
}

/// A model's name in its parts: `claude-opus-4-1-20250805`, `claude-3-5-sonnet-latest`, and what
/// clouds make of them, such as `us.anthropic.claude-sonnet-4-5-20250929-v1:0`.
#[derive(Debug, PartialEq, Eq)]
struct Name<'n> {
    family: Option<&'n str>,
    version: (u32, u32),
}

impl<'n> Name<'n> {
    fn read(model: &'n str) -> Option<Self> {
        let at = model.find("claude-")?;
        let rest = &model[at + "claude-".len()..];
        let rest = rest.split([':', '@']).next().unwrap_or_default();
        let is_number = |part: &&str| {
            (1..=2).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit())
        };
        let parts = || rest.split(['-', '.']);
        let mut numbers = parts()
            .skip_while(|part| !is_number(part))
            .take_while(is_number);
        let mut number = || numbers.next().and_then(|part| part.parse().ok());
        let version = (number()?, number().unwrap_or(0));
        let is_word =
            |part: &&str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphabetic());
        Some(Self {
            family: parts().find(is_word),
            version,
        })
    }
}

/// `"4.6"` or `"4"`.
fn version(text: &str) -> (u32, u32) {
    let (major, minor) = text.split_once('.').unwrap_or((text, "0"));
    (major.parse().unwrap_or(0), minor.parse().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::tenant::ModelPattern;

    #[test]
    fn names_are_read_in_each_form_that_is_in_use() {
        for (model, family, version) in [
            ("claude-3-opus-20240229", "opus", (3, 0)),
            ("claude-3-5-sonnet-latest", "sonnet", (3, 5)),
            ("claude-sonnet-4-20250514", "sonnet", (4, 0)),
            ("claude-opus-4-1-20250805", "opus", (4, 1)),
            ("claude-opus-5-5", "opus", (5, 5)),
            ("anthropic/claude-haiku-4.5", "haiku", (4, 5)),
            (
                "us.anthropic.claude-sonnet-4-5-20250929-v1:0",
                "sonnet",
                (4, 5),
            ),
            ("claude-sonnet-4-5@20250929", "sonnet", (4, 5)),
        ] {
            let family = Some(family);
            assert_eq!(Name::read(model), Some(Name { family, version }), "{model}");
        }
        for model in ["gpt-5", "claude", "claude-next", "llama-3"] {
            assert_eq!(Name::read(model), None, "{model}");
        }
    }

    #[test]
    fn the_file_says_what_each_generation_can_do() {
        assert!(!KNOWN.is_empty());
        let old = Abilities::of("claude-3-haiku-20240307", &[]);
        assert!(old.sampling && old.prefill && !old.structured);
        assert_eq!((old.thinking, old.max_output), (Thinking::None, 4_096));
        let middle = Abilities::of("claude-sonnet-4-5-20250929", &[]);
        assert!(middle.sampling && !middle.sampling_both && middle.structured);
        assert_eq!(
            (middle.thinking, middle.max_output),
            (Thinking::Budget, 64_000)
        );
        let new = Abilities::of("claude-opus-5-5", &[]);
        assert!(!new.sampling && !new.prefill && !new.forced_tools && new.thinks_always);
        assert_eq!((new.thinking, new.max_output), (Thinking::Effort, 128_000));
        assert!(Abilities::of("claude-opus-4-6", &[]).sampling);
        assert!(Abilities::of("claude-haiku-4-7", &[]).sampling);
        let says = CapabilitySettings {
            model: ModelPattern::new("claude-*"),
            upstream: None,
            says: Capabilities {
                output: Some(7),
                refuses: vec!["temperature".to_owned()],
                ..Capabilities::default()
            },
        };
        let said = Abilities::of("claude-next", &[says]);
        assert!(!said.sampling && said.is_known && said.max_output == 7);
        let other = Abilities::of("qwen-3", &[]);
        assert!(other.sampling && other.structured && !other.is_known);
    }
}
