//! Which layer wins, and what the environment and flags reach.

use std::path::PathBuf;
use std::time::Duration;

use secrecy::ExposeSecret;
use serde_json::json;

use super::*;

#[test]
fn each_layer_wins_over_the_one_before() {
    let toml = "[server]\nlisten = '127.0.0.1:1'\n[retry]\nmax_attempts = 7";
    let variable = [("NIGHTSHIFT_SERVER__LISTEN", "127.0.0.1:2")];
    let flag = Overrides {
        listen: Some("127.0.0.1:3".to_owned()),
        ..Overrides::default()
    };
    let listen = |config: Config| config.server.listen;
    assert_eq!(listen(load(toml, &[]).unwrap()), "127.0.0.1:1");
    assert_eq!(listen(load(toml, &variable).unwrap()), "127.0.0.1:2");
    let config = load_flagged(toml, &variable, &flag).unwrap();
    assert_eq!(config.retry.max_attempts, 7);
    assert_eq!(config.retry.max_backoff, Duration::from_mins(1));
    assert_eq!(listen(config), "127.0.0.1:3");
}

#[test]
fn a_database_url_stands_behind_its_longer_name() {
    let toml = "[database]\nurl = 'sqlite://file.db'";
    let short = ("DATABASE_URL", "postgres://u:p@short/a");
    let long = ("NIGHTSHIFT_DATABASE__URL", "postgres://u:p@long/a");
    let unset = ("NIGHTSHIFT_DATABASE__URL", "");
    let url = |variables: &[(&str, &str)]| {
        let url = load(toml, variables).unwrap().database.url;
        url.expose_secret().to_owned()
    };
    assert_eq!(url(&[]), "sqlite://file.db");
    assert_eq!(url(&[short]), short.1);
    assert_eq!(url(&[short, long]), long.1);
    assert_eq!(url(&[short, unset]), short.1);
}

#[test]
fn text_of_the_environment_is_taken_as_its_key_expects() {
    let config = load(
        "",
        &[
            ("NIGHTSHIFT_AUTH__REQUIRED", "true"),
            ("NIGHTSHIFT_AUTH__BOOTSTRAP_KEY", "sk-first-0123456789-x"),
            ("NIGHTSHIFT_LIMITS__MAX_LINE_BYTES", "1_000"),
            ("NIGHTSHIFT_WORKER__LEASE", "2s"),
            ("NIGHTSHIFT_UPSTREAMS__0__BASE_URL", "http://gpu"),
            ("NIGHTSHIFT_UPSTREAMS__0__NAME", "7"),
            (
                "NIGHTSHIFT_UPSTREAMS__0__HEADERS",
                "{ authorization = \"Basic abc\" }",
            ),
            ("NIGHTSHIFT_MODELS__0__NAME", "*"),
            ("NIGHTSHIFT_MODELS__0__ROUTES", "[{ upstream = '7' }]"),
            ("NIGHTSHIFT_MODELS__0__ROUTES__0__WEIGHT", "5"),
            ("NIGHTSHIFT_MODELS__0__DEFAULTS__TEMPERATURE", "0.5"),
            ("NIGHTSHIFT_MODELS__0__DEFAULTS__USER", "night shift"),
            ("NIGHTSHIFT_MODELS__0__DEFAULTS__LOGIT_BIAS__50256", "-100"),
            ("NIGHTSHIFT_MODELS__0__DEFAULTS__STOP", "['a', 'b']"),
        ],
    )
    .unwrap();
    assert_eq!(config.auth.required, Some(true));
    assert_eq!(
        config.auth.bootstrap_key.unwrap().expose_secret(),
        "sk-first-0123456789-x"
    );
    assert_eq!(config.limits.max_line_bytes, 1000);
    assert_eq!(config.worker.lease, Duration::from_secs(2));
    assert_eq!(config.upstreams[0].name, "7");
    assert_eq!(
        config.upstreams[0].headers["authorization"].expose_secret(),
        "Basic abc"
    );
    assert_eq!(config.models[0].routes[0].weight, 5);
    assert_eq!(
        json!(config.models[0].defaults),
        json!({ "temperature": 0.5, "user": "night shift", "logit_bias": { "50256": -100 },
                "stop": ["a", "b"] })
    );
}

#[test]
fn the_environment_reaches_into_the_arrays_of_the_file() {
    let toml = "[[upstreams]]\nname = 'a'\nbase_url = 'http://a'\nconcurrency = 3";
    let config = load(
        toml,
        &[
            ("NIGHTSHIFT_UPSTREAMS__0__BASE_URL", "http://other"),
            ("NIGHTSHIFT_UPSTREAMS__1__NAME", "b"),
            ("NIGHTSHIFT_UPSTREAMS__1__BASE_URL", "http://b"),
        ],
    )
    .unwrap();
    let seen: Vec<_> = config
        .upstreams
        .iter()
        .map(|u| (u.name.as_str(), u.base_url.as_str(), u.concurrency))
        .collect();
    let expected = [("a", "http://other/v1", 3), ("b", "http://b/v1", 64)];
    assert_eq!(seen, expected);

    check_faults(
        toml,
        &[
            ("NIGHTSHIFT_UPSTREAMS__2__NAME", "c"),
            ("NIGHTSHIFT_UPSTREAMS__X__NAME", "x"),
        ],
        &[
            "upstreams[2] (NIGHTSHIFT_UPSTREAMS__2__NAME): indexes leave no gap: the next one is 1",
            "upstreams.x (NIGHTSHIFT_UPSTREAMS__X__NAME): upstreams is an array",
        ],
    );
}

#[test]
fn eleven_upstreams_keep_the_order_of_their_indexes() {
    let variables: Vec<_> = (0..11)
        .flat_map(|i| {
            let key = |key| format!("NIGHTSHIFT_UPSTREAMS__{i}__{key}");
            [
                (key("NAME"), i.to_string()),
                (key("BASE_URL"), format!("http://gpu-{i}")),
            ]
        })
        .collect();
    let environment = variables.into_iter().collect();
    let config = Config::load_with(&Overrides::default(), &environment, Path::new("none"));
    let upstreams = config.unwrap().upstreams;
    let names: Vec<_> = upstreams.into_iter().map(|u| u.name).collect();
    let expected: Vec<_> = (0..11).map(|i| i.to_string()).collect();
    assert_eq!(names, expected);
}

#[test]
fn one_upstream_takes_the_place_of_all_upstreams_and_models() {
    let toml = "[[upstreams]]\nname = 'a'\nbase_url = 'nonsense'\napi_key_env = 'NOT_SET'\n\
                [[models]]\nname = 'm'\nroutes = [{ upstream = 'a' }]";
    let variables = [
        ("NIGHTSHIFT_UPSTREAM", "http://variable"),
        ("NIGHTSHIFT_UPSTREAMS__0__CONCURRENCY", "1"),
        ("KEY", "sk-key"),
    ];
    let config = load(toml, &variables).unwrap();
    assert_eq!(config.upstreams[0].base_url, "http://variable/v1");
    assert!(config.upstreams[0].keys.is_empty());

    let overrides = Overrides {
        upstream: Some("http://flag/".to_owned()),
        api_key_env: Some("KEY".to_owned()),
        concurrency: Some(9),
        ..Overrides::default()
    };
    let config = load_flagged(toml, &variables, &overrides).unwrap();
    let [upstream] = config.upstreams.as_slice() else {
        panic!("one upstream was asked for");
    };
    assert_eq!(upstream.name, "default");
    assert_eq!(upstream.base_url, "http://flag/v1");
    assert_eq!(upstream.concurrency, 9);
    let key = &upstream.keys[0].secret;
    assert_eq!(key.expose_secret(), "sk-key");
    assert!(config.models.is_empty());
}

#[test]
fn the_built_in_configuration_ignores_file_and_environment() {
    let variables = [
        ("DATABASE_URL", "nonsense"),
        ("NIGHTSHIFT_SERVER__LISTEN", "nonsense"),
        ("NIGHTSHIFT_UPSTREAM", "nonsense"),
    ];
    let environment = variables.into_iter().collect();
    let config = Config::built_in(&Overrides::default(), &environment).unwrap();
    assert_eq!(config.server.listen, "127.0.0.1:8080");
    assert!(config.upstreams.is_empty());
}

#[test]
fn a_named_file_must_be_there_and_the_default_one_need_not() {
    let none = Path::new("no-such-file.toml");
    let environment = Environment::default();
    assert!(Config::load_with(&Overrides::default(), &environment, none).is_ok());
    let overrides = Overrides {
        config: Some(PathBuf::from(none)),
        ..Overrides::default()
    };
    let errors = Config::load(&overrides, &environment).unwrap_err();
    assert_eq!(errors.0[0].place, "no-such-file.toml");
    assert_eq!(errors.0.len(), 1);
}

#[test]
fn the_value_of_a_header_may_stand_in_a_variable() {
    let toml = format!(
        "{UPSTREAM}headers = {{ x-team = 'batch' }}\n\
                        headers_env = {{ X-API-Key = 'GPU_KEY', authorization = 'BASIC' }}"
    );
    let variables = [("GPU_KEY", "hunter2"), ("BASIC", "Basic abc")];
    let config = load(&toml, &variables).unwrap();
    let headers = config.upstreams[0].headers.iter();
    let headers: Vec<_> = headers
        .map(|(name, value)| (name.as_str(), value.expose_secret()))
        .collect();
    assert_eq!(
        headers,
        [
            ("authorization", "Basic abc"),
            ("x-api-key", "hunter2"),
            ("x-team", "batch")
        ]
    );
}

#[test]
fn a_key_is_sent_in_the_header_that_is_written_or_in_the_providers_own() {
    let variables = [("KEY", "sk-1"), ("OTHER", "Basic abc")];
    let with = |more: &str| {
        let toml = format!("{UPSTREAM}api_key_env = 'KEY'\n{more}");
        load(&toml, &variables)
    };
    for provider in ["openai", "anthropic", "gemini", "mistral"] {
        let config = with(&format!(
            "provider = '{provider}'\nauth_header = 'Authorization'"
        ));
        let header = config.unwrap().upstreams[0].auth_header.clone();
        assert_eq!(header.as_deref(), Some("authorization"), "{provider}");
    }
    for (provider, own, other) in [
        ("openai", "authorization", "x-api-key"),
        ("anthropic", "x-api-key", "authorization"),
        ("gemini", "x-goog-api-key", "authorization"),
    ] {
        let and = |header: &str| {
            let more = format!("provider = '{provider}'\nheaders_env = {{ {header} = 'OTHER' }}");
            with(&more).is_ok()
        };
        assert!(!and(own), "{provider}: the key is sent there");
        assert!(and(other), "{provider}");
    }
}

#[test]
fn a_query_goes_behind_the_base_url() {
    let toml = "[[upstreams]]\nbase_url = 'https://gpu/openai?x=1'\n\
        query = { api-version = '2024-10-21', note = 'a b' }\n";
    let config = load(toml, &[]).unwrap();
    let url = &config.upstreams[0].base_url;
    assert_eq!(
        url,
        "https://gpu/openai?x=1&api-version=2024-10-21&note=a+b"
    );
}

#[test]
fn a_key_on_the_open_network_is_warned_of() {
    let warned = |url: &str, key: &str| {
        let toml = format!("[[upstreams]]\nbase_url = '{url}'\n{key}\n");
        load(&toml, &[("KEY", "sk-1")]).unwrap().warnings()
    };
    let key = "api_key_env = 'KEY'";
    let warnings = warned("http://api.vendor.example", key);
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(!warnings[0].contains("sk-1"), "{warnings:?}");
    assert_eq!(warned("https://api.vendor.example", key), [""; 0]);
    assert_eq!(warned("http://10.0.0.5:8000", key), [""; 0]);
    assert_eq!(warned("http://api.vendor.example", ""), [""; 0]);
}
