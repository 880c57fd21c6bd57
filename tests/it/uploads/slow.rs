//! Clients that send a long line slowly: they may, but not at the cost of others.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::watch;

use super::*;

/// A line of 1.6 MB, without its end.
fn long_line() -> String {
    let line = chat("a", json!({ "text": "x".repeat(1_600_000) }));
    line.trim_end().to_owned()
}

/// Uploads that are within their line, and send a byte now and then until they are told to stop.
struct Trickles {
    end: watch::Sender<bool>,
    /// How many of those bytes each of them has sent.
    sent: Vec<Arc<AtomicUsize>>,
    answers: Vec<JoinHandle<Option<Response>>>,
}

impl Trickles {
    fn start(server: &Server, count: usize) -> Trickles {
        let end = watch::Sender::new(false);
        let sent: Vec<_> = (0..count).map(|_| Arc::default()).collect();
        let trickle = |sent: &Arc<_>| trickle(server, end.subscribe(), Arc::clone(sent));
        let answers = sent.iter().map(trickle).collect();
        Trickles { end, sent, answers }
    }

    /// Waits until each has sent so many of those bytes.
    async fn have_sent(&self, least: usize) {
        eventually("all are within their line", async || {
            let mut sent = self.sent.iter();
            sent.all(|bytes| bytes.load(Ordering::Relaxed) >= least)
        })
        .await;
    }

    /// Whether the server has ended one of them.
    fn is_one_ended(&self) -> bool {
        self.answers.iter().any(JoinHandle::is_finished)
    }

    /// Ends them; the answers of those that the server had ended before.
    async fn end(self) -> Vec<Response> {
        self.end.send_replace(true);
        let mut answers = Vec::new();
        for answer in self.answers {
            answers.extend(answer.await.expect("does not panic"));
        }
        answers
    }
}

fn trickle(
    server: &Server,
    mut ends: watch::Receiver<bool>,
    sent: Arc<AtomicUsize>,
) -> JoinHandle<Option<Response>> {
    let upload = Upload::start(server);
    tokio::spawn(async move {
        upload.piece(PURPOSE).await;
        upload.piece(FILE).await;
        upload.piece(long_line()).await;
        while !*ends.borrow() && !upload.answer.is_finished() {
            upload.piece("x").await;
            sent.fetch_add(1, Ordering::Relaxed);
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
    let slow = Trickles::start(&server, 4);
    slow.have_sent(4).await;
    let answer = whole(&server, &server.client()).await;
    assert_eq!(answer.status(), 200);
    let ended = slow.end().await;
    assert!(ended.is_empty(), "nobody waited: {ended:?}");
}

async fn many_that_trickle_are_ended_when_another_waits() {
    let server = Server::start().await;
    let slow = Trickles::start(&server, 24);
    slow.have_sent(1).await;
    // A busy server has not read all that they have sent: then there is room for the first.
    eventually("another waits, and some are ended", async || {
        let answer = whole(&server, &server.other().client()).await;
        assert_eq!(answer.status(), 200);
        slow.is_one_ended()
    })
    .await;
    let ended = slow.end().await;
    let statuses: Vec<u16> = ended
        .iter()
        .map(|answer| answer.status().as_u16())
        .collect();
    assert!(!statuses.is_empty(), "some were ended");
    assert!(statuses.iter().all(|status| *status == 408), "{statuses:?}");
}

on_every_engine![
    a_few_that_trickle_keep_nobody_waiting,
    many_that_trickle_are_ended_when_another_waits,
];
