//! A line that kills whoever sends it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::handler::Handler;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::support::binary::Launch;
use crate::support::{CHAT, Counts, Server, chat, ids, on_every_engine, request};

/// Where in its unit it stands.
const POISON: usize = 200;
/// Three with others on their way, two alone; and some that a flush in between has made up for.
const KILLS_MAX: usize = 12;

/// Serves what answers calls; returns its URL.
async fn serve<T: 'static>(answer: impl Handler<T, ()>) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
    let listener = listener.expect("listens");
    let address = listener.local_addr().expect("has an address");
    let router = Router::new().fallback(answer);
    tokio::spawn(async move { axum::serve(listener, router).await });
    format!("http://{address}/v1")
}

/// A model server that reports calls with the poisonous line, and does not answer them.
async fn upstream() -> (String, mpsc::UnboundedReceiver<()>) {
    let (report, reported) = mpsc::unbounded_channel();
    let answer = move |body: Bytes| {
        let report = report.clone();
        async move {
            if memchr::memmem::find(&body, b"poison").is_some() {
                let _ = report.send(());
                std::future::pending::<()>().await;
            }
            axum::Json(json!({"choices": []}))
        }
    };
    (serve(answer).await, reported)
}

async fn a_line_that_kills_its_server_ends_as_an_error_and_all_others_are_answered() {
    let (base_url, mut sent) = upstream().await;
    let config = format!(
        "[worker]\nname = \"killed\"\nlease = \"1s\"\n\n\
         [[upstreams]]\nname = \"fatal\"\nbase_url = \"{base_url}\"\nconcurrency = 16"
    );
    let mut server = Server::with(&config).binary().await;
    let mut ids = ids(700);
    ids[POISON] = "poison".to_owned();
    let jsonl: String = ids.iter().map(|id| chat(id, Value::Null)).collect();
    let batch = server.create_batch(&jsonl, CHAT).await;
    let mut kills = 0;
    let batch = loop {
        let ended = tokio::select! {
            Some(()) = sent.recv() => None,
            batch = server.ended(&batch) => Some(batch),
        };
        if let Some(batch) = ended {
            break batch;
        }
        kills += 1;
        assert!(kills <= KILLS_MAX, "it kills for ever");
        server.kill().await;
        while sent.try_recv().is_ok() {}
        server.start_process(Launch::new()).await;
    };
    println!("kills: {kills}");
    assert_eq!(batch.counts, Counts::of(700, 699, 1));
    let mut lines = server.exactly_once(&batch, &ids).await;
    let poison = lines.remove("poison").expect("is there");
    assert_eq!(poison["response"], Value::Null);
    assert_eq!(poison["error"]["code"], "request_crashed");
    for (id, line) in lines {
        assert_eq!(line["response"]["status_code"], 200, "{id}");
    }
}

/// Models, and so units of a chunk, and how many of each one's lines are on their way at once.
const MODELS: usize = 4;
const AT_ONCE: usize = 4;

/// What a model server sees of one life of its caller.
#[derive(Default)]
struct Life {
    number: usize,
    answers: bool,
    in_flight: usize,
    max_in_flight: usize,
}

/// A call in flight, for as long as it lives.
struct InFlight(Arc<Mutex<Life>>, usize);

/// A call that has come: in which life, whether it is poisonous, and with how many others.
struct Arrival {
    life: usize,
    is_poison: bool,
    others: usize,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let mut now = self.0.lock().expect("is sound");
        if now.number == self.1 {
            now.in_flight -= 1;
        }
    }
}

async fn a_suspect_slows_only_its_own_unit_until_it_is_found() {
    let life = Arc::new(Mutex::new(Life::default()));
    let (report, mut arrivals) = mpsc::unbounded_channel();
    let base_url = serve({
        let life = life.clone();
        move |body: Bytes| {
            let (life, report) = (life.clone(), report.clone());
            async move {
                let is_poison = memchr::memmem::find(&body, b"poison").is_some();
                let (_in_flight, answers) = {
                    let mut now = life.lock().expect("is sound");
                    let _ = report.send(Arrival {
                        life: now.number,
                        is_poison,
                        others: now.in_flight,
                    });
                    now.in_flight += 1;
                    now.max_in_flight = now.max_in_flight.max(now.in_flight);
                    (InFlight(life.clone(), now.number), now.answers)
                };
                if is_poison || !answers {
                    std::future::pending::<()>().await;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
                axum::Json(json!({"choices": []}))
            }
        }
    })
    .await;
    let models: String = (0..MODELS)
        .map(|model| format!("[[models]]\nname = \"m{model}\"\nconcurrency = {AT_ONCE}\nroutes = [{{ upstream = \"fatal\" }}]\n"))
        .collect();
    let config = format!(
        "[worker]\nname = \"killed\"\nlease = \"1s\"\n\n\
         [[upstreams]]\nname = \"fatal\"\nbase_url = \"{base_url}\"\nconcurrency = 64\n\n{models}"
    );
    let mut server = Server::with(&config).binary().await;
    let mut ids = ids(400);
    ids[MODELS] = "poison".to_owned();
    let lines = ids.iter().enumerate().map(|(at, id)| {
        let messages = json!([{"role": "user", "content": id}]);
        request(
            id,
            json!({"model": format!("m{}", at % MODELS), "messages": messages}),
        )
    });
    let batch = server.create_batch(&lines.collect::<String>(), CHAT).await;
    // Three times it dies with lines of all units on their way, none of them answered.
    for kill in 0..5 {
        let mut sent = 0;
        loop {
            let call = tokio::time::timeout(Duration::from_mins(1), arrivals.recv()).await;
            let call = call.expect("calls in time").expect("calls");
            sent += usize::from(call.life == kill);
            if kill < 3 && sent == MODELS * AT_ONCE {
                break;
            }
            if kill == 3 && call.is_poison {
                // It is the only suspect on its way, and the units of other models go on.
                assert_eq!(call.life, kill);
                server
                    .until(&batch, |batch| batch.counts.completed >= 300)
                    .await;
                break;
            }
            if kill > 3 && call.is_poison {
                assert_eq!((call.life, call.others), (kill, 0), "it is alone");
                break;
            }
        }
        server.kill().await;
        *life.lock().expect("is sound") = Life {
            number: kill + 1,
            answers: kill >= 2,
            ..Life::default()
        };
        while arrivals.try_recv().is_ok() {}
        server.start_process(Launch::new()).await;
    }
    let batch = server.ended(&batch).await;
    assert_eq!(batch.counts, Counts::of(400, 399, 1));
    let mut lines = server.exactly_once(&batch, &ids).await;
    let poison = lines.remove("poison").expect("is there");
    assert_eq!(poison["error"]["code"], "request_crashed");
    for (id, line) in lines {
        assert_eq!(line["response"]["status_code"], 200, "{id}");
    }
    let at_once = life.lock().expect("is sound").max_in_flight;
    assert!(at_once > 1, "they run one by one");
}

on_every_engine![
    a_line_that_kills_its_server_ends_as_an_error_and_all_others_are_answered,
    a_suspect_slows_only_its_own_unit_until_it_is_found,
];
