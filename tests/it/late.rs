//! `spill = "late"`: the paid tier gets what would be late otherwise, and nothing else.

use std::time::{Duration, Instant};

use nightshift::internals::simulate::{Options, Simulator};
use serde_json::{Value, json};

use crate::support::metrics::operator;
use crate::support::{Batch, CHAT, Server, chat, client_with, eventually, ids, on_every_engine};

/// The own tier: twenty lines a second.
const PLACES: usize = 6;
const CALL: Duration = Duration::from_millis(300);
/// The shortest window that there is.
const WINDOW: &str = "1m";
const WINDOW_SECONDS: f64 = 60.0;

/// A server with an own upstream and a paid one.
struct World {
    own: Simulator,
    paid: Simulator,
    server: Server,
}

impl World {
    async fn new() -> Self {
        let start = async |latency| {
            let options = Options {
                latency,
                jitter: latency / 10,
                ..Options::default()
            };
            let started = Simulator::start("127.0.0.1:0", options).await;
            started.expect("starts")
        };
        let (own, paid) = (start(CALL).await, start(CALL / 2).await);
        let toml = format!(
            "[[upstreams]]\nname = \"own\"\nbase_url = \"{}\"\nconcurrency = {PLACES}\n\
             [[upstreams]]\nname = \"paid\"\nbase_url = \"{}\"\nconcurrency = 64\n\
             [[models]]\nname = \"sim-small\"\nspill = \"late\"\nroutes = [\
             {{ upstream = \"own\" }}, {{ upstream = \"paid\", tier = 1 }}]\n",
            own.base_url(),
            paid.base_url()
        );
        let server = Server::with(&toml).await;
        Self { own, paid, server }
    }

    /// Creates a batch of so many times what the own tier can do within the window.
    async fn create(&self, times: f64) -> (Batch, usize) {
        let in_window = PLACES as f64 / CALL.as_secs_f64() * WINDOW_SECONDS;
        let count = (in_window * times) as usize;
        let lines: String = ids(count).iter().map(|id| chat(id, Value::Null)).collect();
        let batch = self.server.create_batch_within(lines, CHAT, WINDOW).await;
        (batch, count)
    }

    /// Waits for the end of a batch, longer than for others.
    async fn ended(&self, batch: &Batch) -> Batch {
        loop {
            let now = self.server.batch(batch).await;
            if now.has_ended() {
                return now;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

async fn a_batch_that_would_be_late_pays_for_what_is_needed_and_makes_it() {
    let world = World::new().await;
    let begun = Instant::now();
    let (batch, count) = world.create(1.3).await;
    let key = operator(&world.server.database).await;
    let url = world.server.url("/admin/status");
    eventually("operators see that it is late", async || {
        let response = client_with(Some(&key)).get(&url).send().await;
        let status: Value = response.expect("answers").json().await.expect("is JSON");
        let late = status["late"][0].clone();
        if late["late"] == true && late["spilled"].as_u64() > Some(0) {
            assert_eq!(late["batch_id"], json!(batch.id));
            assert_eq!(late["model"], "sim-small");
            return Ok(());
        }
        Err(late)
    })
    .await;
    let ended = world.ended(&batch).await;
    let took = begun.elapsed().as_secs_f64();
    assert_eq!(ended.counts.completed, count, "{ended}");
    let answered = [&world.own, &world.paid].map(|one| one.stats().total.answered as f64);
    assert_eq!(answered.iter().sum::<f64>() as usize, count);
    // Whatever this machine makes of the rate of the own tier: the rest was needed.
    let rate = answered[0] / took;
    let needed = count as f64 - rate * WINDOW_SECONDS;
    assert!(
        answered[1] <= needed * 1.1,
        "{answered:?} in {took} s: {needed}"
    );
}

async fn a_batch_that_makes_its_window_pays_for_nothing() {
    let world = World::new().await;
    let (batch, count) = world.create(0.6).await;
    let ended = world.ended(&batch).await;
    assert_eq!(ended.counts.completed, count, "{ended}");
    assert_eq!(world.paid.stats().total.calls, 0);
}

on_every_engine!(
    a_batch_that_would_be_late_pays_for_what_is_needed_and_makes_it,
    a_batch_that_makes_its_window_pays_for_nothing,
);
