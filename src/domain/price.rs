//! What calls cost: prices, in exact decimals.

use rust_decimal::Decimal;

use super::usage::Usage;

/// The largest price there can be: with so much, no call's cost has too many digits.
pub const PRICE_MAX: u32 = 1_000_000;
/// Digits that a price may have behind its point.
pub const PRICE_SCALE_MAX: u32 = 9;

/// What a model costs, in some currency: by the million tokens, but for `request`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Price {
    pub input: Decimal,
    /// Of input that came from a cache. `None`: as other input.
    pub cached_input: Option<Decimal>,
    /// Of input that was written to a cache. `None`: as other input.
    pub cache_write: Option<Decimal>,
    pub output: Decimal,
    /// Of each call, whatever its tokens.
    pub request: Decimal,
    /// What tokens cost in calls of long input. `None`: as in other calls.
    pub above: Option<Above>,
}

/// What all tokens of a call cost whose input has more tokens than so many: by the million.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Above {
    /// The most input, in tokens, that costs as other input.
    pub tokens: u64,
    pub input: Decimal,
    /// As those of a [`Price`].
    pub cached_input: Option<Decimal>,
    pub cache_write: Option<Decimal>,
    pub output: Decimal,
}

impl Price {
    /// What a call costs that used so much. `cache_written`: tokens of its input that were written
    /// to a cache; [`Usage`] counts them as input, and not by themselves. Never rounded.
    #[must_use]
    pub fn cost(&self, usage: &Usage, cache_written: i64) -> Decimal {
        let input = usage.input_tokens.max(0);
        let cached = usage.cached_tokens.clamp(0, input);
        let written = cache_written.clamp(0, input - cached);
        let price = self.for_input(input.unsigned_abs());
        let parts = [
            (input - cached - written, price.input),
            (cached, price.cached_input.unwrap_or(price.input)),
            (written, price.cache_write.unwrap_or(price.input)),
            (usage.output_tokens.max(0), price.output),
        ];
        let parts = parts.map(|(tokens, price)| Decimal::from(tokens) * price);
        let tokens: Decimal = parts.into_iter().sum();
        (tokens * Decimal::new(1, 6) + self.request).normalize()
    }

    /// What holds for calls with so many tokens of input.
    #[must_use]
    pub fn for_input(&self, tokens: u64) -> Price {
        match self.above {
            Some(above) if tokens > above.tokens => Price {
                input: above.input,
                cached_input: above.cached_input,
                cache_write: above.cache_write,
                output: above.output,
                ..*self
            },
            _ => *self,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decimal(text: &str) -> Decimal {
        text.parse().expect("a decimal")
    }

    fn price() -> Price {
        Price {
            input: decimal("1"),
            cached_input: Some(decimal("0.1")),
            cache_write: Some(decimal("1.25")),
            output: decimal("5"),
            request: Decimal::ZERO,
            above: None,
        }
    }

    fn usage(input: i64, cached: i64, output: i64) -> Usage {
        Usage {
            input_tokens: input,
            cached_tokens: cached,
            output_tokens: output,
            ..Usage::default()
        }
    }

    #[test]
    fn each_kind_of_token_has_its_price() {
        for (usage, written, cost) in [
            (usage(1_000_000, 0, 0), 0, "1"),
            (usage(0, 0, 1_000_000), 0, "5"),
            // Of a thousand: four hundred from a cache, a hundred into it.
            (usage(1_000, 400, 10), 100, "0.000715"),
            (usage(1, 0, 0), 0, "0.000001"),
            (usage(0, 0, 0), 0, "0"),
        ] {
            assert_eq!(price().cost(&usage, written), decimal(cost), "{usage:?}");
        }
    }

    #[test]
    fn a_price_that_is_left_out_is_that_of_other_input() {
        let plain = Price {
            cached_input: None,
            cache_write: None,
            request: decimal("0.01"),
            ..price()
        };
        let cost = plain.cost(&usage(1_000_000, 500_000, 0), 100_000);
        assert_eq!(cost, decimal("1.01"));
    }

    #[test]
    fn all_tokens_of_a_call_of_long_input_have_the_price_of_long_input() {
        let tiered = Price {
            request: decimal("0.01"),
            above: Some(Above {
                tokens: 100_000,
                input: decimal("2"),
                cached_input: Some(decimal("0.2")),
                cache_write: None,
                output: decimal("10"),
            }),
            ..price()
        };
        let cost = |usage, written| tiered.cost(&usage, written);
        // What came from a cache counts as input.
        let short = usage(100_000, 50_000, 1_000);
        assert_eq!(cost(short, 10_000), decimal("0.0725"));
        let long = usage(100_001, 50_000, 1_000);
        assert_eq!(cost(long, 10_000), decimal("0.130002"));
    }

    #[test]
    fn sums_are_exact_where_fractions_of_two_are_not() {
        let small = Price {
            input: decimal("0.1"),
            ..price()
        };
        let one = small.cost(&usage(1_000_000, 0, 0), 0);
        let sum: Decimal = std::iter::repeat_n(one, 10).sum();
        assert_eq!(sum, Decimal::ONE);
    }

    #[test]
    fn the_largest_price_of_the_largest_answer_has_a_cost_and_nonsense_has_none() {
        let largest = Price {
            input: Decimal::from(PRICE_MAX) - Decimal::new(1, PRICE_SCALE_MAX),
            output: Decimal::from(PRICE_MAX),
            request: Decimal::from(PRICE_MAX),
            cached_input: None,
            cache_write: None,
            above: None,
        };
        let most = usage(1_000_000_000, 7, 1_000_000_000);
        let expected = decimal("2000999999.999999");
        assert_eq!(largest.cost(&most, 0), expected);
        let nonsense = usage(-5, 9, -7);
        assert_eq!(price().cost(&nonsense, -3), Decimal::ZERO);
        // More from the cache than there was.
        assert_eq!(price().cost(&usage(10, 90, 0), 90), decimal("0.000001"));
    }
}
