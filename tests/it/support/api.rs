//! A client of the API: what tests ask of a server again and again.

use std::collections::BTreeMap;

use reqwest::multipart::{Form, Part};
use reqwest::{Client, Response};
use serde_json::{Value, json};

use super::secrets::search;
use super::{Batch, client_with, eventually};

/// A client of one server, with one key.
#[derive(Clone)]
pub struct Api {
    base: String,
    key: String,
    client: Client,
}

impl Api {
    pub fn new(base: &str, key: &str) -> Api {
        Api {
            base: base.to_owned(),
            key: key.to_owned(),
            client: client_with(Some(key)),
        }
    }

    /// The same client of another server.
    pub fn at(&self, base: &str) -> Api {
        Api {
            base: base.to_owned(),
            ..self.clone()
        }
    }

    /// Another client of the same server.
    pub fn by(&self, key: &str) -> Api {
        Api::new(&self.base, key)
    }

    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    pub fn key(&self) -> &str {
        &self.key
    }

    /// For requests that are not made here. It sends the key.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    pub async fn get(&self, path: &str) -> Value {
        let response = self.client.get(self.url(path)).send().await;
        json_of(path, response.expect("answers")).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Value {
        let response = self.client.post(self.url(path)).json(body).send().await;
        json_of(path, response.expect("answers")).await
    }

    pub async fn upload(&self, bytes: Vec<u8>, name: &str, purpose: &str) -> Response {
        let part = Part::bytes(bytes).file_name(name.to_owned());
        let form = Form::new()
            .text("purpose", purpose.to_owned())
            .part("file", part);
        let request = self.client.post(self.url("/v1/files")).multipart(form);
        request.send().await.expect("answers")
    }

    /// Uploads a batch file; returns its id.
    pub async fn upload_batch(&self, jsonl: impl AsRef<[u8]>) -> String {
        let response = self.upload(jsonl.as_ref().to_vec(), "in.jsonl", "batch");
        let file = json_of("/v1/files", response.await).await;
        file["id"].as_str().expect("has an id").to_owned()
    }

    /// Uploads a file and creates a batch of it.
    pub async fn create_batch(&self, jsonl: impl AsRef<[u8]>, endpoint: &str) -> Batch {
        self.create_batch_within(jsonl, endpoint, "24h").await
    }

    pub async fn create_batch_within(
        &self,
        jsonl: impl AsRef<[u8]>,
        endpoint: &str,
        window: &str,
    ) -> Batch {
        let file = self.upload_batch(jsonl).await;
        let body = json!({
            "input_file_id": file, "endpoint": endpoint, "completion_window": window,
        });
        self.create(&body).await
    }

    /// Creates a batch as a request's body says.
    pub async fn create(&self, body: &Value) -> Batch {
        self.post("/v1/batches", body).await.into()
    }

    /// A batch, or one with this id, as it is now.
    pub async fn batch(&self, batch: impl AsRef<str>) -> Batch {
        let path = format!("/v1/batches/{}", batch.as_ref());
        self.get(&path).await.into()
    }

    pub async fn cancel(&self, batch: &Batch) -> Batch {
        let path = format!("{}/cancel", batch.path());
        self.post(&path, &json!({})).await.into()
    }

    /// Waits until something holds of a batch.
    pub async fn until(&self, batch: impl AsRef<str>, holds: impl Fn(&Batch) -> bool) -> Batch {
        eventually("a batch comes to that", async || {
            let batch = self.batch(&batch).await;
            if holds(&batch) { Ok(batch) } else { Err(batch) }
        })
        .await
    }

    /// Waits until a batch is in a state in which it stays.
    pub async fn ended(&self, batch: impl AsRef<str>) -> Batch {
        self.until(batch, Batch::has_ended).await
    }

    /// Runs a batch to its end.
    pub async fn run(&self, jsonl: impl AsRef<[u8]>, endpoint: &str) -> Batch {
        let batch = self.create_batch(jsonl, endpoint).await;
        self.ended(&batch).await
    }

    /// Runs a batch that must fail validation.
    pub async fn failed_batch(&self, jsonl: impl AsRef<[u8]>, endpoint: &str) -> Batch {
        let batch = self.run(jsonl, endpoint).await;
        assert_eq!(batch.status, "failed", "{batch}");
        batch
    }

    /// The content of a file.
    pub async fn content(&self, file: &str) -> String {
        let url = self.url(&format!("/v1/files/{file}/content"));
        let response = self.client.get(url).send().await.expect("answers");
        assert_eq!(response.status(), 200);
        let text = response.text().await.expect("is text");
        search("an answer", &text);
        text
    }

    /// The lines of a batch's output file; none where there is no file.
    pub async fn output(&self, batch: &Batch) -> Vec<Value> {
        self.lines(batch.output_file_id.as_deref()).await
    }

    /// The lines of a batch's error file; none where there is no file.
    pub async fn errors(&self, batch: &Batch) -> Vec<Value> {
        self.lines(batch.error_file_id.as_deref()).await
    }

    async fn lines(&self, file: Option<&str>) -> Vec<Value> {
        let Some(file) = file else {
            return Vec::new();
        };
        let text = self.content(file).await;
        assert!(text.ends_with('\n'), "a file ends with a line end");
        text.lines()
            .map(|line| serde_json::from_str(line).expect("is JSON"))
            .collect()
    }

    /// Asserts that both files together have exactly one line for each of these ids, each file
    /// in input order; returns all lines by `custom_id`.
    pub async fn exactly_once(&self, batch: &Batch, ids: &[String]) -> BTreeMap<String, Value> {
        let place: BTreeMap<&str, usize> = ids
            .iter()
            .enumerate()
            .map(|(place, id)| (id.as_str(), place))
            .collect();
        let mut found = BTreeMap::new();
        for lines in [self.output(batch).await, self.errors(batch).await] {
            let order: Vec<usize> = lines
                .iter()
                .map(|line| place[line["custom_id"].as_str().expect("has an id")])
                .collect();
            assert!(order.is_sorted(), "a file is not in input order");
            for line in lines {
                let id = line["custom_id"].as_str().expect("has an id").to_owned();
                assert!(
                    found.insert(id.clone(), line).is_none(),
                    "{id} is there twice"
                );
            }
        }
        assert_eq!(found.len(), ids.len(), "lines are missing");
        found
    }
}

/// The JSON of an answer that must be a success.
async fn json_of(path: &str, response: Response) -> Value {
    let status = response.status();
    let text = response.text().await.expect("is text");
    search(path, &text);
    assert!(status.is_success(), "{path}: {status} {text}");
    serde_json::from_str(&text).expect("is JSON")
}
