//! What an operator allows tenants: their part of the whole, and their limits.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::batch::PRIORITIES;
use super::current::Current;

/// Stands for every tenant that is not named.
pub const ANY_OTHER: &str = "*";

/// What one tenant is allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allowance {
    /// Its part of the fair share, beside the weights of others: at least 1.
    pub weight: u32,
    /// Calls at once over all its models, and over all processes. `None`: any number.
    pub concurrency: Option<usize>,
    /// The models that it may use; `None`: all.
    pub models: Option<Vec<ModelPattern>>,
    /// Requests of its batches that have not ended.
    pub max_enqueued_requests: Option<u64>,
    /// Estimated input tokens of its batches that have not ended.
    pub max_enqueued_tokens: Option<u64>,
    /// Bytes of its files, those of batches' answers included.
    pub max_storage_bytes: Option<u64>,
    /// The highest priority that its batches may have.
    pub max_priority: i64,
}

impl Default for Allowance {
    fn default() -> Self {
        Self {
            weight: 1,
            concurrency: None,
            models: None,
            max_enqueued_requests: None,
            max_enqueued_tokens: None,
            max_storage_bytes: None,
            max_priority: *PRIORITIES.end(),
        }
    }
}

impl Allowance {
    /// Whether the tenant may use a model; `""` stands for lines that name none.
    #[must_use]
    pub fn may_use(&self, model: &str) -> bool {
        let patterns = self.models.as_ref();
        patterns.is_none_or(|patterns| patterns.iter().any(|pattern| pattern.fits(model)))
    }

    /// Whether its batches that have not ended are limited.
    #[must_use]
    pub fn limits_enqueued(&self) -> bool {
        self.max_enqueued_requests.is_some() || self.max_enqueued_tokens.is_some()
    }
}

/// How much the batches of a tenant have that have not ended, or one batch has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Enqueued {
    pub requests: u64,
    /// Estimated tokens of input.
    pub tokens: u64,
}

impl Enqueued {
    /// As much as both have.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self {
            requests: self.requests.saturating_add(other.requests),
            tokens: self.tokens.saturating_add(other.tokens),
        }
    }
}

impl Allowance {
    /// Why a batch may not run beside what the tenant's batches have that run, in words for its
    /// user. `None`: it may.
    #[must_use]
    pub fn refusal(&self, tenant: &str, enqueued: Enqueued, batch: Enqueued) -> Option<String> {
        let requests = (
            "request",
            self.max_enqueued_requests,
            (enqueued.requests, batch.requests),
        );
        let tokens = (
            "token",
            self.max_enqueued_tokens,
            (enqueued.tokens, batch.tokens),
        );
        let limits = [requests, tokens].into_iter();
        let mut limits = limits.filter_map(|(what, limit, (before, more))| {
            let limit = limit?;
            let left = limit.saturating_sub(before);
            (more > left).then(|| {
                format!(
                    "Enqueued {what} limit reached in organization {tenant}. Limit: {} enqueued \
                     {what}s. This batch has {}{}, and {} are left. Please try again once some \
                     in_progress batches have been completed.",
                    grouped(limit),
                    if what == "token" { "an estimated " } else { "" },
                    grouped(more),
                    grouped(left),
                )
            })
        });
        limits.next()
    }
}

/// A number with a comma before each three digits.
#[must_use]
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// The name of a model, or how the names of several begin: then a `*` stands at its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelPattern(String);

impl ModelPattern {
    #[must_use]
    pub fn new(pattern: impl Into<String>) -> Self {
        Self(pattern.into())
    }

    #[must_use]
    pub fn fits(&self, model: &str) -> bool {
        match self.0.strip_suffix('*') {
            Some(beginning) => model.starts_with(beginning),
            None => self.0 == model,
        }
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What all tenants are allowed. Never changed: a new configuration is a new value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tenants {
    named: BTreeMap<String, Arc<Allowance>>,
    /// Of each tenant that is not named.
    others: Arc<Allowance>,
}

impl Tenants {
    /// Each with its name; [`ANY_OTHER`] stands for those that are not named.
    #[must_use]
    pub fn new(tenants: impl IntoIterator<Item = (String, Allowance)>) -> Self {
        let mut named: BTreeMap<String, Arc<Allowance>> = tenants
            .into_iter()
            .map(|(name, allowance)| (name, Arc::new(allowance)))
            .collect();
        let others = named.remove(ANY_OTHER).unwrap_or_default();
        Self { named, others }
    }

    /// What a tenant is allowed.
    #[must_use]
    pub fn of(&self, tenant: &str) -> &Arc<Allowance> {
        self.named.get(tenant).unwrap_or(&self.others)
    }

    /// Those that are named, and [`ANY_OTHER`] where others are not allowed everything.
    pub fn configured(&self) -> impl Iterator<Item = (&str, &Allowance)> {
        let named = self.named.iter();
        let named = named.map(|(name, allowance)| (name.as_str(), &**allowance));
        let others = (*self.others != Allowance::default()).then_some((ANY_OTHER, &*self.others));
        named.chain(others)
    }
}

/// What all tenants are allowed at present.
pub type CurrentTenants = Current<Tenants>;

impl Current<Tenants> {
    /// What a tenant is allowed now.
    #[must_use]
    pub fn of(&self, tenant: &str) -> Arc<Allowance> {
        Arc::clone(self.get().of(tenant))
    }
}

#[cfg(test)]
mod tests {
    use super::{Allowance, Enqueued, ModelPattern, Tenants, grouped};

    fn weighing(weight: u32) -> Allowance {
        Allowance {
            weight,
            ..Allowance::default()
        }
    }

    #[test]
    fn a_name_counts_before_the_star_and_nothing_is_everything() {
        let tenants = Tenants::new([
            ("acme".to_owned(), weighing(3)),
            ("*".to_owned(), weighing(2)),
        ]);
        assert_eq!(tenants.of("acme").weight, 3);
        assert_eq!(tenants.of("another").weight, 2);
        assert_eq!(**Tenants::default().of("anyone"), Allowance::default());
    }

    #[test]
    fn models_are_allowed_by_name_or_by_how_they_begin() {
        let allowance = Allowance {
            models: Some(vec![ModelPattern::new("llama-*"), ModelPattern::new("m")]),
            ..Allowance::default()
        };
        for (model, may) in [
            ("llama-3.1-8b", true),
            ("llama-", true),
            ("m", true),
            ("m2", false),
            ("gpt", false),
            ("", false),
        ] {
            assert_eq!(allowance.may_use(model), may, "{model}");
        }
        assert!(Allowance::default().may_use("anything"));
    }

    #[test]
    fn a_batch_that_is_too_much_is_told_which_limit_and_what_is_left() {
        let allowance = Allowance {
            max_enqueued_requests: Some(1_000),
            max_enqueued_tokens: Some(2_000_000),
            ..Allowance::default()
        };
        let of = |requests, tokens| Enqueued { requests, tokens };
        assert_eq!(
            allowance.refusal("acme", of(400, 0), of(600, 2_000_000)),
            None
        );
        let refusal = allowance.refusal("acme", of(0, 1_500_000), of(1, 500_001));
        assert_eq!(
            refusal.unwrap(),
            "Enqueued token limit reached in organization acme. Limit: 2,000,000 enqueued tokens. \
             This batch has an estimated 500,001, and 500,000 are left. Please try again once some \
             in_progress batches have been completed."
        );
        // A limit that was lowered below what runs already leaves nothing.
        let refusal = allowance.refusal("acme", of(5_000, 0), of(1, 1)).unwrap();
        assert!(refusal.contains("request limit") && refusal.contains("and 0 are left"));
    }

    #[test]
    fn digits_are_grouped_by_threes() {
        assert_eq!(
            [0, 12, 123, 1_234, 1_234_567].map(grouped),
            ["0", "12", "123", "1,234", "1,234,567"]
        );
    }
}
