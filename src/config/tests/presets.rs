//! Presets, each against what documents its server.

use super::*;
use crate::upstream::testing::chat_url;
use crate::upstream::{ProviderKind, ReasoningKey};

/// Each preset: what it speaks, where a chat goes that it is sent, the variable of its key, and the
/// header that carries the key.
const DOCUMENTED: [(&str, ProviderKind, &str, &str, &str); 22] = {
    use ProviderKind::{Anthropic, Cohere, Gemini, Mistral, OpenAi};
    const BEARER: &str = "authorization";
    [
        (
            "ollama",
            OpenAi,
            "http://localhost:11434/v1/chat/completions",
            "",
            "",
        ),
        (
            "lmstudio",
            OpenAi,
            "http://localhost:1234/v1/chat/completions",
            "",
            "",
        ),
        (
            "llamacpp",
            OpenAi,
            "http://localhost:8080/v1/chat/completions",
            "",
            "",
        ),
        (
            "vllm",
            OpenAi,
            "http://localhost:8000/v1/chat/completions",
            "",
            "",
        ),
        (
            "sglang",
            OpenAi,
            "http://localhost:30000/v1/chat/completions",
            "",
            "",
        ),
        (
            "tgi",
            OpenAi,
            "http://localhost:3000/v1/chat/completions",
            "",
            "",
        ),
        (
            "tensorrt-llm",
            OpenAi,
            "http://localhost:8000/v1/chat/completions",
            "",
            "",
        ),
        (
            "openai",
            OpenAi,
            "https://api.openai.com/v1/chat/completions",
            "OPENAI_API_KEY",
            BEARER,
        ),
        (
            "azure",
            OpenAi,
            "https://acme.openai.azure.com/openai/v1/chat/completions",
            "AZURE_OPENAI_API_KEY",
            "api-key",
        ),
        (
            "anthropic",
            Anthropic,
            "https://api.anthropic.com/v1/messages",
            "ANTHROPIC_API_KEY",
            "x-api-key",
        ),
        (
            "gemini",
            Gemini,
            "https://generativelanguage.googleapis.com/v1beta/models/m:generateContent",
            "GEMINI_API_KEY",
            "x-goog-api-key",
        ),
        (
            "mistral",
            Mistral,
            "https://api.mistral.ai/v1/chat/completions",
            "MISTRAL_API_KEY",
            BEARER,
        ),
        (
            "cohere",
            Cohere,
            "https://api.cohere.com/v2/chat",
            "CO_API_KEY",
            BEARER,
        ),
        (
            "groq",
            OpenAi,
            "https://api.groq.com/openai/v1/chat/completions",
            "GROQ_API_KEY",
            BEARER,
        ),
        (
            "together",
            OpenAi,
            "https://api.together.ai/v1/chat/completions",
            "TOGETHER_API_KEY",
            BEARER,
        ),
        (
            "fireworks",
            OpenAi,
            "https://api.fireworks.ai/inference/v1/chat/completions",
            "FIREWORKS_API_KEY",
            BEARER,
        ),
        (
            "perplexity",
            OpenAi,
            "https://api.perplexity.ai/v1/chat/completions",
            "PERPLEXITY_API_KEY",
            BEARER,
        ),
        (
            "openrouter",
            OpenAi,
            "https://openrouter.ai/api/v1/chat/completions",
            "OPENROUTER_API_KEY",
            BEARER,
        ),
        (
            "deepseek",
            OpenAi,
            "https://api.deepseek.com/v1/chat/completions",
            "DEEPSEEK_API_KEY",
            BEARER,
        ),
        (
            "xai",
            OpenAi,
            "https://api.x.ai/v1/chat/completions",
            "XAI_API_KEY",
            BEARER,
        ),
        (
            "cerebras",
            OpenAi,
            "https://api.cerebras.ai/v1/chat/completions",
            "CEREBRAS_API_KEY",
            BEARER,
        ),
        (
            "nebius",
            OpenAi,
            "https://api.tokenfactory.nebius.com/v1/chat/completions",
            "NEBIUS_API_KEY",
            BEARER,
        ),
    ]
};

/// What a preset alone makes of an upstream. Each variable of a key is set.
fn loaded(toml: &str) -> Result<Config, ConfigErrors> {
    let keys = DOCUMENTED.map(|(_, _, _, key, _)| (key, "sk-0123456789"));
    let keys: Vec<_> = keys
        .into_iter()
        .filter(|(key, _)| !key.is_empty())
        .collect();
    load(toml, &keys)
}

#[test]
fn each_preset_is_what_its_server_documents() {
    for (name, provider, chat, key, header) in DOCUMENTED {
        let own = if name == "azure" {
            "base_url = 'https://acme.openai.azure.com'"
        } else {
            ""
        };
        let config = loaded(&format!("[[upstreams]]\npreset = '{name}'\n{own}"));
        let config = config.unwrap_or_else(|errors| panic!("{name}: {errors}"));
        let upstream = &config.upstreams[0];
        assert_eq!(upstream.provider, provider, "{name}");
        assert_eq!(chat_url(upstream, "m"), chat, "{name}");
        let keys: Vec<_> = upstream.keys.iter().map(|key| key.name.as_str()).collect();
        let expected = Some(key).filter(|key| !key.is_empty());
        assert_eq!(keys, Vec::from_iter(expected), "{name}");
        let sent_in = upstream.auth_header.as_deref();
        let sent_in = sent_in.unwrap_or(upstream.provider.key_header());
        assert!(header.is_empty() || sent_in == header, "{name}: {sent_in}");
        assert_eq!(config.presets[0].name, name);
        assert!(config.warnings().is_empty(), "{name}");
    }
}

#[test]
fn an_engines_metrics_are_read_where_it_has_them_and_auto_heeds_them() {
    for (name, metrics) in [
        ("llamacpp", Some("http://gpu:9/metrics")),
        ("vllm", Some("http://gpu:9/metrics")),
        ("sglang", Some("http://gpu:9/metrics")),
        ("tgi", Some("http://gpu:9/metrics")),
        ("tensorrt-llm", Some("http://gpu:9/prometheus/metrics")),
        ("ollama", None),
        ("lmstudio", None),
    ] {
        let toml = format!("[[upstreams]]\npreset = '{name}'\nbase_url = 'http://gpu:9'\n");
        let auto = loaded(&format!("{toml}concurrency = 'auto'")).unwrap();
        assert_eq!(auto.upstreams[0].base_url, "http://gpu:9/v1", "{name}");
        assert_eq!(auto.upstreams[0].metrics_url.as_deref(), metrics, "{name}");
        let fixed = loaded(&toml).unwrap();
        assert_eq!(fixed.upstreams[0].metrics_url, None, "{name}");
    }
}

#[test]
fn servers_that_ignore_max_completion_tokens_are_sent_max_tokens() {
    for (name, only_max_tokens) in [
        ("ollama", true),
        ("lmstudio", true),
        ("llamacpp", true),
        ("together", true),
        ("deepseek", true),
        ("vllm", false),
        ("openai", false),
    ] {
        let config = loaded(&format!("[[upstreams]]\npreset = '{name}'")).unwrap();
        assert_eq!(
            config.upstreams[0].only_max_tokens, only_max_tokens,
            "{name}"
        );
    }
}

#[test]
fn thoughts_are_sent_to_servers_that_are_known_to_take_them() {
    for (name, key) in [
        ("vllm", Some(ReasoningKey::Reasoning)),
        ("deepseek", Some(ReasoningKey::ReasoningContent)),
        ("groq", None),
        ("cerebras", None),
        ("openai", None),
    ] {
        let config = loaded(&format!("[[upstreams]]\npreset = '{name}'")).unwrap();
        assert_eq!(config.upstreams[0].reasoning_key, key, "{name}");
    }
    let none = "left out, the server is sent no thoughts";
    check_faults(
        "[[upstreams]]\npreset = 'vllm'\nreasoning_key = 'thought'",
        &[],
        &[&format!(
            "upstreams[0].reasoning_key (nightshift.toml:3): expected \"reasoning_content\" or \
             \"reasoning\"; {none}"
        )],
    );
}

#[test]
fn whatever_else_is_written_wins_over_the_preset() {
    let toml = "[[upstreams]]\npreset = 'groq'\nbase_url = 'https://gate.internal/v2'\n\
        api_key_envs = ['XAI_API_KEY']\nauth_header = 'x-gate'\n";
    let config = loaded(toml).unwrap();
    let upstream = &config.upstreams[0];
    assert_eq!(upstream.base_url, "https://gate.internal/v2");
    assert_eq!(upstream.keys[0].name, "XAI_API_KEY");
    assert_eq!(upstream.auth_header.as_deref(), Some("x-gate"));
    assert!(config.presets[0].filled.is_empty());

    // An origin alone gets the path that the vendor's API has.
    let toml = "[[upstreams]]\npreset = 'groq'\nbase_url = 'https://gate.internal'\n";
    let upstream = &loaded(toml).unwrap().upstreams[0];
    assert_eq!(upstream.base_url, "https://gate.internal/openai/v1");

    let toml = "[[upstreams]]\npreset = 'mistral'\nprovider = 'openai'\n";
    let config = loaded(toml).unwrap();
    assert_eq!(config.upstreams[0].provider, ProviderKind::OpenAi);
    assert_eq!(config.upstreams[0].base_url, "https://api.mistral.ai/v1");
    let filled = [
        "api_key_env = \"MISTRAL_API_KEY\"",
        "base_url = \"https://api.mistral.ai\"",
    ];
    assert_eq!(config.presets[0].filled, filled);
}

#[test]
fn a_preset_that_is_not_there_and_what_it_lacks_is_a_fault() {
    let upstream = "[[upstreams]]\n";
    for (preset, expected) in [
        (
            "preset = 'vlm'",
            "upstreams[0].preset (nightshift.toml:2): unknown preset; the nearest is vllm",
        ),
        (
            "preset = 'azure'",
            "upstreams[0] (nightshift.toml:1): `base_url` is missing: it looks like \
             https://NAME.openai.azure.com/openai/v1",
        ),
    ] {
        let errors = loaded(&format!("{upstream}{preset}"))
            .unwrap_err()
            .to_string();
        assert!(errors.starts_with(expected), "{errors}");
    }
    check_faults(
        "[[upstreams]]\npreset = 'azure'\nbase_url = 'https://a.openai.azure.com'",
        &[],
        &["upstreams[0].api_key_env (preset azure): the variable AZURE_OPENAI_API_KEY is not set"],
    );
    check_faults(
        "[[upstreams]]\npreset = 'anthropic'\nmax_tokens_key = 'max_tokens'",
        &[("ANTHROPIC_API_KEY", "sk-0123456789")],
        &["upstreams[0].max_tokens_key (nightshift.toml:3): is for the provider openai"],
    );
}
