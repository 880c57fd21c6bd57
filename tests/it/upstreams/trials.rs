//! Tiny requests, to see whether routes work.

use nightshift::internals::simulate::{ApiKey, Options, Simulator};

use crate::support::binary::{command, ended};

const CONFIG: &str = "[database]\nurl = \"sqlite://DIRECTORY/a.db\"\n\
    [[upstreams]]\nname = \"good\"\nbase_url = \"GOOD\"\n\
    api_key_envs = [\"KEY_A\", \"KEY_B\"]\n\
    [[upstreams]]\nname = \"gone\"\npreset = \"ollama\"\nbase_url = \"http://127.0.0.1:1\"\n\
    [pricing]\ncurrency = \"usd\"\n\
    [[models]]\nname = \"m\"\nroutes = [{ upstream = \"good\", model = \"sim\", \
    price = { input = 0.1, output = 0.2, request = 0.5 } }, \
    { upstream = \"gone\", tier = 1 }]\n";

#[tokio::test]
async fn each_route_is_tried_by_each_key_and_told() {
    let options = Options {
        api_keys: vec![ApiKey::new("key", "sk-right-key")],
        models: vec!["sim".to_owned()],
        ..Options::default()
    };
    let simulator = Simulator::start("127.0.0.1:0", options).await;
    let simulator = simulator.expect("starts");
    let directory = tempfile::tempdir().expect("makes a directory");
    let file = directory.path().join("nightshift.toml");
    let toml = CONFIG
        .replace("GOOD", &simulator.base_url())
        .replace("DIRECTORY", directory.path().to_str().expect("is text"));
    std::fs::write(&file, toml).expect("writes");
    let file = file.to_str().expect("is text");
    let run = async |words: &[&str]| {
        let mut command = command(words);
        command.args(["--config", file]);
        command.envs([("KEY_A", "sk-wrong-key"), ("KEY_B", "sk-right-key")]);
        ended(command).await
    };
    let check = run(&["check", "--call"]).await;
    assert_eq!(check.code, Some(1), "{check:?}");
    let calls: Vec<&str> = check
        .out
        .lines()
        .filter(|line| line.contains("  call "))
        .collect();
    assert_eq!(calls.len(), 3, "{check:?}");
    assert!(calls[0].starts_with("FAIL  call           m at good by KEY_A as sim: 401 in "));
    assert!(calls[1].starts_with("ok    call           m at good by KEY_B as sim: 200 in "));
    let (_, used) = calls[1].split_once(" ms, ").expect("tells what it used");
    let words: Vec<&str> = used.split(' ').collect();
    let [input, "tokens", "in,", output, "out,", cost, "usd"] = words[..] else {
        panic!("{used}");
    };
    let number = |text: &str| text.parse::<u64>().expect("a number");
    // A tenth and two tenths for a million, and half for the call.
    let millionths = number(input) + 2 * number(output);
    let expected = format!("{:07}", 5_000_000 + millionths);
    let expected = format!("0.{}", expected.trim_end_matches('0'));
    assert_eq!(cost, expected, "{check:?}");
    let preset = "ok    preset         gone: ollama, http://127.0.0.1:1/v1\n      \
                  filled in      max_tokens_key = \"max_tokens\"\n";
    assert!(check.out.contains(preset), "{check:?}");
    let shown = "0.1 usd for a million tokens in, 0.2 out, 0.5 a call";
    assert!(check.out.contains(shown), "{check:?}");
    assert!(
        calls[2].starts_with("FAIL  call           m at gone: "),
        "{check:?}"
    );
    assert!(!check.out.contains("sk-"), "no key is shown: {check:?}");
    assert_eq!(
        simulator.stats().total.answered,
        1,
        "one tiny request by each way"
    );

    let test = run(&["upstreams", "test", "good"]).await;
    assert_eq!(
        (test.code, test.out.lines().count()),
        (Some(1), 2),
        "{test:?}"
    );
    let models = run(&["upstreams", "models", "good"]).await;
    assert_eq!(
        (models.code, &*models.out),
        (Some(0), "sim\n"),
        "{models:?}"
    );
    let unknown = run(&["upstreams", "test", "goof"]).await;
    assert!(
        unknown.errors.contains("the nearest is good"),
        "{unknown:?}"
    );
}
