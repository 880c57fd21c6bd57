//! A refused request as a row of a table, and the one function that checks such rows.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{Batch, Server};

/// A good line of a batch file.
pub const LINE: &str = concat!(
    r#"{"custom_id":"a","method":"POST","url":"/v1/chat/completions","#,
    r#""body":{"model":"sim-small","messages":[]}}"#,
);

/// A request as it goes out.
#[derive(Clone)]
pub struct Request {
    pub method: Method,
    pub path: String,
    pub authorization: Option<&'static str>,
    pub content_type: Option<String>,
    pub body: Vec<u8>,
}

pub fn request(method: &str, path: &str) -> Request {
    Request {
        method: method.parse().expect("a method"),
        path: path.to_owned(),
        authorization: None,
        content_type: None,
        body: Vec::new(),
    }
}

impl Request {
    pub fn with(mut self, content_type: &str, body: impl Into<Vec<u8>>) -> Request {
        self.content_type = Some(content_type.to_owned());
        self.body = body.into();
        self
    }

    /// Instead of the good key. An empty text sends no key.
    pub fn by(mut self, authorization: &'static str) -> Request {
        self.authorization = Some(authorization);
        self
    }
}

pub fn get(path: &str) -> Request {
    request("GET", path)
}

/// `POST /v1/batches` with this body.
pub fn batch(body: impl Into<Vec<u8>>) -> Request {
    request("POST", "/v1/batches").with("application/json", body)
}

/// `POST /v1/batches` that is right but for one field; `null` leaves the field out.
pub fn batch_but(field: &str, value: Value) -> Request {
    let mut body = json!({
        "input_file_id": "file-x",
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
    });
    let fields = body.as_object_mut().expect("an object");
    if value.is_null() {
        fields.remove(field);
    } else {
        fields.insert(field.to_owned(), value);
    }
    batch(body.to_string())
}

pub fn multipart(body: impl Into<Vec<u8>>) -> Request {
    request("POST", "/v1/files").with("multipart/form-data; boundary=XX", body)
}

/// One text part, as text.
pub fn field(name: &str, value: &str) -> String {
    format!("--XX\r\ncontent-disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n")
}

/// The part with the file, as text.
pub fn file(content: &str) -> String {
    format!(
        "--XX\r\ncontent-disposition: form-data; name=\"file\"; filename=\"in.jsonl\"\r\n\
         content-type: application/octet-stream\r\n\r\n{content}\r\n"
    )
}

/// An upload of these parts.
pub fn form(parts: &[String]) -> Request {
    multipart(format!("{}--XX--\r\n", parts.concat()))
}

/// What a text must be.
#[derive(Debug)]
pub enum Text {
    /// The contract leaves it open.
    Any,
    Null,
    Is(String),
    Starts(&'static str),
    Holds(&'static str),
}

impl Text {
    pub fn accepts(&self, value: &Value) -> bool {
        match (self, value.as_str()) {
            (Text::Any, _) => value.is_null() || value.is_string(),
            (Text::Null, _) => value.is_null(),
            (Text::Is(text), Some(value)) => text == value,
            (Text::Starts(text), Some(value)) => value.starts_with(text),
            (Text::Holds(text), Some(value)) => value.contains(text),
            (_, None) => false,
        }
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Text {
        Text::Is(text.to_owned())
    }
}

/// A row: a name, a request, and the status, code, param and message of its answer.
pub struct Case(&'static str, Request, u16, Text, Text, Text);

pub fn case(
    name: &'static str,
    request: Request,
    status: u16,
    (code, param, message): (impl Into<Text>, impl Into<Text>, impl Into<Text>),
) -> Case {
    Case(
        name,
        request,
        status,
        code.into(),
        param.into(),
        message.into(),
    )
}

fn keyless_client() -> reqwest::Client {
    let client = reqwest::Client::builder().no_proxy().build();
    client.expect("a client")
}

pub async fn send(server: &Server, request: &Request) -> reqwest::Response {
    let client = match request.authorization {
        None => server.client(),
        Some(_) => keyless_client(),
    };
    let mut builder = client.request(request.method.clone(), server.url(&request.path));
    if let Some(authorization) = request.authorization.filter(|text| !text.is_empty()) {
        builder = builder.header("authorization", authorization);
    }
    if let Some(content_type) = &request.content_type {
        builder = builder.header("content-type", content_type);
    }
    builder
        .body(request.body.clone())
        .send()
        .await
        .expect("an answer")
}

/// All that a refused request must leave as it was.
pub async fn listed(server: &Server) -> (Value, Value) {
    let mut lists = Vec::new();
    for path in ["/v1/files", "/v1/batches"] {
        let response = send(server, &get(path)).await;
        assert_eq!(response.status(), StatusCode::OK);
        lists.push(json_of(response).await);
    }
    (lists.remove(0), lists.remove(0))
}

/// Sends each request, and reports all that are not refused as they should be.
pub async fn check(server: &Server, cases: Vec<Case>) {
    let (before, rows) = (listed(server).await, server.rows().await);
    let mut wrong = Vec::new();
    for Case(name, request, status, code, param, message) in cases {
        let response = send(server, &request).await;
        let found = response.status().as_u16();
        let header = |name: &str| {
            let value = response.headers().get(name)?;
            Some(value.to_str().expect("text").to_owned())
        };
        let json = header("content-type").is_some_and(|kind| kind.starts_with("application/json"));
        let known = header("x-request-id").is_some_and(|id| !id.is_empty());
        let final_answer = status != 413 || header("x-should-retry").as_deref() == Some("false");
        let body = response.bytes().await.expect("a body");
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        let error = &body["error"];
        let right = found == status
            && json
            && known
            && final_answer
            && error.as_object().is_some_and(|keys| keys.len() == 4)
            && (status == 413 || error["type"] == "invalid_request_error")
            && code.accepts(&error["code"])
            && param.accepts(&error["param"])
            && message.accepts(&error["message"]);
        if !right {
            wrong.push(format!(
                "{name}: {found} {body}\n    expected {status} {code:?} {param:?} {message:?}"
            ));
        }
        assert_eq!(listed(server).await, before, "{name} left something behind");
        server.has_only(&rows).await;
    }
    assert!(
        wrong.is_empty(),
        "{} are wrong:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

/// The answer's JSON.
pub async fn json_of(response: reqwest::Response) -> Value {
    let body = response.bytes().await.expect("a body");
    serde_json::from_slice(&body).expect("JSON")
}

/// Polls the batch that this answer created until nothing can happen to it any more.
pub async fn ended(server: &Server, created: reqwest::Response) -> Batch {
    assert_eq!(created.status(), StatusCode::OK);
    let created = Batch::from(json_of(created).await);
    assert_eq!(created.status, "validating");
    server.ended(&created).await
}
