//! Secrets are shown nowhere.

use std::fs;

use secrecy::ExposeSecret;

use super::*;

#[test]
fn no_debug_output_holds_a_secret() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("key");
    fs::write(&file, "hunter2\n").unwrap();
    let toml = format!(
        "{UPSTREAM}api_key_file = '{}'\nproxy = 'http://u:hunter2@p'\n\
         headers_env = {{ api-key = 'OTHER' }}",
        file.display()
    );
    let variables = [
        ("DATABASE_URL", "postgres://u:hunter2@host/name"),
        ("NIGHTSHIFT_AUTH__BOOTSTRAP_KEY", "hunter2-hunter2-hunter2"),
        ("OTHER", "hunter2"),
    ];
    let overrides = Overrides {
        database: Some("postgres://u:hunter2@host/name".to_owned()),
        upstream: None,
        ..Overrides::default()
    };
    let environment: Environment = variables.into_iter().collect();
    let config = load_flagged(&toml, &variables, &overrides).unwrap();
    assert_eq!(
        config.upstreams[0].keys[0].secret.expose_secret(),
        "hunter2"
    );
    for shown in [
        format!("{config:?}"),
        format!("{environment:?}"),
        format!("{overrides:?}"),
    ] {
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}

/// Secrets in every place where somebody might put one, each of them wrong there.
#[test]
fn no_fault_holds_a_secret() {
    let wrong_files = [
        "[database]\nurl = 'mysql://u:hunter2@h'\n[auth]\nrequired = 'hunter2'\n\
         bootstrap_key = 'hunter2'\nbootstrap_key_file = 'hunter2'\n[server]\nlisten = 'hunter2'\n\
         [retry]\nmax_attempts = 'hunter2'\ninitial_backoff = 'hunter2'\n\
         [log]\nformat = 'hunter2'\nfilter = 'hunter2=hunter2'\n\
         [[upstreams]]\nname = 'a'\nbase_url = 'http://hunter2@a'\napi_key = 'hunter2'\n\
         api_key_env = 'hunter2'\nproxy = 'hunter2'\nca_file = 'hunter2'\nprovider = 'hunter2'\n\
         token = 'hunter2'\nheaders = { authorization = 'hunter2', x = \"hunter2\\n\" }\n\
         [[upstreams]]\nname = 'b'\nbase_url = 'http://b?key=hunter2'\napi_key_file = 'hunter2'\n",
        "[[upstreams]]\napi_key = 'hunter2\nbase_url = hunter2\napi_key = \"\\hunter2\"\n\
         hunter2 = = 1\n",
        "[[upstreams]]\nbase_url = 'http://a'\napi_key_env = 'SPACED'\n[database]\n\
         url = 'postgres://u:hunter2#@h'\n",
    ];
    let variables = [
        ("SPACED", "hunter2 hunter2"),
        ("NIGHTSHIFT_AUTH__BOOTSTRAP_KEY", "hunter2 "),
        ("NIGHTSHIFT_WORKER__LEASE", "hunter2"),
        ("NIGHTSHIFT_LIMITS__MAX_LINE_BYTES", "hunter2"),
        ("NIGHTSHIFT_UPSTREAMS__0__HEADERS__Y", "hunter2\u{1}"),
        ("NIGHTSHIFT_UPSTREAMS__0__CONCURRENCY", "{hunter2"),
        ("NIGHTSHIFT_UPSTREAMS__0__KEY", "hunter2"),
    ];
    let overrides = Overrides {
        listen: Some("hunter2".to_owned()),
        role: Some("hunter2".to_owned()),
        api_key_env: Some("hunter2".to_owned()),
        ..Overrides::default()
    };
    let single = Overrides {
        upstream: Some("http://u:hunter2@host".to_owned()),
        database: Some("hunter2".to_owned()),
        ..overrides.clone()
    };
    for toml in wrong_files {
        for overrides in [&overrides, &single] {
            let errors = load_flagged(toml, &variables, overrides).unwrap_err();
            assert!(errors.0.len() > 2, "{errors}");
            assert!(!errors.to_string().contains("hunter2"), "{errors}");
            assert!(!format!("{errors:?}").contains("hunter2"), "{errors}");
        }
    }
}

#[test]
fn a_first_key_that_can_be_guessed_is_a_fault() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("key");
    let name = "NIGHTSHIFT_AUTH__BOOTSTRAP_KEY";
    for (key, taken) in [
        ("0123456789012345678", false),
        ("01234567890123456789", true),
    ] {
        fs::write(&file, format!("{key}\n")).unwrap();
        let toml = format!("[auth]\nbootstrap_key_file = '{}'", file.display());
        for loaded in [load("", &[(name, key)]), load(&toml, &[])] {
            match loaded {
                Ok(_) => assert!(taken),
                Err(errors) => {
                    assert!(!taken, "{errors}");
                    assert!(errors.to_string().contains("at least 20"), "{errors}");
                    assert!(!errors.to_string().contains(key), "{errors}");
                }
            }
        }
    }
}
