//! What stands on a terminal of 80 columns, and what is written where there is none.

use serde_json::{Value, json};

use super::run::{Workshop, requests};
use crate::support::binary::Process;
use crate::support::engines::execute;
use crate::support::metrics::operator;
use crate::support::terminal::Terminal;
use crate::support::{CHAT, Server, chat, eventually, ids};
use nightshift::internals::simulate::Options;

const COLUMNS: u16 = 80;

/// Runs the input of a workshop on a terminal.
fn run_on(workshop: &Workshop, variables: &[(&str, &str)], more: &[&str]) -> Terminal {
    let url = workshop.simulator.base_url();
    let usual = [
        "run",
        "-i",
        "in.jsonl",
        "-o",
        "out.jsonl",
        "--upstream",
        &url,
    ];
    let directory = workshop.path("");
    Terminal::start(&directory, COLUMNS, &[&usual[..], more].concat(), variables)
}

/// Five requests that fail in two ways, fifteen that are answered, and one that hangs.
fn mixed() -> String {
    let ids = ids(21);
    let place = |(place, id): (usize, &String)| {
        let behaves = match place {
            0..3 => json!({"status": 400}),
            3..5 => json!({"status": 404}),
            5 => json!({"hang": true}),
            _ => Value::Null,
        };
        chat(id, behaves)
    };
    ids.iter().enumerate().map(place).collect()
}

fn is_bar(row: &str) -> bool {
    row.starts_with(['█', '░', '▓'])
}

#[tokio::test]
async fn the_bar_says_why_requests_failed_and_how_old_the_oldest_call_is() {
    let workshop = Workshop::new(&mixed(), Options::default()).await;
    let mut terminal = run_on(&workshop, &[], &[]);
    let rows = terminal
        .until("failures and an old call are told", |rows| {
            rows.iter().any(|row| row.starts_with("1 call is 1"))
        })
        .await;
    let bar = rows.iter().position(|row| is_bar(row));
    let bar = bar.unwrap_or_else(|| panic!("no bar in {rows:#?}"));
    assert!(rows[bar].contains("95%  20/21  "), "{rows:#?}");
    assert_eq!(
        rows[bar + 1],
        "5 failed: 3 bad request (400), 2 not found (404)"
    );
    assert!(rows[bar + 2].ends_with(" s old"), "{rows:#?}");
    assert_eq!(rows.len(), bar + 3, "nothing stands below: {rows:#?}");
    assert!(
        terminal.bytes().contains("\u{1b}[36m"),
        "the bar has its colour"
    );

    // What is said besides stands in a row of its own.
    terminal.press(b"\x03").await;
    let says = "Stopping: waiting for calls in flight. Ctrl-C again stops at once.";
    let rows = terminal
        .until("it stops", |rows| rows.iter().any(|row| row == says))
        .await;
    let last = &rows[rows.len() - 2];
    assert!(is_bar(last) && last.contains("5 failed"), "{rows:#?}");
    terminal.press(b"\x03").await;
    assert!(!terminal.ended().await.success());
}

#[tokio::test]
async fn the_bar_says_until_when_it_waits_and_obeys_no_color() {
    let input = chat("a", json!({"status": 429, "retry_after_ms": 600_000}));
    let workshop = Workshop::new(&input, Options::default()).await;
    let variables = [("NO_COLOR", "1"), ("TZ", "Asia/Kathmandu")];
    let mut terminal = run_on(&workshop, &variables, &[]);
    let waits = "waiting: upstream default answers 429 until ";
    let rows = terminal
        .until("it waits", |rows| {
            rows.iter().any(|row| row.starts_with(waits))
        })
        .await;
    // The log has its rows above the bar, and the bar has its own.
    let bar = rows.iter().rposition(|row| is_bar(row)).expect("is there");
    assert!(
        rows[0].starts_with("20") && rows[0].contains(" WARN "),
        "{rows:#?}"
    );
    assert_eq!(rows.len(), bar + 2, "{rows:#?}");
    for row in &rows[..bar] {
        assert!(
            !row.contains(['█', '░']) && !row.contains("waiting: "),
            "{rows:#?}"
        );
    }
    let until = rows[bar + 1].strip_prefix(waits);
    let until = until.unwrap_or_else(|| panic!("{rows:#?}"));
    let parts: Vec<&str> = until.split(':').collect();
    let is_time = parts.len() == 3 && parts.iter().all(|part| part.len() == 2);
    // A wait over midnight has a date.
    assert!(is_time || until.starts_with("20"), "{until}");
    terminal.press(b"\x03").await;
    assert!(!terminal.ended().await.success());
    let bytes = terminal.bytes();
    for colour in ["\u{1b}[3", "\u{1b}[9", "\u{1b}[4", "\u{1b}[1m"] {
        assert!(!bytes.contains(colour), "{bytes:?}");
    }
}

#[tokio::test]
async fn a_run_that_has_ended_leaves_its_last_line_standing() {
    let input: String = ids(30).iter().map(|id| chat(id, Value::Null)).collect();
    let workshop = Workshop::new(&input, Options::default()).await;
    let mut terminal = run_on(&workshop, &[], &[]);
    assert!(terminal.ended().await.success());
    let rows = terminal.rows();
    let [bar, says] = rows.as_slice() else {
        panic!("{rows:#?}");
    };
    assert!(
        is_bar(bar) && bar.contains("100%  30/30  0 failed  "),
        "{bar}"
    );
    assert_eq!(says, "30 of 30 requests succeeded: out.jsonl");
}

#[tokio::test]
async fn where_there_is_no_terminal_plain_lines_are_written() {
    let input = mixed().replace("\"hang\":true", "\"status\":422");
    let workshop = Workshop::new(&input, Options::default()).await;
    let ran = workshop.run(&[]).await;
    assert_eq!(ran.code, Some(1), "{}", ran.errors);
    assert!(
        !ran.errors.contains(['\u{1b}', '\r', '█']),
        "{:?}",
        ran.errors
    );
    let last = ran.errors.lines().find(|line| line.starts_with("100%"));
    assert!(
        last.is_some_and(|line| line.contains("21/21  6 failed  ")),
        "{}",
        ran.errors
    );
}

#[tokio::test]
async fn the_lists_of_operators_fit_the_terminal() {
    let server = Server::with("").binary().await;
    let key = operator(&server.database).await;
    let done = server.run(chat("a", Value::Null), CHAT).await;
    let hangs = server
        .create_batch(chat("b", json!({"hang": true})), CHAT)
        .await;
    let hangs = server
        .until(&hangs, |batch| batch.status == "in_progress")
        .await;
    let directory = tempfile::tempdir().expect("makes a directory");
    let base = server.url("");
    let list = ["keys", "list", "--database", &server.database];
    let status = ["status", "--url", &base, "--api-key-env", "OPS_KEY"];
    let ids = [&done, &hangs].map(|batch| batch.id.as_str());
    for (args, words) in [(&list[..], &["tenant-a", "key_"][..]), (&status, &ids)] {
        let mut terminal = Terminal::start(directory.path(), COLUMNS, args, &[("OPS_KEY", &key)]);
        assert!(
            terminal.ended().await.success(),
            "{args:?}: {:#?}",
            terminal.rows()
        );
        let rows = terminal.rows();
        assert!(!terminal.has_wrapped(), "{rows:#?}");
        for word in words {
            assert!(
                rows.iter().any(|row| row.contains(word)),
                "{word}: {rows:#?}"
            );
        }
    }
}

#[tokio::test]
async fn requests_whose_stored_text_is_damaged_have_a_cause_and_are_missed_at_the_end() {
    // The first chunk of 512 lines has one that hangs.
    let input = chat("hanging", json!({"hang": true})) + &requests(&ids(599));
    let workshop = Workshop::new(&input, Options::default()).await;
    let running = Process::start(workshop.command(&["--concurrency", "1"]), b"");
    eventually("a call is on its way", async || workshop.calls() == 1).await;
    running.signal("KILL");
    running.ended().await;
    let database = workshop.path("out.jsonl.nightshift/state.db");
    let database = format!("sqlite://{}", database.display());
    let damage = "UPDATE chunks SET data = x'00' WHERE chunk_no = 1";
    execute(&database, damage).await;

    let mut terminal = run_on(&workshop, &[], &[]);
    terminal
        .until("the cause is told", |rows| {
            rows.iter()
                .any(|row| row == "88 failed: 88 unreadable in the database")
        })
        .await;
    terminal.press(b"\x03\x03").await;
    assert!(!terminal.ended().await.success());

    let more = ["--timeout", "200ms", "--max-attempts", "1"];
    let ran = workshop.run(&more).await;
    assert_eq!(ran.code, Some(1), "{}", ran.errors);
    let told = "cannot write out.errors.jsonl: 1 lines are there, and the batch counts 89";
    assert!(ran.errors.contains(told), "{}", ran.errors);
    // What is missing is sent again.
    let mended = workshop
        .run(&[&more[..], &["--retry-failed"]].concat())
        .await;
    assert_eq!(mended.code, Some(1), "{}", mended.errors);
    assert_eq!(workshop.custom_ids("out.jsonl"), ids(599));
    assert_eq!(workshop.custom_ids("out.errors.jsonl"), ["hanging"]);
}
