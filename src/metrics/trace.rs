//! Spans that are exported by OpenTelemetry, where that is configured. They carry names, ids and
//! numbers, never a body, a header or a key.

use std::collections::HashMap;

use opentelemetry::propagation::TextMapPropagator as _;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

/// The target of exported spans. They are at the level `TRACE`, which nobody listens to where
/// nothing is exported: then they cost one look at a flag.
pub const TARGET: &str = "nightshift.spans";

/// The span of a batch's end.
#[must_use]
pub fn finish_batch(batch_id: &str) -> Span {
    tracing::trace_span!(target: TARGET, parent: None, "finish batch", batch.id = batch_id)
}

/// Makes a span a part of the trace that a client's `traceparent` names. A header that is
/// malformed changes nothing.
pub fn continue_from(span: &Span, traceparent: &str) {
    let carrier = HashMap::from([("traceparent".to_owned(), traceparent.to_owned())]);
    let context = TraceContextPropagator::new().extract(&carrier);
    // Fails where nothing is exported.
    let _ = span.set_parent(context);
}

/// The `traceparent` by which a call that a span stands for is a part of its trace elsewhere;
/// `None` where nothing is exported.
#[must_use]
pub fn traceparent(span: &Span) -> Option<String> {
    if span.is_disabled() {
        return None;
    }
    let mut carrier = HashMap::new();
    TraceContextPropagator::new().inject_context(&span.context(), &mut carrier);
    carrier.remove("traceparent")
}
