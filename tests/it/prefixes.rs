//! Lines that begin alike are sent one after the other, where the model says so.

use nightshift::internals::simulate::Options;
use serde_json::json;

use crate::support::{CHAT, Counts, Server, ids, on_every_engine, request};

/// How many first messages there are among the lines, and how many of them the engine keeps.
const BEGINNINGS: usize = 16;
const KEPT: usize = 2;
const LINES: usize = 480;

fn ordered(by: &str) -> String {
    format!(
        r#"
[[upstreams]]
name = "simulated"
base_url = "{{simulated}}"
concurrency = 4

[[models]]
name = "sim-small"
order = "{by}"
routes = [{{ upstream = "simulated" }}]
"#
    )
}

/// Each line begins otherwise than the one before.
fn lines(ids: &[String]) -> String {
    let line = |(place, id): (usize, &String)| {
        let system = format!("You are number {}. ", place % BEGINNINGS).repeat(20);
        let body = json!({
            "model": "sim-small",
            "messages": [
                {"role": "system", "content": system},
                {"role": "user", "content": format!("This is {id}.")},
            ],
        });
        request(id, body)
    };
    ids.iter().enumerate().map(line).collect()
}

async fn an_engine_need_not_compute_again_how_lines_begin() {
    let ids = ids(LINES);
    let mut found = Vec::new();
    for by in ["prefix", "file"] {
        let keeps = Options {
            prefix_cache: Some(KEPT),
            ..Options::default()
        };
        let server = Server::with(&ordered(by)).upstream(keeps).await;
        let batch = server.run(lines(&ids), CHAT).await;
        assert_eq!(batch.counts, Counts::of(LINES, LINES, 0), "{batch}");
        // In the order of the input.
        server.exactly_once(&batch, &ids).await;
        let cached = batch["usage"]["input_tokens_details"]["cached_tokens"].as_u64();
        let stats = server.simulator.stats().prefixes.expect("are counted");
        found.push((
            stats.hits,
            stats.hits + stats.misses,
            cached.expect("tokens") > 0,
        ));
    }
    let [(hits, calls, is_told), by_file] = found[..] else {
        panic!("two runs");
    };
    // Each beginning has to be computed once. Calls that are made at once may come in any order.
    let best = (LINES - BEGINNINGS) as u64;
    assert_eq!((calls, is_told), (LINES as u64, true));
    assert!(hits * 10 >= best * 9, "{hits} of {best}");
    assert_eq!(
        by_file,
        (0, LINES as u64, false),
        "each beginning has gone by then"
    );
}

on_every_engine!(an_engine_need_not_compute_again_how_lines_begin);
