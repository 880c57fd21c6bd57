use proptest::prelude::*;

use super::*;
use crate::store::NewBatch;
use crate::transfer::testing::{LIMITS, TENANT, TestStore, noise, request};

/// Whether nothing is left of a file that was given up.
async fn is_gone(test: &TestStore, file_id: &str) -> bool {
    let row = test.store.file_position(TENANT, file_id).await.unwrap();
    let piece = test.store.piece(file_id, (0, 0)).await.unwrap();
    // Fails once there is no row that is being uploaded.
    let uploading = test.store.touch_upload(file_id).await.is_ok();
    row.is_none() && piece.is_none() && !uploading
}

/// Waits until that is so.
async fn is_removed(test: &TestStore, file_id: &str) {
    until(async || is_gone(test, file_id).await).await;
}

async fn until(holds: impl AsyncFn() -> bool) {
    for _ in 0..3000 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it does not come to that");
}

/// What a batch of embeddings would list as wrong with the file.
async fn findings(test: &TestStore, file: &StoredFile) -> Vec<(Option<u64>, String)> {
    let batch = NewBatch {
        id: id::batch(),
        tenant: TENANT.to_owned(),
        key_id: None,
        endpoint: "/v1/embeddings".to_owned(),
        input_file_id: file.id.clone(),
        task: None,
        reuse: None,
        details: false,
        completion_window: "24h".to_owned(),
        output_expires_seconds: 3600,
        metadata: None,
        created_at: test.clock.now_ms(),
        expires_at: None,
        steering: crate::store::Steering::default(),
    };
    test.store.create_batch(&batch, None).await.unwrap();
    let input = test
        .store
        .unvalidated()
        .await
        .unwrap()
        .remove(0)
        .input
        .unwrap();
    let findings = input.findings.for_endpoint("/v1/embeddings");
    findings
        .into_iter()
        .map(|finding| (finding.line, finding.code))
        .collect()
}

#[tokio::test]
async fn repeated_ids_are_found_across_chunks() {
    let test = TestStore::new().await;
    // 100 and 2000 lines further on: in the same chunk and in others.
    let lines: String = (1..=3000_u32)
        .map(|line| match line {
            2 | 102 | 2002 => "twice".to_owned(),
            2900 => "last".to_owned(),
            _ => format!("id-{line}"),
        })
        .map(|custom_id| request(&custom_id, 0))
        .chain([request("last", 0).trim_end().replace("last", "l\\u0061st")])
        .collect();
    let file = test
        .ingest(Purpose::Batch, lines.as_bytes(), &[8192])
        .await
        .unwrap();
    let expected = [102, 2002, 3001].map(|line| (Some(line), "duplicate_custom_id".to_owned()));
    assert_eq!(findings(&test, &file).await, expected);
}

#[tokio::test]
async fn a_suspicion_alone_is_no_finding() {
    let test = TestStore::new().await;
    let lines: String = (0..5)
        .map(|line| request(&format!("id-{line}"), 0))
        .collect();
    let file = test
        .ingest(Purpose::Batch, lines.as_bytes(), &[8192])
        .await
        .unwrap();
    let suspects = [
        crate::intake::Suspect {
            line: 3,
            earlier: vec![1, 2],
        },
        // A line that is not there has no id, and is not the same as another such.
        crate::intake::Suspect {
            line: 99,
            earlier: vec![98, 1],
        },
    ];
    let mut found = crate::domain::findings::Findings::default();
    duplicates::confirm(&test.store, &file.id, &suspects, &mut found)
        .await
        .unwrap();
    assert_eq!(found, crate::domain::findings::Findings::default());
}

#[tokio::test]
async fn too_many_models_are_a_finding_about_the_file() {
    let test = TestStore::new().await;
    let lines: String = (0..=100).map(|n| request(&n.to_string(), n)).collect();
    let file = test
        .ingest(Purpose::Batch, lines.as_bytes(), &[8192])
        .await
        .unwrap();
    assert_eq!(
        findings(&test, &file).await,
        [(None, "too_many_models".to_owned())]
    );
}

#[tokio::test]
async fn a_batch_file_must_begin_with_json() {
    let test = TestStore::new().await;
    for (bytes, taken) in [
        (&b""[..], false),
        (b"not json\n{}\n", false),
        (b"\x89PNG\r\n", false),
        (b"\n\n{}\n", true),
        (b"{}\nnot json\n", true),
        (b"\n \n", true),
    ] {
        let mut ingest = test.begin_as(TENANT, Contents::Requests);
        let file_id = ingest.upload.file_id.clone();
        ingest.write(Bytes::copy_from_slice(bytes)).await.unwrap();
        let outcome = ingest.finish(test.finish(Purpose::Batch), None).await;
        if taken {
            assert_eq!(outcome.unwrap().id, file_id);
        } else {
            assert!(matches!(outcome, Err(Error::NotJsonl(_))), "{outcome:?}");
            is_removed(&test, &file_id).await;
        }
    }
}

#[tokio::test]
async fn what_is_given_up_is_removed_wherever_it_was() {
    let test = TestStore::new().await;
    for written in [0_usize, 1, 300_000, 6_000_000] {
        let mut ingest = test.begin_as(TENANT, Contents::Opaque);
        let file_id = ingest.upload.file_id.clone();
        for piece in noise(written, 3).chunks(50_000) {
            ingest.write(Bytes::copy_from_slice(piece)).await.unwrap();
        }
        drop(ingest);
        is_removed(&test, &file_id).await;
    }
}

#[tokio::test]
async fn a_finish_that_is_given_up_leaves_all_or_nothing() {
    let test = TestStore::new().await;
    let bytes = noise(700_000, 3);
    for polls in 0..40_u64 {
        let mut ingest = test.begin_as(TENANT, Contents::Opaque);
        let file_id = ingest.upload.file_id.clone();
        ingest.write(Bytes::from(bytes.clone())).await.unwrap();
        let finish = ingest.finish(test.finish(Purpose::UserData), None);
        let cut = tokio::time::timeout(Duration::from_micros(polls * polls * 20), finish);
        let _ = cut.await;
        // What was under way comes to its end first.
        let shown = async || test.store.file(TENANT, &file_id).await.unwrap();
        until(async || shown().await.is_some() || is_gone(&test, &file_id).await).await;
        if let Some(file) = shown().await {
            assert!(test.read_whole(&file).await == bytes, "{polls}");
        }
    }
}

#[tokio::test]
async fn a_swept_upload_cannot_be_finished() {
    let test = TestStore::new().await;
    let mut ingest = test.begin_as(TENANT, Contents::Opaque);
    let file_id = ingest.upload.file_id.clone();
    // Too much for one group. The second write waits for the first.
    let noise: Vec<u8> = (0..3 << 20).map(|_| rand::random()).collect();
    for bytes in [noise.clone(), noise] {
        ingest.write(Bytes::from(bytes)).await.unwrap();
    }
    assert_eq!(test.store.sweep_uploads(i64::MAX).await.unwrap(), 1);
    let outcome = ingest.finish(test.finish(Purpose::UserData), None).await;
    assert!(
        matches!(outcome, Err(Error::Store(store::Error::Stale(_)))),
        "{outcome:?}"
    );
    is_removed(&test, &file_id).await;
}

/// A file that is so many bytes into a line.
async fn within_a_line(test: &TestStore, tenant: &str, bytes: usize) -> Ingest {
    let mut ingest = test.begin_as(tenant, Contents::Requests);
    let long = Bytes::from(vec![b'x'; LONG_LINE_BYTES + 1]);
    ingest.write(long).await.unwrap();
    let more = Bytes::from(vec![b'x'; bytes - LONG_LINE_BYTES]);
    ingest.write(more).await.unwrap();
    ingest
}

#[tokio::test]
async fn long_lines_wait_for_room_and_short_ones_do_not() {
    let mut test = TestStore::new().await;
    // Room for one line that is as long as a line may be, and a little.
    test.budget = UploadBudget::of(2 * LIMITS.max_line_bytes + 2 * LONG_LINE_BYTES);
    let mut holder = within_a_line(&test, "one", LONG_LINE_BYTES * 2).await;
    assert!(holder.part.holds_some());

    let mut waiting = test.begin_as("one", Contents::Requests);
    waiting
        .write(Bytes::from(vec![b'x'; LONG_LINE_BYTES + 1]))
        .await
        .unwrap();
    let more = Bytes::from(vec![b'x'; BATCH_BYTES]);
    let mut next = Box::pin(waiting.write(more.clone()));
    let waited = tokio::time::timeout(Duration::from_millis(200), &mut next).await;
    assert!(waited.is_err(), "it waits");

    // Short lines go on meanwhile, in any number.
    let lines = request("a", 0).repeat(2 * LONG_LINE_BYTES / 80);
    let short = test.ingest(Purpose::Batch, lines.as_bytes(), &[BATCH_BYTES]);
    short.await.unwrap();

    // The end of a line makes room, although its client sends no more.
    let mut end = vec![b'x'; BATCH_BYTES];
    end[0] = b'\n';
    holder.write(Bytes::from(end)).await.unwrap();
    next.await.unwrap();
    until(async || !holder.part.holds_some()).await;
    assert!(waiting.part.holds_some());

    // So does a client that goes away.
    let mut another = test.begin_as("one", Contents::Requests);
    another
        .write(Bytes::from(vec![b'x'; LONG_LINE_BYTES + 1]))
        .await
        .unwrap();
    drop(waiting);
    another.write(more).await.unwrap();
    drop((another, holder));
    until(async || test.budget.held() == 0).await;
}

#[tokio::test]
async fn a_line_that_trickles_is_given_up_when_others_wait() {
    let mut test = TestStore::new().await;
    test.budget = UploadBudget::of(2 * LIMITS.max_line_bytes + 2 * LONG_LINE_BYTES);
    let mut holder = within_a_line(&test, "one", LONG_LINE_BYTES * 2).await;
    // What it holds it has for good: the work on it is done.
    let state = holder.idle().await.unwrap();
    holder.intake = Work::Idle(state);

    tokio::time::pause();
    // Nobody waits: it may take its time.
    for _ in 0..100 {
        let slow = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            Bytes::from_static(b"x")
        };
        let byte = holder.receive(slow).await.unwrap();
        holder.write(byte).await.unwrap();
    }
    let budget = Arc::clone(&test.budget);
    let part = budget.part("other", LIMITS.max_line_bytes);
    let waiting = tokio::spawn(async move { part.grow(LIMITS.max_line_bytes).await });
    let silence = tokio::time::sleep(Duration::from_secs(1000));
    let received = holder.receive(silence).await;
    assert!(matches!(received, Err(Error::TooSlow)), "{received:?}");
    tokio::time::resume();
    drop(holder);
    waiting.await.unwrap();
}

#[tokio::test]
async fn who_sends_enough_keeps_its_room_and_so_does_who_sends_short_lines() {
    let mut test = TestStore::new().await;
    test.budget = UploadBudget::of(2 * LIMITS.max_line_bytes + 2 * LONG_LINE_BYTES);
    let mut holder = within_a_line(&test, "one", LONG_LINE_BYTES * 2).await;
    let mut short = test.begin_as("one", Contents::Requests);
    let state = holder.idle().await.unwrap();
    holder.intake = Work::Idle(state);
    let part = test.budget.part("other", LIMITS.max_line_bytes);
    let waiting = tokio::spawn(async move { part.grow(LIMITS.max_line_bytes).await });

    tokio::time::pause();
    for _ in 0..100 {
        let next = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            100 << 10
        };
        // What is written does not matter here, but that it came.
        let bytes = holder.receive(next).await.unwrap();
        holder.pace.received(bytes);
        let slow = tokio::time::sleep(Duration::from_secs(1));
        short.receive(slow).await.unwrap();
    }
    tokio::time::resume();
    assert!(!waiting.is_finished());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn what_is_written_is_read(
        lines in proptest::collection::vec((0_usize..200, 1_usize..400), 1..300),
        long in proptest::option::of(0_usize..4_000_000),
        pieces in proptest::collection::vec(1_usize..400_000, 1..5),
        batch in any::<bool>(),
    ) {
        let mut bytes = b"{}\n".to_vec();
        for (number, (spaces, length)) in lines.iter().enumerate() {
            bytes.extend(std::iter::repeat_n(b' ', *spaces));
            bytes.extend(noise(*length, number as u64));
            bytes.push(b'\n');
        }
        bytes.extend(noise(long.unwrap_or_default(), 5));
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let test = TestStore::new().await;
            let purpose = if batch { Purpose::Batch } else { Purpose::FineTune };
            let file = test.ingest(purpose, &bytes, &pieces).await.unwrap();
            assert_eq!(file.bytes, bytes.len() as i64);
            assert!(test.read_whole(&file).await == bytes);
        });
    }
}
