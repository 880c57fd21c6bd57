//! How long streamed answers take to begin.

use std::sync::OnceLock;
use std::time::Duration;

use super::handles::CallSeconds;
use super::registry::metrics;

/// How long streamed answers of a model at an upstream take to begin. Exported from the first such
/// answer on: most upstreams never stream.
#[derive(Debug)]
pub struct FirstTokenSeconds {
    upstream: String,
    label: String,
    seconds: OnceLock<CallSeconds>,
}

impl FirstTokenSeconds {
    /// `label`: the model's, for metrics.
    #[must_use]
    pub fn new(upstream: &str, label: &str) -> Self {
        Self {
            upstream: upstream.to_owned(),
            label: label.to_owned(),
            seconds: OnceLock::new(),
        }
    }

    /// `took`: from sending the call to the first token of its answer.
    pub fn observe(&self, took: Duration) {
        let made = || metrics().first_token_seconds(&self.upstream, &self.label);
        self.seconds.get_or_init(made).observe(took);
    }
}
