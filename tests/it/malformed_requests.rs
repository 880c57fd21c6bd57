//! Requests whose head cannot be read, over raw TCP: a bare status answers each, and the log says
//! so.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::binary::Binary;

#[tokio::test]
async fn a_broken_head_has_a_bare_status_and_a_line_in_the_log() {
    let directory = tempfile::tempdir().expect("makes a directory");
    let url = format!("sqlite://{}", directory.path().join("a.db").display());
    let server = Binary::serve(&["--database", &url], &[]).await;
    let address = server.base.strip_prefix("http://").expect("an address");

    let good = "GET /v1/files HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n";
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(101));
    for (sent, statuses) in [
        ("one two three four\r\n\r\n".to_owned(), &[400][..]),
        (many, &[431]),
        // The good request before it keeps its whole answer.
        (format!("{good}nonsense\r\n\r\n"), &[200, 400]),
    ] {
        let mut stream = TcpStream::connect(address).await.expect("connects");
        stream.write_all(sent.as_bytes()).await.expect("sends");
        let mut answers = String::new();
        let whole = stream.read_to_string(&mut answers);
        let whole = tokio::time::timeout(Duration::from_mins(1), whole).await;
        whole.expect("closes").expect("is not reset");
        let heads = answers.split("HTTP/1.1 ").skip(1);
        let found: Vec<u16> = heads
            .map(|head| head[..3].parse().expect("a status"))
            .collect();
        assert_eq!(found, statuses, "{answers}");
    }

    let log = server.terminate().await;
    let told = "a request was refused: its head could not be read";
    assert_eq!(log.matches(told).count(), 3, "{log}");
}
