//! `nightshift keys`, beside a server that runs.

use std::net::SocketAddr;

use reqwest::StatusCode;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::ended_in;
use crate::support::{Server, client_with, on_every_engine};
use crate::support::{binary::Ended, eventually};

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
    let server = Server::with("").binary().await;
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
    eventually("the key is refused", async || {
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

/// What `keys list --json` says of the key with a name.
async fn listed(shop: &Shop, name: &str) -> Value {
    let listed = shop.keys(&["list", "--json"]).await;
    let keys: Vec<Value> = serde_json::from_str(&listed.out).expect("is a JSON array");
    let mut keys = keys.into_iter();
    keys.find(|key| key["name"] == name).expect("is listed")
}

async fn a_key_ends_when_it_was_said_to() {
    let server = Server::start().await;
    let shop = Shop::new(&server.database);
    let create = ["create", "--name", "short", "--expires", "1h"];
    let created = shop.keys(&create).await;
    assert!(created.errors.contains(", until 2"), "{}", created.errors);
    let key = only_line(&created);
    let ask = async || {
        let request = client_with(Some(&key)).get(server.url("/v1/batches"));
        request.send().await.expect("answers")
    };
    assert_eq!(ask().await.status(), StatusCode::OK);
    server.clock.advance_ms(3_600_000);
    let refused = ask().await;
    assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
    let error: Value = refused.json().await.expect("is JSON");
    assert_eq!(error["error"]["code"], "invalid_api_key");
    let message = error["error"]["message"].as_str().expect("is text");
    assert!(
        message.contains("has expired") && !message.contains(&key),
        "{message}"
    );

    let over = shop
        .keys(&["create", "--name", "over", "--expires", "2001-01-01"])
        .await;
    assert_eq!((over.code, over.out.as_str()), (Some(1), ""));
    assert!(over.errors.contains("not in the future"), "{}", over.errors);
    let wrong = shop
        .keys(&["create", "--name", "wrong", "--expires", "tomorrow"])
        .await;
    assert_eq!((wrong.code, wrong.out.as_str()), (Some(2), ""));
    assert!(wrong.errors.contains("2030-01-31"), "{}", wrong.errors);
    let brief = shop
        .keys(&["create", "--name", "brief", "--expires", "1ms"])
        .await;
    only_line(&brief);
    eventually("the list says so", async || {
        listed(&shop, "brief").await["state"] == "expired"
    })
    .await;
}

async fn the_list_says_when_a_key_was_used_last() {
    let server = Server::with("").binary().await;
    let shop = Shop::new(&server.database);
    let create = ["create", "--name", "used", "--tenant", "team"];
    let key = only_line(&shop.keys(&create).await);
    let unused = listed(&shop, "used").await;
    assert_eq!(unused["last_used_at"], Value::Null);
    let created_at = unused["created_at"].as_i64().expect("is a time");
    assert_eq!(
        unused,
        serde_json::json!({
            "id": unused["id"], "tenant": "team", "name": "used", "hint": unused["hint"],
            "scopes": ["api"], "state": "active", "created_at": created_at,
            "expires_at": null, "last_used_at": null, "revoked_at": null,
        })
    );

    let asked = client_with(Some(&key)).get(server.url("/v1/models"));
    assert_eq!(asked.send().await.expect("answers").status(), 200);
    // It is the first use of any key, so nothing holds it back.
    eventually("the use is noted", async || {
        let used = listed(&shop, "used").await["last_used_at"].as_i64();
        used.is_some_and(|at| at >= created_at)
    })
    .await;
    let table = shop.keys(&["list"]).await.out;
    let never = table.matches("never").count();
    // Four keys, three of which nobody has used: those that the test's server comes with.
    assert_eq!(never, 3, "{table}");
    let wide = shop.keys(&["list", "--wide"]).await.out;
    let hint = unused["hint"].as_str().expect("is text");
    assert!(wide.contains(hint), "{wide}");
}

async fn a_key_that_is_used_while_the_server_stops_has_been_used() {
    let mut server = Server::with("").binary().await;
    let shop = Shop::new(&server.database);
    let key = only_line(&shop.keys(&["create", "--name", "last"]).await);
    let binary = server.binary_process();
    let address = binary.base.strip_prefix("http://").expect("an address");
    let mut stream = TcpStream::connect(address).await.expect("connects");
    // A request that is on its way when the server is asked to stop is answered.
    let head = format!("GET /v1/batches HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {key}\r\n");
    stream.write_all(head.as_bytes()).await.expect("sends");
    // A connection of which the server has read nothing is closed at a stop, as one at rest is.
    eventually("the server has read the request's beginning", async || {
        has_read_all(&stream, address)
    })
    .await;
    binary.signal("TERM");
    eventually("it listens no more", async || {
        TcpStream::connect(address).await.is_err()
    })
    .await;
    stream.write_all(b"\r\n").await.expect("sends");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("answers");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(binary.ended().await.code, Some(0));
    let used = listed(&shop, "last").await;
    assert!(used["last_used_at"].is_i64(), "{used}");
}

/// Whether the process at `address` has read all that was sent over this connection, as the kernel
/// shows it: a row of `/proc/net/tcp` has both addresses of a socket, its state, and how many bytes
/// wait in it in each direction.
fn has_read_all(stream: &TcpStream, address: &str) -> bool {
    let ours = stream.local_addr().expect("a bound socket");
    let theirs: SocketAddr = address.parse().expect("an address");
    let shown = |address: SocketAddr| format!(":{:04X}", address.port());
    let sockets = std::fs::read_to_string("/proc/net/tcp").expect("Linux");
    let is_empty = |from: SocketAddr, to: SocketAddr| {
        sockets.lines().any(|row| {
            let fields: Vec<_> = row.split_whitespace().collect();
            fields[1].ends_with(&shown(from))
                && fields[2].ends_with(&shown(to))
                && fields[4] == "00000000:00000000"
        })
    };
    is_empty(ours, theirs) && is_empty(theirs, ours)
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

#[tokio::test]
async fn no_database_is_made_where_nobody_asked_for_one() {
    let directory = tempfile::tempdir().expect("makes a directory");
    let file = directory.path().join("nightshift-data/nightshift.db");
    let path = file.to_str().expect("is text");
    for args in [&["list"][..], &["list", "--json"], &["revoke", "key_a"]] {
        let args = [&["keys"], args].concat();
        let refused = ended_in(directory.path(), &args).await;
        assert_eq!(
            (refused.code, refused.out.as_str()),
            (Some(1), ""),
            "{args:?}"
        );
        let says = format!("there is no database at {path}");
        assert!(refused.errors.contains(&says), "{}", refused.errors);
        assert!(!file.exists(), "{args:?}");
    }
    for (more, code, mark) in [(&[][..], Some(0), "note"), (&["--store"], Some(1), "FAIL")] {
        let checked = ended_in(directory.path(), &[&["check"], more].concat()).await;
        assert_eq!(checked.code, code, "{}", checked.out);
        let says = format!("{mark}  database       there is none at {path}");
        assert!(checked.out.contains(&says), "{}", checked.out);
        assert!(!file.exists(), "{more:?}");
    }

    let create = ["keys", "create", "--name", "first"];
    let created = ended_in(directory.path(), &create).await;
    only_line(&created);
    let says = format!("Created the database {path}.\n");
    assert!(created.errors.contains(&says), "{}", created.errors);
    let again = ended_in(directory.path(), &create).await;
    assert!(!again.errors.contains("database"), "{}", again.errors);
    let checked = ended_in(directory.path(), &["check"]).await;
    let says = format!("ok    database       {path}\n");
    assert!(checked.out.contains(&says), "{}", checked.out);
}

async fn check_tries_a_database_that_a_server_uses() {
    let mut server = Server::with("").binary().await;
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
    a_key_ends_when_it_was_said_to,
    the_list_says_when_a_key_was_used_last,
    a_key_that_is_used_while_the_server_stops_has_been_used,
    a_key_works_at_once_and_no_longer_when_it_is_revoked,
    a_key_can_be_made_before_there_is_a_database,
];
