//! What was used and what it cost: as OpenAI tells it, and as operators want it.

use std::time::Duration;

use nightshift::internals::simulate::Options;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};

use crate::support::binary::{Launch, command, ended};
use crate::support::metrics::operator;
use crate::support::{Api, CHAT, Server, chat, eventually, ids, on_every_engine, request};

/// A price by the token and by the call.
const PRICED: &str = r#"
[pricing]
currency = "eur"

[[upstreams]]
name = "simulated"
base_url = "{simulated}"
concurrency = 16
price = { input = 1.5, output = 6, request = 0.001 }

[[models]]
name = "sim-small"
routes = [{ upstream = "simulated" }]

[[models]]
name = "sim-large"
routes = [{ upstream = "simulated", price = { input = 3, output = 12 } }]

[[models]]
name = "unpriced-*"
routes = [{ upstream = "free" }]

[[upstreams]]
name = "free"
base_url = "{simulated}"
"#;

const COMPLETIONS: &str = "/v1/organization/usage/completions?start_time=0&bucket_width=1d";
const COSTS: &str = "/v1/organization/costs?start_time=0";

/// In seconds.
const DAY: i64 = 86_400;

/// A day before now: in Unix seconds.
fn yesterday(server: &Server) -> i64 {
    server.clock.now_ms() / 1000 - DAY
}

/// All results of an endpoint since yesterday.
async fn results(api: &Api, server: &Server, path: &str) -> Vec<Value> {
    let path = path.replace("start_time=0", &format!("start_time={}", yesterday(server)));
    let page = api.get(&path).await;
    assert_eq!(page["object"], "page", "{page}");
    let buckets = page["data"].as_array().expect("buckets").clone();
    let results = buckets.into_iter().flat_map(|bucket| {
        assert_eq!(bucket["object"], "bucket");
        bucket["results"].as_array().expect("results").clone()
    });
    results.collect()
}

async fn status_of(api: &Api, path: &str) -> (u16, Value) {
    let response = api.client().get(api.url(path)).send().await;
    let response = response.expect("answers");
    let status = response.status().as_u16();
    (status, response.json().await.expect("is JSON"))
}

fn line_of(model: &str, id: &str) -> String {
    let content = format!("of {id}");
    let messages = json!([{"role": "user", "content": content}]);
    request(id, json!({"model": model, "messages": messages}))
}

async fn what_a_batch_used_and_cost_is_told_to_the_token_and_the_cent() {
    let server = Server::with(PRICED).await;
    let refused = chat("refused", json!({"status": 400}));
    let lines: String = ids(20).iter().map(|id| line_of("sim-small", id)).collect();
    let batch = server.run(lines + &refused, CHAT).await;
    let billed = server.simulator.stats().total;
    assert_eq!((batch.counts.completed, batch.counts.failed), (20, 1));

    let path = format!("{COMPLETIONS}&group_by[]=model&group_by[]=project_id&group_by[]=batch");
    let [used] = &results(&server, &server, &path).await[..] else {
        panic!("one model");
    };
    assert_eq!(used["object"], "organization.usage.completions.result");
    assert_eq!(used["input_tokens"], billed.input_tokens);
    assert_eq!(used["output_tokens"], billed.output_tokens);
    assert_eq!(used["num_model_requests"], 20, "the refused one is none");
    assert_eq!(
        (&used["model"], &used["project_id"]),
        (&json!("sim-small"), &json!("tenant-a"))
    );
    assert_eq!(
        (&used["batch"], &used["api_key_id"]),
        (&json!(true), &Value::Null)
    );

    // In billionths: 1.5 and 6 for a million tokens, and a thousandth for each call that is paid.
    let billionths = billed.input_tokens * 1_500 + billed.output_tokens * 6_000 + 20 * 1_000_000;
    let cost = billionths as f64 / 1e9;
    let [costs] = &results(&server, &server, COSTS).await[..] else {
        panic!("one result");
    };
    assert_eq!(costs["amount"], json!({"value": cost, "currency": "eur"}));
    assert_eq!(costs["nightshift"], Value::Null, "nothing is left out");

    let ops = server.by(&operator(&server.database).await);
    let usage = ops
        .get("/admin/usage?group_by=batch,model,upstream,tenant")
        .await;
    let [row] = &usage["data"].as_array().expect("rows")[..] else {
        panic!("{usage}");
    };
    assert_eq!(row["batch"], *batch.id);
    assert_eq!(
        (&row["model"], &row["upstream"]),
        (&json!("sim-small"), &json!("simulated"))
    );
    assert_eq!((&row["requests"], &row["failed"]), (&json!(21), &json!(1)));
    assert_eq!(
        (&row["retries"], &row["lost"], &row["unpriced"]),
        (&json!(0), &json!(0), &json!(0))
    );
    let exact: f64 = row["cost"]
        .as_str()
        .expect("a decimal")
        .parse()
        .expect("a number");
    assert!((exact - cost).abs() < 1e-12, "{row}");
    assert_eq!(usage["total"]["cost"], row["cost"]);
    assert_eq!(usage["currency"], "eur");
    let by_day = ops.get("/admin/usage?group_by=day,task,key,endpoint").await;
    assert_eq!(by_day["total"], usage["total"], "however it is told apart");
    let day = &by_day["data"][0];
    assert_eq!((&day["endpoint"], &day["task"]), (&json!(CHAT), &json!("")));
    assert!(
        day["key"].as_str().expect("a key").starts_with("key_"),
        "{day}"
    );
}

async fn what_is_thrown_away_is_paid_for_and_what_has_no_price_is_said() {
    let server = Server::with(PRICED).await;
    // An error in place of an answer, which is billed all the same; then an answer.
    let thrown_away = r#"{"error":{"message":"no"},"usage":{"prompt_tokens":7,"total_tokens":7}}"#;
    let line = chat("twice", json!({"body": thrown_away, "times": 1}));
    let batch = server.run(line, CHAT).await;
    assert_eq!(batch.counts.completed, 1);
    let answered = server.simulator.stats().total;
    let [used] = &results(&server, &server, COMPLETIONS).await[..] else {
        panic!("one result");
    };
    assert_eq!(used["input_tokens"], answered.input_tokens + 7);
    assert_eq!(used["num_model_requests"], 1);
    let object = server.get(&format!("/v1/batches/{}", &*batch.id)).await;
    let own = &object["usage"]["input_tokens"];
    assert_eq!(
        *own, answered.input_tokens,
        "the batch's own usage is that of its answers"
    );

    // A call to a server without a price has no cost, and not one of 0.
    server.run(line_of("unpriced-one", "one"), CHAT).await;
    let by_item = results(&server, &server, &format!("{COSTS}&group_by=line_item")).await;
    let of = |model: &str| by_item.iter().find(|row| row["line_item"] == model);
    let unpriced = of("unpriced-one").expect("is listed");
    assert_eq!(unpriced["amount"], Value::Null, "{unpriced}");
    assert_eq!(unpriced["nightshift"], json!({"unpriced": 1, "lost": 0}));
    assert!(of("sim-small").expect("is listed")["amount"]["value"].is_number());

    let ops = server.by(&operator(&server.database).await);
    let usage = ops.get("/admin/usage").await;
    assert_eq!(usage["total"]["retries"], 1);
    assert_eq!(usage["total"]["unpriced"], 1);
    let rows = usage["data"].as_array().expect("rows");
    let free = rows.iter().find(|row| row["upstream"] == "free");
    assert_eq!(free.expect("is listed")["cost"], Value::Null);
}

async fn a_tenant_sees_its_own_usage_alone() {
    let server = Server::with(PRICED).await;
    server.run(line_of("sim-small", "one"), CHAT).await;
    let of_two: String = ["one", "two"].map(|id| line_of("sim-large", id)).concat();
    server.other().run(of_two, CHAT).await;

    let own: &Api = &server;
    for (api, requests) in [(own, 1), (server.other(), 2)] {
        for more in ["", "&project_ids=tenant-a&project_ids=tenant-b"] {
            let path = format!("{COMPLETIONS}{more}");
            let [used] = &results(api, &server, &path).await[..] else {
                panic!("one result");
            };
            assert_eq!(used["num_model_requests"], requests);
        }
        let (status, _) = status_of(api, "/admin/usage").await;
        assert_eq!(status, 403, "that is for operators");
    }
    let path = format!("{COSTS}&project_ids=tenant-b");
    assert!(results(&server, &server, &path).await.is_empty());

    let ops = server.by(&operator(&server.database).await);
    let path = format!("{COMPLETIONS}&group_by=project_id,model");
    let all = results(&ops, &server, &path).await;
    let all: Vec<_> = all
        .iter()
        .map(|row| {
            (
                &row["project_id"],
                &row["model"],
                &row["num_model_requests"],
            )
        })
        .collect();
    assert_eq!(
        all,
        [
            (&json!("tenant-a"), &json!("sim-small"), &json!(1)),
            (&json!("tenant-b"), &json!("sim-large"), &json!(2)),
        ]
    );
    let path = format!("{COMPLETIONS}&project_ids=tenant-b");
    assert_eq!(
        results(&ops, &server, &path).await[0]["num_model_requests"],
        2
    );
    let path = format!("{COMPLETIONS}&models[]=sim-small&models[]=other");
    assert_eq!(
        results(&ops, &server, &path).await[0]["num_model_requests"],
        1
    );
}

async fn buckets_follow_each_other_page_by_page() {
    let server = Server::with(PRICED).await;
    let from = server.clock.now_ms() / 1000;
    for day in 0..9 {
        if day % 4 == 0 {
            server
                .run(line_of("sim-small", &format!("day-{day}")), CHAT)
                .await;
        }
        server.clock.advance_ms(DAY * 1000);
    }
    let until = from + 9 * DAY;
    let mut path =
        format!("/v1/organization/usage/completions?start_time={from}&end_time={until}&limit=4");
    let (mut at, mut used, mut pages) = (from - from % 60, 0, 0);
    loop {
        let page = server.get(&path).await;
        for bucket in page["data"].as_array().expect("buckets") {
            assert_eq!(bucket["start_time"], at, "buckets follow each other");
            at = bucket["end_time"].as_i64().expect("a time");
            assert!(at % DAY == 0 || at == until, "a bucket ends with its day");
            for result in bucket["results"].as_array().expect("results") {
                used += result["num_model_requests"].as_i64().expect("a number");
            }
        }
        pages += 1;
        assert_eq!(page["has_more"], !page["next_page"].is_null());
        let Some(next) = page["next_page"].as_str() else {
            break;
        };
        let (first, _) = path.split_once("&page=").unwrap_or((&path, ""));
        path = format!("{first}&page={next}");
    }
    // The first day begins and the last ends in its midst.
    assert_eq!((at, used, pages), (until, 3, 3));
}

async fn a_wrong_question_is_answered_by_what_is_wrong() {
    let server = Server::with(PRICED).await;
    let usage = "/v1/organization/usage";
    for (path, param) in [
        (format!("{usage}/completions"), "start_time"),
        (format!("{usage}/completions?start_time=soon"), "start_time"),
        (
            format!("{usage}/completions?start_time=9&end_time=9"),
            "end_time",
        ),
        (
            format!("{usage}/completions?start_time=0&bucket_width=1w"),
            "bucket_width",
        ),
        (
            format!("{usage}/completions?start_time=0&limit=32"),
            "limit",
        ),
        (
            format!("{usage}/completions?start_time=0&bucket_width=1m&limit=1441"),
            "limit",
        ),
        (
            format!("{usage}/completions?start_time=0&page=page_zz"),
            "page",
        ),
        (
            format!("{usage}/completions?start_time=0&group_by=line_item"),
            "group_by",
        ),
        (
            format!("{usage}/embeddings?start_time=0&group_by=batch"),
            "group_by",
        ),
        (
            format!("{usage}/images?start_time=0&group_by=user"),
            "group_by",
        ),
        (
            "/v1/organization/costs?start_time=0&bucket_width=1h".to_owned(),
            "bucket_width",
        ),
        (
            "/v1/organization/costs?start_time=0&limit=181".to_owned(),
            "limit",
        ),
    ] {
        let (status, answer) = status_of(&server, &path).await;
        assert_eq!(
            (status, &answer["error"]["param"]),
            (400, &json!(param)),
            "{path}: {answer}"
        );
    }
    let ops = server.by(&operator(&server.database).await);
    for (path, param) in [
        ("/admin/usage?group_by=model,colour", "group_by"),
        ("/admin/usage?since=yesterday", "since"),
        ("/admin/usage?until=2026-13-01", "until"),
        ("/admin/usage?format=xml", "format"),
    ] {
        let (status, answer) = status_of(&ops, path).await;
        assert_eq!(
            (status, &answer["error"]["param"]),
            (400, &json!(param)),
            "{path}: {answer}"
        );
    }
}

async fn operators_get_a_table_and_a_spreadsheet() {
    let server = Server::with(PRICED).await;
    // A model whose name a spreadsheet would run.
    server.run(line_of("unpriced-a,=1+2", "one"), CHAT).await;
    server.run(line_of("sim-small", "two"), CHAT).await;
    let key = operator(&server.database).await;
    let ops = server.by(&key);
    let url = ops.url("/admin/usage?group_by=model&since=2020-01-01");
    let response = ops
        .client()
        .get(url)
        .header("accept", "text/csv")
        .send()
        .await;
    let response = response.expect("answers");
    assert_eq!(
        response.headers()["content-type"],
        "text/csv; charset=utf-8"
    );
    let text = response.text().await.expect("is text");
    let lines: Vec<&str> = text.split("\r\n").collect();
    assert!(
        lines[0].starts_with("model,requests,failed,retries,lost,reused,unpriced,"),
        "{text}"
    );
    assert!(lines[0].ends_with(",latency_ms,cost,currency"), "{text}");
    assert!(lines[1].starts_with("sim-small,1,0,0,0,0,0,"), "{text}");
    assert!(
        lines[2].starts_with("\"unpriced-a,=1+2\",1,0,0,0,0,1,"),
        "{text}"
    );
    assert!(lines[2].ends_with(",,eur"), "no cost: {text}");
    assert_eq!(lines.len(), 4, "and no total");

    let base = ops.url("");
    let mut usage = command(&["usage", "--url", &base, "--api-key-env", "KEY", "--wide"]);
    usage.env("KEY", &key);
    let shown = ended(usage).await;
    assert_eq!(shown.code, Some(0), "{shown:?}");
    let lines: Vec<&str> = shown.out.lines().collect();
    let titles = lines[0]
        .split("  ")
        .map(str::trim)
        .filter(|title| !title.is_empty());
    let first: Vec<&str> = titles.take(7).collect();
    assert_eq!(
        first,
        [
            "ID",
            "PROVIDER",
            "MODEL",
            "PROMPT TOKENS",
            "COMPLETION TOKENS",
            "TOTAL TOKENS",
            "REQUESTS"
        ]
    );
    assert!(lines[3].starts_with("total"), "{}", shown.out);
    assert!(shown.out.contains("leave out 1 calls"), "{}", shown.out);
}

/// How often the server is killed.
const KILLS: usize = 6;
const PERMITS: usize = 16;

async fn no_kill_loses_or_doubles_what_was_used() {
    let seed: u64 = rand::random();
    println!("seed: {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let config = PRICED.replacen(
        "[pricing]",
        "[worker]\nname = \"killed\"\nlease = \"1s\"\n[pricing]",
        1,
    );
    let mut server = Server::with(&config).binary().await;
    let ids = ids(KILLS * 150);
    let line = |id: &String| chat(id, json!({"latency_ms": random.random_range(5..40)}));
    let lines: String = ids.iter().map(line).collect();
    let batch = server.create_batch(&lines, CHAT).await;
    let mut done = 0;
    for _ in 0..KILLS {
        server
            .until(&batch, |batch| batch.done() as i64 > done)
            .await;
        tokio::time::sleep(Duration::from_millis(random.random_range(0..150))).await;
        server.kill().await;
        eventually("all calls are cut", async || {
            server.simulator.stats().total.in_flight == 0
        })
        .await;
        server.start_process(Launch::new()).await;
        done = server.batch(&batch).await.done() as i64;
    }
    let batch = server.ended(&batch).await;
    assert_eq!(batch.counts.completed, ids.len(), "{batch}");

    // Each line is another body, and one answer to each was kept.
    let stats = server.simulator.stats();
    let kept = stats.bodies.expect("are tracked");
    assert_eq!(kept.distinct, ids.len() as u64);
    let [used] = &results(&server, &server, COMPLETIONS).await[..] else {
        panic!("one result");
    };
    assert_eq!(used["input_tokens"], kept.input_tokens);
    assert_eq!(used["output_tokens"], kept.output_tokens);
    assert_eq!(used["num_model_requests"], ids.len());
    let lines = ids.len() as u64;
    let billionths = kept.input_tokens * 1_500 + kept.output_tokens * 6_000 + lines * 1_000_000;
    let [costs] = &results(&server, &server, COSTS).await[..] else {
        panic!("one result");
    };
    assert_eq!(costs["amount"]["value"], billionths as f64 / 1e9);
    println!("calls: {}, answers kept: {lines}", stats.total.calls);
    assert!(stats.total.most_in_flight <= PERMITS as u64);
}

#[tokio::test]
async fn each_endpoint_counts_where_openai_counts_it() {
    let server = Server::with(PRICED).await;
    let line = |url: &str, body: Value| {
        let line = json!({"custom_id": url, "method": "POST", "url": url, "body": body});
        format!("{line}\n")
    };
    let embedding = line(
        "/v1/embeddings",
        json!({"model": "sim-small", "input": "a"}),
    );
    let batch = server.run(embedding, "/v1/embeddings").await;
    assert_eq!(batch.counts.completed, 1, "{batch}");
    let moderation = line(
        "/v1/moderations",
        json!({"model": "sim-small", "input": "a"}),
    );
    server.run(moderation, "/v1/moderations").await;
    let image = line(
        "/v1/images/generations",
        json!({"model": "sim-small", "prompt": "a"}),
    );
    server.run(image, "/v1/images/generations").await;

    let of = async |name: &str, more: &str| {
        let path = format!("/v1/organization/usage/{name}?start_time=0{more}");
        results(&server, &server, &path).await
    };
    assert!(of("completions", "").await.is_empty());
    let embeddings = of("embeddings", "").await;
    assert_eq!(
        embeddings[0]["object"],
        "organization.usage.embeddings.result"
    );
    assert_eq!(embeddings[0]["num_model_requests"], 1);
    assert!(embeddings[0]["input_tokens"].as_i64() > Some(0));
    assert_eq!(of("moderations", "").await[0]["num_model_requests"], 1);
    let images = of("images", "&group_by=source").await;
    assert_eq!(
        (&images[0]["images"], &images[0]["source"]),
        (&json!(1), &json!("image.generation"))
    );
    assert!(of("images", "&sources=image.edit").await.is_empty());
    assert!(
        of("embeddings", "&user_ids=user_1").await.is_empty(),
        "there are no users"
    );
}

#[tokio::test]
async fn a_line_that_is_cut_off_counts_as_lost() {
    let config = PRICED.replace(
        "price = { input = 1.5",
        "timeout = \"1s\"\nprice = { input = 1.5",
    );
    let server = Server::with(&config).upstream(Options::default()).await;
    // The first call is never answered: whether it is billed, nobody knows.
    server
        .run(chat("hangs", json!({"hang": true, "times": 1})), CHAT)
        .await;
    let ops = server.by(&operator(&server.database).await);
    let total = ops.get("/admin/usage").await["total"].clone();
    assert_eq!(
        (&total["requests"], &total["retries"], &total["lost"]),
        (&json!(1), &json!(1), &json!(1))
    );
}

on_every_engine![
    what_a_batch_used_and_cost_is_told_to_the_token_and_the_cent,
    what_is_thrown_away_is_paid_for_and_what_has_no_price_is_said,
    a_tenant_sees_its_own_usage_alone,
    buckets_follow_each_other_page_by_page,
    a_wrong_question_is_answered_by_what_is_wrong,
    operators_get_a_table_and_a_spreadsheet,
    no_kill_loses_or_doubles_what_was_used,
];
