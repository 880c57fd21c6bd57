//! The commands, as a user meets them: what they print, and how they exit.

mod demo;
mod dry;
mod edited;
mod flags;
mod keep;
mod keys;
mod outputs;
mod restart;
mod resume;
mod run;
mod serve;
mod streams;
mod terminal;

use std::path::Path;

use nightshift::internals::simulate::{Options, Simulator};
use tokio::process::Command;

use crate::support::binary::{Ended, Process, command, ended};

const COMMANDS: [&[&str]; 13] = [
    &[],
    &["serve"],
    &["run"],
    &["demo"],
    &["simulate"],
    &["keys"],
    &["keys", "create"],
    &["keys", "list"],
    &["keys", "revoke"],
    &["openapi"],
    &["check"],
    &["completions"],
    &["man"],
];

/// A command that works in a directory.
fn command_in(directory: &Path, args: &[&str]) -> Command {
    let mut command = command(args);
    command.current_dir(directory);
    command
}

/// Runs a command in a directory to its end.
async fn ended_in(directory: &Path, args: &[&str]) -> Ended {
    ended(command_in(directory, args)).await
}

#[tokio::test]
async fn every_command_explains_itself_with_an_example() {
    for args in COMMANDS {
        let help = ended(command(&[args, &["--help"]].concat())).await;
        assert_eq!(help.code, Some(0), "{args:?}");
        assert!(
            help.out.contains("Usage: nightshift"),
            "{args:?}: {}",
            help.out
        );
        let (_, example) = help.out.split_once("\nExample").expect("has an example");
        let words = ["nightshift"]
            .iter()
            .chain(args)
            .copied()
            .collect::<Vec<_>>()
            .join(" ");
        assert!(example.contains(&words), "{args:?}: {example}");
        assert_eq!(help.errors, "", "{args:?}");
    }
    let version = ended(command(&["--version"])).await;
    assert_eq!(
        version.out,
        format!("nightshift {}\n", env!("CARGO_PKG_VERSION"))
    );
}

#[tokio::test]
async fn wrong_usage_exits_2() {
    let directory = tempfile::tempdir().expect("makes a directory");
    let lines = [
        "",
        "dream",
        "--dream",
        "serve --dream",
        "serve here",
        "serve --role wroker",
        "run -i in.jsonl",
        "run -o out.jsonl",
        "run -i in.jsonl -o out.jsonl --concurrency many",
        "run -i in.jsonl -o out.jsonl --concurrency 0",
        "run -i in.jsonl -o out.jsonl --concurrency 1000001",
        "run -i in.jsonl -o out.jsonl --rate 600",
        "run -i in.jsonl -o out.jsonl --timeout 0s",
        "run -i in.jsonl -o out.jsonl --max-attempts 0",
        "run -i in.jsonl -o out.jsonl --limit 0",
        "run -i in.jsonl -o out.jsonl --max-failures 0",
        "run -i in.jsonl -o out.jsonl --header x",
        "run -i in.jsonl -o out.jsonl --set a=b",
        "demo --port 1",
        "simulate --latency 5",
        "simulate --error-rate 2",
        "simulate --latency-jitter 1s",
        "simulate --error-rate 0.6 --rate-limit-rate 0.6",
        "keys",
        "keys create",
        "keys revoke",
        "openapi --dream",
        "check --dream",
    ];
    let mut wrong_usages: Vec<Vec<&str>> = lines
        .iter()
        .map(|line| line.split_whitespace().collect())
        .collect();
    for label in ["", " ", "two\nlines", "\u{1b}[2J"] {
        wrong_usages.push(vec!["keys", "create", "--name", label]);
        wrong_usages.push(vec!["keys", "create", "--name", "a", "--tenant", label]);
    }
    for args in wrong_usages {
        let line = format!("{args:?}");
        let wrong = ended_in(directory.path(), &args).await;
        assert_eq!(wrong.code, Some(2), "{line}: {}", wrong.errors);
        assert_eq!(wrong.out, "", "{line}");
        let shown = ["Usage:", "--help"]
            .iter()
            .any(|word| wrong.errors.contains(word));
        assert!(shown, "{line}: {}", wrong.errors);
    }
    let left = std::fs::read_dir(directory.path())
        .expect("can be read")
        .count();
    assert_eq!(left, 0, "wrong usage does nothing");
}

/// What only the configuration can judge is wrong usage, too, where a flag gave it.
#[tokio::test]
async fn a_wrong_value_of_any_flag_exits_2_and_names_the_flag() {
    let directory = tempfile::tempdir().expect("makes a directory");
    let run = "run -i in.jsonl -o out.jsonl";
    let upstream = "--upstream http://127.0.0.1:1";
    for (line, told) in [
        (
            format!("{run} --upstream nowhere"),
            "error: --upstream: expected a URL",
        ),
        (
            format!("{run} --upstream http://user@host"),
            "error: --upstream: a URL holds no user or password: name a key with --api-key-env",
        ),
        (
            format!("{run} {upstream} --api-key-env NOT_SET"),
            "error: --api-key-env: the variable NOT_SET is not set, or empty",
        ),
        (
            format!("{run} --api-key-env KEY --dry-run --config none.toml"),
            "none.toml: the file cannot be read",
        ),
        (
            format!("{run} {upstream} --header te:x"),
            "error: --header te: this header is made for each call",
        ),
        (
            "serve --listen nowhere".to_owned(),
            "error: --listen: expected host:port",
        ),
        (
            "check --database mysql://a".to_owned(),
            "--database: expected sqlite://",
        ),
    ] {
        let args: Vec<&str> = line.split_whitespace().collect();
        let wrong = ended_in(directory.path(), &args).await;
        let shown = wrong.errors.clone() + &wrong.out;
        assert!(shown.contains(told), "{line}: {shown}");
        assert!(!shown.contains("base_url"), "{line}: {shown}");
        let expected = match line.as_str() {
            // A file is not wrong usage; and `check` reports what it finds.
            line if line.contains("none.toml") => 3,
            line if line.starts_with("check") => 1,
            _ => 2,
        };
        assert_eq!(wrong.code, Some(expected), "{line}: {shown}");
    }
}

#[tokio::test]
async fn examples_and_exit_codes_fit_a_terminal_of_80_columns() {
    let more: [&[&str]; 2] = [&["status"], &["upstreams"]];
    for args in COMMANDS.iter().chain(&more) {
        let mut help = command(&[args, &["--help"][..]].concat());
        help.env("COLUMNS", "80");
        let narrow = ended(help).await.out;
        let mut help = command(&[args, &["--help"][..]].concat());
        help.env("COLUMNS", "300");
        let wide = ended(help).await.out;
        let (_, narrow) = narrow.split_once("\nExample").expect("has an example");
        let (_, wide) = wide.split_once("\nExample").expect("has an example");
        assert_eq!(narrow, wide, "{args:?}: no line is broken");
    }
    let help = ended(command(&["run", "--help"])).await.out;
    let (_, codes) = help.split_once("\nExit codes:\n").expect("has exit codes");
    for code in ["0", "1", "2", "3", "4", "130", "141", "143"] {
        let begins = |line: &str| line.split_whitespace().next() == Some(code);
        assert!(codes.lines().any(begins), "{code}: {codes}");
    }
}

const MISTAKES: &str = r#"
[server]
listen = "nowhere"
lisen = "127.0.0.1:0"

[retry]
max_attempts = 0

[metrics]
listen = "127.0.0.1:9000"

[[upstreams]]
name = "a"
base_url = "ftp://a"
"#;

#[tokio::test]
async fn all_mistakes_of_a_configuration_are_told_at_once() {
    let directory = tempfile::tempdir().expect("makes a directory");
    std::fs::write(directory.path().join("nightshift.toml"), MISTAKES).expect("writes");
    for name in ["serve", "check"] {
        let mut command = command_in(directory.path(), &[name]);
        command.env("NIGHTSHIFT_LOG__FORMAT", "yaml");
        let ended = ended(command).await;
        assert_eq!(ended.code, Some(1), "{name}");
        let told = if name == "serve" {
            &ended.errors
        } else {
            &ended.out
        };
        for mistake in [
            "server.listen",
            "lisen",
            "`listen`",
            "retry.max_attempts",
            "metrics",
            "base_url",
            "NIGHTSHIFT_LOG__FORMAT",
        ] {
            assert!(
                told.contains(mistake),
                "{name} does not tell of {mistake}: {told}"
            );
        }
    }
    assert!(
        !directory.path().join("nightshift-data").exists(),
        "nothing was begun"
    );
}

#[tokio::test]
async fn check_tries_the_database_and_each_upstream() {
    let directory = tempfile::tempdir().expect("makes a directory");
    let good = Simulator::start("127.0.0.1:0", Options::default())
        .await
        .expect("starts");
    let toml = |second: &str| {
        format!(
            "[[upstreams]]\nname = \"first\"\nbase_url = \"{}\"\n\
             [[upstreams]]\nname = \"second\"\nbase_url = \"{second}\"\n",
            good.base_url()
        )
    };
    let file = directory.path().join("check.toml");
    let args = ["check", "--config", "check.toml"];

    std::fs::write(&file, toml(&good.base_url())).expect("writes");
    let checked = ended_in(directory.path(), &args).await;
    assert_eq!(checked.code, Some(0), "{}", checked.out);
    for word in ["configuration", "database", "first", "second"] {
        assert!(checked.out.contains(word), "{word}: {}", checked.out);
    }
    assert!(!checked.out.contains("FAIL"), "{}", checked.out);

    std::fs::write(&file, toml("http://127.0.0.1:1/v1")).expect("writes");
    let checked = ended_in(directory.path(), &args).await;
    assert_eq!(checked.code, Some(1), "{}", checked.out);
    let failed: Vec<&str> = checked
        .out
        .lines()
        .filter(|line| line.starts_with("FAIL"))
        .collect();
    assert!(
        failed.len() == 1 && failed[0].contains("second"),
        "{}",
        checked.out
    );
    assert!(
        checked
            .out
            .lines()
            .any(|line| line.starts_with("ok") && line.contains("first"))
    );

    let url = "postgres://nobody:secret-password@127.0.0.1:1/nothing";
    let checked = ended_in(
        directory.path(),
        &[&args[..], &["--database", url]].concat(),
    )
    .await;
    assert_eq!(checked.code, Some(1), "{}", checked.out);
    assert!(checked.out.contains("FAIL  database"), "{}", checked.out);
    assert!(
        !format!("{checked:?}").contains("secret-password"),
        "{checked:?}"
    );
}

#[tokio::test]
async fn check_names_each_upstreams_models_and_those_that_it_does_not_have() {
    let directory = tempfile::tempdir().expect("makes a directory");
    let options = Options {
        models: vec!["sim-small".to_owned(), "sim-large".to_owned()],
        ..Options::default()
    };
    let simulator = Simulator::start("127.0.0.1:0", options)
        .await
        .expect("starts");
    let toml = format!(
        "[[upstreams]]\nname = \"gpu\"\nbase_url = \"{}\"\n\
         [[models]]\nname = \"sim-small\"\nroutes = [{{ upstream = \"gpu\" }}]\n\
         [[models]]\nname = \"large\"\nroutes = [{{ upstream = \"gpu\", model = \"sim-lrage\" }}]\n\
         [[models]]\nname = \"*\"\nroutes = [{{ upstream = \"gpu\" }}]\n",
        simulator.base_url()
    );
    std::fs::write(directory.path().join("check.toml"), toml).expect("writes");
    let checked = ended_in(directory.path(), &["check", "--config", "check.toml"]).await;
    assert_eq!(checked.code, Some(0), "{}", checked.out);
    let upstream = "ok    upstream       gpu: 2 models: sim-small, sim-large\n";
    assert!(checked.out.contains(upstream), "{}", checked.out);
    let warnings: Vec<&str> = checked
        .out
        .lines()
        .filter(|line| line.starts_with("warn"))
        .collect();
    assert_eq!(
        warnings,
        ["warn  model          large: gpu lists no model sim-lrage; the nearest is sim-large"]
    );
}

#[tokio::test]
async fn check_shows_the_routes_of_each_model_in_the_order_in_which_they_are_considered() {
    let directory = tempfile::tempdir().expect("makes a directory");
    let simulator = Simulator::start("127.0.0.1:0", Options::default())
        .await
        .expect("starts");
    let url = simulator.base_url();
    let toml = format!(
        "[[upstreams]]\nname = \"own\"\nbase_url = \"{url}\"\n\
         [[upstreams]]\nname = \"paid\"\nbase_url = \"{url}?api-version=1\"\n\
         [[models]]\nname = \"small\"\nbalance = \"weighted\"\nspill = \"full\"\nroutes = [\
         {{ upstream = \"paid\", tier = 1, model = \"vendor/small\", concurrency = 4 }}, \
         {{ upstream = \"own\", weight = 3 }}]\n\
         [[models]]\nname = \"*\"\nroutes = [{{ upstream = \"own\" }}]\n"
    );
    std::fs::write(directory.path().join("check.toml"), toml).expect("writes");
    let checked = ended_in(directory.path(), &["check", "--config", "check.toml"]).await;
    assert_eq!(checked.code, Some(0), "{}", checked.out);
    let routes = format!(
        "ok    model          small: weighted, spill full\n      \
         route          tier 0, weight 3: own, {url}, as small\n      \
         route          tier 1, weight 1, concurrency 4: paid, {url}, as vendor/small\n\
         ok    model          *: least_busy\n      \
         route          tier 0, weight 1: own, {url}, as the line names it\n"
    );
    assert!(checked.out.contains(&routes), "{}", checked.out);
}

#[tokio::test]
async fn check_shows_what_tasks_set_and_what_tenants_may() {
    let directory = tempfile::tempdir().expect("makes a directory");
    let simulator = Simulator::start("127.0.0.1:0", Options::default())
        .await
        .expect("starts");
    let toml = format!(
        "[[upstreams]]\nname = \"own\"\nbase_url = \"{}\"\n\
         [[models]]\nname = \"small\"\nroutes = [{{ upstream = \"own\" }}]\n\
         [[models]]\nname = \"large\"\nroutes = [{{ upstream = \"own\" }}]\n\
         [[tasks]]\nname = \"summary\"\nmodels = [\"small\", \"large\"]\nbalance = \"fastest\"\n\
         defaults = {{ temperature = 0.3, max_tokens = 500 }}\noverrides = {{ store = false }}\n\
         [[tasks]]\nname = \"plain\"\nmodels = [\"small\"]\n\
         [[tenants]]\nname = \"acme\"\nweight = 2\nconcurrency = 32\nmodels = [\"sm*\"]\n\
         rate_limits = [{{ type = \"tokens\", limit = 2_000_000, period = \"1h\" }}]\n\
         max_enqueued_requests = 1_000_000\n\
         [[tenants]]\nname = \"*\"\nmax_storage_bytes = 1_000\n",
        simulator.base_url()
    );
    std::fs::write(directory.path().join("check.toml"), toml).expect("writes");
    let checked = ended_in(directory.path(), &["check", "--config", "check.toml"]).await;
    assert_eq!(checked.code, Some(0), "{}", checked.out);
    let shown = "ok    task           summary: fastest, by small, large\n      \
         defaults       max_tokens = 500, temperature = 0.3\n      \
         overrides      store = false\n\
         ok    task           plain: least_busy, by small\n\
         ok    tenant         acme: weight 2, 32 calls at once, 2,000,000 tokens in 3600s, \
         models sm*, 1,000,000 requests enqueued\n\
         ok    tenant         *: weight 1, 1,000 bytes stored\n";
    assert!(checked.out.contains(shown), "{}", checked.out);
}

#[tokio::test]
async fn the_openapi_document_is_printed() {
    let printed = ended(command(&["openapi"])).await;
    assert_eq!((printed.code, printed.errors.as_str()), (Some(0), ""));
    let document = nightshift::internals::api::document().to_pretty_json();
    // Shown, they would be the whole report.
    assert!(
        printed.out == document.expect("is JSON") + "\n",
        "it prints something else"
    );
}

#[tokio::test]
async fn a_shell_completes_the_commands_and_man_has_a_page_of_each() {
    for shell in ["bash", "zsh", "fish"] {
        let printed = ended(command(&["completions", shell])).await;
        assert_eq!((printed.code, printed.errors.as_str()), (Some(0), ""));
        assert!(printed.out.contains("retry-failed"), "{shell}");
    }
    let page = ended(command(&["man"])).await;
    assert!(page.out.contains(".TH nightshift 1"), "{}", page.out);
    let directory = tempfile::tempdir().expect("makes a directory");
    let written = ended_in(directory.path(), &["man", "--dir", "pages/man1"]).await;
    assert_eq!(written.code, Some(0), "{}", written.errors);
    for name in ["nightshift", "nightshift-run", "nightshift-keys-create"] {
        let path = directory.path().join(format!("pages/man1/{name}.1"));
        let page = std::fs::read_to_string(path).expect("is there");
        assert!(page.contains(".SH OPTIONS"), "{name}");
    }
}

#[tokio::test]
async fn who_looks_for_a_port_is_told_of_listen() {
    for args in [&["serve", "--port", "9000"][..], &["demo", "--port=9000"]] {
        let wrong = ended(command(args)).await;
        assert_eq!(wrong.code, Some(2), "{}", wrong.errors);
        assert!(
            wrong.errors.contains("'--listen HOST:PORT'"),
            "{}",
            wrong.errors
        );
    }
}

#[tokio::test]
async fn the_simulator_prints_its_base_url() {
    let mut command = command(&[
        "simulate",
        "--listen",
        "127.0.0.1:0",
        "--api-key-env",
        "SIM_KEY",
    ]);
    command.env("SIM_KEY", "sk-simulated");
    let mut process = Process::start(command, b"");
    let base = process.line().await.expect("says where");
    let client = crate::support::client_with(Some("sk-simulated"));
    let models = client
        .get(format!("{base}/models"))
        .send()
        .await
        .expect("answers");
    assert_eq!(models.status(), 200);
    let models = crate::support::client_with(None).get(format!("{base}/models"));
    assert_eq!(models.send().await.expect("answers").status(), 401);
    let stats = base.replace("/v1", "/stats");
    assert_eq!(
        client.get(stats).send().await.expect("answers").status(),
        200
    );
    process.signal("INT");
    assert_eq!(process.ended().await.code, Some(0));
}
