//! Every fault is found, and found where it stands.

use super::*;
use crate::upstream::Http2;

/// Lines of `what is written => where: what is said`.
fn cases(table: &str) -> impl Iterator<Item = (&str, &str, &str)> {
    let lines = table.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.map(|line| {
        let (written, fault) = line.split_once("=>").unwrap();
        let (place, message) = fault.trim().split_once(": ").unwrap();
        (written.trim(), place, message)
    })
}

#[test]
fn each_fault_of_a_section_is_found_at_its_line() {
    let table = "
        server   | port = 1                           => port: unknown key; the nearest
        server   | listen = 1                         => listen: expected a string, found a whole
        server   | listen = ''                        => listen: is empty
        server   | listen = 'x'                       => listen: expected host:port
        server   | trusted_proxies = '10.0.0.1'       => trusted_proxies: expected an array
        server   | trusted_proxies = [1]              => trusted_proxies[0]: expected a string
        server   | trusted_proxies = ['::1', 'proxy'] => trusted_proxies[1]: expected an address or
        server   | trusted_proxies = ['10.0.0.0/33']  => trusted_proxies[0]: expected an address or
        server   | allowed_origins = ['*']            => allowed_origins[0]: all origins cannot be
        server   | allowed_origins = ['null']         => allowed_origins[0]: expected an origin
        server   | allowed_origins = ['https://h/']   => allowed_origins[0]: expected an origin
        server   | allowed_origins = ['https://h:443'] => allowed_origins[0]: expected an origin
        server   | allowed_origins = ['https://H']    => allowed_origins[0]: expected an origin
        server   | allowed_origins = ['ftp://h']      => allowed_origins[0]: expected an origin
        auth     | required = 'yes'                   => required: expected true or false, found a
        auth     | bootstrap_key = 'x'                => bootstrap_key: a secret is not written
        auth     | bootstrap_key_file = '/nowhere/x'  => bootstrap_key_file: the file cannot be
        auth     | bootstrap_key_file = '/dev/null'   => bootstrap_key_file: names an empty secret
        auth     | bootstrap_scope = 'root'           => bootstrap_scope: `root` is no scope
        limits   | max_file_bytes = 0                 => max_file_bytes: must be from 1 to
        limits   | max_file_bytes = -5                => max_file_bytes: must be from 1 to
        limits   | max_line_bytes = 1.5               => max_line_bytes: expected a whole number
        limits   | max_requests_per_batch = 9e9       => max_requests_per_batch: expected a whole
        limits   | max_models_per_file = 10001        => max_models_per_file: must be from 1 to
        database | url = 'mysql://h'                  => url: expected sqlite://PATH or
        database | max_connections = 0                => max_connections: must be from 1 to
        database | pooler = 'no'                      => pooler: expected true or false
        retry    | max_attempts = 0                   => max_attempts: must be from 1 to
        retry    | max_attempts = 99999999999999999999 => max_attempts: must be from 1 to
        retry    | initial_backoff = '0s'             => initial_backoff: must be at least 1ms
        worker   | lease = '999ms'                    => lease: must be at least 1s
        worker   | lease = 15                         => lease: expected a duration in quotes
        worker   | name = ''                          => name: is empty
        retention | input_files = '59s'               => input_files: must be at least 60s
        retention | other_files = 'nevr'              => other_files: expected a duration
        retention | output_files = 30                 => output_files: expected a duration in quotes
        retention | grace = 'never'                   => grace: expected a duration
        log      | format = 'jsn'                     => format: expected text or json; the nearest
        log      | filter = 'nightshift=loud'         => filter: expected a filter
    ";
    for (written, key, message) in cases(table) {
        let (section, line) = written.split_once('|').unwrap();
        let section = section.trim();
        let expected = format!("{section}.{key} (nightshift.toml:2): {message}");
        check_faults(&format!("[{section}]\n{line}"), &[], &[&expected]);
    }
}

#[test]
fn each_fault_at_the_top_is_found() {
    let table = "
        [servr]                           => servr: unknown key; the nearest known one is `server`
        server = 1                        => server: expected a table, found a whole number
        upstreams = 1                     => upstreams: expected an array, found a whole number
        upstreams.0 = 1                   => upstreams: expected an array, found a table
        [[upstreams]]                     => upstreams[0]: `base_url` is missing
        limits.max_in_flight_bytes = 9    => limits: `max_in_flight_bytes` is less
        retry.initial_backoff = '2m'      => retry: `max_backoff` is less
    ";
    for (toml, place, message) in cases(table) {
        let expected = format!("{place} (nightshift.toml:1): {message}");
        check_faults(toml, &[], &[&expected]);
    }
}

#[test]
fn all_syntax_errors_of_a_file_are_found() {
    check_faults(
        "[server]\n[server]",
        &[],
        &["nightshift.toml:2: duplicate key"],
    );
    let lines = ["nightshift.toml:1: ", "nightshift.toml:2: "];
    check_faults("[server]]\nlisten = x", &[], &lines);
}

#[test]
fn each_fault_of_an_upstream_is_found() {
    let table = r#"
        api_key = 'x'                        => api_key: a secret is not written here
        api_key_env = 'NOT_SET'              => api_key_env: the variable NOT_SET is not set
        api_key_env = 'SPACED'               => api_key_env: the secret holds what no key can
        api_key_file = '/nowhere/x'          => api_key_file: the file cannot be read
        api_key_envs = 'KEY_A'               => api_key_envs: expected an array, found
        api_key_envs = ['NOT_SET']           => api_key_envs[0]: the variable NOT_SET is not set
        api_key_envs = ['KEY_A', 'KEY_A']    => api_key_envs[1]: the same key is named twice
        api_key_envs = ['KEY_A', 'SAME']     => api_key_envs[1]: the same key is named twice
        api_key_files = ['/nowhere/x']       => api_key_files[0]: the file cannot be read
        query = { api-version = 5 }          => query.api-version: expected a string
        query = { api_key = 'x' }            => query.api_key: a secret is not written here
        auth_header = 'api key'              => auth_header: is not the name of a header
        auth_header = 'api-key'              => auth_header: says where the key is sent, and there
        enabled = 'often'                    => enabled: expected true or false, found
        url = 'http://a'                     => url: unknown key; the nearest known one is `base_u
        concurrency = 0                      => concurrency: must be from 1 to
        concurrency = 'many'                 => concurrency: expected a whole number
        max_concurrency = 5                  => max_concurrency: is the ceiling of `concurrency = "auto"`
        metrics_url = 'http://gpu/metrics'   => metrics_url: needs `concurrency = "auto"`, here or
        timeout = '10 minutes'               => timeout: expected a duration
        timeout = '0s'                       => timeout: must be at least
        connect_timeout = '4000d'            => connect_timeout: a duration is at most
        stream = 'yes'                       => stream: expected true or false, found
        idle_timeout = '1m'                  => idle_timeout: is the longest silence within
        max_response_bytes = 0               => max_response_bytes: must be from 1 to
        provider = 'gemni'                   => provider: unknown provider; the nearest is gemini
        api_version = '2023-06-01'           => api_version: the API of the provider openai has no
        responses = 'native'                 => responses: expected "translate"
        provider = 'opnai'                   => provider: unknown provider; the nearest is openai
        rate_limits = 5                      => rate_limits: expected an array, found
        rate_limits = [ { type = 'request', limit = 1, period = '1m' } ] => rate_limits[0].type: unknown type; the nearest is requests
        rate_limits = [ { type = 'tokens', limit = 0, period = '1m' } ] => rate_limits[0].limit: must be from 1 to
        rate_limits = [ { type = 'tokens', limit = 1 } ] => rate_limits[0]: `period` is missing
        rate_limits = [ { type = 'tokens', limit = 1, period = '1ms' } ] => rate_limits[0].period: must be at least 1s
        balance = 'weighted'                 => balance: is written in [[models]]
        spill = 'full'                       => spill: is written in [[models]]
        priority = 1                         => priority: which upstreams come first is the `tier`
        headers = [1]                        => headers: expected a table, found an array
        headers = { 'a b' = 'x' }            => headers."a b": is not the name of a header
        headers = { x = "a\nb" }             => headers.x: the value holds what no header can
        headers = { x = 'a', X = 'b' }       => headers.x: the header is given twice
        headers = { content-length = '1' }   => headers.content-length: this header is made
        headers = { keep-alive = '1' }       => headers.keep-alive: this header is made
        headers = { authorization = 'x' }    => headers.authorization: a secret is not written
        headers = { X-API-Key = 'x' }        => headers.X-API-Key: a secret is not written
        headers = { api-key = 'x' }          => headers.api-key: a secret is not written
        headers = { x-auth-token = 'x' }     => headers.x-auth-token: a secret is not written
        headers_env = { x-key = 'NOT_SET' }  => headers_env.x-key: the variable NOT_SET
        headers_env = { te = 'NOT_SET' }     => headers_env.te: this header is made
        proxy = 'ftp://a'                    => proxy: expected a URL
        ca_file = '/dev/null'                => ca_file: the file holds no certificate
        ca_file = '/nowhere/x'               => ca_file: the file cannot be read
        http2 = 'always'                     => http2: expected true or false, found a
    "#;
    for (line, key, message) in cases(table) {
        let expected = format!("upstreams[0].{key} (nightshift.toml:4): {message}");
        let variables = [("SPACED", "sk a"), ("KEY_A", "sk-a"), ("SAME", "sk-a")];
        check_faults(&format!("{UPSTREAM}{line}"), &variables, &[&expected]);
    }
    let auto = format!("{UPSTREAM}concurrency = 'auto'\n");
    for (line, key, message) in cases(
        "
        metrics_url = 'gpu:8000/metrics'     => metrics_url: expected a URL that begins with
        metrics_url = 'http://u:p@gpu/'      => metrics_url: a URL holds no user or password
        metrics_url = 'http://gpu/?token=x'  => metrics_url: a URL is shown in logs
        yield_to = 'interactive'             => yield_to: needs `metrics_url`
        yield_to = 'everybody'               => yield_to: expected \"interactive\"
        ",
    ) {
        let expected = format!("upstreams[0].{key} (nightshift.toml:5): {message}");
        check_faults(&format!("{auto}{line}"), &[], &[&expected]);
    }
    let anthropic = format!("{UPSTREAM}provider = 'anthropic'\n");
    for (line, key, message) in cases(
        "
        api_version = 'newest'               => api_version: expected a date, such as 2023-06-01
        unsupported_params = 'ignore'        => unsupported_params: expected \"reject\" or
        ",
    ) {
        let expected = format!("upstreams[0].{key} (nightshift.toml:5): {message}");
        check_faults(&format!("{anthropic}{line}"), &[], &[&expected]);
    }
    check_faults(
        &format!("{UPSTREAM}{UPSTREAM}[[upstreams]]\nbase_url = 'gpu:80'"),
        &[],
        &[
            "upstreams[1].name (nightshift.toml:5): another upstream has this name",
            "upstreams[2] (nightshift.toml:7): `name` is missing",
            "upstreams[2].base_url (nightshift.toml:8): expected a URL",
        ],
    );
    check_faults(
        &format!("{UPSTREAM}api_key_env = 'A'\napi_key_file = 'b'"),
        &[],
        &[
            "upstreams[0] (nightshift.toml:1): several of `api_key_env`, `api_key_file`, and the lists",
        ],
    );
    check_faults(
        &format!("{UPSTREAM}proxy = 'http://a'\nhttp2 = true"),
        &[],
        &["upstreams[0].http2 (nightshift.toml:5): HTTP/2 is not spoken over a proxy"],
    );
    for (written, read) in [
        ("'auto'", Http2::Auto),
        ("true", Http2::Always),
        ("false", Http2::Never),
    ] {
        let config = load(&format!("{UPSTREAM}http2 = {written}"), &[]);
        let http2 = config.ok().map(|config| config.upstreams[0].http2);
        assert_eq!(http2, Some(read), "{written}");
    }
}

#[test]
fn each_fault_of_a_model_is_found() {
    let table = r#"
        defaults = {}                        => : `routes` is missing
        routes = []                          => : `routes` is empty
        routes = 'a'                         => .routes: expected an array, found a string
        routes = ['a']                       => .routes[0]: expected a table, found a string
        routes = [{}]                        => .routes[0]: `upstream` is missing
        routes = [{ upstream = 'b' }]        => .routes[0].upstream: no upstream is named "b"; the
        routes = [{ upstream = 'a', weight = 0 }]         => .routes[0].weight: must be from 1 to
        routes = [{ upstream = 'a' }, { upstream = 'a' }] => .routes[1]: another route leads
        routes = [{ upstream = 'a', tier = -1 }]          => .routes[0].tier: must be from 0 to
        routes = [{ upstream = 'a', tir = 1 }]            => .routes[0].tir: unknown key; the nearest known one is `tier`
        routes = [{ upstream = 'a', concurrency = 0 }]    => .routes[0].concurrency: must be from 1
        routes = [{ upstream = 'a', priority = 1 }]       => .routes[0].priority: which routes come first
        routes = [{ upstream = 'a', pack = 0 }]           => .routes[0].pack: must be from 1 to 2048
        routes = [{ upstream = 'a', pack_bytes = 9 }]     => .routes[0]: `pack_bytes` is of calls
        routes = [{ upstream = 'a', rate_limits = 1 }]    => .routes[0].rate_limits: expected an array, found
        routes = [{ upstream = 'a', overrides = { n = 2 } }]   => .routes[0].overrides.n: how many
        routes = [{ upstream = 'a', defaults = { model = 'x' } }] => .routes[0].defaults.model: a line
        max_concurrency = 5                  => .max_concurrency: is the ceiling of
        concurrency = 0                      => .concurrency: must be from 1 to
        balance = 'weight'                   => .balance: expected one of least_busy, weighted, round_robin, least_recently_used, fastest, random; the nearest is weighted
        balance = 'least_recent'             => .balance: expected one of least_busy, weighted, round_robin, least_recently_used, fastest, random; the nearest is least_recently_used
        balance = 1                          => .balance: expected a string
        spill = 'close'                      => .spill: expected closed, full or late; the nearest is closed
        order = 'prefixes'                   => .order: expected file or prefix; the nearest is prefix
        spill = 'latest'                     => .spill: expected closed, full or late; the nearest is late
        overrides = 1                        => .overrides: expected a table, found a whole number
        overrides = { model = 'x' }          => .overrides.model: a line names its own model
        overrides = { stream = true }        => .overrides.stream: answers in a batch are never
        overrides = { n = 2 }                => .overrides.n: how many answers a line asks for
        overrides = { messages = [] }        => .overrides.messages: what a line asks is written
        defaults = { input = 'x' }           => .defaults.input: what a line asks is written
        defaults = { prompt = 'x' }          => .defaults.prompt: what a line asks is written
        defaults = 1                         => .defaults: expected a table, found a whole number
        defaults = { model = 'x' }           => .defaults.model: a line names its own model
        defaults = { stream = true }         => .defaults.stream: answers in a batch are never
        defaults = { background = true }     => .defaults.background: a batch runs in the background
        defaults = { at = 2026-01-01 }       => .defaults.at: expected a value that JSON has
        defaults = { a = [nan] }             => .defaults.a[0]: expected a number that JSON has
    "#;
    for (line, place, message) in cases(table) {
        let routes = if line.contains("routes") || message.contains("routes") {
            ""
        } else {
            "routes = [{ upstream = 'a' }]"
        };
        let toml = format!("{UPSTREAM}[[models]]\nname = 'm'\n{line}\n{routes}");
        let line = if place.is_empty() { 4 } else { 6 };
        let expected = format!("models[0]{place} (nightshift.toml:{line}): {message}");
        check_faults(&toml, &[], &[&expected]);
    }
    for name in ["*-m", "a*b", "m**", "*a*"] {
        check_faults(
            &format!("{UPSTREAM}[[models]]\nname = '{name}'\nroutes = [{{ upstream = 'a' }}]"),
            &[],
            &["models[0].name (nightshift.toml:5): a name has one `*` at most, at its end"],
        );
    }
    check_faults(
        &format!("{UPSTREAM}{MODEL}{MODEL}"),
        &[],
        &["models[1].name (nightshift.toml:8): another model has this name"],
    );
    check_faults(
        MODEL,
        &[],
        &["models[0].routes[0].upstream (nightshift.toml:3): no upstream is named \"a\": there"],
    );
}

#[test]
fn a_task_has_a_name_of_its_own_and_models_that_are_there() {
    let of = |task: &str| format!("{UPSTREAM}{MODEL}[[tasks]]\n{task}");
    let check = |task: &str, fault: &str| check_faults(&of(task), &[], &[fault]);
    check(
        "name = 't'\nmodels = ['m', 'n']",
        "tasks[0].models[1] (nightshift.toml:9): no model",
    );
    check(
        "name = 't'\nmodels = ['m', 'm']",
        "tasks[0].models[1] (nightshift.toml:9): the task",
    );
    check(
        "name = 't'\nmodels = ['*']",
        "tasks[0].models[0] (nightshift.toml:9): a task names",
    );
    check(
        "name = 't'\nmodels = []",
        "tasks[0] (nightshift.toml:7): `models` is empty",
    );
    check(
        "name = 'm'\nmodels = ['m']",
        "tasks[0].name (nightshift.toml:8): a model has this",
    );
    check(
        "name = 't*'\nmodels = ['m']",
        "tasks[0].name (nightshift.toml:8): a task has",
    );
    check(
        "name = 't'\nmodels = ['m']\noverrides = { n = 2 }",
        "tasks[0].overrides.n (nightshift.toml:10): how many",
    );
    check(
        "name = 't'\nmodels = ['m']\n[[tasks]]\nname = 't'\nmodels = ['m']",
        "tasks[1].name (nightshift.toml:11): another task has this name",
    );
}

#[test]
fn wrong_flags_are_faults_that_name_them() {
    let overrides = Overrides {
        config: None,
        listen: Some("8080".to_owned()),
        database: Some("mysql://host".to_owned()),
        database_file: None,
        upstream: None,
        api_key_env: Some("KEY".to_owned()),
        role: Some("apis".to_owned()),
        concurrency: Some(0),
        ..Overrides::default()
    };
    let errors = load_flagged("", &[], &overrides).unwrap_err().to_string();
    for line in [
        "--role: expected all, api or worker; the nearest is api",
        "--concurrency: must be from 1 to",
        "--api-key-env: needs --upstream",
        "--listen: expected host:port",
        "--database: expected sqlite://",
    ] {
        assert!(errors.contains(line), "{line}\nis not in\n{errors}");
    }
    assert_eq!(errors.lines().count(), 5, "{errors}");

    let overrides = Overrides {
        role: Some("wroker".to_owned()),
        upstream: Some("http://gpu".to_owned()),
        api_key_env: Some("KEY".to_owned()),
        ..Overrides::default()
    };
    let errors = load_flagged("", &[], &overrides).unwrap_err().to_string();
    let lines: Vec<_> = errors.lines().collect();
    assert_eq!(
        lines,
        [
            "--api-key-env: the variable KEY is not set, or empty",
            "--role: expected all, api or worker; the nearest is worker",
        ]
    );
}

#[test]
fn what_auto_alone_heeds_needs_auto_at_the_upstream_or_at_what_leads_there() {
    let other = "[[upstreams]]\nname = 'b'\nbase_url = 'http://b'\n";
    let heeded = "metrics_url = 'http://a/metrics'\nyield_to = 'interactive'\n";
    let model = |of_model: &str, of_a: &str, of_b: &str| {
        let routes = format!("{{ upstream = 'a'{of_a} }}, {{ upstream = 'b'{of_b} }}");
        let model = format!("[[models]]\nname = 'm'\n{of_model}\nroutes = [{routes}]\n");
        format!("{UPSTREAM}{heeded}{other}{model}")
    };
    let auto = "concurrency = 'auto'";
    let at_a_route = format!(", {auto}");
    for toml in [model(auto, "", ""), model("", &at_a_route, "")] {
        assert!(load(&toml, &[]).is_ok(), "{toml}");
    }
    let unheeded = [
        "upstreams[0].metrics_url (nightshift.toml:4): needs `concurrency = \"auto\"`",
        "upstreams[0].yield_to (nightshift.toml:5): needs `concurrency = \"auto\"`",
    ];
    for toml in [model("", "", ""), model("", "", &at_a_route)] {
        check_faults(&toml, &[], &unheeded);
    }
}

#[test]
fn each_fault_of_a_tenant_is_found() {
    let table = "
        weight = 0                    => .weight: must be from 1 to 1000
        weight = 0.5                  => .weight: expected a whole number
        weigth = 2                    => .weigth: unknown key; the nearest known one is `weight`
        concurrency = 0               => .concurrency: must be from 1 to
        concurrency = 'auto'          => .concurrency: expected a whole number
        rate_limits = [{ type = 'token', limit = 1, period = '1m' }] => .rate_limits[0].type: unknown
        models = 'm'                  => .models: expected an array
        models = ['m*m']              => .models[0]: a name has one `*` at most, at its end
        models = ['lama-*']           => .models[0]: no [[models]] entry is for \"lama-*\"; the nearest is \"llama-3\"
        max_enqueued_requests = 0     => .max_enqueued_requests: must be from 1 to
        max_enqueued_tokens = '1m'    => .max_enqueued_tokens: expected a whole number
        max_enqued_tokens = 1         => .max_enqued_tokens: unknown key; the nearest known one is `max_enqueued_tokens`
        max_priority = 101            => .max_priority: must be from 0 to 100
        max_cost = { limit = 100.0 }  => .max_cost: is not built yet
    ";
    let model = "[[models]]\nname = 'llama-3'\nroutes = [{ upstream = 'a' }]\n";
    for (line, place, message) in cases(table) {
        let toml = format!("{UPSTREAM}{model}[[tenants]]\nname = 't'\n{line}");
        let number = toml.lines().count();
        let expected = format!("tenants[0]{place} (nightshift.toml:{number}): {message}");
        check_faults(&toml, &[], &[&expected]);
    }
    check_faults(
        "[[tenants]]\nname = 'a*'\n[[tenants]]\nname = '*'\n[[tenants]]\nname = '*'\n[[tenants]]\n",
        &[],
        &[
            "tenants[0].name (nightshift.toml:2): a tenant's name stands in full",
            "tenants[2].name (nightshift.toml:6): another entry has this name",
            "tenants[3] (nightshift.toml:7): `name` is missing",
        ],
    );
}

#[test]
fn keys_of_later_features_say_that_they_come_later() {
    for section in LATER {
        let expected = format!(
            "{section} (nightshift.toml:1): is not built yet; it comes with a later version"
        );
        check_faults(&format!("[{section}]\nx = 1"), &[], &[&expected]);
    }
    check_faults(
        "[[webhooks]]\n[limits]\npriority = 1",
        &[("NIGHTSHIFT_CACHE__SIZE", "x")],
        &[
            "webhooks (nightshift.toml:1): is not built yet",
            "limits.priority (nightshift.toml:3): is not built yet",
            "cache (NIGHTSHIFT_CACHE__SIZE): is named [reuse]",
        ],
    );
}

#[test]
fn a_configuration_with_many_faults_reports_them_all() {
    let toml = "
[server]
listen = 'nowhere'
prot = 1
[retry]
max_attempts = 'five'
max_backoff = '1 minute'
[[upstreams]]
name = 'a'
base_url = 'http://user@a'
concurrency = 0
[[upstreams]]
name = 'a'
base_url = 'http://b#x'
api_key_env = 'NOT_SET'
[[models]]
name = 'm'
routes = [{ upstream = 'aa', weight = 0 }, { upstrm = 'a' }]
[cache]
";
    check_faults(
        toml,
        &[
            ("NIGHTSHIFT_WORKER__LEASE", "soon"),
            ("NIGHTSHIFT_AUTH__REQUIRED", "maybe"),
            ("NIGHTSHIFT_LOG__LEVEL", "info"),
            ("DATABASE_URL", "mysql://host"),
        ],
        &[
            "server.listen (nightshift.toml:3): expected host:port",
            "server.prot (nightshift.toml:4): unknown key",
            "retry.max_attempts (nightshift.toml:6): expected a whole number",
            "retry.max_backoff (nightshift.toml:7): expected a duration",
            "upstreams[0].base_url (nightshift.toml:10): a URL holds no user",
            "upstreams[0].concurrency (nightshift.toml:11): must be from 1",
            "upstreams[1].name (nightshift.toml:13): another upstream",
            "upstreams[1].base_url (nightshift.toml:14): the URL has a fragment",
            "upstreams[1].api_key_env (nightshift.toml:15): the variable NOT_SET",
            "models[0].routes[0].upstream (nightshift.toml:18): no upstream is named \"aa\"",
            "models[0].routes[0].weight (nightshift.toml:18): must be from 1",
            "models[0].routes[1] (nightshift.toml:18): `upstream` is missing",
            "models[0].routes[1].upstrm (nightshift.toml:18): unknown key",
            "cache (nightshift.toml:19): is named [reuse]",
            "worker.lease (NIGHTSHIFT_WORKER__LEASE): expected a duration",
            "auth.required (NIGHTSHIFT_AUTH__REQUIRED): expected true or false",
            "log.level (NIGHTSHIFT_LOG__LEVEL): unknown key",
            "database.url (DATABASE_URL): expected sqlite://",
        ],
    );
}

#[test]
fn web_pages_are_allowed_only_where_keys_are_in_use() {
    let origins = "[server]\nallowed_origins = ['https://app.example', 'http://localhost:3000']";
    let refused = "server.allowed_origins: needs keys";
    check_faults(origins, &[], &[refused]);
    let open = format!("{origins}\nlisten = '0.0.0.0:80'\n[auth]\nrequired = false");
    check_faults(&open, &[], &[refused]);
    for keys in ["listen = '0.0.0.0:80'", "[auth]\nrequired = true"] {
        let config = load(&format!("{origins}\n{keys}"), &[]).expect("is right");
        assert_eq!(config.server.allowed_origins.len(), 2);
    }
}

#[test]
fn where_spans_are_sent_is_checked() {
    check_faults(
        "[telemetry]\notlp_endpoint = 'collector:4318'\nsample_ratio = 1.5",
        &[],
        &[
            "telemetry.otlp_endpoint (nightshift.toml:2): expected the http:// or https:// URL",
            "telemetry.sample_ratio (nightshift.toml:3): must be from 0 to 1",
        ],
    );
    check_faults(
        "[telemetry]\notlp_endpoint = 'http://user:secret@collector'\nsample_ratio = 'all'",
        &[],
        &[
            "telemetry.otlp_endpoint (nightshift.toml:2): a URL holds no user name",
            "telemetry.sample_ratio (nightshift.toml:3): expected a number from 0 to 1",
        ],
    );
}
