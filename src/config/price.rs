//! `[pricing]` and `price`.

use std::str::FromStr;

use rust_decimal::Decimal;

use super::reader::{Item, Reader};
use crate::domain::price::{Above, PRICE_MAX, PRICE_SCALE_MAX, Price};

/// More tokens of input than any model takes.
const INPUT_MAX: u64 = 1_000_000_000;

/// What all prices are in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pricing {
    /// Three letters in lower case. `None`: no price is configured.
    pub currency: Option<String>,
}

impl Pricing {
    pub(super) fn read(mut reader: Reader<'_>) -> Self {
        let currency = reader.take("currency").and_then(|item| {
            let code = item.string()?.to_ascii_lowercase();
            let is_code = code.len() == 3 && code.bytes().all(|byte| byte.is_ascii_lowercase());
            if !is_code {
                item.fault("expected the three letters of a currency, such as \"usd\"");
            }
            is_code.then_some(code)
        });
        reader.finish();
        Self { currency }
    }

    /// Reads the `price` of a table.
    pub(super) fn price(&self, reader: &mut Reader<'_>) -> Option<Price> {
        let item = reader.take("price")?;
        if self.currency.is_none() {
            item.fault("says of no currency what it is in: write `currency` under [pricing]");
        }
        let mut reader = item.table()?;
        let input = reader.need("input").and_then(amount);
        let cached_input = reader.take("cached_input").and_then(amount);
        let cache_write = reader.take("cache_write").and_then(amount);
        let output = reader.take("output").and_then(amount);
        let request = reader.take("request").and_then(amount);
        let above = reader.take("above").and_then(|item| above(item, output));
        reader.finish();
        Some(Price {
            input: input?,
            cached_input,
            cache_write,
            output: output.unwrap_or_default(),
            request: request.unwrap_or_default(),
            above,
        })
    }
}

/// What tokens cost in calls of long input. `usual`: what output costs in other calls.
fn above(item: Item<'_>, usual: Option<Decimal>) -> Option<Above> {
    let mut reader = item.table()?;
    let tokens = reader
        .need("tokens")
        .and_then(|item| item.whole(1, INPUT_MAX));
    let input = reader.need("input").and_then(amount);
    let cached_input = reader.take("cached_input").and_then(amount);
    let cache_write = reader.take("cache_write").and_then(amount);
    let output = reader.take("output").and_then(amount);
    reader.finish();
    Some(Above {
        tokens: tokens?,
        input: input?,
        cached_input,
        cache_write,
        output: output.or(usual).unwrap_or_default(),
    })
}

/// An amount of money. A number of TOML is taken as it is written, as far as its digits go.
fn amount(item: Item<'_>) -> Option<Decimal> {
    let text = item.number()?;
    let amount = Decimal::from_str(&text).ok();
    let fits = |amount: &Decimal| {
        (Decimal::ZERO..=Decimal::from(PRICE_MAX)).contains(amount)
            && amount.scale() <= PRICE_SCALE_MAX
    };
    let amount = amount.filter(fits);
    if amount.is_none() {
        item.fault(format!(
            "expected a number from 0 to {PRICE_MAX}, with {PRICE_SCALE_MAX} digits behind its \
             point at most"
        ));
    }
    amount
}
