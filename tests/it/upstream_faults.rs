//! Model servers that go wrong in every way there is: each ends as a retry or a clear error line,
//! and none holds up lines that could go elsewhere.

use std::fmt::Write as _;

use std::time::Duration;

use async_compression::tokio::write::{BrotliEncoder, DeflateEncoder, GzipEncoder, ZlibEncoder};
use nightshift::internals::simulate::Options;
use nightshift::internals::store::Engine;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;

use crate::support::binary::Launch;
use crate::support::metrics::{Metrics, operator};
use crate::support::{
    CHAT, Server, chat, client_with, eventually, ids, on, on_every_engine, request,
};

mod server;

use server::{Trouble, Troubled, certificate, certificate_of_a_ca, nobody};

/// Attempts without long pauses, and half a second for a call.
const QUICK: &str = r#"
    [retry]
    max_attempts = 3
    initial_backoff = "5ms"
    max_backoff = "20ms"

    [[upstreams]]
    name = "well"
    base_url = "{simulated}"
    concurrency = 64
"#;

/// Each trouble by its name, and how the error of a line begins that had no other way to go.
fn troubles() -> Vec<(&'static str, Trouble, &'static str, &'static str)> {
    const UNAVAILABLE: &str = "upstream_unavailable";
    const TOO_LARGE: &str = "response_too_large";
    const LOST: &str = "the connection was lost before the answer was whole";
    const LARGE: &str = "the answer is larger than 500000 bytes (max_response_bytes)";
    const GARBLED: &str = "the model server answered 200 with a body that is not JSON: ";
    let cut = b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{\"a\":".to_vec();
    let events = "content-type: text/event-stream\r\n";
    let html = b"<html>Welcome to the proxy</html>";
    // Small as it comes; a quarter of a gigabyte for whoever unpacks it.
    let zeros = std::io::Read::take(std::io::repeat(b'0'), 256 << 20);
    let bomb = zstd::encode_all(zeros, 1).expect("packs");
    let packed = "content-encoding: zstd\r\ncontent-type: application/json\r\n";
    let nothing = "HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\n\
                   content-type: application/json\r\nconnection: close\r\n\
                   transfer-encoding: chunked\r\n\r\n0\r\n\r\n"
        .to_owned();
    let announced = b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n{\"a\":".to_vec();
    vec![
        ("reset-before", Trouble::ResetBefore, UNAVAILABLE, LOST),
        ("reset-after", Trouble::ResetAfter, UNAVAILABLE, LOST),
        (
            "hang",
            Trouble::Hang,
            "request_timeout",
            "no whole answer within",
        ),
        (
            "hang-within",
            Trouble::HangWithin,
            "request_timeout",
            "no whole answer within",
        ),
        ("cut", Trouble::Say(cut), UNAVAILABLE, LOST),
        (
            "html",
            Trouble::answer("200 OK", "", html),
            UNAVAILABLE,
            GARBLED,
        ),
        (
            "broken",
            Trouble::answer("200 OK", "", b"{\"a\":"),
            UNAVAILABLE,
            GARBLED,
        ),
        (
            "error",
            Trouble::answer(
                "200 OK",
                "",
                br#"{"id":"c-1","error":{"message":"no GPU"}}"#,
            ),
            UNAVAILABLE,
            "the model server answered 200 with an error and no answer: no GPU",
        ),
        (
            "empty",
            Trouble::answer("200 OK", "", b""),
            UNAVAILABLE,
            GARBLED,
        ),
        (
            "error-streamed",
            Trouble::answer(
                "200 OK",
                events,
                b"data: {\"error\":{\"message\":\"no GPU\"}}\n\n",
            ),
            UNAVAILABLE,
            "the model server answered 200 with an error and no answer: no GPU",
        ),
        (
            "empty-streamed",
            Trouble::answer("200 OK", events, b""),
            UNAVAILABLE,
            GARBLED,
        ),
        (
            "empty-packed",
            Trouble::Say(nothing.into_bytes()),
            UNAVAILABLE,
            GARBLED,
        ),
        (
            "html-packed",
            Trouble::answer(
                "200 OK",
                "content-encoding: gzip\r\ncontent-type: text/html\r\n",
                html,
            ),
            UNAVAILABLE,
            "the answer's content coding (gzip) cannot be undone: ",
        ),
        (
            "bomb",
            Trouble::answer("200 OK", packed, &bomb),
            TOO_LARGE,
            LARGE,
        ),
        ("announced", Trouble::Say(announced), TOO_LARGE, LARGE),
        ("endless", Trouble::Endless, TOO_LARGE, LARGE),
    ]
}

/// How often a line is sent that ends with this code: what would come again is not computed again.
fn calls_of_a_line(code: &str) -> usize {
    match code {
        "response_too_large" => 1,
        "request_timeout" => 2,
        _ => 3, // max_attempts
    }
}

/// Longer than anything takes that comes to its end.
const LONG: &str = "1m";

/// How long a call may take: no time is lost with what never ends.
fn patience_with(trouble: &Trouble) -> &'static str {
    match trouble {
        Trouble::Hang | Trouble::HangWithin => "500ms",
        _ => LONG,
    }
}

/// Adds an upstream and a model of the same name, which may also go to `well`.
fn add(toml: &mut String, name: &str, base_url: &str, timeout: &str, elsewhere: bool) {
    let second = if elsewhere {
        ", { upstream = \"well\" }"
    } else {
        ""
    };
    let _ = write!(
        toml,
        "\n[[upstreams]]\nname = \"{name}\"\nbase_url = \"{base_url}\"\n\
         timeout = \"{timeout}\"\nmax_response_bytes = 500_000\n\
         [[models]]\nname = \"{name}\"\nroutes = [{{ upstream = \"{name}\" }}{second}]\n"
    );
}

const FREE: &str = "\n[[models]]\nname = \"free\"\nroutes = [{ upstream = \"well\" }]\n";

/// So many lines of each model, all of one model before those of the next.
fn lines(models: &[&str], each: usize) -> (String, Vec<String>) {
    let (mut jsonl, mut ids) = (String::new(), Vec::new());
    for model in models {
        for number in 0..each {
            let id = format!("{model}-{number}");
            jsonl += &request(&id, json!({"model": model, "messages": []}));
            ids.push(id);
        }
    }
    (jsonl, ids)
}

async fn lines_that_meet_trouble_go_to_another_upstream() {
    let (mut toml, mut servers) = (QUICK.to_owned() + FREE, Vec::new());
    for (name, trouble, code, _) in troubles() {
        if calls_of_a_line(code) == 1 {
            continue;
        }
        let timeout = patience_with(&trouble);
        let server = Troubled::start(trouble).await;
        add(&mut toml, name, &server.base_url(), timeout, true);
        servers.push((name, server));
    }
    let strange = Troubled::on(
        "127.0.0.1:0",
        Some(&certificate("127.0.0.1")),
        Trouble::Hang,
    )
    .await;
    let base = strange.base_url().replace("http://", "https://");
    add(&mut toml, "certificate", &base, LONG, true);
    add(&mut toml, "refused", &nobody().await, LONG, true);

    let server = Server::with(&toml).await;
    let models: Vec<&str> = servers.iter().map(|(name, _)| *name).collect();
    let models = [&models[..], &["certificate", "refused", "free"]].concat();
    let (jsonl, ids) = lines(&models, 12);
    let batch = server.run(&jsonl, CHAT).await;
    assert_eq!(batch.counts.completed, ids.len(), "{batch}");
    server.exactly_once(&batch, &ids).await;
    for (name, troubled) in servers {
        assert!(troubled.posts() > 0, "{name} was never met");
    }
}

async fn lines_that_meet_trouble_everywhere_say_which() {
    let (mut toml, mut servers) = (QUICK.to_owned() + FREE, Vec::new());
    for (name, trouble, ..) in troubles() {
        let timeout = patience_with(&trouble);
        let server = Troubled::start(trouble).await;
        add(&mut toml, name, &server.base_url(), timeout, false);
        servers.push((name, server));
    }
    let server = Server::with(&toml).await;
    let models: Vec<&str> = servers.iter().map(|(name, _)| *name).collect();
    let (jsonl, ids) = lines(&[&models[..], &["free"]].concat(), 2);
    let batch = server.run(&jsonl, CHAT).await;
    assert_eq!(batch.status, "completed", "{batch}");
    assert_eq!(batch.counts.completed, 2, "{batch}");
    let lines = server.exactly_once(&batch, &ids).await;
    for (name, _, code, message) in troubles() {
        let line = &lines[&format!("{name}-0")];
        assert_eq!(line["response"], Value::Null, "{line}");
        assert_eq!(line["error"]["code"], code, "{line}");
        let told = line["error"]["message"].as_str().expect("is text");
        assert!(told.starts_with(message), "{name}: {told}");
        assert!(!told.contains("127.0.0.1"), "{name}: {told}");
    }
    for ((name, _, code, _), (_, troubled)) in troubles().into_iter().zip(servers) {
        let calls = calls_of_a_line(code);
        assert_eq!(troubled.posts(), 2 * calls, "{name}");
    }
}

/// A model server's answers, each by what is special about it, with its headers and its body.
async fn answers_that_were_paid_for() -> Vec<(&'static str, String, Vec<u8>)> {
    let json = "content-type: application/json; charset=utf-8\r\n";
    let body = br#"{"id":"chatcmpl-1","usage":{"prompt_tokens":3,"completion_tokens":4}}"#;
    let packed = |coding: &str| format!("{json}content-encoding: {coding}\r\n");
    let (gzip, br) = (with_gzip(body).await, with_brotli(body).await);
    let both = with_gzip(&br).await;
    let (half, other) = body.split_at(9);
    let members = [with_gzip(half).await, with_gzip(other).await].concat();
    let padded = [&gzip[..], b"\0\0\0\r\n"].concat();
    let (zlib, raw) = (with_zlib(body).await, with_deflate(body).await);
    let streamed =
        b"data: {\"id\":\"chatcmpl-1\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"\"},\
        \"finish_reason\":\"stop\"}]}\n\ndata: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,\
        \"completion_tokens\":4}}\n\ndata: [DONE]\n\n";
    vec![
        ("gzip", packed("gzip"), gzip),
        ("br", packed("br"), br),
        (
            "zstd",
            packed("zstd"),
            zstd::encode_all(&body[..], 1).expect("packs"),
        ),
        ("both", packed("br, gzip"), both),
        ("members", packed("gzip"), members),
        ("padded", packed("gzip"), padded),
        ("zlib", packed("deflate"), zlib),
        ("deflate", packed("deflate"), raw),
        // Some servers say there what they would say in the content type.
        ("charset", packed("utf-8"), body.to_vec()),
        ("none", packed("none"), body.to_vec()),
        (
            "streamed",
            "content-type: text/event-stream\r\n".to_owned(),
            streamed.to_vec(),
        ),
        (
            "bom",
            json.to_owned(),
            [b"\xEF\xBB\xBF", &body[..]].concat(),
        ),
    ]
}

async fn with_gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzipEncoder::new(Vec::new());
    encoder.write_all(bytes).await.expect("packs");
    encoder.shutdown().await.expect("packs");
    encoder.into_inner()
}

async fn with_brotli(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = BrotliEncoder::new(Vec::new());
    encoder.write_all(bytes).await.expect("packs");
    encoder.shutdown().await.expect("packs");
    encoder.into_inner()
}

async fn with_zlib(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new());
    encoder.write_all(bytes).await.expect("packs");
    encoder.shutdown().await.expect("packs");
    encoder.into_inner()
}

async fn with_deflate(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = DeflateEncoder::new(Vec::new());
    encoder.write_all(bytes).await.expect("packs");
    encoder.shutdown().await.expect("packs");
    encoder.into_inner()
}

async fn a_packed_answer_and_one_with_a_byte_order_mark_are_answers() {
    let (mut toml, mut servers) = (QUICK.to_owned(), Vec::new());
    for (name, headers, body) in answers_that_were_paid_for().await {
        let server = Troubled::start(Trouble::answer("200 OK", &headers, &body)).await;
        add(&mut toml, name, &server.base_url(), LONG, false);
        servers.push((name, server));
    }
    let server = Server::with(&toml).await;
    let models: Vec<&str> = servers.iter().map(|(name, _)| *name).collect();
    let (jsonl, ids) = lines(&models, 2);
    let batch = server.run(&jsonl, CHAT).await;
    assert_eq!(batch.counts.completed, ids.len(), "{batch}");
    assert_eq!(batch["usage"]["input_tokens"], 3 * ids.len(), "{batch}");
    let lines = server.exactly_once(&batch, &ids).await;
    for id in &ids {
        assert_eq!(lines[id]["response"]["body"]["id"], "chatcmpl-1");
    }
}

async fn an_answer_that_cannot_be_read_is_computed_once_and_kept() {
    let json = "content-type: application/json\r\n";
    let deep = [vec![b'['; 5_000], vec![b']'; 5_000]].concat();
    let gzip = format!("{json}content-encoding: gzip\r\n");
    let many = format!("{json}content-encoding: {}br\r\n", "br,".repeat(20_000));
    let events = "content-type: text/event-stream; charset=utf-8\r\n";
    let cases: [(&str, &str, &[u8], &str); 8] = [
        (
            "nan",
            json,
            b"{\"score\":NaN}",
            "expected value at line 1 column 10.",
        ),
        (
            "utf-8",
            json,
            b"{\"a\":\"\xFF\"}",
            "byte 0xFF at offset 6 is not UTF-8.",
        ),
        (
            "newline",
            json,
            b"{\"a\":\"x\ny\"}",
            "while parsing a string at line 1 column 7.",
        ),
        (
            "half",
            json,
            b"{\"a\":",
            "EOF while parsing a value at line 1 column 5.",
        ),
        (
            "events",
            events,
            b"data: {\"choices\":[]}\n\n",
            "streamed its answer, which it was not",
        ),
        // Without a content type, too: it is JSON.
        ("deep", "", &deep, "is nested deeper than 128 levels."),
        (
            "not-packed",
            &gzip,
            b"{}",
            "the answer's content coding (gzip) cannot be undone: ",
        ),
        (
            "many",
            &many,
            b"{}",
            "the answer names 20001 content codings, and at most 5 are undone",
        ),
    ];
    let (mut toml, mut servers) = (QUICK.to_owned(), Vec::new());
    for (name, headers, body, _) in cases {
        let server = Troubled::start(Trouble::answer("200 OK", headers, body)).await;
        add(&mut toml, name, &server.base_url(), LONG, false);
        servers.push((name, server));
    }
    let server = Server::with(&toml).await;
    for (name, _, body, message) in cases {
        let (jsonl, ids) = lines(&[name], 1);
        let batch = server.run(&jsonl, CHAT).await;
        let lines = server.exactly_once(&batch, &ids).await;
        let line = &lines[&ids[0]];
        assert_eq!(batch.counts.failed, 1, "{name}: {line}");
        assert_eq!(line["error"]["code"], "invalid_response", "{line}");
        let told = line["error"]["message"].as_str().expect("is text");
        assert!(told.contains(message), "{name}: {told}");
        let kept = match name {
            "not-packed" | "many" => Value::Null,
            _ => String::from_utf8_lossy(body).into(),
        };
        assert_eq!(line["response"]["body"], kept, "{line}");
    }
    for (name, troubled) in servers {
        assert_eq!(troubled.posts(), 1, "{name}");
    }
}

async fn a_hung_upstream_holds_up_no_lines_of_others() {
    let hung = Troubled::start(Trouble::Hang).await;
    let toml = format!(
        "{QUICK}{FREE}\n[[upstreams]]\nname = \"hung\"\nbase_url = \"{}\"\ntimeout = \"1h\"\n\
         concurrency = 4\n[[models]]\nname = \"hung\"\nroutes = [{{ upstream = \"hung\" }}]\n",
        hung.base_url()
    );
    let server = Server::with(&toml).await;
    // As many as are read at once, and more.
    let (jsonl, _) = lines(&["hung", "free"], 600);
    let batch = server.create_batch(&jsonl, CHAT).await;
    let batch = server
        .until(&batch, |batch| batch.counts.completed == 600)
        .await;
    assert_eq!(batch.status, "in_progress", "{batch}");
    assert_eq!(hung.posts(), 4, "its places, and no more");
}

async fn a_redirect_ejects_its_upstream_and_is_not_followed() {
    let target = Troubled::start(Trouble::Hang).await;
    let elsewhere = format!("location: {}/chat/completions\r\n", target.base_url());
    let away = Troubled::start(Trouble::answer("307 Temporary Redirect", &elsewhere, b"")).await;
    let same = "location: /v2/chat/completions?key=secret\r\n";
    let same = Troubled::start(Trouble::answer("308 Permanent Redirect", same, b"{}")).await;
    let mut toml = QUICK.to_owned();
    add(&mut toml, "away", &away.base_url(), LONG, false);
    add(&mut toml, "same", &same.base_url(), LONG, false);
    let server = Server::with(&toml).await;
    let (jsonl, ids) = lines(&["away", "same"], 1);
    let batch = server.create_batch_within(&jsonl, CHAT, "10m").await;
    let key = operator(&server.database).await;
    eventually("both are ejected", async || {
        let url = server.url("/admin/status");
        let status = client_with(Some(&key)).get(url).send().await;
        let status: Value = status.expect("answers").json().await.expect("is JSON");
        let cause = |at: usize| {
            status["upstreams"][at]["cause"]
                .as_str()
                .unwrap_or_default()
        };
        let causes = status["upstreams"].as_array().expect("a list");
        assert!(!causes.iter().any(|one| one.to_string().contains("secret")));
        (0..causes.len()).any(|at| cause(at).contains("points to /v2/chat/completions"))
            && causes
                .iter()
                .filter(|one| one["state"] == "ejected")
                .count()
                == 2
    })
    .await;
    let running = server.batch(&batch).await;
    assert_eq!(running.counts.failed, 0, "{running}");
    server.clock.advance_ms(10 * 60 * 1000);
    let batch = server.ended(&batch).await;
    let lines = server.exactly_once(&batch, &ids).await;
    assert_eq!(lines["away-0"]["response"]["status_code"], 307);
    assert_eq!(lines["same-0"]["response"]["status_code"], 308);
    assert_eq!(target.posts(), 0);
}

async fn a_certificate_of_a_ca_is_accepted_where_it_is_named_and_only_there() {
    let directory = tempfile::tempdir().expect("makes a directory");
    let answer = || Trouble::answer("200 OK", "", b"{}");
    let [ours, other] = [(); 2].map(|()| certificate_of_a_ca("127.0.0.1"));
    let wrong_host = certificate_of_a_ca("gpu.internal");
    let pem = [ours.cert.pem(), wrong_host.cert.pem()].concat();
    let ca_file = directory.path().join("gpu.pem");
    std::fs::write(&ca_file, pem).expect("writes");
    let mut toml = QUICK.to_owned();
    let mut servers = Vec::new();
    for (name, certificate) in [("ours", &ours), ("other", &other), ("host", &wrong_host)] {
        let server = Troubled::on("127.0.0.1:0", Some(certificate), answer()).await;
        let base = server.base_url().replace("http://", "https://");
        add(&mut toml, name, &base, LONG, false);
        let named = format!("base_url = \"{base}\"\nca_file = \"{}\"", ca_file.display());
        toml = toml.replace(&format!("base_url = \"{base}\""), &named);
        servers.push(server);
    }
    let server = Server::with(&toml).await;
    let (jsonl, _) = lines(&["ours", "other", "host"], 3);
    let batch = server.create_batch(&jsonl, CHAT).await;
    server
        .until(&batch, |batch| batch.counts.completed == 3)
        .await;
    let key = operator(&server.database).await;
    eventually("it is said what to do about the others", async || {
        let url = server.url("/admin/status");
        let status = client_with(Some(&key)).get(url).send().await;
        let status: Value = status.expect("answers").json().await.expect("is JSON");
        let upstreams = status["upstreams"].as_array().expect("a list");
        let says = |name: &str, words: &str| {
            let mut found = upstreams.iter().filter(|one| one["name"] == name);
            found.any(|one| {
                one["cause"]
                    .as_str()
                    .is_some_and(|cause| cause.contains(words))
            })
        };
        says("other", "name exactly this certificate in ca_file")
            && says("host", "is for another host than the one in base_url")
    })
    .await;
    let posts: Vec<usize> = servers.iter().map(Troubled::posts).collect();
    assert_eq!(posts, [3, 0, 0]);
}

async fn lines_wait_for_a_certificate_to_be_mended() {
    let directory = tempfile::tempdir().expect("makes a directory");
    let good = certificate("127.0.0.1");
    let ca_file = directory.path().join("ca.pem");
    std::fs::write(&ca_file, good.cert.pem()).expect("writes");
    let answer = || Trouble::answer("200 OK", "", b"{}");
    let bad = Troubled::on("127.0.0.1:0", Some(&certificate("127.0.0.1")), answer()).await;
    let address = bad.address.to_string();
    let toml = format!(
        "{QUICK}{FREE}\n[[upstreams]]\nname = \"tls\"\nbase_url = \"https://{address}/v1\"\n\
         ca_file = \"{}\"\n[[models]]\nname = \"tls\"\nroutes = [{{ upstream = \"tls\" }}]\n",
        ca_file.display()
    );
    let server = Server::with(&toml).await;
    let (jsonl, ids) = lines(&["tls", "free"], 20);
    let batch = server.create_batch(&jsonl, CHAT).await;
    let batch = server
        .until(&batch, |batch| batch.counts.completed == 20)
        .await;
    assert_eq!(batch.status, "in_progress", "{batch}");
    assert_eq!(batch.counts.failed, 0, "{batch}");
    assert_eq!(bad.posts(), 0, "nothing is sent to a stranger");

    bad.stop().await;
    let mended = Troubled::on(&address, Some(&good), answer()).await;
    let batch = server.ended(&batch).await;
    assert_eq!(batch.counts.completed, 40, "{batch}");
    server.exactly_once(&batch, &ids).await;
    assert_eq!(mended.posts(), 20);
}

#[tokio::test]
async fn calls_that_time_out_are_counted_and_said_in_one_warning() {
    on(Engine::Sqlite, async {
        let hung = Troubled::start(Trouble::Hang).await;
        let toml = format!(
            "[retry]\ninitial_backoff = \"5ms\"\nmax_backoff = \"20ms\"\n\
             [[upstreams]]\nname = \"hung\"\nbase_url = \"{}\"\ntimeout = \"200ms\"\n",
            hung.base_url()
        );
        let mut server = Server::with(&toml).binary().await;
        let (jsonl, ids) = lines(&["m"], 5);
        let batch = server.run(&jsonl, CHAT).await;
        let lines = server.exactly_once(&batch, &ids).await;
        assert!(
            lines
                .values()
                .all(|line| line["error"]["code"] == "request_timeout")
        );
        let key = operator(&server.database).await;
        let metrics = Metrics::of(&server.url(""), Some(&key)).await;
        let labels = ["upstream=\"hung\"", "outcome=\"timed_out\""];
        let calls = metrics.sum("nightshift_upstream_calls_total", &labels);
        assert_eq!(calls, 10.0, "twice for each line");
        let log = server.binary_process().terminate().await;
        let warning = "calls took longer than the upstream's timeout";
        let said = log.lines().filter(|line| line.contains(warning)).count();
        assert!((1..5).contains(&said), "one a minute: {log}");
    })
    .await;
}

#[tokio::test]
async fn running_out_of_file_descriptors_is_said_once_and_blames_no_upstream() {
    on(Engine::Sqlite, async {
        let options = Options {
            track: true,
            latency: Duration::from_millis(20),
            ..Options::default()
        };
        // More calls at once than descriptors.
        let toml = "[retry]\ninitial_backoff = \"20ms\"\nmax_backoff = \"100ms\"\n\
                    [[upstreams]]\nname = \"gpu\"\nbase_url = \"{simulated}\"\nconcurrency = 256\n";
        let mut server = Server::with(toml).upstream(options).binary().await;
        server.binary_process().terminate().await;
        server
            .start_process(Launch::new().after("ulimit -n 100;"))
            .await;
        let ids = ids(600);
        let jsonl: String = ids.iter().map(|id| chat(id, Value::Null)).collect();
        let batch = server.run(&jsonl, CHAT).await;
        assert_eq!(batch.counts.completed, 600, "{batch}");
        let key = operator(&server.database).await;
        let metrics = Metrics::of(&server.url(""), Some(&key)).await;
        let calls = |outcome: &str| metrics.sum("nightshift_upstream_calls_total", &[outcome]);
        assert!(calls("outcome=\"not_sent\"") > 1.0, "there were enough");
        assert_eq!(calls("outcome=\"unreachable\""), 0.0);
        let log = server.binary_process().terminate().await;
        let said = log
            .lines()
            .filter(|line| line.contains("no file descriptor is left"))
            .count();
        assert!((1..60).contains(&said), "one a minute: {log}");
        assert!(!log.contains("the upstream fails"), "{log}");
    })
    .await;
}

#[tokio::test]
async fn the_number_of_file_descriptors_is_raised_to_what_the_system_allows() {
    on(Engine::Sqlite, async {
        let mut server = Server::with("").binary().await;
        server.binary_process().terminate().await;
        server
            .start_process(Launch::new().after("ulimit -Sn 300; ulimit -Hn 2000;"))
            .await;
        let limits = format!("/proc/{}/limits", server.process_id());
        let limits = std::fs::read_to_string(limits).expect("can be read");
        let files = limits
            .lines()
            .find(|line| line.starts_with("Max open files"));
        let files: Vec<&str> = files.expect("is told").split_whitespace().collect();
        assert_eq!(files[3..5], ["2000", "2000"], "{limits}");
    })
    .await;
}

on_every_engine![
    lines_that_meet_trouble_go_to_another_upstream,
    lines_that_meet_trouble_everywhere_say_which,
    a_packed_answer_and_one_with_a_byte_order_mark_are_answers,
    an_answer_that_cannot_be_read_is_computed_once_and_kept,
    a_hung_upstream_holds_up_no_lines_of_others,
    a_redirect_ejects_its_upstream_and_is_not_followed,
    a_certificate_of_a_ca_is_accepted_where_it_is_named_and_only_there,
    lines_wait_for_a_certificate_to_be_mended,
];
