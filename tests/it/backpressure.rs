//! What is not sent yet: lines whose model has enough that wait, those of a process without a
//! share, and those whose answers would find no room.

use serde_json::{Value, json};

use nightshift::internals::store::Engine;

use crate::crashes::outages::block;
use crate::support::binary::Launch;
use crate::support::metrics::Metrics;
use crate::support::session::Session;
use crate::support::{CHAT, Server, chat, engines, eventually, ids, on, on_every_engine, request};

const OPEN: &str = "[auth]\nrequired = false\n";

/// Lines that wait free their permits, and the next ones take them; but not all of a batch comes
/// to wait so, out of reach of a mended upstream.
async fn lines_that_wait_do_not_draw_the_whole_queue_into_sleep() {
    const PERMITS: u64 = 4;
    let server = Server::with(
        "[retry]
         initial_backoff = \"3650d\"
         max_backoff = \"3650d\"
         [worker]
         settle_timeout = \"0s\"
         [[upstreams]]
         name = \"simulated\"
         base_url = \"{simulated}\"
         [[models]]
         name = \"sim-small\"
         concurrency = 4
         routes = [{ upstream = \"simulated\" }]
         [[models]]
         name = \"sim-other\"
         concurrency = 4
         routes = [{ upstream = \"simulated\" }]",
    )
    .await;
    let fails = json!({"status": 500});
    let jsonl: String = ids(200).iter().map(|id| chat(id, fails.clone())).collect();
    let failing = server.create_batch(jsonl, CHAT).await;
    let calls = || {
        server
            .simulator
            .stats()
            .models
            .get("sim-small")
            .map_or(0, |model| model.calls)
    };
    eventually("many lines wait", async || calls() >= 2 * PERMITS).await;

    // Lines of another model pass by all the while.
    let of_other = |id: &String| request(id, json!({"model": "sim-other", "messages": []}));
    let others: String = ids(200).iter().map(of_other).collect();
    let batch = server.run(others, CHAT).await;
    assert_eq!(batch.counts.completed, 200, "{batch}");
    // The last of those that may wait were on their way together.
    assert!(calls() < 3 * PERMITS, "{} lines wait", calls());

    server.cancel(&failing).await;
    let failing = server.ended(&failing).await;
    assert_eq!(failing.status, "cancelled", "{failing}");
    assert!(calls() < 3 * PERMITS, "{} lines were sent", calls());
}

#[tokio::test]
async fn a_replica_sends_nothing_before_its_first_share() {
    let test = async {
        let config = format!("{OPEN}[worker]\nlease = \"1s\"\n");
        let mut server = Server::with(&config).binary().await;
        server.stop().await;
        let mut session = Session::open(&server.database).await;
        session
            .execute("BEGIN; LOCK TABLE share_holders, shares IN EXCLUSIVE MODE")
            .await;
        server.start_process(Launch::new()).await;
        let ids = ids(20);
        let jsonl: String = ids.iter().map(|id| chat(id, Value::Null)).collect();
        let batch = server.create_batch(jsonl, CHAT).await;
        server
            .until(&batch, |batch| batch.status == "in_progress")
            .await;
        // It lives: its lease is renewed again and again.
        let lease_until = "SELECT max(lease_until) FROM replicas";
        let term = session.number(lease_until).await + 2_000;
        eventually("its lease is renewed", async || {
            Session::open(&server.database)
                .await
                .number(lease_until)
                .await
                > term
        })
        .await;
        assert_eq!(server.simulator.stats().total.calls, 0);
        let metrics = Metrics::of(&server.url(""), None).await;
        for share in ["nightshift_model_share", "nightshift_upstream_share"] {
            assert_eq!(metrics.sum(share, &[]), 0.0, "{share}");
        }
        assert_eq!(
            server
                .until_rows("units WHERE state = 'leased'", |_| true)
                .await,
            0
        );

        session.execute("COMMIT").await;
        let batch = server.ended(&batch).await;
        server.exactly_once(&batch, &ids).await;
        assert_eq!(server.simulator.stats().total.calls, 20);
        server.stop().await;
    };
    on(Engine::Postgres, Box::pin(test)).await;
}

/// An outage that is shorter than the lease: what stops the sending is the budget.
async fn answers_kept_in_an_outage_stay_within_the_budget() {
    const LINES: usize = 400;
    const PERMITS: u64 = 8;
    const BUDGET: usize = 256 << 10;
    const ANSWER: usize = 8_000;
    let config = format!(
        "{OPEN}
         [worker]
         lease = \"5m\"
         [limits]
         max_line_bytes = 65_536
         max_in_flight_bytes = {BUDGET}
         [[upstreams]]
         name = \"simulated\"
         base_url = \"{{simulated}}\"
         concurrency = {PERMITS}"
    );
    let server = Server::with(&config).await;
    // The first lines are on their way until the outage has begun.
    let line = |(number, id): (usize, &String)| {
        let latency_ms = if number < PERMITS as usize { 5000 } else { 10 };
        chat(id, json!({"latency_ms": latency_ms, "bytes": ANSWER}))
    };
    let ids = ids(LINES);
    let jsonl: String = ids.iter().enumerate().map(line).collect();
    let batch = server.create_batch(jsonl, CHAT).await;
    let calls = || server.simulator.stats().total.calls;
    eventually("all places are taken", async || {
        server.simulator.stats().total.in_flight == PERMITS
    })
    .await;
    let mut database = block(&server.database).await;
    let durable =
        u64::try_from(database.number(engines::COUNTED).await).expect("is no less than 0");
    let used = |metrics: &Metrics| metrics.sum("nightshift_budget_used_bytes", &[]) as usize;
    let base = server.url("");
    eventually("the budget is used up", async || {
        used(&Metrics::of(&base, None).await) + ANSWER >= BUDGET || calls() == LINES as u64
    })
    .await;
    // Long enough for all lines.
    let end = database.now_ms().await + 3_000;
    eventually("it has had time to send more", async || {
        database.now_ms().await > end
    })
    .await;
    let kept = calls() - durable;
    let most = (BUDGET / ANSWER) as u64 + PERMITS + 1;
    assert!(
        kept <= most,
        "{kept} answers are kept, of {most} that may be"
    );
    assert!(calls() < LINES as u64, "all was sent before the outage");
    let used = used(&Metrics::of(&base, None).await);
    assert!(used <= BUDGET + 2 * ANSWER, "{used} bytes are kept");
    assert_eq!(database.live_replicas().await, 1, "the lease ran out");

    database.execute("COMMIT").await;
    let batch = server.ended(&batch).await;
    server.exactly_once(&batch, &ids).await;
    assert_eq!(calls(), LINES as u64, "something was sent twice");
}

on_every_engine![
    lines_that_wait_do_not_draw_the_whole_queue_into_sleep,
    answers_kept_in_an_outage_stay_within_the_budget,
];
