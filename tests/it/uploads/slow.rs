//! Clients that send a long line slowly: they may, but not at the cost of others.

use tokio::sync::watch;

use super::*;

/// A line of 1.6 MB, without its end.
fn long_line() -> String {
    let line = chat("a", json!({ "text": "x".repeat(1_600_000) }));
    line.trim_end().to_owned()
}

/// An upload that is within its line, and sends a byte now and then until it is told to stop.
fn trickle(server: &Server, mut ends: watch::Receiver<bool>) -> JoinHandle<Option<Response>> {
    let upload = Upload::start(server);
    tokio::spawn(async move {
        upload.piece(PURPOSE).await;
        upload.piece(FILE).await;
        upload.piece(long_line()).await;
        while !*ends.borrow() && !upload.answer.is_finished() {
            upload.piece("x").await;
            let pause = Duration::from_millis(200);
            let _ = tokio::time::timeout(pause, ends.changed()).await;
        }
        if upload.answer.is_finished() {
            // One that was refused may see no more than the end of its connection.
            return upload.answer.await.expect("does not panic").ok();
        }
        upload.break_off().await;
        None
    })
}

async fn whole(server: &Server, client: &reqwest::Client) -> Response {
    let upload = Upload::send(client.post(server.url("/v1/files")));
    upload.piece(PURPOSE).await;
    upload.piece(FILE).await;
    upload.piece(long_line()).await;
    upload.piece("\n\r\n--XX--\r\n").await;
    let answer = tokio::time::timeout(PATIENCE, upload.finish());
    answer.await.expect("it is let through")
}

async fn a_few_that_trickle_keep_nobody_waiting() {
    let server = Server::start().await;
    let (end, ends) = watch::channel(false);
    let slow: Vec<_> = (0..4).map(|_| trickle(&server, ends.clone())).collect();
    until("all have begun", async || {
        rows(&server.database, "files").await == 4
    })
    .await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let answer = whole(&server, &server.client()).await;
    assert_eq!(answer.status(), 200);
    end.send_replace(true);
    for slow in slow {
        let answer = slow.await.expect("does not panic");
        assert!(answer.is_none(), "nobody waited: {answer:?}");
    }
}

async fn many_that_trickle_are_ended_when_another_waits() {
    let server = Server::start().await;
    let (end, ends) = watch::channel(false);
    let slow: Vec<_> = (0..24).map(|_| trickle(&server, ends.clone())).collect();
    until("all have begun", async || {
        rows(&server.database, "files").await == 24
    })
    .await;
    let answer = whole(&server, &server.other_client()).await;
    assert_eq!(answer.status(), 200);
    end.send_replace(true);
    let mut statuses = Vec::new();
    for slow in slow {
        if let Some(answer) = slow.await.expect("does not panic") {
            statuses.push(answer.status().as_u16());
        }
    }
    assert!(!statuses.is_empty(), "some were ended");
    assert!(statuses.iter().all(|status| *status == 408), "{statuses:?}");
}

on_every_engine![
    a_few_that_trickle_keep_nobody_waiting,
    many_that_trickle_are_ended_when_another_waits,
];
