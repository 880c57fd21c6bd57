//! An upstream within the benchmark that notes when which call came.

use std::collections::hash_map::DefaultHasher;
use std::convert::Infallible;
use std::hash::{Hash as _, Hasher as _};
use std::time::{Duration, Instant};

use anyhow::Result;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinHandle;

const MODELS: &str = r#"{"object":"list","data":[{"id":"sim","object":"model","created":1750000000,"owned_by":"bench"}]}"#;
const ANSWER: &str = r#"{"id":"chatcmpl-1","object":"chat.completion","created":1750000000,"model":"sim","choices":[{"index":0,"message":{"role":"assistant","content":"Yes."},"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}"#;

/// What is told of calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A call's head has come.
    Came(Instant),
    /// Its body has, too; named by its hash.
    Read(u64, Instant),
    /// It was answered.
    Answered(u64),
}

/// Listens until dropped.
pub struct Recorder {
    pub url: String,
    pub events: UnboundedReceiver<Event>,
    listening: JoinHandle<()>,
}

impl Recorder {
    /// Answers each call after `latency`.
    pub async fn start(latency: Duration) -> Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.bind("127.0.0.1:0".parse()?)?;
        // With the usual backlog, some of many connections that come at once wait for a second.
        let listener = socket.listen(4096)?;
        let url = format!("http://{}/v1", listener.local_addr()?);
        let (sender, events) = unbounded_channel();
        let listening = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(talk(stream, latency, sender.clone()));
            }
        });
        Ok(Self {
            url,
            events,
            listening,
        })
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

async fn talk(stream: TcpStream, latency: Duration, events: UnboundedSender<Event>) {
    let answer = service_fn(move |request| respond(request, latency, events.clone()));
    // Whoever is killed leaves its connections broken.
    let _ = stream.set_nodelay(true);
    let _ = http1::Builder::new()
        .serve_connection(TokioIo::new(stream), answer)
        .await;
}

async fn respond(
    request: Request<Incoming>,
    latency: Duration,
    events: UnboundedSender<Event>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let came = Instant::now();
    let text = if request.method() == Method::POST {
        // Nobody listens any more when a section has what it wants.
        let _ = events.send(Event::Came(came));
        let Ok(body) = request.into_body().collect().await else {
            return Ok(json(ANSWER));
        };
        let mut hasher = DefaultHasher::new();
        body.to_bytes().hash(&mut hasher);
        let call = hasher.finish();
        let _ = events.send(Event::Read(call, came));
        tokio::time::sleep(latency).await;
        let _ = events.send(Event::Answered(call));
        ANSWER
    } else {
        MODELS
    };
    Ok(json(text))
}

fn json(text: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}
