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

/// What a batch of embeddings would be told of the file.
async fn findings(test: &TestStore, file: &StoredFile) -> Vec<(Option<u64>, String)> {
    let batch = NewBatch {
        id: id::batch(),
        tenant: TENANT.to_owned(),
        endpoint: "/v1/embeddings".to_owned(),
        input_file_id: file.id.clone(),
        completion_window: "24h".to_owned(),
        output_expires_seconds: 3600,
        metadata: None,
        created_at: test.clock.now_ms(),
        expires_at: None,
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
        let check = true;
        let mut ingest = Ingest::begin(&test.store, TENANT, LIMITS, check)
            .await
            .unwrap();
        let file_id = ingest.upload.file_id.clone();
        ingest.write(Bytes::copy_from_slice(bytes)).await.unwrap();
        let outcome = ingest.finish(test.finish(Purpose::Batch), None).await;
        if taken {
            assert_eq!(outcome.unwrap().id, file_id);
        } else {
            assert!(matches!(outcome, Err(Error::NotJsonl)), "{outcome:?}");
            is_removed(&test, &file_id).await;
        }
    }
}

#[tokio::test]
async fn what_is_given_up_is_removed_wherever_it_was() {
    let test = TestStore::new().await;
    for written in [0_usize, 1, 300_000, 6_000_000] {
        let mut ingest = Ingest::begin(&test.store, TENANT, LIMITS, false)
            .await
            .unwrap();
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
        let mut ingest = Ingest::begin(&test.store, TENANT, LIMITS, false)
            .await
            .unwrap();
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
    let mut ingest = Ingest::begin(&test.store, TENANT, LIMITS, false)
        .await
        .unwrap();
    let file_id = ingest.upload.file_id.clone();
    ingest.write(Bytes::from_static(b"bytes")).await.unwrap();
    assert_eq!(test.store.sweep_uploads(i64::MAX).await.unwrap(), 1);
    let outcome = ingest.finish(test.finish(Purpose::UserData), None).await;
    assert!(
        matches!(outcome, Err(Error::Store(store::Error::Stale(_)))),
        "{outcome:?}"
    );
    is_removed(&test, &file_id).await;
}

#[tokio::test]
async fn few_files_hold_a_long_line_at_once_and_the_others_wait() {
    let test = TestStore::new().await;
    let long = Bytes::from(vec![b'x'; LONG_LINE_BYTES + 1]);
    let more = Bytes::from(vec![b'x'; BATCH_BYTES]);
    let mut holders = Vec::new();
    for _ in 0..LONG_LINES_MAX {
        let mut ingest = test.begin().await;
        ingest.write(long.clone()).await.unwrap();
        ingest.write(more.clone()).await.unwrap();
        assert!(ingest.long_line.is_some());
        holders.push(ingest);
    }

    let mut waiting = test.begin().await;
    waiting.write(long.clone()).await.unwrap();
    let mut next = Box::pin(waiting.write(more.clone()));
    let waited = tokio::time::timeout(Duration::from_millis(200), &mut next).await;
    assert!(waited.is_err(), "it waits");

    // Short lines go on meanwhile, in any number.
    let lines = request("a", 0).repeat(2 * LONG_LINE_BYTES / 80);
    let short = test.ingest(Purpose::Batch, lines.as_bytes(), &[BATCH_BYTES]);
    short.await.unwrap();

    // The end of a line makes room, and so does a client that goes away.
    let mut ended = holders.remove(0);
    ended.write(Bytes::from_static(b"\n")).await.unwrap();
    ended.write(more.clone()).await.unwrap();
    ended.write(more.clone()).await.unwrap();
    next.await.unwrap();
    assert!(ended.long_line.is_none());
    let mut another = test.begin().await;
    another.write(long).await.unwrap();
    drop(holders);
    another.write(more).await.unwrap();
    assert!(another.long_line.is_some());
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
