//! Reuse of answers: a line whose answer is known needs no call, and equal lines in flight share
//! one.

use nightshift::internals::simulate::Options;
use nightshift::internals::store::Engine;
use serde_json::{Value, json};

use crate::support::binary::{Launch, command, ended};
use crate::support::metrics::operator;
use crate::support::session::Session;
use crate::support::{Api, Batch, CHAT, Server, eventually, granting, ids, on_every_engine};

const EMBEDDINGS: &str = "/v1/embeddings";

/// A configuration in which answers are reused in this mode.
fn reusing(mode: &str) -> String {
    format!("[reuse]\nmode = \"{mode}\"\nttl = \"1h\"\n")
}

fn line(id: &str, url: &str, body: &Value) -> String {
    let line = json!({"custom_id": id, "method": "POST", "url": url, "body": body});
    format!("{line}\n")
}

/// So many lines that differ in nothing but their ids.
fn equal(count: usize, url: &str, body: &Value) -> String {
    ids(count).iter().map(|id| line(id, url, body)).collect()
}

/// Of few dimensions, so that many answers are few bytes.
fn embedding(input: Value) -> Value {
    json!({"model": "sim-small", "input": input, "dimensions": 8})
}

fn chat(more: Value) -> Value {
    let mut body = json!({
        "model": "sim-small", "messages": [{"role": "user", "content": "Which colour?"}],
    });
    for (key, value) in more.as_object().expect("an object") {
        body[key] = value.clone();
    }
    body
}

/// Creates a batch that says this under `nightshift`.
async fn create(api: &Api, jsonl: &str, endpoint: &str, extension: Value) -> Batch {
    let file = api.upload_batch(jsonl).await;
    let body = json!({
        "input_file_id": file, "endpoint": endpoint, "completion_window": "24h",
        "nightshift": extension,
    });
    api.create(&body).await
}

/// Runs a batch to its end; how many calls that took.
async fn calls_of(server: &Server, run: impl Future<Output = Batch>) -> (Batch, u64) {
    let before = server.simulator.stats().total.calls;
    let batch = run.await;
    assert_eq!(batch.status, "completed", "{batch}");
    (batch, server.simulator.stats().total.calls - before)
}

/// How many output lines say that they got another line's answer.
async fn cached(api: &Api, batch: &Batch) -> usize {
    let output = api.output(batch).await;
    let mut ids: Vec<&str> = output
        .iter()
        .filter_map(|line| line["id"].as_str())
        .collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), output.len(), "each line has an id of its own");
    let is_cached = |line: &&Value| line["nightshift"] == json!({"cached": true});
    output.iter().filter(is_cached).count()
}

/// The kept answers of the whole store.
async fn until_kept(server: &Server, answers: i64) {
    server.until_rows("answers", |rows| rows == answers).await;
}

async fn row_11_equal_lines_are_sent_once_and_the_same_file_again_not_at_all_until_the_ttl_is_over()
{
    let server = Server::with(&reusing("embeddings")).await;
    let lines = equal(10_000, EMBEDDINGS, &embedding(json!("the same")));
    let (batch, calls) = calls_of(&server, server.run(&lines, EMBEDDINGS)).await;
    assert_eq!(calls, 1);
    let all = server.exactly_once(&batch, &ids(10_000)).await;
    let bodies: Vec<&Value> = all.values().map(|line| &line["response"]["body"]).collect();
    assert!(bodies.iter().all(|body| *body == bodies[0]));
    assert_eq!(cached(&server, &batch).await, 9_999);
    let usage = &bodies[0]["usage"]["prompt_tokens"];
    assert_eq!(
        &batch["usage"]["input_tokens"], usage,
        "one line was billed"
    );

    until_kept(&server, 1).await;
    let (again, calls) = calls_of(&server, server.run(&lines, EMBEDDINGS)).await;
    assert_eq!(calls, 0);
    assert_eq!(cached(&server, &again).await, 10_000);
    assert_eq!(again["usage"]["total_tokens"], 0);

    // The time counts from when the answer was kept, however often it was used since.
    server.clock.advance_ms(3_600_000);
    let (_, calls) = calls_of(&server, server.run(&lines, EMBEDDINGS)).await;
    assert_eq!(calls, 1);
}

async fn an_answer_is_found_again_after_a_restart() {
    let mut server = Server::with(&reusing("all")).await;
    let lines = equal(3, CHAT, &chat(json!({})));
    let (_, calls) = calls_of(&server, server.run(&lines, CHAT)).await;
    assert_eq!(calls, 1);
    server.stop().await;
    server.start_again().await;
    let (batch, calls) = calls_of(&server, server.run(&lines, CHAT)).await;
    assert_eq!((calls, cached(&server, &batch).await), (0, 3));
}

async fn what_asks_for_the_same_answer_each_time_is_reused_and_nothing_else() {
    let server = Server::with(&reusing("deterministic")).await;
    for (more, expected) in [
        (json!({"temperature": 0}), 1),
        (json!({"temperature": 0.0, "top_p": 0.5}), 1),
        (
            json!({"temperature": 0.7, "seed": 9_007_199_254_740_993_i64}),
            1,
        ),
        (json!({"temperature": 0.7}), 4),
        (json!({"seed": null}), 4),
        (json!({}), 4),
    ] {
        let lines = equal(4, CHAT, &chat(more.clone()));
        let (_, calls) = calls_of(&server, server.run(&lines, CHAT)).await;
        assert_eq!(calls, expected, "{more}");
    }
}

async fn what_cannot_change_an_answer_makes_no_difference_and_all_else_does() {
    let server = Server::with(&reusing("deterministic")).await;
    let same = [
        json!({"temperature": 0, "seed": 1}),
        json!({"seed": 1.0, "temperature": 0.0, "user": "somebody"}),
        json!({"temperature": 0, "seed": 1, "metadata": {"a": "b"}, "store": true}),
    ];
    let others = [
        json!({"temperature": 0, "seed": 9_007_199_254_740_992_i64}),
        json!({"temperature": 0, "seed": 9_007_199_254_740_993_i64}),
        json!({"temperature": 0, "seed": 1, "stop": ["a", "b"]}),
        json!({"temperature": 0, "seed": 1, "stop": ["b", "a"]}),
        json!({"temperature": 0, "seed": 1, "stop": ["a", "b", ""]}),
    ];
    let all = same.iter().chain(&others).enumerate();
    let lines: String = all
        .map(|(no, more)| line(&no.to_string(), CHAT, &chat(more.clone())))
        .collect();
    let (_, calls) = calls_of(&server, server.run(&lines, CHAT)).await;
    assert_eq!(calls, 1 + others.len() as u64);
}

async fn an_answer_that_was_cut_by_length_is_shared_and_not_kept() {
    let server = Server::with(&reusing("all")).upstream(granting(0)).await;
    let operator = server.by(&operator(&server.database).await);
    let lines = equal(8, CHAT, &chat(json!({"max_tokens": 1})));
    let batch = server.create_batch(&lines, CHAT).await;
    eventually("one line asks, and the others wait for it", async || {
        let status = operator.get("/admin/status").await;
        let models = status["models"].as_array().expect("a list");
        let waiting = models.iter().any(|model| model["in_flight"] == 8);
        if waiting { Ok(()) } else { Err(status) }
    })
    .await;
    server.simulator.grant(100);
    server.ended(&batch).await;
    assert_eq!(server.simulator.stats().total.calls, 1);
    let (batch, calls) = calls_of(&server, server.run(&lines, CHAT)).await;
    assert!(calls >= 1, "{calls}");
    let output = server.output(&batch).await;
    let reason = &output[0]["response"]["body"]["choices"][0]["finish_reason"];
    assert_eq!(reason, "length");
}

async fn a_first_call_that_fails_leaves_nobody_waiting() {
    let config = reusing("all") + "[retry]\ninitial_backoff = \"5ms\"\nmax_backoff = \"20ms\"\n";
    let server = Server::with(&config).await;
    // A refusal of the line: each of the others gets one of its own.
    let lines = equal(20, CHAT, &chat(json!({"simulate": {"status": 400}})));
    let (batch, calls) = calls_of(&server, server.run(&lines, CHAT)).await;
    assert_eq!((batch.counts.failed, calls), (20, 20));
    // A connection that is cut once: all are answered.
    let lines = equal(
        20,
        CHAT,
        &chat(json!({"simulate": {"reset": true, "times": 1}})),
    );
    let (batch, calls) = calls_of(&server, server.run(&lines, CHAT)).await;
    assert_eq!(batch.counts.completed, 20);
    assert!((2..=21).contains(&calls), "{calls}");
}

async fn a_batch_that_is_cancelled_leaves_no_line_of_another_waiting() {
    let config = reusing("all") + "[worker]\nsettle_timeout = \"50ms\"\n";
    let server = Server::with(&config).await;
    let body = chat(json!({"simulate": {"hang": true, "times": 1}}));
    let first = server.create_batch(equal(1, CHAT, &body), CHAT).await;
    eventually("its call hangs", async || {
        let now = server.simulator.stats().total.in_flight;
        if now == 1 { Ok(()) } else { Err(now) }
    })
    .await;
    let second = server.create_batch(equal(3, CHAT, &body), CHAT).await;
    server
        .until(&second, |batch| batch.status == "in_progress")
        .await;
    server.cancel(&first).await;
    assert_eq!(server.ended(&second).await.counts.completed, 3);
}

async fn tenants_never_share() {
    let server = Server::with(&reusing("all")).await;
    let lines = equal(5, EMBEDDINGS, &embedding(json!(["a", ""])));
    let (_, calls) = calls_of(&server, server.run(&lines, EMBEDDINGS)).await;
    assert_eq!(calls, 1);
    until_kept(&server, 1).await;
    let (_, calls) = calls_of(&server, server.other().run(&lines, EMBEDDINGS)).await;
    assert_eq!(calls, 1, "the answer of tenant-a is tenant-a's");
    until_kept(&server, 2).await;
}

async fn a_batch_may_choose_less_and_may_ask_anew() {
    let server = Server::with(&reusing("deterministic")).await;
    let lines = equal(4, CHAT, &chat(json!({"temperature": 0})));
    let run = async |extension: Value| {
        let run = async {
            let batch = create(&server, &lines, CHAT, extension).await;
            server.ended(&batch).await
        };
        calls_of(&server, run).await.1
    };
    assert_eq!(run(json!({})).await, 1);
    until_kept(&server, 1).await;
    assert_eq!(run(json!({"reuse": "off"})).await, 4);
    assert_eq!(run(json!({"reuse": "embeddings"})).await, 4);
    assert_eq!(run(json!({"reuse": "deterministic"})).await, 0);
    assert_eq!(run(json!({"reuse": "refresh"})).await, 1);
    assert_eq!(run(json!({"reuse": "refresh"})).await, 1);
}

async fn a_batch_that_asks_anew_takes_no_answer_that_an_older_batch_waits_for() {
    let server = Server::with(&reusing("all")).upstream(granting(0)).await;
    let lines = equal(1, CHAT, &chat(json!({})));
    let operator = server.by(&operator(&server.database).await);
    let in_flight = async |lines: u64| {
        eventually("they ask or wait", async || {
            let status = operator.get("/admin/status").await;
            let models = status["models"].as_array().expect("a list");
            let is_so = models.iter().any(|model| model["in_flight"] == lines);
            if is_so { Ok(()) } else { Err(status) }
        })
        .await;
    };
    let older = server.create_batch(&lines, CHAT).await;
    in_flight(1).await;
    let newer = create(&server, &lines, CHAT, json!({"reuse": "refresh"})).await;
    in_flight(2).await;
    server.simulator.grant(100);
    server.ended(&older).await;
    let newer = server.ended(&newer).await;
    assert_eq!(cached(&server, &newer).await, 0);
    assert_eq!(server.simulator.stats().total.calls, 2);
}

async fn what_a_model_is_said_not_to_take_is_part_of_what_is_asked() {
    let refusing =
        |what: &str| format!("[[capabilities]]\nmodel = \"sim-small\"\nrefuses = [{what}]\n");
    let usual = "[[upstreams]]\nname = \"simulated\"\nbase_url = \"{simulated}\"\n\
        unsupported_params = \"drop\"\n[[models]]\nname = \"sim-small\"\n\
        routes = [{ upstream = \"simulated\" }]\n";
    let config = usual.to_owned() + &reusing("deterministic");
    let server = Server::with(&(config + &refusing("\"stop\""))).await;
    let key = operator(&server.database).await;
    let file = std::fs::read_to_string(server.config_file()).expect("reads");
    let reload = async |what: &str| {
        let toml = file.replace(&refusing("\"stop\""), &refusing(what));
        std::fs::write(server.config_file(), toml).expect("writes");
        server.by(&key).post("/admin/reload", &json!({})).await
    };
    let with_stop = chat(json!({"temperature": 0, "stop": ["x"]}));
    let lines = equal(3, CHAT, &with_stop);
    let (_, calls) = calls_of(&server, server.run(&lines, CHAT)).await;
    assert_eq!(calls, 1);
    until_kept(&server, 1).await;
    let (_, calls) = calls_of(&server, server.run(&lines, CHAT)).await;
    assert_eq!(calls, 0);
    // Now it is sent whole.
    reload("").await;
    let (_, calls) = calls_of(&server, server.run(&lines, CHAT)).await;
    assert_eq!(calls, 1);
    // A temperature that is left out asks for a random answer.
    reload("\"temperature\"").await;
    let (_, calls) = calls_of(&server, server.run(&lines, CHAT)).await;
    assert_eq!(calls, 3);
}

async fn answers_go_with_the_file_that_they_came_from() {
    let server = Server::with(&(reusing("all") + "[retention]\ngrace = \"1m\"\n")).await;
    let lines = equal(2, EMBEDDINGS, &embedding(json!("a")));
    let (batch, _) = calls_of(&server, server.run(&lines, EMBEDDINGS)).await;
    until_kept(&server, 1).await;
    let path = format!("/v1/files/{}", batch.input_file_id);
    let deleted = server.client().delete(server.url(&path)).send().await;
    assert_eq!(deleted.expect("answers").status(), 200);
    // At once it is given to nobody.
    let (_, calls) = calls_of(&server, server.run(&lines, EMBEDDINGS)).await;
    assert_eq!(calls, 1);
}

async fn with_nothing_configured_every_line_is_sent() {
    let upstream = Options {
        track: true,
        ..Options::default()
    };
    let server = Server::with("").upstream(upstream).await;
    let lines = equal(50, EMBEDDINGS, &embedding(json!("the same")));
    let (batch, calls) = calls_of(&server, server.run(&lines, EMBEDDINGS)).await;
    assert_eq!((calls, cached(&server, &batch).await), (50, 0));
}

/// What all kept answers have, as they are stored: added up, and as the totals say it.
async fn stored(server: &Server, of: &str) -> [i64; 2] {
    let mut session = Session::open(&server.database).await;
    let mut sums = [0; 2];
    for (sum, (column, table)) in sums
        .iter_mut()
        .zip([("stored_bytes", "answers"), ("bytes", "answer_totals")])
    {
        let sql =
            format!("SELECT CAST(COALESCE(SUM({column}), 0) AS BIGINT) FROM {table} WHERE {of}");
        *sum = session.number(&sql).await;
    }
    sums
}

fn different(count: usize, what: &str) -> String {
    let body =
        |no| json!({"model": "sim-small", "input": format!("{what} {no}"), "dimensions": 16});
    let lines = ids(count).into_iter().enumerate();
    lines
        .map(|(no, id)| line(&id, EMBEDDINGS, &body(no)))
        .collect()
}

async fn the_oldest_answers_of_the_tenant_with_the_most_make_room() {
    let config = reusing("all").replace("ttl", "max_bytes = 10_000\nttl");
    let server = Server::with(&config).await;
    server.other().run(different(3, "b"), EMBEDDINGS).await;
    until_kept(&server, 3).await;
    for round in 0..4 {
        let (_, calls) = calls_of(
            &server,
            server.run(different(40, &round.to_string()), EMBEDDINGS),
        )
        .await;
        assert_eq!(calls, 40);
    }
    eventually("they have room", async || {
        let [bytes, total] = stored(&server, "TRUE").await;
        let is_so = bytes == total && bytes <= 10_000;
        if is_so {
            Ok(())
        } else {
            Err(format!("{bytes} {total}"))
        }
    })
    .await;
    let [of_b, _] = stored(&server, "tenant = 'tenant-b'").await;
    assert!(of_b > 0, "the other tenant's answers stay");
    let (_, calls) = calls_of(&server, server.other().run(different(3, "b"), EMBEDDINGS)).await;
    assert_eq!(calls, 0);
}

async fn new_answers_are_kept_before_others_make_room_for_them() {
    let config = reusing("all").replace("ttl", "max_bytes = 10_000\nttl");
    let server = Server::with(&config).await;
    server.other().run(different(60, "b"), EMBEDDINGS).await;
    eventually("the answers of b take the room", async || {
        let [bytes, total] = stored(&server, "tenant = 'tenant-b'").await;
        let is_so = bytes == total && (5_500..=10_000).contains(&bytes);
        if is_so { Ok(()) } else { Err(bytes) }
    })
    .await;
    // Somebody else is writing the total of b.
    let mut session = Session::open(&server.database).await;
    if session.engine() == Engine::Postgres {
        let lock = "BEGIN; UPDATE answer_totals SET bytes = bytes WHERE tenant = 'tenant-b'";
        session.execute(lock).await;
    }
    server.run(different(20, "a"), EMBEDDINGS).await;
    server
        .until_rows("answers WHERE tenant = 'tenant-a'", |rows| rows >= 20)
        .await;
    if session.engine() == Engine::Postgres {
        session.execute("ROLLBACK").await;
    }
}

async fn less_room_holds_for_what_is_kept_already_even_if_nothing_is_kept_any_more() {
    let mut server = Server::with(&reusing("all")).await;
    server.run(different(60, "a"), EMBEDDINGS).await;
    until_kept(&server, 60).await;
    server.stop().await;
    let file = std::fs::read_to_string(server.config_file()).expect("reads");
    let less = file.replace("mode = \"all\"", "mode = \"off\"\nmax_bytes = 5_000");
    std::fs::write(server.config_file(), less).expect("writes");
    server.start_process(Launch::new()).await;
    server.until_rows("answers", |rows| rows < 60).await;
    eventually("they have room", async || {
        let [bytes, total] = stored(&server, "TRUE").await;
        let is_so = bytes == total && (1..=5_000).contains(&bytes);
        if is_so { Ok(()) } else { Err(bytes) }
    })
    .await;
}

async fn operators_see_what_is_kept_and_remove_it() {
    let server = Server::with(&reusing("all")).await;
    let key = operator(&server.database).await;
    let lines = equal(2, EMBEDDINGS, &embedding(json!("a")));
    server.run(&lines, EMBEDDINGS).await;
    server.other().run(&lines, EMBEDDINGS).await;
    until_kept(&server, 2).await;
    let operator = server.by(&key);
    let status = operator.get("/admin/cache").await;
    assert_eq!(status["mode"], "all");
    assert_eq!(status["ttl_seconds"], 3600);
    assert_eq!(status["answers"], 2);
    assert_eq!(json!(stored(&server, "TRUE").await[0]), status["bytes"]);
    let tenants = status["tenants"].as_array().expect("a list");
    assert_eq!(tenants.len(), 2);
    let status = operator.get("/admin/status").await;
    assert_eq!(status["reuse"]["mode"], "all");

    let cache = async |what: &str| {
        let url = server.url("");
        let mut run = command(&["cache", what, "--url", &url, "--api-key-env", "OPS_KEY"]);
        run.env("OPS_KEY", &key);
        ended(run).await
    };
    let shown = cache("stats").await;
    assert!(
        shown.out.starts_with("reuse: all   2 answers, "),
        "{shown:?}"
    );
    assert!(shown.out.contains("\ntenant-a  1 "), "{shown:?}");

    let url = server.url("/admin/cache?tenant=tenant-a");
    let cleared = operator.client().delete(url).send().await.expect("answers");
    let cleared: Value = cleared.json().await.expect("JSON");
    assert_eq!(
        (&cleared["answers"], &cleared["tenant"]),
        (&json!(1), &json!("tenant-a"))
    );
    let (_, calls) = calls_of(&server, server.other().run(&lines, EMBEDDINGS)).await;
    assert_eq!(calls, 0, "the other tenant's answer is there");
    let (_, calls) = calls_of(&server, server.run(&lines, EMBEDDINGS)).await;
    assert_eq!(calls, 1);
    until_kept(&server, 2).await;
    // The name of nobody, as of a variable that is not set, is not all.
    let url = server.url("/admin/cache?tenant=");
    let refused = operator.client().delete(url).send().await.expect("answers");
    assert_eq!(refused.status(), 400);
    until_kept(&server, 2).await;
    let cleared = cache("clear").await;
    assert!(
        cleared.out.starts_with("removed 2 kept answers "),
        "{cleared:?}"
    );
    until_kept(&server, 0).await;
    // Whoever is no operator is told nothing.
    let refused = server.client().get(server.url("/admin/cache")).send().await;
    assert_eq!(refused.expect("answers").status(), 403);
}

async fn reuse_begins_and_ends_with_a_reload() {
    let server = Server::with("").await;
    let key = operator(&server.database).await;
    let file = std::fs::read_to_string(server.config_file()).expect("reads");
    let lines = equal(5, EMBEDDINGS, &embedding(json!("a")));
    let reload = async |toml: &str| {
        std::fs::write(server.config_file(), toml).expect("writes");
        server.by(&key).post("/admin/reload", &json!({})).await
    };
    let (_, calls) = calls_of(&server, server.run(&lines, EMBEDDINGS)).await;
    assert_eq!(calls, 5);
    let loaded = reload(&format!("{file}\n{}", reusing("all"))).await;
    assert_eq!(loaded["needs_restart"], json!([]));
    let (_, calls) = calls_of(&server, server.run(&lines, EMBEDDINGS)).await;
    assert_eq!(calls, 1);
    reload(&file).await;
    let (_, calls) = calls_of(&server, server.run(&lines, EMBEDDINGS)).await;
    assert_eq!(calls, 5);
}

on_every_engine!(
    row_11_equal_lines_are_sent_once_and_the_same_file_again_not_at_all_until_the_ttl_is_over,
    an_answer_is_found_again_after_a_restart,
    what_asks_for_the_same_answer_each_time_is_reused_and_nothing_else,
    what_cannot_change_an_answer_makes_no_difference_and_all_else_does,
    an_answer_that_was_cut_by_length_is_shared_and_not_kept,
    a_first_call_that_fails_leaves_nobody_waiting,
    a_batch_that_is_cancelled_leaves_no_line_of_another_waiting,
    tenants_never_share,
    a_batch_may_choose_less_and_may_ask_anew,
    a_batch_that_asks_anew_takes_no_answer_that_an_older_batch_waits_for,
    what_a_model_is_said_not_to_take_is_part_of_what_is_asked,
    answers_go_with_the_file_that_they_came_from,
    with_nothing_configured_every_line_is_sent,
    the_oldest_answers_of_the_tenant_with_the_most_make_room,
    new_answers_are_kept_before_others_make_room_for_them,
    less_room_holds_for_what_is_kept_already_even_if_nothing_is_kept_any_more,
    operators_see_what_is_kept_and_remove_it,
    reuse_begins_and_ends_with_a_reload,
);
