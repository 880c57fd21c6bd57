//! A tenant sees its own objects and no others: a foreign id is answered as an unknown one.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{CHAT, Server, chat, on_every_engine};

/// What one tenant owns.
struct Owned {
    input: String,
    output: String,
    batch: String,
}

async fn owned(server: &Server) -> Owned {
    let batch = server.run(chat("a", Value::Null), CHAT).await;
    let text = |key: &str| batch[key].as_str().expect("is there").to_owned();
    Owned {
        input: text("input_file_id"),
        output: text("output_file_id"),
        batch: text("id"),
    }
}

/// How the other tenant is answered: the status, and the body without this id.
async fn answer(server: &Server, method: &Method, path: &str, id: &str) -> (u16, String) {
    let path = path.replace("{id}", id);
    let response = server
        .other()
        .client()
        .request(method.clone(), server.url(&path))
        .send()
        .await;
    let response = response.expect("answers");
    let status = response.status().as_u16();
    (
        status,
        response.text().await.expect("is text").replace(id, "{id}"),
    )
}

async fn a_foreign_id_is_as_unknown_as_one_that_nobody_has() {
    let server = Server::start().await;
    let owned = owned(&server).await;
    for (method, path, id, unknown) in [
        (Method::GET, "/v1/files/{id}", &owned.input, "file-nobody"),
        (
            Method::GET,
            "/v1/files/{id}/content",
            &owned.input,
            "file-nobody",
        ),
        (
            Method::GET,
            "/v1/files/{id}/content",
            &owned.output,
            "file-nobody",
        ),
        (
            Method::HEAD,
            "/v1/files/{id}/content",
            &owned.output,
            "file-nobody",
        ),
        (
            Method::DELETE,
            "/v1/files/{id}",
            &owned.input,
            "file-nobody",
        ),
        (
            Method::DELETE,
            "/v1/files/{id}",
            &owned.output,
            "file-nobody",
        ),
        (
            Method::GET,
            "/v1/files?after={id}",
            &owned.input,
            "file-nobody",
        ),
        (
            Method::GET,
            "/v1/batches/{id}",
            &owned.batch,
            "batch_nobody",
        ),
        (
            Method::POST,
            "/v1/batches/{id}/cancel",
            &owned.batch,
            "batch_nobody",
        ),
        (
            Method::GET,
            "/v1/batches?after={id}",
            &owned.batch,
            "batch_nobody",
        ),
    ] {
        let foreign = answer(&server, &method, path, id).await;
        assert_eq!(foreign.0, 404, "{method} {path}: {}", foreign.1);
        assert_eq!(
            foreign,
            answer(&server, &method, path, unknown).await,
            "{method} {path}"
        );
    }
    // None of it did anything.
    for path in [
        format!("/v1/files/{}", owned.input),
        format!("/v1/files/{}", owned.output),
        format!("/v1/batches/{}", owned.batch),
    ] {
        server.get(&path).await;
    }
}

async fn lists_show_a_tenants_own() {
    let server = Server::start().await;
    let owned = owned(&server).await;
    for path in ["/v1/files", "/v1/batches"] {
        let request = server.other().client().get(server.url(path));
        let list: Value = request
            .send()
            .await
            .expect("answers")
            .json()
            .await
            .expect("is JSON");
        assert_eq!(list["data"], json!([]), "{path}");
    }
    let mut files = Vec::new();
    for file in server.get("/v1/files").await["data"]
        .as_array()
        .expect("is a list")
    {
        files.push(file["id"].as_str().expect("has an id").to_owned());
    }
    files.sort();
    let mut expected = vec![owned.input, owned.output];
    expected.sort();
    assert_eq!(files, expected);
}

async fn a_batch_of_a_foreign_file_fails_as_one_of_no_file() {
    let server = Server::start().await;
    let owned = owned(&server).await;
    let calls = server.simulator.stats().total.calls;
    let mut errors = Vec::new();
    for id in [owned.input.as_str(), owned.output.as_str(), "file-nobody"] {
        let body = json!({
            "input_file_id": id, "endpoint": CHAT, "completion_window": "24h",
        });
        let batch = server.other().create(&body).await;
        let failed = server.other().ended(&batch).await;
        assert_eq!(failed.status, "failed", "{failed}");
        errors.push(failed["errors"].to_string().replace(id, "{id}"));
    }
    assert!(errors.iter().all(|error| error == &errors[2]), "{errors:?}");
    assert_eq!(
        server.simulator.stats().total.calls,
        calls,
        "nothing was sent"
    );
}

on_every_engine![
    a_foreign_id_is_as_unknown_as_one_that_nobody_has,
    lists_show_a_tenants_own,
    a_batch_of_a_foreign_file_fails_as_one_of_no_file,
];
