//! The README's session, run as it is written.

use std::process::Stdio;

use serde_json::Value;
use tokio::process::Command;

use crate::support::Server;

const FIRST_LINE: &str = "# curl session";

/// The shell block that begins with a line.
fn block(page: &str, first_line: &str) -> String {
    let start = format!("```sh\n{first_line}\n");
    let (_, rest) = page.split_once(&start).expect("the block is there");
    let (block, _) = rest.split_once("\n```").expect("the block ends");
    format!("{first_line}\n{block}\n")
}

#[tokio::test]
async fn the_curl_session_works_as_it_is_written() {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md"));
    let script = block(&page.expect("is there"), FIRST_LINE);
    let server = Server::with(
        "[auth]\nrequired = false\n[[upstreams]]\nname = \"only\"\nbase_url = \"{simulated}\"\n",
    )
    .await;
    let directory = tempfile::tempdir().expect("makes a directory");
    let session = Command::new("bash")
        .args(["-e", "-c", &script])
        .current_dir(directory.path())
        .env("NIGHTSHIFT_URL", server.url(""))
        .env("NO_PROXY", "*")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let session = tokio::time::timeout(std::time::Duration::from_mins(2), session).await;
    let session = session.expect("ends in time").expect("starts");
    let out = String::from_utf8_lossy(&session.stdout);
    let errors = String::from_utf8_lossy(&session.stderr);
    assert!(session.status.success(), "{out}\n{errors}");
    assert_eq!(errors, "");

    let answers: Vec<Value> = out
        .lines()
        .filter(|line| line.contains("\"custom_id\""))
        .map(|line| serde_json::from_str(line).expect("is JSON"))
        .collect();
    assert!(!answers.is_empty(), "it shows no answer: {out}");
    for answer in answers {
        assert_eq!(answer["response"]["status_code"], 200, "{answer}");
    }
}
