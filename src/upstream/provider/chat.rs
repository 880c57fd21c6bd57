//! What the translations of requests for chat completions have in common, whichever provider they
//! are for: what becomes of a key that the provider does not have, the parts of messages, and names
//! that the provider does not allow.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use super::interface::Unsupported;
use super::tree::{Member, Tree};
use crate::domain::asked;
use crate::domain::outcome::{Warning, WarningCode};
use crate::upstream::settings::UnsupportedParams;

/// What becomes of a key of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rule {
    /// The translation reads the key.
    Mapped,
    /// The key is sent as it is.
    Passed,
    /// The key does not change what is answered: it is left out, with a warning.
    Harmless,
    /// The key changes the answer, which would be one without it, too: as the upstream's
    /// `unsupported_params` says.
    Unsupported,
    /// An answer without the key would be no answer to the request.
    Refused,
}

/// What becomes of each key that a provider's translation knows of. A key that is not here is
/// unsupported.
pub(super) type Rules = [(&'static str, Rule)];

/// The keys of OpenAI's requests for chat completions.
#[cfg(test)]
pub(super) const KEYS: [&str; 37] = [
    "audio",
    "frequency_penalty",
    "function_call",
    "functions",
    "logit_bias",
    "logprobs",
    "max_completion_tokens",
    "max_tokens",
    "messages",
    "metadata",
    "modalities",
    "model",
    "moderation",
    "n",
    "parallel_tool_calls",
    "prediction",
    "presence_penalty",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "reasoning_effort",
    "response_format",
    "safety_identifier",
    "seed",
    "service_tier",
    "stop",
    "store",
    "stream",
    "stream_options",
    "temperature",
    "tool_choice",
    "tools",
    "top_logprobs",
    "top_p",
    "user",
    "verbosity",
    "web_search_options",
];

/// Whether a member of a request asks for nothing: then it is passed over without a word.
pub(super) fn asks_for_nothing(key: &str, value: &Tree<'_>) -> bool {
    let is_text_alone = |items: &[Tree<'_>]| items.iter().all(|item| item.is_text("text"));
    match value {
        Tree::Plain(written) => asked::asks_for_nothing(key, written),
        Tree::List(items) => items.is_empty() || (key == "modalities" && is_text_alone(items)),
        Tree::Object(members) => members.is_empty(),
    }
}

/// A value that the request must not have, in words.
pub(super) fn refused(param: impl Into<String>, reason: impl Into<String>) -> Unsupported {
    Unsupported {
        param: param.into(),
        reason: reason.into(),
    }
}

/// What a translation has to say beside the request that it makes.
#[derive(Debug)]
pub(super) struct Notes {
    policy: UnsupportedParams,
    /// Up to [`WARNINGS_MAX`], and one that says how many more there would be.
    pub(super) warnings: Vec<Warning>,
    /// How many more there would be.
    more: u64,
}

/// How many warnings of one translation are told one by one. A line can give cause for millions.
const WARNINGS_MAX: usize = 100;

impl Notes {
    pub(super) fn new(policy: UnsupportedParams) -> Self {
        Self {
            policy,
            warnings: Vec::new(),
            more: 0,
        }
    }

    /// Something is left out that does not change the answer.
    pub(super) fn dropped(&mut self, param: impl Into<String>, message: impl Into<String>) {
        self.warn(WarningCode::ParameterDropped, param, message);
    }

    /// Something is asked for in another way.
    pub(super) fn changed(&mut self, param: impl Into<String>, message: impl Into<String>) {
        self.warn(WarningCode::ParameterChanged, param, message);
    }

    /// Something is left out if the upstream's settings say so.
    pub(super) fn unsupported(
        &mut self,
        param: impl Into<String>,
        reason: impl Into<String>,
    ) -> Result<(), Unsupported> {
        match self.policy {
            UnsupportedParams::Reject => Err(refused(param, reason)),
            UnsupportedParams::Drop => {
                self.dropped(param, reason);
                Ok(())
            }
        }
    }

    fn warn(&mut self, code: WarningCode, param: impl Into<String>, message: impl Into<String>) {
        let warning = Warning {
            code,
            param: param.into(),
            message: message.into(),
        };
        if self.warnings.len() < WARNINGS_MAX {
            self.warnings.push(warning);
            return;
        }
        self.more += 1;
        self.warnings.truncate(WARNINGS_MAX);
        self.warnings.push(Warning {
            message: format!("{}, and {} warnings more", warning.message, self.more - 1),
            ..warning
        });
    }

    /// Judges each member of an object by the rules; returns those that are sent as they are.
    /// `place`: what stands before the keys, such as `messages[0].`; `api`: whose API it is.
    pub(super) fn judge<'a>(
        &mut self,
        members: &[Member<'a>],
        rules: &Rules,
        place: &str,
        api: &str,
    ) -> Result<Vec<Member<'a>>, Unsupported> {
        let mut passed = Vec::new();
        for member in members {
            if self.passes(member, rules, place, api)? {
                passed.push(member.clone());
            }
        }
        Ok(passed)
    }

    /// Judges one member of an object; whether it is sent as it is.
    pub(super) fn passes(
        &mut self,
        (key, value): &Member<'_>,
        rules: &Rules,
        place: &str,
        api: &str,
    ) -> Result<bool, Unsupported> {
        let rule = rule_of(rules, key);
        if rule == Rule::Mapped || asks_for_nothing(key, value) {
            return Ok(false);
        }
        let (param, reason) = (format!("{place}{key}"), nothing_like_it(api));
        match rule {
            Rule::Mapped => {}
            Rule::Passed => return Ok(true),
            Rule::Harmless => self.dropped(param, reason),
            Rule::Unsupported => self.unsupported(param, reason)?,
            Rule::Refused => return Err(refused(param, reason)),
        }
        Ok(false)
    }
}

pub(super) fn rule_of(rules: &Rules, key: &str) -> Rule {
    let rule = rules.iter().find(|(known, _)| *known == key);
    rule.map_or(Rule::Unsupported, |(_, rule)| *rule)
}

fn nothing_like_it(api: &str) -> String {
    format!("{api} has nothing like it")
}

/// Why a translation by these rules takes no line of this `url` (`None`: there are no rules for
/// it), or none whose body has this key.
pub(super) fn refuses(
    rules: Option<&Rules>,
    key: Option<&str>,
    policy: UnsupportedParams,
    api: &str,
) -> Option<String> {
    let Some(rules) = rules else {
        return Some(nothing_like_it(api));
    };
    let is_refused = match rule_of(rules, key?) {
        Rule::Refused => true,
        Rule::Unsupported => policy == UnsupportedParams::Reject,
        Rule::Mapped | Rule::Passed | Rule::Harmless => false,
    };
    is_refused.then(|| nothing_like_it(api))
}

/// A part of a message's content.
#[derive(Debug)]
pub(super) enum Part<'t> {
    /// A string of the request, as it is written.
    Text(Cow<'t, str>),
    Image {
        url: Cow<'t, str>,
    },
    File {
        data: Option<Cow<'t, str>>,
        name: Option<Cow<'t, str>>,
    },
    Audio {
        data: Cow<'t, str>,
        /// Such as `wav`.
        format: Cow<'t, str>,
    },
}

/// A part, and where it stands.
pub(super) struct Placed<'t, 'a> {
    pub(super) part: Part<'t>,
    /// Such as `messages[0].content[1]`.
    pub(super) param: String,
    /// The part as an object; `None`: the content is one string.
    pub(super) whole: Option<&'t Tree<'a>>,
}

/// The parts of a message's content; a string is one part, and null none.
pub(super) fn parts<'t, 'a>(
    content: Option<&'t Tree<'a>>,
    param: &str,
    notes: &mut Notes,
) -> Result<Vec<Placed<'t, 'a>>, Unsupported> {
    let Some(content) = content else {
        return Ok(Vec::new());
    };
    if let Tree::Plain(written) = content
        && content.is_string()
    {
        return Ok(vec![Placed {
            part: Part::Text(Cow::Borrowed(written)),
            param: param.to_owned(),
            whole: None,
        }]);
    }
    let items = content
        .list()
        .ok_or_else(|| refused(param, "it is neither a string nor a list of parts"))?;
    let items = items.iter().enumerate();
    let items = items.map(|(place, item)| {
        let param = format!("{param}[{place}]");
        Ok(Placed {
            part: part(item, &param, notes)?,
            param,
            whole: Some(item),
        })
    });
    items.collect()
}

fn part<'t>(item: &'t Tree<'_>, param: &str, notes: &mut Notes) -> Result<Part<'t>, Unsupported> {
    let kind = item.get("type").and_then(Tree::text).unwrap_or_default();
    let missing = |key: &str| refused(format!("{param}.{key}"), "it is missing, or no text");
    let written = |key: &str| match item.get(key) {
        Some(text @ Tree::Plain(written)) if text.is_string() => Ok(Cow::Borrowed(&**written)),
        _ => Err(missing(key)),
    };
    let text = |object: Option<&'t Tree<'_>>, key: &str| object?.get(key)?.text();
    match &*kind {
        "text" => Ok(Part::Text(written("text")?)),
        "refusal" => Ok(Part::Text(written("refusal")?)),
        "image_url" => {
            let image = item.get("image_url");
            let detail = image.and_then(|image| image.get("detail"));
            if detail.is_some_and(|detail| !asks_for_nothing("detail", detail)) {
                let reason = "how closely an image is looked at cannot be said";
                notes.dropped(format!("{param}.image_url.detail"), reason);
            }
            let url = text(image, "url").ok_or_else(|| missing("image_url.url"))?;
            Ok(Part::Image { url })
        }
        "file" => {
            let file = item.get("file");
            if text(file, "file_id").is_some() {
                let reason = "files that were uploaded elsewhere are not there: send `file_data`";
                return Err(refused(format!("{param}.file.file_id"), reason));
            }
            Ok(Part::File {
                data: text(file, "file_data"),
                name: text(file, "filename"),
            })
        }
        "input_audio" => {
            let audio = item.get("input_audio");
            let data = text(audio, "data").ok_or_else(|| missing("input_audio.data"))?;
            let format = text(audio, "format").ok_or_else(|| missing("input_audio.format"))?;
            Ok(Part::Audio { data, format })
        }
        kind => Err(refused(
            format!("{param}.type"),
            format!("a part of the type \"{kind}\" is not known"),
        )),
    }
}

/// What a `data:` URL holds.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct DataUrl<'u> {
    /// In lower case, without parameters.
    pub(super) media_type: String,
    pub(super) is_base64: bool,
    pub(super) data: &'u str,
}

impl<'u> DataUrl<'u> {
    pub(super) fn read(url: &'u str) -> Option<Self> {
        let (scheme, rest) = url.split_once(':')?;
        if !scheme.eq_ignore_ascii_case("data") {
            return None;
        }
        let (head, data) = rest.split_once(',')?;
        let mut head = head.split(';');
        let media_type = head.next().unwrap_or_default().trim().to_ascii_lowercase();
        let media_type = match media_type.as_str() {
            "image/jpg" => "image/jpeg".to_owned(),
            _ => media_type,
        };
        let is_base64 = head.any(|one| one.trim().eq_ignore_ascii_case("base64"));
        Some(Self {
            media_type,
            is_base64,
            data,
        })
    }
}

/// Whether a URL is one of this scheme.
pub(super) fn has_scheme(url: &str, scheme: &str) -> bool {
    url.split_once(':')
        .is_some_and(|(own, _)| own.eq_ignore_ascii_case(scheme))
}

/// A text, as JSON writes it, that says nothing: some providers refuse it.
pub(super) fn is_blank(written: &str) -> bool {
    let text = crate::domain::json::text(written);
    text.is_some_and(|text| text.trim().is_empty())
}

/// Names or ids of a request, in a form that the provider allows. Each is sent under one name, and
/// no two under the same.
#[derive(Debug)]
pub(super) struct Aliases {
    form: Form,
    /// By the request's own.
    sent: HashMap<String, String>,
    used: HashSet<String>,
    /// The last number by which a name was told from others. It only grows, whatever name it was
    /// for: so a search for an unused name never goes over the same ones again.
    nth: u64,
}

/// The items of a list; none where there is no list.
pub(super) fn items<'t, 'a>(value: Option<&'t Tree<'a>>) -> &'t [Tree<'a>] {
    value.and_then(Tree::list).unwrap_or_default()
}

/// The names of all tools that are declared or were called.
pub(super) fn tool_names<'t>(body: &'t Tree<'_>) -> impl Iterator<Item = Cow<'t, str>> {
    let tools = items(body.get("tools")).iter();
    let messages = items(body.get("messages")).iter();
    let calls = messages.flat_map(|message| items(message.get("tool_calls")));
    tools
        .chain(calls)
        .filter_map(|tool| tool.get("function")?.get("name")?.text())
}

/// What names a provider allows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Form {
    pub(super) fits: fn(&str) -> bool,
    /// A name that fits, in place of one that does not. `nth`: those before it are taken.
    pub(super) fitted: fn(own: &str, nth: u64) -> String,
}

/// A name in other letters where these are not allowed. All that are allowed are ASCII.
pub(super) fn spelled(own: &str, nth: u64, is_allowed: fn(char) -> bool, longest: usize) -> String {
    let suffix = match nth {
        0 => String::new(),
        nth => format!("_{}", nth + 1),
    };
    let letter = |c| if is_allowed(c) { c } else { '_' };
    let mut spelled: String = own.chars().map(letter).collect();
    if !spelled.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') {
        spelled.insert(0, '_');
    }
    spelled.truncate(longest.saturating_sub(suffix.len()));
    spelled + &suffix
}

impl Aliases {
    /// `all`: every one that the request has, so that none is sent as another's own.
    pub(super) fn new<'n>(form: Form, all: impl Iterator<Item = Cow<'n, str>>) -> Self {
        let fitting = all.filter(|name| (form.fits)(name));
        Self {
            form,
            used: fitting.map(Cow::into_owned).collect(),
            sent: HashMap::new(),
            nth: 0,
        }
    }

    /// What a name is sent as.
    pub(super) fn of(&mut self, own: &str) -> String {
        if let Some(sent) = self.sent.get(own) {
            return sent.clone();
        }
        let sent = if (self.form.fits)(own) {
            self.used.insert(own.to_owned());
            own.to_owned()
        } else {
            self.unused(own)
        };
        self.sent.insert(own.to_owned(), sent.clone());
        sent
    }

    /// What a name is sent as from now on, where the name may have been sent before and must not be
    /// sent twice.
    pub(super) fn anew(&mut self, own: &str) -> String {
        if !self.sent.contains_key(own) {
            return self.of(own);
        }
        let sent = self.unused(own);
        self.sent.insert(own.to_owned(), sent.clone());
        sent
    }

    fn unused(&mut self, own: &str) -> String {
        let mut name = (self.form.fitted)(own, 0);
        while !self.used.insert(name.clone()) {
            self.nth += 1;
            name = (self.form.fitted)(own, self.nth);
        }
        name
    }

    /// Those that were sent under another name: that name, and the request's own.
    pub(super) fn renamed(self) -> Vec<(String, String)> {
        let all = self.sent.into_iter();
        all.filter(|(own, sent)| own != sent)
            .map(|(own, sent)| (sent, own))
            .collect()
    }
}

/// Names the description of a schema for answers, where the provider has no place for it.
pub(super) fn undescribed(format: &Tree<'_>, api: &str, notes: &mut Notes) {
    let schema = format.get("json_schema");
    if schema.is_some_and(|schema| schema.get("description").is_some()) {
        let param = "response_format.json_schema.description";
        notes.dropped(param, format!("{api} has nothing like it"));
    }
}

/// The most that a request lets the model write.
pub(super) fn max_output(body: &Tree<'_>) -> Result<Option<u64>, Unsupported> {
    for key in ["max_completion_tokens", "max_tokens"] {
        if let Some(value) = body.get(key) {
            let number = value.whole();
            return number
                .map(Some)
                .ok_or_else(|| refused(key, "it is no whole number"));
        }
    }
    Ok(None)
}

/// Where the model is to stop: the texts as they are written.
pub(super) fn stops<'t, 'a>(body: &'t Tree<'a>) -> Vec<&'t Tree<'a>> {
    match body.get("stop") {
        None => Vec::new(),
        Some(Tree::List(items)) => items.iter().collect(),
        Some(one) => vec![one],
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::domain::clock::Clock;
    use crate::upstream::ProviderKind;
    use crate::upstream::provider::interface::CHAT;
    use crate::upstream::provider::{self, Line};
    use crate::upstream::settings::UpstreamSettings;
    use crate::upstream::testing::upstream;

    fn is_allowed(c: char) -> bool {
        c == '_' || c.is_ascii_alphanumeric()
    }

    #[test]
    fn a_key_that_is_refused_whatever_its_value_is_sent_nowhere() {
        let clock = Clock::default();
        let kinds = ProviderKind::ALL.into_iter();
        for kind in kinds.filter(|kind| kind.translates()) {
            let provider = provider::of(&UpstreamSettings {
                provider: kind,
                ..upstream("one", "http://127.0.0.1:1")
            });
            for key in KEYS.into_iter().chain(["nobody_knows"]) {
                let body = json!({
                    "messages": [{"role": "user", "content": "Hi"}],
                    "model": "m",
                });
                let Value::Object(mut body) = body else {
                    panic!("an object");
                };
                body.entry(key).or_insert(json!(2));
                let body = Value::Object(body).to_string();
                let sent = provider.encode(&Line {
                    path: CHAT,
                    model: "m",
                    body: body.as_bytes(),
                    edit: None,
                    clock: &clock,
                });
                let has_none = matches!(&sent, Err(refusal) if refusal.param == key
                    && refusal.reason.ends_with(" has nothing like it"));
                let is_refused = provider.refuses(CHAT, Some(key)).is_some();
                assert_eq!(is_refused, has_none, "{key} at {kind:?}: {sent:?}");
            }
            assert!(provider.refuses(CHAT, None).is_none(), "{kind:?}");
            assert!(provider.refuses("/v1/videos", None).is_some(), "{kind:?}");
        }
    }

    #[test]
    fn no_two_names_are_sent_as_one() {
        const FORM: Form = Form {
            fits: |name| {
                let is_first = |c: char| c == '_' || c.is_ascii_alphabetic();
                name.len() <= 5 && name.starts_with(is_first) && name.chars().all(is_allowed)
            },
            fitted: |own, nth| spelled(own, nth, is_allowed, 5),
        };
        let own = ["a_b", "a.b", "a-b", "ü", "", "a.bcdefg", "1"];
        let mut aliases = Aliases::new(FORM, own.into_iter().map(Cow::Borrowed));
        let sent = own.map(|name| aliases.of(name));
        assert_eq!(sent, ["a_b", "a_b_2", "a_b_3", "_", "__4", "a_bcd", "_1"]);
        assert_eq!(
            own.map(|name| aliases.of(name)),
            sent,
            "each under one name"
        );
        let mut renamed = aliases.renamed();
        renamed.sort();
        assert!(renamed.contains(&("a_b_2".to_owned(), "a.b".to_owned())));
        assert_eq!(renamed.len(), own.len() - 1);
    }

    #[test]
    fn a_name_that_comes_again_gets_another() {
        const ANY: Form = Form {
            fits: |_| true,
            fitted: |own, nth| format!("{own}_{nth}"),
        };
        let mut aliases = Aliases::new(ANY, std::iter::empty());
        assert_eq!(aliases.anew("call0"), "call0");
        let again = aliases.anew("call0");
        assert_ne!(again, "call0");
        assert_eq!(
            aliases.of("call0"),
            again,
            "what answers it is for the latest"
        );
    }

    #[test]
    fn names_that_are_spelled_alike_are_told_apart_in_one_step_each() {
        const FORM: Form = Form {
            fits: |_| false,
            fitted: |own, nth| {
                STEPS.with(|steps| steps.set(steps.get() + 1));
                spelled(own, nth, is_allowed, 12)
            },
        };
        thread_local! {
            static STEPS: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
        }
        let mut aliases = Aliases::new(FORM, std::iter::empty());
        let mut sent = HashSet::new();
        for _ in 0..1_000 {
            assert!(sent.insert(aliases.anew("the same")));
        }
        // Of these no two are alike, but for where a number stands.
        for number in 0..1_000 {
            assert!(sent.insert(aliases.of(&format!("another_{number:04}"))));
        }
        let steps = STEPS.with(std::cell::Cell::get);
        assert!(steps <= 4 * sent.len(), "{steps}");
    }

    #[test]
    fn what_gives_cause_for_more_warnings_than_anyone_reads_is_summed_up() {
        let mut notes = Notes::new(UnsupportedParams::Reject);
        for number in 0..WARNINGS_MAX + 3 {
            notes.dropped(format!("key_{number}"), "nothing like it");
        }
        assert_eq!(notes.warnings.len(), WARNINGS_MAX + 1);
        let last = notes.warnings.last().expect("a warning");
        assert_eq!(last.param, "key_102");
        assert_eq!(last.message, "nothing like it, and 2 warnings more");
    }

    #[test]
    fn a_data_url_is_read() {
        let url = DataUrl::read("data:image/JPG;base64,AAAA").expect("a data URL");
        assert_eq!((&*url.media_type, url.is_base64), ("image/jpeg", true));
        assert_eq!(url.data, "AAAA");
        assert_eq!(DataUrl::read("https://h/data:image/png;base64,AAAA"), None);
    }
}
