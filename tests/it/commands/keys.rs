//! `nightshift keys`, beside a server that runs.

use reqwest::StatusCode;

use super::{ended_in, until};
use crate::support::binary::Ended;
use crate::support::{Server, client_with, on_every_engine};

struct Shop {
    directory: tempfile::TempDir,
    database: String,
}

impl Shop {
    fn new(database: &str) -> Self {
        let directory = tempfile::tempdir().expect("makes a directory");
        Shop {
            directory,
            database: database.to_owned(),
        }
    }

    async fn keys(&self, args: &[&str]) -> Ended {
        let args = [&["keys"], args, &["--database", &self.database]].concat();
        ended_in(self.directory.path(), &args).await
    }
}

/// The only line of an output.
fn only_line(ended: &Ended) -> String {
    assert_eq!(ended.code, Some(0), "{}", ended.errors);
    let line = ended.out.strip_suffix('\n').expect("ends with a line end");
    assert!(
        !line.contains(char::is_whitespace),
        "it stands alone: {line}"
    );
    line.to_owned()
}

async fn a_key_works_at_once_and_no_longer_when_it_is_revoked() {
    let server = Server::binary("").await;
    let shop = Shop::new(&server.database);
    let created = shop
        .keys(&["create", "--name", "laptop", "--tenant", "tenant-c"])
        .await;
    let key = only_line(&created);
    assert!(key.starts_with("sk-ns-"), "{key}");
    assert!(!created.errors.contains(&key), "it is shown once");
    let status = async || {
        let request = client_with(Some(&key)).get(server.url("/v1/batches"));
        request.send().await.expect("answers").status()
    };
    assert_eq!(status().await, StatusCode::OK);

    let listed = shop.keys(&["list"]).await;
    assert_eq!(listed.code, Some(0));
    let row = listed
        .out
        .lines()
        .find(|row| row.contains("laptop"))
        .expect("is listed");
    assert!(row.contains("tenant-c") && row.ends_with("active"), "{row}");
    assert!(!listed.out.contains(&key), "the list does not show keys");

    let id = row.split_whitespace().next().expect("has an id");
    assert!(created.errors.contains(id), "{}", created.errors);
    let revoked = shop.keys(&["revoke", id]).await;
    assert_eq!(
        (revoked.code, revoked.out.as_str()),
        (Some(0), ""),
        "{}",
        revoked.errors
    );
    until("the key is refused", async || {
        status().await == StatusCode::UNAUTHORIZED
    })
    .await;
    let listed = shop.keys(&["list"]).await;
    let row = listed
        .out
        .lines()
        .find(|row| row.contains("laptop"))
        .expect("is listed");
    assert!(row.ends_with("revoked"), "{row}");

    for id in [id, "key_nobody_has"] {
        let again = shop.keys(&["revoke", id]).await;
        assert_eq!(again.code, Some(1));
        assert!(again.errors.contains("keys list"), "{}", again.errors);
    }
}

async fn a_key_can_be_made_before_there_is_a_database() {
    let directory = tempfile::tempdir().expect("makes a directory");
    let database = crate::support::engines::database(directory.path()).await;
    let shop = Shop::new(&database);
    let keys: Vec<String> = [
        shop.keys(&["create", "--name", "first"]).await,
        shop.keys(&["create", "--name", "second", "--admin"]).await,
    ]
    .iter()
    .map(only_line)
    .collect();
    assert_ne!(keys[0], keys[1]);
    let listed = shop.keys(&["list"]).await.out;
    assert_eq!(listed.lines().count(), 3, "{listed}");
    assert!(listed.contains("default"), "{listed}");
    for words in [["--name", ""], ["--name", " "]] {
        let refused = shop.keys(&[&["create"][..], &words].concat()).await;
        assert_eq!((refused.code, refused.out.as_str()), (Some(2), ""));
    }
}

async fn check_tries_a_database_that_a_server_uses() {
    let mut server = Server::binary("").await;
    let shop = Shop::new(&server.database);
    let checked = ended_in(
        shop.directory.path(),
        &[
            "check",
            "--config",
            &server.config_file(),
            "--database",
            &server.database,
        ],
    )
    .await;
    assert_eq!(checked.code, Some(0), "{}", checked.out);
    assert!(checked.out.contains("ok    database"), "{}", checked.out);
    // The server is none the worse for it.
    server.get("/v1/batches").await;
    server.stop().await;
}

on_every_engine![
    check_tries_a_database_that_a_server_uses,
    a_key_works_at_once_and_no_longer_when_it_is_revoked,
    a_key_can_be_made_before_there_is_a_database,
];
