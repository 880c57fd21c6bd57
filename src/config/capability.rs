//! `[[capabilities]]`: what models can do and cost.

use super::model::check_upstream;
use super::price::Pricing;
use super::reader::{Item, Reader};
use crate::domain::tenant::ModelPattern;
use crate::upstream::{Capabilities, CapabilitySettings, UpstreamSettings};

/// More tokens than any model takes or writes.
const TOKENS_MAX: u64 = 1_000_000_000;

/// Reads `[[capabilities]]`, and gives each upstream those that are for it.
pub(super) fn read_all(
    readers: Vec<Reader<'_>>,
    pricing: &Pricing,
    upstreams: &mut [UpstreamSettings],
) {
    for mut reader in readers {
        let model = reader.need("model").and_then(|item| {
            let name = item.string()?;
            if name.trim_end_matches('*').contains('*') || name.ends_with("**") {
                item.fault("a name has one `*` at most, at its end: it stands for any rest");
            }
            Some(ModelPattern::new(name))
        });
        let upstream = reader.take("upstream").and_then(|item| {
            let name = item.string()?;
            check_upstream(&item, &name, upstreams);
            Some(name)
        });
        let refuses = reader.take("refuses").and_then(Item::array);
        let refuses = refuses.into_iter().flatten();
        let says = Capabilities {
            context: reader.whole("context", 1, TOKENS_MAX),
            output: reader.whole("output", 1, TOKENS_MAX),
            images: reader.boolean("images"),
            tools: reader.boolean("tools"),
            reasoning: reader.boolean("reasoning"),
            refuses: refuses.filter_map(|item| item.string()).collect(),
            price: pricing.price(&mut reader),
            source: None,
        };
        reader.finish();
        let Some(model) = model else {
            continue;
        };
        let is_for =
            |one: &&mut UpstreamSettings| upstream.as_ref().is_none_or(|name| *name == one.name);
        for one in upstreams.iter_mut().filter(is_for) {
            one.capabilities.push(CapabilitySettings {
                model: model.clone(),
                upstream: upstream.clone(),
                says: says.clone(),
            });
        }
    }
}
