//! What calls cost: prices, in exact decimals.

use std::fmt;
use std::ops::AddAssign;

use rust_decimal::Decimal;

use super::divide::divide;
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
    /// What a call costs that used so much. Never rounded.
    #[must_use]
    pub fn cost(&self, usage: &Usage) -> Cost {
        let input = usage.input_tokens.max(0);
        let cached = usage.cached_tokens.clamp(0, input);
        let written = usage.cache_written_tokens.clamp(0, input - cached);
        let price = self.for_input(input.unsigned_abs());
        let parts = [
            (input - cached - written, price.input),
            (cached, price.cached_input.unwrap_or(price.input)),
            (written, price.cache_write.unwrap_or(price.input)),
            (usage.output_tokens.max(0), price.output),
        ];
        let parts = parts.map(|(tokens, price)| i128::from(tokens) * units(price, SCALE - 6));
        let tokens: i128 = parts.into_iter().sum();
        Cost(tokens + units(self.request, SCALE))
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

    /// Whether each call costs the same, whatever it uses.
    #[must_use]
    pub fn is_flat(&self) -> bool {
        let is_free = |price: &Price| {
            let optional = [price.cached_input, price.cache_write];
            let mut parts = optional.into_iter().flatten();
            price.input.is_zero() && price.output.is_zero() && parts.all(|part| part.is_zero())
        };
        is_free(self) && is_free(&self.for_input(u64::MAX))
    }
}

/// Digits behind the point of the currency that a cost has at most: those of a price, and those of
/// a million.
const SCALE: u32 = PRICE_SCALE_MAX + 6;
/// A millionth of the currency.
const MICRO: i128 = 10_i128.pow(SCALE - 6);

/// An amount in units of so many digits behind the point. A price has no more digits than that.
fn units(amount: Decimal, scale: u32) -> i128 {
    let more = scale.saturating_sub(amount.scale());
    amount.mantissa() * 10_i128.pow(more)
}

/// What calls cost, in the currency of the prices: exact, and so are sums.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cost(i128);

impl Cost {
    /// The parts of several, by their weights: they add up to it.
    #[must_use]
    pub fn divided(self, weights: &[u64]) -> Vec<Self> {
        let parts = divide(self.0.unsigned_abs(), weights).into_iter();
        let parts = parts.map(|part| i128::try_from(part).unwrap_or(i128::MAX));
        parts.map(|part| Self(part * self.0.signum())).collect()
    }

    /// In whole millionths of the currency, and what is left in parts of 10⁹ of a millionth: two
    /// numbers of which a database makes exact sums, each by itself.
    #[must_use]
    pub fn parts(self) -> [i64; 2] {
        let whole = i64::try_from(self.0 / MICRO).unwrap_or(i64::MAX);
        let rest = i64::try_from(self.0 % MICRO).unwrap_or_default();
        [whole, rest]
    }

    /// As near as a floating-point number comes, for what takes only such.
    #[must_use]
    pub fn to_f64(self) -> f64 {
        // Where there are no prices, nothing need be written to be read again.
        if self.0 == 0 {
            return 0.0;
        }
        self.to_string().parse().unwrap_or_default()
    }

    /// Of such numbers, or of sums of such.
    #[must_use]
    pub fn of_parts([whole, rest]: [i64; 2]) -> Self {
        Self(i128::from(whole) * MICRO + i128::from(rest))
    }
}

impl AddAssign for Cost {
    fn add_assign(&mut self, other: Self) {
        self.0 = self.0.saturating_add(other.0);
    }
}

/// As a decimal without needless zeros, such as `0.000034`.
impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let one = 10_u128.pow(SCALE);
        let (sign, amount) = (if self.0 < 0 { "-" } else { "" }, self.0.unsigned_abs());
        let (whole, part) = (amount / one, amount % one);
        let digits = format!("{part:0width$}", width = SCALE as usize);
        let digits = digits.trim_end_matches('0');
        let point = if digits.is_empty() { "" } else { "." };
        f.pad(&format!("{sign}{whole}{point}{digits}"))
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

    fn usage(input: i64, cached: i64, written: i64, output: i64) -> Usage {
        Usage {
            input_tokens: input,
            cached_tokens: cached,
            cache_written_tokens: written,
            output_tokens: output,
            ..Usage::default()
        }
    }

    fn cost(price: &Price, usage: Usage) -> String {
        price.cost(&usage).to_string()
    }

    #[test]
    fn each_kind_of_token_has_its_price() {
        for (usage, expected) in [
            (usage(1_000_000, 0, 0, 0), "1"),
            (usage(0, 0, 0, 1_000_000), "5"),
            // Of a thousand: four hundred from a cache, a hundred into it.
            (usage(1_000, 400, 100, 10), "0.000715"),
            (usage(1, 0, 0, 0), "0.000001"),
            (usage(0, 0, 0, 0), "0"),
        ] {
            assert_eq!(cost(&price(), usage), expected, "{usage:?}");
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
        let usage = usage(1_000_000, 500_000, 100_000, 0);
        assert_eq!(cost(&plain, usage), "1.01");
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
        // What came from a cache counts as input.
        let short = usage(100_000, 50_000, 10_000, 1_000);
        assert_eq!(cost(&tiered, short), "0.0725");
        let long = usage(100_001, 50_000, 10_000, 1_000);
        assert_eq!(cost(&tiered, long), "0.130002");
    }

    #[test]
    fn sums_are_exact_where_fractions_of_two_are_not() {
        let small = Price {
            input: decimal("0.1"),
            ..price()
        };
        let mut sum = Cost::default();
        for _ in 0..10 {
            sum += small.cost(&usage(1_000_000, 0, 0, 0));
        }
        assert_eq!(sum.to_string(), "1");
    }

    #[test]
    fn the_least_and_the_largest_cost_have_all_their_digits_and_nonsense_costs_nothing() {
        let dear = Price {
            input: Decimal::from(PRICE_MAX) - Decimal::new(1, PRICE_SCALE_MAX),
            output: Decimal::from(PRICE_MAX),
            request: Decimal::from(PRICE_MAX),
            cached_input: None,
            cache_write: None,
            above: None,
        };
        let most = usage(1_000_000_000, 7, 0, 1_000_000_000);
        assert_eq!(cost(&dear, most), "2000999999.999999");
        let cheap = Price {
            input: Decimal::new(1, PRICE_SCALE_MAX),
            ..price()
        };
        assert_eq!(cost(&cheap, usage(1, 0, 0, 0)), "0.000000000000001");
        assert_eq!(cost(&price(), usage(-5, 9, -3, -7)), "0");
        // More from the cache than there was.
        assert_eq!(cost(&price(), usage(10, 90, 90, 0)), "0.000001");
    }

    #[test]
    fn sums_of_the_parts_of_costs_are_the_costs_of_sums() {
        let price = Price {
            input: decimal("0.000000007"),
            output: decimal("7000"),
            ..price()
        };
        let (mut sum, mut parts) = (Cost::default(), [0, 0]);
        for tokens in 0..1000 {
            let cost = price.cost(&usage(tokens, 0, 0, tokens));
            sum += cost;
            let [whole, rest] = cost.parts();
            parts = [parts[0] + whole, parts[1] + rest];
        }
        assert_eq!(Cost::of_parts(parts), sum);
        assert_eq!(sum.to_string(), "3496.5000000034965");
    }

    #[test]
    fn a_price_by_the_call_alone_asks_for_no_usage() {
        assert!(!price().is_flat());
        let flat = Price {
            input: Decimal::ZERO,
            cached_input: None,
            cache_write: Some(Decimal::ZERO),
            output: Decimal::ZERO,
            request: decimal("0.5"),
            above: None,
        };
        assert!(flat.is_flat());
        assert_eq!(cost(&flat, Usage::default()), "0.5");
    }
}
