//! What models can do and cost, for people.

use crate::config::Config;
use crate::domain::price::Price;
use crate::domain::usage::Usage;
use crate::upstream::{Capabilities, KNOWN_CURRENCY, RouteSettings};

/// What all prices are in.
fn currency(config: &Config) -> &str {
    config.pricing.currency.as_deref().unwrap_or(KNOWN_CURRENCY)
}

/// What is known of a model at an upstream, by the name that the upstream has for it. The price is
/// that of the route, where it has one.
pub(super) fn of_route(
    config: &Config,
    upstream: &str,
    sent_as: &str,
    route: Option<&RouteSettings>,
) -> Capabilities {
    let found = config.upstreams.iter().find(|one| one.name == upstream);
    let currency = config.pricing.currency.as_deref();
    let known = found.map(|upstream| Capabilities::of(upstream, sent_as, currency));
    let mut known = known.unwrap_or_default();
    if let Some(price) = route.and_then(|route| route.price) {
        known.price = Some(price);
        known.source = None;
    }
    known
}

/// The route by which a line of a model goes to an upstream under this name.
pub(super) fn route<'c>(
    config: &'c Config,
    model: &str,
    upstream: &str,
    sent_as: &str,
) -> Option<&'c RouteSettings> {
    let models = config.models.iter().filter(|one| one.name == model);
    let mut routes = models.flat_map(|model| &model.routes);
    routes.find(|route| {
        route.upstream == upstream && route.model.as_deref().is_none_or(|name| name == sent_as)
    })
}

/// Such as `200000 tokens in and 64000 out at most, 1 usd in and 5 out for a million tokens`.
pub(super) fn shown(config: &Config, known: &Capabilities) -> Vec<String> {
    let mut said = Vec::new();
    if let Some(context) = known.context {
        said.push(format!("{context} tokens in at most"));
    }
    if let Some(output) = known.output {
        said.push(format!("{output} out"));
    }
    let lacks = [
        ("images", known.images),
        ("tools", known.tools),
        ("reasoning", known.reasoning),
    ];
    let lacks = lacks.into_iter().filter(|(_, has)| *has == Some(false));
    said.extend(lacks.map(|(what, _)| format!("no {what}")));
    if !known.refuses.is_empty() {
        said.push(format!("refuses {}", known.refuses.join(" ")));
    }
    said.extend(known.price.map(|price| {
        let currency = currency(config);
        let mut text = format!("{} {currency} for a million tokens in", price.input);
        text += &beside_input(&price);
        if !price.request.is_zero() {
            text += &format!(", {} a call", price.request);
        }
        if let Some(above) = price.above {
            let long = price.for_input(above.tokens + 1);
            text += &format!("; above {} tokens in, {} in", above.tokens, long.input);
            text += &beside_input(&long);
        }
        text
    }));
    said.extend(known.source.iter().map(|source| format!("({source})")));
    said
}

/// What tokens cost beside those of plain input.
fn beside_input(price: &Price) -> String {
    let parts = [
        (price.cached_input, "from a cache"),
        (price.cache_write, "into a cache"),
        (Some(price.output), "out"),
    ];
    let parts = parts.into_iter();
    let parts = parts.filter_map(|(amount, what)| Some(format!(", {} {what}", amount?)));
    parts.collect()
}

/// What a call cost, such as `0.000034 usd`.
pub(super) fn cost(config: &Config, price: &Price, usage: &Usage) -> String {
    format!("{} {}", price.cost(usage), currency(config))
}
