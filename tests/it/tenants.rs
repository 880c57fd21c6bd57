//! What an operator allows each tenant: its part of the fair share, its models, and its limits.
//! What one may not have costs the others nothing.

use std::time::Duration;

use nightshift::internals::simulate::Options;
use nightshift::internals::store::{Engine, Store};
use serde_json::{Value, json};

use crate::support::binary::{Launch, command, ended};
use crate::support::engines::add_key;
use crate::support::metrics::{Metrics, operator};
use crate::support::session::Session;
use crate::support::{
    Api, Batch, CHAT, Server, chat, client_with, eventually, granting, ids, on, on_every_engine,
    request,
};

/// One upstream with so many places, and these tenants. The tests' own keys are of `tenant-a` and
/// `tenant-b`.
fn with_tenants(places: usize, tenants: &str) -> String {
    format!(
        r#"
        [[upstreams]]
        name = "simulated"
        base_url = "{{simulated}}"
        concurrency = {places}

        [[models]]
        name = "sim-small"
        routes = [{{ upstream = "simulated" }}]

        [[models]]
        name = "sim-large"
        routes = [{{ upstream = "simulated" }}]

        {tenants}
        "#
    )
}

fn lines(count: usize) -> String {
    let line = |id: &String| chat(id, Value::Null);
    ids(count).iter().map(line).collect()
}

/// Lines for the other model.
fn lines_of_large(count: usize) -> String {
    let line = |id: &String| request(id, json!({"model": "sim-large", "messages": []}));
    ids(count).iter().map(line).collect()
}

/// The only thing that is wrong with a batch that has failed.
fn error_of(batch: &Batch) -> Value {
    let errors = batch["errors"]["data"].as_array().expect("a list");
    assert_eq!(errors.len(), 1, "{batch}");
    errors[0].clone()
}

/// A key of one more tenant.
async fn of_tenant(server: &Server, tenant: &str) -> Api {
    let store = Store::open(&server.database, 1, server.clock.clone()).await;
    let store = store.expect("opens");
    let key = add_key(&store, tenant).await;
    store.close().await;
    server.by(&key)
}

async fn until_in_flight(server: &Server, calls: u64) {
    eventually("so many calls are in flight", async || {
        server.simulator.stats().total.in_flight == calls
    })
    .await;
}

/// Waits until units of so many batches are in hand.
async fn until_in_hand(server: &Server, batches: i64) {
    let in_hand = "(SELECT DISTINCT batch_id FROM units WHERE state = 'leased') AS in_hand";
    server.until_rows(in_hand, |count| count == batches).await;
}

async fn calls_are_shared_by_weight() {
    let tenants = "[[tenants]]\nname = \"tenant-a\"\nweight = 3\n";
    let server = Server::with(&with_tenants(4, tenants))
        .upstream(granting(0))
        .await;
    let heavy = server.create_batch(lines(200), CHAT).await;
    let light = server.other().create_batch(lines(200), CHAT).await;
    until_in_hand(&server, 2).await;
    until_in_flight(&server, 4).await;
    let done = async || {
        let heavy = server.batch(&heavy).await.done();
        (heavy, server.other().batch(&light).await.done())
    };
    // What was sent before both had lines in hand makes way.
    server.simulator.grant(40);
    eventually("these are answered", async || {
        let (heavy, light) = done().await;
        heavy + light == 40
    })
    .await;
    let before = done().await;
    server.simulator.grant(80);
    eventually("these are answered", async || {
        let (heavy, light) = done().await;
        heavy + light == 120
    })
    .await;
    let after = done().await;
    let (heavy, light) = (after.0 - before.0, after.1 - before.1);
    assert!((56..=64).contains(&heavy), "{heavy} of {}", heavy + light);
}

async fn calls_of_a_tenant_are_limited_and_the_others_have_the_rest() {
    let tenants = "[[tenants]]\nname = \"*\"\nconcurrency = 2\n\
                   [[tenants]]\nname = \"tenant-b\"\n";
    let server = Server::with(&with_tenants(8, tenants))
        .upstream(granting(0))
        .await;
    // The limit is of all models together.
    let limited = server.create_batch(lines(600), CHAT).await;
    let more = server.create_batch(lines_of_large(600), CHAT).await;
    until_in_hand(&server, 2).await;
    until_in_flight(&server, 2).await;
    // Another tenant that is not named has a limit of its own.
    let third = of_tenant(&server, "tenant-c").await;
    let of_third = third.create_batch(lines(4), CHAT).await;
    until_in_flight(&server, 4).await;
    let free = server.other().create_batch(lines(40), CHAT).await;
    until_in_flight(&server, 8).await;
    server.simulator.grant(60);
    assert_eq!(server.other().ended(&free).await.counts.completed, 40);
    assert_eq!(third.ended(&of_third).await.counts.completed, 4);
    until_in_flight(&server, 2).await;
    server.simulator.grant(10_000);
    for batch in [limited, more] {
        assert_eq!(server.ended(&batch).await.counts.completed, 600);
    }
}

/// The limit is of all servers together.
async fn calls_of_a_tenant_are_limited_over_all_servers() {
    let tenants = "[[tenants]]\nname = \"tenant-a\"\nconcurrency = 3\n";
    let options = Options {
        track: true,
        latency: Duration::from_millis(10),
        ..Options::default()
    };
    let config = with_tenants(64, tenants);
    let server = Server::with(&config).upstream(options).binary().await;
    let replicas = [
        server.replica(Launch::new()).await,
        server.replica(Launch::new()).await,
    ];
    let ids = ids(2_000);
    let all: String = ids.iter().map(|id| chat(id, Value::Null)).collect();
    let batch = server.run(all, CHAT).await;
    server.exactly_once(&batch, &ids).await;
    assert_eq!(server.simulator.stats().total.most_in_flight, 3);
    // Of a tenant that sends nothing no share is kept.
    let shares = "shares WHERE resource = 'tenant:tenant-a'";
    server.until_rows(shares, |count| count == 0).await;
    drop(replicas);
}

async fn requests_of_a_tenant_in_a_time_are_limited_and_hold_up_nobody() {
    let tenants = "[[tenants]]\nname = \"*\"\n\
                   rate_limits = [{ type = \"requests\", limit = 1, period = \"1d\" }]\n\
                   [[tenants]]\nname = \"tenant-b\"\n";
    let server = Server::with(&with_tenants(4, tenants)).await;
    let limited = server.create_batch(lines(400), CHAT).await;
    let is_spent = "(SELECT 1 FROM rate_books WHERE resource = \
                    'tenant:tenant-a:requests:86400000') AS books";
    server.until_rows(is_spent, |count| count == 1).await;
    // The same model, the same upstream, and the same queue.
    let free = server.other().run(lines(400), CHAT).await;
    assert_eq!(free.counts.completed, 400);
    let third = of_tenant(&server, "tenant-c").await;
    let of_third = third.run(lines(1), CHAT).await;
    assert_eq!(of_third.counts.completed, 1, "each tenant has its own");
    let key = operator(&server.database).await;
    let spent = eventually("its limit is spent", async || {
        let status = client_with(Some(&key))
            .get(server.url("/admin/status"))
            .send()
            .await;
        let status: Value = status.expect("answers").json().await.expect("is JSON");
        let limits = status["rate_limits"].as_array().expect("a list").clone();
        let of_tenant = limits.into_iter().find(|limit| limit["name"] == "tenant-a");
        of_tenant.filter(|limit| limit["reason"] == "limit")
    })
    .await;
    assert_eq!(
        (&spent["scope"], &spent["type"]),
        (&json!("tenant"), &json!("requests"))
    );
    let metrics = Metrics::of(&server.url(""), Some(&key)).await;
    let labels = ["scope=\"tenant\"", "name=\"tenant-a\""];
    let saturation = metrics.sum("nightshift_limit_saturation", &labels);
    assert_eq!(saturation, 1.0);
    let limited = server.batch(&limited).await;
    assert_eq!(
        (limited.counts.completed, limited.counts.failed),
        (1, 0),
        "{limited}"
    );
}

async fn a_line_that_needs_more_than_its_tenants_whole_limit_ends() {
    let tenants = "[[tenants]]\nname = \"tenant-a\"\n\
                   rate_limits = [{ type = \"output_tokens\", limit = 100, period = \"1h\" }]\n";
    let server = Server::with(&with_tenants(4, tenants)).await;
    let body = json!({"model": "sim-small", "messages": [], "max_tokens": 101});
    let large = request("large", body);
    let batch = server.run(&large, CHAT).await;
    let errors = server.errors(&batch).await;
    assert_eq!(errors[0]["error"]["code"], "request_too_large");
    let message = errors[0]["error"]["message"].as_str().expect("is text");
    assert!(message.contains("of the tenant tenant-a"), "{message}");
    assert_eq!(server.other().run(&large, CHAT).await.counts.completed, 1);
}

async fn a_model_that_a_tenant_may_not_use_does_not_exist_for_it() {
    let tenants = "[[tenants]]\nname = \"tenant-a\"\nmodels = [\"sim-s*\"]\n";
    let server = Server::with(&with_tenants(4, tenants)).await;
    let large = |id: &str| request(id, json!({"model": "sim-large", "messages": []}));
    let failed = server
        .failed_batch(chat("a", Value::Null) + &large("b"), CHAT)
        .await;
    let error = error_of(&failed);
    assert_eq!(
        (&error["code"], &error["line"]),
        (&json!("model_not_found"), &json!(2))
    );
    // It is told just what it is told of a model that nobody has.
    let nowhere = request("b", json!({"model": "sim-nowhere", "messages": []}));
    let unknown = error_of(
        &server
            .failed_batch(chat("a", Value::Null) + &nowhere, CHAT)
            .await,
    );
    let text = unknown.to_string().replace("sim-nowhere", "sim-large");
    assert_eq!(error.to_string(), text);
    // Nor does a line that names none get by.
    let unnamed = request("a", json!({"messages": []}));
    server.failed_batch(unnamed, CHAT).await;

    let names = async |api: &Api| {
        let listed = api.get("/v1/models").await;
        let listed = listed["data"].as_array().expect("a list").clone();
        let mut names: Vec<String> = listed.iter().map(|one| one["id"].to_string()).collect();
        names.sort();
        names.join(" ")
    };
    assert_eq!(names(&server).await, "\"sim-small\"");
    assert_eq!(names(server.other()).await, "\"sim-large\" \"sim-small\"");
    let one = async |api: &Api| {
        let url = api.url("/v1/models/sim-large");
        api.client()
            .get(url)
            .send()
            .await
            .expect("answers")
            .status()
    };
    assert_eq!(
        (one(&server).await, one(server.other()).await),
        (404.try_into().unwrap(), 200.try_into().unwrap())
    );
    let others = server.other().run(large("b"), CHAT).await;
    assert_eq!(others.counts.completed, 1);
}

async fn what_is_enqueued_beyond_the_limit_fails_and_says_what_is_left() {
    let tenants = "[[tenants]]\nname = \"*\"\nmax_enqueued_requests = 10\n";
    let server = Server::with(&with_tenants(4, tenants))
        .upstream(granting(0))
        .await;
    let first = server.create_batch(lines(7), CHAT).await;
    server
        .until(&first, |batch| batch.status == "in_progress")
        .await;
    let second = server.failed_batch(lines(4), CHAT).await;
    let error = error_of(&second);
    assert_eq!(error["code"], "token_limit_exceeded");
    let message = "Enqueued request limit reached in organization tenant-a. Limit: 10 enqueued \
                   requests. This batch has 4, and 3 are left. Please try again once some \
                   in_progress batches have been completed.";
    assert_eq!(error["message"], message);
    // Any other tenant has its own, and what has ended makes room.
    let other = server.other().create_batch(lines(10), CHAT).await;
    server
        .other()
        .until(&other, |batch| batch.status == "in_progress")
        .await;
    server.simulator.grant(1_000);
    server.ended(&first).await;
    let third = server.run(lines(10), CHAT).await;
    assert_eq!(third.counts.completed, 10, "{third}");
}

async fn input_tokens_are_limited_too() {
    let tenants = "[[tenants]]\nname = \"tenant-a\"\nmax_enqueued_tokens = 500\n";
    let server = Server::with(&with_tenants(4, tenants))
        .upstream(granting(0))
        .await;
    let line = |bytes: usize| {
        let bare = chat("a", Value::Null).len();
        let content = "x".repeat(bytes - bare);
        let message = json!([{"role": "user", "content": content}]);
        let body = json!({"model": "sim-small", "messages": message});
        let line = request("a", body);
        (line.len() as u64, line)
    };
    let (bytes, first) = line(1_200);
    let first = server.create_batch(first, CHAT).await;
    server
        .until(&first, |batch| batch.status == "in_progress")
        .await;
    let (more, second) = line(1_200);
    let error = error_of(&server.failed_batch(second, CHAT).await);
    assert_eq!(error["code"], "token_limit_exceeded");
    let (needs, left) = (more.div_ceil(4), 500 - bytes.div_ceil(4));
    let message = error["message"].as_str().expect("is text");
    let expected = format!("This batch has an estimated {needs}, and {left} are left.");
    assert!(message.contains(&expected), "{message}");
}

/// However many are created at once, and however many servers let them run.
async fn the_limit_on_what_is_enqueued_holds_for_batches_that_come_together() {
    let one = lines(1);
    // Six such batches, and all but a token of another one.
    let tokens = 7 * one.len().div_ceil(4) - 1;
    let tenants = format!(
        "[[tenants]]\nname = \"tenant-a\"\nmax_enqueued_requests = 20\n\
         [[tenants]]\nname = \"tenant-b\"\nmax_enqueued_tokens = {tokens}\n"
    );
    let server = Server::with(&with_tenants(4, &tenants))
        .upstream(granting(0))
        .binary()
        .await;
    let mut replicas = Vec::new();
    if server.database.starts_with("postgres") {
        for _ in 0..2 {
            replicas.push(server.replica(Launch::new()).await);
        }
    }
    for (api, input) in [(&*server, lines(3)), (server.other(), one)] {
        let file = api.upload_batch(input).await;
        let body = json!({"input_file_id": file, "endpoint": CHAT, "completion_window": "24h"});
        let created = futures::future::join_all((0..30).map(|_| api.create(&body))).await;
        let mut running = 0;
        for batch in &created {
            let batch = api.until(batch, |batch| batch.status != "validating").await;
            running += usize::from(batch.status == "in_progress");
        }
        assert_eq!(running, 6);
    }
}

/// How much `tenant-a` has stored, by the database's own sum and by its files.
async fn stored(server: &Server) -> (i64, i64) {
    let mut session = Session::open(&server.database).await;
    let sum = |table: &str, which: &str| {
        format!(
            "SELECT CAST(COALESCE(SUM(bytes), 0) AS BIGINT) FROM {table}
             WHERE tenant = 'tenant-a' {which}"
        )
    };
    let counted = session.number(&sum("tenant_storage", "")).await;
    let files = session.number(&sum("files", "AND state = 'ready'")).await;
    (counted, files)
}

/// An upload of so many bytes: its status, and its error's code and message.
async fn upload(api: &Api, bytes: usize) -> (u16, Value) {
    let answer = api.upload(vec![b'x'; bytes], "x.bin", "user_data").await;
    let status = answer.status().as_u16();
    (status, answer.json().await.expect("is JSON"))
}

async fn a_file_that_there_is_no_room_for_is_refused_and_leaves_nothing() {
    let tenants = "[[tenants]]\nname = \"tenant-a\"\nmax_storage_bytes = 3_000_000\n";
    let server = Server::with(&with_tenants(4, tenants)).await;
    let (status, first) = upload(&server, 2_000_000).await;
    assert_eq!(status, 200, "{first}");
    let before = server.rows().await;
    for bytes in [1_000_001, 5_000_000] {
        let (status, answer) = upload(&server, bytes).await;
        assert_eq!(
            (status, &answer["error"]["code"]),
            (413, &json!("storage_limit_exceeded"))
        );
        assert_eq!(
            answer["error"]["message"],
            "The files of organization tenant-a may have 3,000,000 bytes together. 1,000,000 are \
             left, and this file has more. Please delete files that are not needed any more."
        );
        server.has_only(&before).await;
    }
    // The same of a file that is packed, whose content counts.
    let content = chat("a", Value::Null).repeat(20_000);
    let packed = zstd::bulk::compress(content.as_bytes(), 3).expect("packs");
    let answer = server.upload(packed, "in.jsonl.zst", "batch").await;
    assert_eq!(answer.status(), 413);
    server.has_only(&before).await;
    // It is nobody else's limit. What just fits is taken, and what is deleted makes room at once.
    assert_eq!(upload(server.other(), 4_000_000).await.0, 200);
    assert_eq!(upload(&server, 1_000_000).await.0, 200);
    assert_eq!(upload(&server, 1).await.0, 413);
    let file = server.url(&format!(
        "/v1/files/{}",
        first["id"].as_str().expect("text")
    ));
    let deleted = server.client().delete(file).send().await.expect("answers");
    assert_eq!(deleted.status(), 200);
    assert_eq!(stored(&server).await, (1_000_000, 1_000_000));
    assert_eq!(upload(&server, 2_000_000).await.0, 200);
    assert_eq!(stored(&server).await, (3_000_000, 3_000_000));
}

async fn uploads_that_come_together_keep_no_more_than_there_is_room_for() {
    let tenants = "[[tenants]]\nname = \"tenant-a\"\nmax_storage_bytes = 1_000_000\n";
    let server = Server::with(&with_tenants(4, tenants)).await;
    let uploads = (0..12).map(|_| upload(&server, 300_000));
    let answers = futures::future::join_all(uploads).await;
    let taken = answers.iter().filter(|(status, _)| *status == 200).count();
    assert_eq!(taken, 3);
    assert_eq!(stored(&server).await, (900_000, 900_000));
}

/// Answers are kept, whatever they take, and count.
async fn answers_of_batches_count_as_stored() {
    let tenants = "[[tenants]]\nname = \"tenant-a\"\nmax_storage_bytes = 10_000\n";
    let server = Server::with(&with_tenants(4, tenants)).await;
    let input = lines(30);
    let batch = server.run(&input, CHAT).await;
    assert_eq!(batch.counts.completed, 30, "{batch}");
    let (counted, files) = stored(&server).await;
    assert_eq!(counted, files);
    assert!(files > input.len() as i64 + 3_000, "{files}");
    if files > 10_000 {
        assert_eq!(upload(&server, 1).await.0, 413);
    }
}

async fn operators_see_what_each_tenant_has_and_what_it_waits_for() {
    let tenants = "[[tenants]]\nname = \"tenant-a\"\nweight = 2\nconcurrency = 1\n\
                   max_enqueued_requests = 1_000\nmax_storage_bytes = 1_000_000\n";
    let server = Server::with(&with_tenants(4, tenants))
        .upstream(granting(0))
        .await;
    let input = lines(20);
    server.create_batch(&input, CHAT).await;
    until_in_flight(&server, 1).await;
    server.other().create_batch(&input, CHAT).await;
    until_in_flight(&server, 4).await;
    let key = operator(&server.database).await;
    let told = eventually("both wait", async || {
        let tenants = server.by(&key).get("/admin/status").await["tenants"].take();
        let waits = |place: usize| tenants[place]["waits_for"].clone();
        let is_so = waits(0) == "turn" && waits(1) == "concurrency";
        if is_so { Ok(tenants) } else { Err(tenants) }
    })
    .await;
    let (free, limited) = (&told[0], &told[1]);
    assert_eq!(
        (&free["tenant"], &limited["tenant"]),
        (&json!("tenant-b"), &json!("tenant-a"))
    );
    assert_eq!(
        (&free["in_flight"], &limited["in_flight"]),
        (&json!(3), &json!(1))
    );
    assert_eq!(
        (&free["limit"], &limited["limit"]),
        (&Value::Null, &json!(1))
    );
    assert_eq!(
        (&free["weight"], &limited["weight"]),
        (&json!(1), &json!(2))
    );
    assert_eq!(limited["ready"], 19);
    assert_eq!(limited["enqueued_requests"], 20);
    assert_eq!(limited["max_enqueued_requests"], 1_000);
    assert_eq!(limited["stored_bytes"], input.len());
    let metrics = Metrics::of(&server.url(""), Some(&key)).await;
    let labels = ["tenant=\"tenant-a\""];
    assert_eq!(metrics.sum("nightshift_tenant_in_flight", &labels), 1.0);
    assert_eq!(metrics.sum("nightshift_tenant_limit", &labels), 1.0);
    let base = server.url("");
    let mut status = command(&["status", "--url", &base, "--api-key-env", "OPS_KEY"]);
    status.env("OPS_KEY", &key);
    let status = ended(status).await;
    let table = status
        .out
        .split("\n\n")
        .find(|table| table.starts_with("TENANT"));
    let table = table.unwrap_or_else(|| panic!("{status:?}"));
    assert!(
        table.contains("concurrency") && table.contains("20 of 1,000"),
        "{table}"
    );
    server.simulator.grant(100);
}

/// Its batch is leased by the transaction that lets it run: nobody looks through what others have
/// waiting before.
async fn who_has_less_than_its_part_waits_for_no_look_at_what_others_have() {
    let server = Server::with(&with_tenants(8, ""))
        .upstream(granting(0))
        .await;
    let one = server.upload_batch(lines(1)).await;
    let body = json!({"input_file_id": one, "endpoint": CHAT, "completion_window": "24h"});
    let mut last = server.create(&body).await;
    for _ in 0..30 {
        last = server.create(&body).await;
    }
    until_in_flight(&server, 8).await;
    let in_backlog = |batch: &Batch| format!("backlog WHERE batch_id = '{}'", batch.id);
    server
        .until_rows(&in_backlog(&last), |count| count == 1)
        .await;
    // The part of one of two tenants is four calls.
    for _ in 0..2 {
        let other = server.other().create_batch(lines(1), CHAT).await;
        let leased = format!("units WHERE state = 'leased' AND batch_id = '{}'", other.id);
        server.until_rows(&leased, |count| count == 1).await;
        server
            .until_rows(&in_backlog(&other), |count| count == 0)
            .await;
    }
    // What is more than the part waits.
    let large = server.other().create_batch(lines(5), CHAT).await;
    server
        .until_rows(&in_backlog(&large), |count| count == 1)
        .await;
    server.simulator.grant(100);
    let large = server.other().ended(&large).await;
    assert_eq!(large.counts.completed, 5, "{large}");
    server.ended(&last).await;
}

on_every_engine![
    who_has_less_than_its_part_waits_for_no_look_at_what_others_have,
    operators_see_what_each_tenant_has_and_what_it_waits_for,
    a_file_that_there_is_no_room_for_is_refused_and_leaves_nothing,
    uploads_that_come_together_keep_no_more_than_there_is_room_for,
    answers_of_batches_count_as_stored,
    calls_are_shared_by_weight,
    calls_of_a_tenant_are_limited_and_the_others_have_the_rest,
    requests_of_a_tenant_in_a_time_are_limited_and_hold_up_nobody,
    a_line_that_needs_more_than_its_tenants_whole_limit_ends,
    a_model_that_a_tenant_may_not_use_does_not_exist_for_it,
    what_is_enqueued_beyond_the_limit_fails_and_says_what_is_left,
    input_tokens_are_limited_too,
    the_limit_on_what_is_enqueued_holds_for_batches_that_come_together,
];

#[tokio::test]
async fn calls_of_a_tenant_are_limited_over_all_servers_on_postgres() {
    let test = calls_of_a_tenant_are_limited_over_all_servers();
    on(Engine::Postgres, Box::pin(test)).await;
}
