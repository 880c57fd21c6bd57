//! What models can do and cost. That is data: `capabilities.toml`, and what the configuration says
//! over it.

use std::sync::LazyLock;

use reqwest::Url;
use rust_decimal::Decimal;
use serde::Deserialize;

use super::settings::{Capabilities, CapabilitySettings, UpstreamSettings};
use crate::domain::price::{Above, Price};

/// The currency of all prices that this version of the program knows.
pub const KNOWN_CURRENCY: &str = "usd";

/// Why a line is not sent that asks for what its model does not take, in words.
pub(super) const NOT_TAKEN: &str = "the model does not take it";

/// What this version of the program knows.
static KNOWN: LazyLock<Known> = LazyLock::new(|| {
    // A test reads the file.
    toml::from_str(include_str!("capabilities.toml")).unwrap_or_default()
});

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Known {
    currency: String,
    as_of: String,
    vendors: Vec<Vendor>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Vendor {
    host: String,
    source: String,
    models: Vec<KnownModel>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct KnownModel {
    model: String,
    context: Option<u64>,
    output: Option<u64>,
    images: Option<bool>,
    tools: Option<bool>,
    reasoning: Option<bool>,
    price: Option<KnownPrice>,
    /// Where the price stands, if not where the vendor's others do.
    source: Option<String>,
}

/// Decimals are written as texts, so that none is rounded.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct KnownPrice {
    input: String,
    cached_input: Option<String>,
    cache_write: Option<String>,
    output: String,
    above: Option<KnownAbove>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct KnownAbove {
    tokens: u64,
    input: String,
    cached_input: Option<String>,
    cache_write: Option<String>,
    output: String,
}

fn optional(text: Option<&String>) -> Option<Decimal> {
    text.and_then(|text| text.parse().ok())
}

impl KnownAbove {
    fn read(&self) -> Option<Above> {
        Some(Above {
            tokens: self.tokens,
            input: self.input.parse().ok()?,
            cached_input: optional(self.cached_input.as_ref()),
            cache_write: optional(self.cache_write.as_ref()),
            output: self.output.parse().ok()?,
        })
    }
}

impl KnownPrice {
    fn read(&self) -> Option<Price> {
        Some(Price {
            input: self.input.parse().ok()?,
            cached_input: optional(self.cached_input.as_ref()),
            cache_write: optional(self.cache_write.as_ref()),
            output: self.output.parse().ok()?,
            request: Decimal::ZERO,
            above: self.above.as_ref().and_then(KnownAbove::read),
        })
    }
}

/// The keys by which requests ask a model to think: of chat completions, of the Responses API and
/// of the Messages API.
const REASONING: [&str; 3] = ["reasoning_effort", "reasoning", "thinking"];

impl Capabilities {
    /// What is known of a model, by the name that the upstream has for it. `currency`: of all
    /// prices;
    /// `None`: that of what is known.
    #[must_use]
    pub fn of(upstream: &UpstreamSettings, model: &str, currency: Option<&str>) -> Self {
        let mut all = known(&upstream.base_url, model).unwrap_or_default();
        if currency.is_some_and(|currency| currency != KNOWN.currency) {
            all.price = None;
        }
        let known = all.price;
        all.write_over(&upstream.capabilities, model);
        all.price = upstream.price.or(all.price);
        all.source = all.source.filter(|_| all.price == known && known.is_some());
        all
    }

    /// Whether a model thinks, as far as that is known.
    pub(super) fn thinks(
        base_url: &str,
        entries: &[CapabilitySettings],
        model: &str,
    ) -> Option<bool> {
        let said = Self::said(entries, model).reasoning;
        said.or_else(|| known(base_url, model)?.reasoning)
    }

    /// What entries of the configuration alone say of a model.
    pub(super) fn said(entries: &[CapabilitySettings], model: &str) -> Self {
        let mut said = Self::default();
        said.write_over(entries, model);
        said
    }

    /// Takes over what entries for the model say: the most exact wins, and of two as exact the
    /// later.
    fn write_over(&mut self, entries: &[CapabilitySettings], model: &str) {
        let fitting = entries.iter().filter(|entry| entry.model.fits(model));
        let mut fitting: Vec<_> = fitting.collect();
        fitting.sort_by_key(|entry| {
            let name = entry.model.as_str();
            (!name.ends_with('*'), name.len(), entry.upstream.is_some())
        });
        for CapabilitySettings { says, .. } in fitting {
            self.context = says.context.or(self.context);
            self.output = says.output.or(self.output);
            self.images = says.images.or(self.images);
            self.tools = says.tools.or(self.tools);
            self.reasoning = says.reasoning.or(self.reasoning);
            self.price = says.price.or(self.price);
            if !says.refuses.is_empty() {
                self.refuses.clone_from(&says.refuses);
            }
        }
    }

    /// Whether a request must not have this key.
    #[must_use]
    pub fn refuses(&self, key: &str) -> bool {
        let is_of_tools = ["tools", "tool_choice", "parallel_tool_calls"].contains(&key);
        self.refuses.iter().any(|refused| refused == key)
            || (is_of_tools && self.tools == Some(false))
            || (REASONING.contains(&key) && self.reasoning == Some(false))
    }
}

/// What `capabilities.toml` says of a model. A version that has a date behind the name is the same.
fn known(base_url: &str, model: &str) -> Option<Capabilities> {
    let url = Url::parse(base_url).ok()?;
    let mut vendors = KNOWN.vendors.iter();
    let vendor = vendors.find(|vendor| url.host_str() == Some(&*vendor.host))?;
    let find = |name: &str| vendor.models.iter().find(|known| known.model == name);
    let found = find(model).or_else(|| find(without_date(model)?))?;
    Some(Capabilities {
        context: found.context,
        output: found.output,
        images: found.images,
        tools: found.tools,
        reasoning: found.reasoning,
        refuses: Vec::new(),
        price: found.price.as_ref().and_then(KnownPrice::read),
        source: found
            .source
            .as_ref()
            .or(Some(&vendor.source))
            .map(|source| format!("{source}, as of {}", KNOWN.as_of)),
    })
}

/// `gpt-5` of `gpt-5-2025-08-07`, and `claude-haiku-4-5` of `claude-haiku-4-5-20251001`.
fn without_date(model: &str) -> Option<&str> {
    let is_date = |text: &str, form: &str| {
        let mut both = text.bytes().zip(form.bytes());
        text.len() == form.len()
            && both.all(|(byte, form)| byte == form || (form == b'0' && byte.is_ascii_digit()))
    };
    ["-0000-00-00", "-00000000"].into_iter().find_map(|form| {
        let (name, date) = model.split_at_checked(model.len().checked_sub(form.len())?)?;
        is_date(date, form).then_some(name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::tenant::ModelPattern;
    use crate::upstream::testing::upstream;

    fn at(base_url: &str) -> UpstreamSettings {
        upstream("one", base_url)
    }

    fn decimal(text: &str) -> Decimal {
        text.parse().expect("a decimal")
    }

    #[test]
    fn every_entry_of_the_file_is_read_with_its_price_and_source() {
        assert_eq!(KNOWN.currency, KNOWN_CURRENCY);
        assert!(KNOWN.as_of.len() == 7 && KNOWN.vendors.len() > 10);
        for vendor in &KNOWN.vendors {
            for model in &vendor.models {
                let base_url = format!("https://{}/v1", vendor.host);
                let found = Capabilities::of(&at(&base_url), &model.model, None);
                let price = found.price.unwrap_or_else(|| panic!("{model:?}"));
                assert!(price.input > Decimal::ZERO, "{model:?}");
                let above = model.price.as_ref().and_then(|price| price.above.as_ref());
                assert_eq!(price.above.is_some(), above.is_some(), "{model:?}");
                if let Some(above) = price.above {
                    assert!(above.input > price.input && above.output > price.output);
                    assert!(Some(above.tokens) < model.context, "{model:?}");
                }
                let source = model.source.as_ref().unwrap_or(&vendor.source);
                assert!(source.starts_with("https://"), "{model:?}");
            }
        }
    }

    #[test]
    fn a_vendors_price_is_for_the_vendors_own_server() {
        let price = |base_url: &str, model: &str, currency| {
            let found = Capabilities::of(&at(base_url), model, currency);
            found.price.map(|price| price.input)
        };
        let vendor = "https://api.anthropic.com";
        let known = Some(decimal("1"));
        assert_eq!(price(vendor, "claude-haiku-4-5", None), known);
        assert_eq!(
            price(vendor, "claude-haiku-4-5-20251001", Some("usd")),
            known
        );
        assert_eq!(price(vendor, "claude-haiku-4-5-latest", None), None);
        assert_eq!(price(vendor, "claude-haiku-4-5", Some("eur")), None);
        assert_eq!(price("http://gpu:8000/v1", "claude-haiku-4-5", None), None);
    }

    #[test]
    fn a_price_of_long_input_is_known_where_the_vendor_has_one() {
        let vendor = at("https://api.anthropic.com");
        let price = Capabilities::of(&vendor, "claude-haiku-5-5", None).price;
        let price = price.expect("known");
        let (short, long) = (price.for_input(100_000), price.for_input(100_001));
        assert_eq!([short.input, short.output], ["0.1", "0.5"].map(decimal));
        assert_eq!([long.input, long.output], ["0.5", "2.5"].map(decimal));
        assert_eq!(long.cache_write, Some(decimal("0.625")));
    }

    #[test]
    fn what_the_configuration_says_wins_and_the_more_exact_wins_over_the_less() {
        let entry = |model: &str, says: Capabilities| CapabilitySettings {
            model: ModelPattern::new(model),
            upstream: None,
            says,
        };
        let output = |output| Capabilities {
            output: Some(output),
            ..Capabilities::default()
        };
        let mut one = at("https://api.anthropic.com");
        let dear = Price {
            input: decimal("7"),
            ..Capabilities::of(&one, "claude-haiku-4-5", None)
                .price
                .expect("known")
        };
        one.capabilities = vec![
            entry("claude-haiku-4-5", output(3)),
            entry("claude-*", output(1)),
            entry("*", output(2)),
            entry(
                "claude-opus-*",
                Capabilities {
                    price: Some(dear),
                    tools: Some(false),
                    refuses: vec!["seed".to_owned()],
                    ..Capabilities::default()
                },
            ),
        ];
        let haiku = Capabilities::of(&one, "claude-haiku-4-5", None);
        assert_eq!((haiku.output, haiku.context), (Some(3), Some(200_000)));
        let opus = Capabilities::of(&one, "claude-opus-5-5", None);
        assert_eq!((opus.output, opus.price), (Some(1), Some(dear)));
        assert!(opus.refuses("seed") && opus.refuses("tools") && !opus.refuses("user"));
        // An upstream's own price wins over all of these.
        let cheap = Price {
            input: Decimal::ONE,
            ..dear
        };
        one.price = Some(cheap);
        let opus = Capabilities::of(&one, "claude-opus-5-5", None);
        assert_eq!(opus.price, Some(cheap));
    }
}
