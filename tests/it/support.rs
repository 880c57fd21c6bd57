//! Servers to test, and what tests do with them again and again.

mod api;
mod audit;
mod batch;
pub mod binary;
pub mod engines;
mod eventually;
mod in_process;
pub mod metrics;
pub mod pooler;
pub mod postgres;
pub mod proxy;
pub mod receiver;
pub mod secrets;
mod server;
pub mod session;
pub mod terminal;

use std::time::Duration;

use nightshift::internals::simulate::Options;
use reqwest::Client;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use serde_json::{Value, json};

pub use api::Api;
pub use batch::{Batch, Counts};
pub use engines::on;
pub(crate) use engines::on_every_engine;
pub use eventually::eventually;
pub use server::Server;

pub const CHAT: &str = "/v1/chat/completions";
/// How long anything may take that is waited for. Far more than it does.
pub const PATIENCE: Duration = Duration::from_mins(2);

/// An upstream that answers so many calls, and more when they are granted.
pub fn granting(answers: usize) -> Options {
    Options {
        track: true,
        granted: Some(answers),
        ..Options::default()
    }
}

/// A client that sends this key, or none, and that waits for nobody's proxy. Each request has a
/// connection of its own, as if each came from another client.
pub fn client_with(key: Option<&str>) -> Client {
    let mut headers = HeaderMap::new();
    if let Some(key) = key {
        let value = HeaderValue::from_str(&format!("Bearer {key}")).expect("is a header");
        headers.insert(AUTHORIZATION, value);
    }
    Client::builder()
        .no_proxy()
        .pool_max_idle_per_host(0)
        .default_headers(headers)
        .build()
        .expect("builds")
}

/// A request as one line of a batch file, with a body of its own.
pub fn request(custom_id: &str, body: Value) -> String {
    let line = json!({"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body});
    format!("{line}\n")
}

/// A chat request to the usual model, steered by `simulate` unless that is null.
pub fn chat(custom_id: &str, simulate: Value) -> String {
    let mut body = json!({
        "model": "sim-small",
        "messages": [{"role": "user", "content": format!("This is {custom_id}.")}],
    });
    if !simulate.is_null() {
        body["simulate"] = simulate;
    }
    request(custom_id, body)
}

/// So many ids, in the order in which their lines stand.
pub fn ids(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("line-{number}")).collect()
}
