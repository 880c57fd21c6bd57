//! The documented file: its defaults and its examples.

use std::fs;
use std::time::Duration;

use secrecy::ExposeSecret;
use serde_json::json;

use super::*;
use crate::domain::scope::Scopes;
use crate::upstream::{ProviderKind, RateKind, RateLimit, Spill, Strategy, UnsupportedParams};

fn decimal(text: &str) -> rust_decimal::Decimal {
    text.parse().unwrap()
}

#[test]
fn the_defaults_are_the_documented_ones() {
    let config = load("", &[]).unwrap();
    assert_eq!(config.server.listen, "127.0.0.1:8080");
    let trusted = ["127.0.0.0/8", "::1/128"].map(|net| net.parse().unwrap());
    assert_eq!(config.server.trusted_proxies, trusted);
    let path = config.database.sqlite_path().unwrap();
    assert_eq!(path, Path::new("nightshift-data/nightshift.db"));
    assert_eq!(config.database.max_connections, 4);
    assert_eq!(config.auth.required, None);
    assert!(config.auth.bootstrap_key.is_none());
    assert_eq!(config.auth.bootstrap_scope, Scopes::API);
    assert_eq!(config.limits.max_file_bytes, 10_737_418_240);
    assert_eq!(config.limits.max_requests_per_batch, 10_000_000);
    assert_eq!(config.limits.max_models_per_file, 100);
    assert_eq!(config.limits.max_line_bytes, 16_777_216);
    assert_eq!(config.limits.max_in_flight_bytes, 67_108_864);
    assert!(config.upstreams.is_empty() && config.models.is_empty());
    assert!(config.tenants.is_empty());
    assert_eq!(config.retry.max_attempts, 5);
    assert_eq!(config.retry.initial_backoff, Duration::from_millis(500));
    assert_eq!(config.retry.max_backoff, Duration::from_mins(1));
    assert_eq!(config.worker.lease, Duration::from_secs(10));
    assert_eq!(config.worker.settle_timeout, Duration::from_mins(10));
    assert_eq!(config.worker.shutdown_grace, Duration::from_secs(30));
    let kept = Some(Duration::from_hours(720));
    assert_eq!(config.retention.input_files, kept);
    assert_eq!(config.retention.output_files, kept);
    assert_eq!(config.retention.other_files, None);
    assert_eq!(config.retention.grace, Duration::from_hours(1));
    assert_eq!(config.log.filter, "info");
    assert_eq!(config.log.format, LogFormat::Text);
    assert_eq!(config.telemetry.otlp_endpoint, None);
    assert_eq!(config.telemetry.sample_ratio, 0.1);
    assert!(config.listen_is_loopback() && !config.auth_is_required());
}

#[test]
fn the_examples_in_the_documented_file_hold_and_show_the_defaults() {
    let folder = TempDir::new().unwrap();
    let secret = folder.path().join("secret");
    fs::write(&secret, "sk-from-a-file-0123456789\r\n").unwrap();
    let certificate = folder.path().join("ca.pem");
    fs::write(&certificate, "-----BEGIN CERTIFICATE-----\n").unwrap();
    let uncommented: String = DEFAULTS
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(example) if !example.is_empty() && !example.starts_with(' ') => example,
            _ => line,
        })
        .flat_map(|line| [line, "\n"])
        .collect();
    let toml = uncommented
        .replace("/run/secrets/nightshift_key", secret.to_str().unwrap())
        .replace("/run/secrets/gpu2_key", secret.to_str().unwrap())
        .replace("/etc/ssl/internal-ca.pem", certificate.to_str().unwrap());
    let variables = [
        ("GPU1_KEY", "sk-from-a-variable"),
        ("GPU2_HEADER_KEY", "of a header"),
    ];
    let config = load(&toml, &variables).unwrap();

    assert_eq!(config.auth.required, Some(true));
    let bootstrap_key = config.auth.bootstrap_key.unwrap();
    assert_eq!(bootstrap_key.expose_secret(), "sk-from-a-file-0123456789");
    let [one, two, three] = config.upstreams.as_slice() else {
        panic!("three upstreams are shown");
    };
    assert_eq!(one.provider, ProviderKind::default());
    assert_eq!(three.base_url, "https://api.anthropic.com/");
    assert_eq!(three.api_version.as_deref(), Some("2023-06-01"));
    assert_eq!(three.unsupported_params, UnsupportedParams::default());
    let key = |upstream: &UpstreamSettings| upstream.keys[0].secret.clone();
    assert_eq!(key(one).expose_secret(), "sk-from-a-variable");
    assert_eq!(key(two).expose_secret(), "sk-from-a-file-0123456789");
    let with_query = "https://gpu-2.internal/v1?api-version=2024-10-21";
    assert_eq!(two.base_url, with_query);
    assert_eq!(two.headers["x-team"].expose_secret(), "batch");
    assert_eq!(two.headers["x-api-key"].expose_secret(), "of a header");
    assert_eq!(two.ca_file, Some(certificate));
    // The second leaves out what the first shows: both have the defaults.
    assert_eq!((one.concurrency, one.is_auto), (64, false));
    assert_eq!(
        (two.concurrency, two.is_auto, two.yields),
        (1024, true, true)
    );
    let metrics_url = two.metrics_url.as_deref();
    assert_eq!(metrics_url, Some("https://gpu-2.internal/metrics"));
    assert_eq!(one.timeout, two.timeout);
    assert_eq!(one.connect_timeout, two.connect_timeout);
    assert_eq!((one.stream, two.stream), (false, false));
    assert_eq!(one.idle_timeout, three.idle_timeout);
    assert_eq!(two.stream_timeout, Duration::from_hours(1));
    assert_eq!(one.max_response_bytes, two.max_response_bytes);
    let otlp = config.telemetry.otlp_endpoint.as_deref();
    assert_eq!(otlp, Some("http://127.0.0.1:4318"));
    let [model] = config.models.as_slice() else {
        panic!("one model is shown");
    };
    let limit = |kind, limit, period| RateLimit {
        kind,
        limit,
        period,
    };
    let minute = Duration::from_mins(1);
    let of_requests = limit(RateKind::Requests, 600, minute);
    let of_tokens = limit(RateKind::Tokens, 60_000, minute);
    assert_eq!(one.rate_limits, [of_requests, of_tokens]);
    let of_a_day = limit(RateKind::Requests, 5_000, Duration::from_hours(24));
    assert_eq!(model.routes[1].rate_limits, [of_a_day]);
    let of_an_hour = limit(RateKind::OutputTokens, 1_000_000, Duration::from_hours(1));
    assert_eq!(model.rate_limits, [of_an_hour]);
    assert_eq!(model.concurrency, Some(128));
    assert_eq!(model.routes[0].weight, 3);
    assert_eq!(config.pricing.currency.as_deref(), Some("usd"));
    let price = model.routes[0].price.expect("has one");
    assert_eq!([price.input, price.output], ["0.02", "0.03"].map(decimal));
    let price = one.price.expect("has one");
    assert_eq!(price.cached_input, Some(decimal("0.05")));
    let above = price.above.expect("has one");
    assert_eq!((above.tokens, above.output), (200_000, decimal("2")));
    let [of_one] = &one.capabilities[..] else {
        panic!("one entry is shown");
    };
    assert!(two.capabilities.is_empty(), "it is for the first alone");
    assert!(of_one.model.fits("meta-llama/Llama-3.1-8B-Instruct"));
    assert_eq!(of_one.says.context, Some(131_072));
    assert_eq!(of_one.says.refuses, ["logit_bias"]);
    assert_eq!(model.routes[1].upstream, "gpu-2");
    assert_eq!(model.routes[1].weight, 1);
    assert_eq!(model.routes[1].concurrency, Some(16));
    assert_eq!([model.routes[0].tier, model.routes[1].tier], [0, 1]);
    assert_eq!(model.balance, Strategy::default());
    assert_eq!(model.spill, Spill::default());
    assert_eq!(config.worker.name.as_deref(), Some("worker-1"));
    let [task] = config.tasks.as_slice() else {
        panic!("one task is shown");
    };
    assert_eq!(
        (&*task.name, &*task.models),
        ("summary", &["llama-3.1-8b".to_owned()][..])
    );
    assert_eq!(json!(task.defaults), json!({ "max_tokens": 500 }));
    assert_eq!(json!(task.overrides), json!({ "store": false }));
    let [tenant] = config.tenants.as_slice() else {
        panic!("one tenant is shown");
    };
    let allowance = &tenant.allowance;
    assert_eq!((&*tenant.name, allowance.weight), ("acme", 2));
    assert_eq!(allowance.concurrency, Some(32));
    let of_an_hour = limit(RateKind::Tokens, 2_000_000, Duration::from_hours(1));
    assert_eq!(tenant.rates.rate_limits, [of_an_hour]);
    assert!(allowance.may_use("llama-3.1-8b") && !allowance.may_use("gpt"));
    assert_eq!(allowance.max_enqueued_requests, Some(1_000_000));
    assert_eq!(allowance.max_enqueued_tokens, Some(500_000_000));
    assert_eq!(allowance.max_storage_bytes, Some(107_374_182_400));
    assert_eq!(json!(model.defaults), json!({ "temperature": 0.3 }));
    assert_eq!(json!(model.overrides), json!({ "store": false }));
}

#[test]
fn every_key_of_the_documented_file_has_a_comment_above_it() {
    let mut above = "";
    for line in DEFAULTS.lines() {
        let key = line.strip_prefix('#').unwrap_or(line);
        let is_key = key.starts_with(|c: char| c.is_ascii_lowercase());
        let is_second_upstream = ["gpu-2", "claude", "anthropic.com", "\"anthropic\""]
            .iter()
            .any(|word| key.contains(word));
        assert!(
            !is_key || is_second_upstream || above.starts_with("# "),
            "{line}"
        );
        above = line;
    }
}

#[test]
fn the_configurations_on_the_page_about_providers_hold_and_each_provider_has_one() {
    let page = include_str!("../../../docs/providers.md");
    let mut seen = Vec::new();
    for block in page.split("```toml\n").skip(1) {
        let (toml, _) = block.split_once("```").unwrap();
        let keys = ProviderKind::ALL.map(|kind| kind.as_str().to_uppercase() + "_API_KEY");
        let keys = keys.iter().map(String::as_str).chain(["GROQ_API_KEY"]);
        let keys: Vec<_> = keys.map(|key| (key, "sk-of-a-provider")).collect();
        let config = load(toml, &keys);
        let config = config.unwrap_or_else(|errors| panic!("{errors}\n{toml}"));
        let provider = config.upstreams[0].provider;
        seen.extend(Some(provider).filter(|provider| provider.translates()));
    }
    let translated = ProviderKind::ALL.into_iter();
    let translated = translated.filter(|kind| kind.translates());
    assert!(translated.eq(seen));
}

#[test]
fn the_configurations_on_the_page_about_upstreams_hold() {
    let page = include_str!("../../../docs/upstreams.md");
    let blocks: Vec<&str> = page.split("```toml\n").skip(1).collect();
    assert_eq!(blocks.len(), 13);
    for block in blocks {
        let (toml, _) = block.split_once("```").unwrap();
        let variables = [
            ("OPENROUTER_KEY", "sk-of-openrouter"),
            ("VENDOR_KEY_A", "sk-a"),
            ("VENDOR_KEY_B", "sk-b"),
            ("AZURE_KEY", "sk-of-azure"),
        ];
        let config = load(toml, &variables);
        let config = config.unwrap_or_else(|errors| panic!("{errors}\n{toml}"));
        assert!(!config.upstreams.is_empty());
    }
}
