//! `[telemetry]`: where spans are sent.

use super::reader::{Item, Reader};

/// `[telemetry]`
#[derive(Clone, Debug)]
pub struct Telemetry {
    /// The base URL of an OTLP receiver, without a slash at its end; `None`: nothing is exported.
    pub otlp_endpoint: Option<String>,
    /// How many of the traces that begin here are exported, in 0..=1.
    pub sample_ratio: f64,
}

impl Telemetry {
    pub(super) fn read(mut reader: Reader<'_>) -> Self {
        let otlp_endpoint = reader.take("otlp_endpoint").and_then(endpoint);
        let sample_ratio = reader.take("sample_ratio").and_then(Item::fraction);
        reader.finish();
        Self {
            otlp_endpoint,
            sample_ratio: sample_ratio.unwrap_or_default(),
        }
    }
}

/// The base URL of an OTLP receiver, without a slash at its end; otherwise a fault is noted.
fn endpoint(item: Item<'_>) -> Option<String> {
    let text = item.string()?;
    let url = reqwest::Url::parse(&text).ok();
    let Some(url) = url.filter(|url| matches!(url.scheme(), "http" | "https")) else {
        item.fault("expected the http:// or https:// URL of an OTLP receiver");
        return None;
    };
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() {
        item.fault(
            "a URL holds no user name, password or query: give what the receiver asks for in \
             the variable OTEL_EXPORTER_OTLP_HEADERS",
        );
        return None;
    }
    Some(text.trim_end_matches('/').to_owned())
}
