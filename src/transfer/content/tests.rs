use proptest::prelude::*;

use futures::StreamExt;

use super::*;
use crate::domain::file::Purpose;
use crate::store::Error;
use crate::transfer::testing::{Answer, TestStore, merged, noise};

/// Ranges around every multiple of `step`, from the beginning to the end.
fn ranges(size: u64, step: u64) -> Vec<Range<u64>> {
    let edges: Vec<u64> = (0..=size / step)
        .flat_map(|n| [(n * step).saturating_sub(1), n * step, n * step + 1])
        .chain([size - 1, size])
        .filter(|&edge| edge <= size)
        .collect();
    edges
        .iter()
        .flat_map(|&from| [from, from + 1, from + step, size].map(|to| from..to.clamp(from, size)))
        .collect()
}

#[tokio::test]
async fn any_part_of_an_uploaded_file_is_read() {
    let test = TestStore::new().await;
    let bytes = noise(3_500_000, 7);
    let file = test
        .ingest(Purpose::UserData, &bytes, &[70_000, 1, 5])
        .await
        .unwrap();
    assert_eq!(file.bytes, 3_500_000);
    for range in ranges(3_500_000, 1 << 20) {
        let part = test.read(&file, range.clone()).await;
        let expected = &bytes[range.start as usize..range.end as usize];
        assert!(part == expected, "{range:?}");
    }
}

#[tokio::test]
async fn a_file_without_bytes_has_none_to_read() {
    let test = TestStore::new().await;
    let file = test.ingest(Purpose::UserData, b"", &[1]).await.unwrap();
    assert_eq!(test.read_whole(&file).await, b"");
}

#[tokio::test]
async fn content_that_is_gone_is_an_error_and_not_an_end() {
    let test = TestStore::new().await;
    let file = test
        .ingest(Purpose::UserData, &noise(9_000_000, 1), &[9999])
        .await
        .unwrap();
    let mut blocks = Box::pin(content(&test.store, &file, 0..9_000_000));
    let mut read = blocks.next().await.unwrap().unwrap().len();
    test.store
        .delete_file(&file.tenant, &file.id)
        .await
        .unwrap();
    let purged = test.store.purge(i64::MAX).await.unwrap();
    assert_eq!(purged.removed, 1);
    // Some of it was read ahead.
    while let Ok(block) = blocks.next().await.expect("no end before the file's") {
        read += block.len();
    }
    assert!(read < 5_000_000, "{read} bytes of a file that is gone");
}

#[tokio::test]
async fn lines_of_megabytes_are_merged_in_bounded_memory() {
    let test = TestStore::new().await;
    let answers: Vec<Answer> = (0..36)
        .map(|line| {
            let mut bytes = noise(700_000, line);
            bytes.push(b'\n');
            Answer {
                model: (line % 3) as u8,
                flush: (line % 7) as u8,
                kind: if line % 5 == 0 {
                    Kind::Error
                } else {
                    Kind::Output
                },
                bytes,
            }
        })
        .collect();
    let files = test.run_batch(&answers).await;
    for (file, kind) in files.into_iter().zip([Kind::Output, Kind::Error]) {
        let (file, expected) = (file.unwrap(), merged(&answers, kind));
        assert!(test.read_whole(&file).await == expected, "{kind:?}");
        let middle = expected.len() / 2;
        let part = test
            .read(&file, middle as u64..middle as u64 + 900_000)
            .await;
        assert!(part == expected[middle..middle + 900_000], "{kind:?}");
    }
}

#[tokio::test]
async fn lines_of_many_flushes_are_merged_though_few_of_their_frames_are_kept() {
    let test = TestStore::new().await;
    let answers: Vec<Answer> = (0..400_u64)
        .map(|line| {
            let mut bytes = noise(30_000, line);
            bytes.push(b'\n');
            Answer {
                model: 0,
                flush: (line * 7 % 11) as u8,
                kind: Kind::Output,
                bytes,
            }
        })
        .collect();
    let [file, _] = test.run_batch(&answers).await;
    let (file, expected) = (file.unwrap(), merged(&answers, Kind::Output));
    assert!(test.read_whole(&file).await == expected);
}

#[tokio::test]
async fn a_block_that_waits_for_a_slow_client_holds_little_more_than_itself() {
    let test = TestStore::new().await;
    let answers: Vec<Answer> = (0..100_u64)
        .map(|line| {
            let (kind, size) = match line {
                50 => (Kind::Error, 100),
                _ => (Kind::Output, 5_000),
            };
            let mut bytes = noise(size, line);
            bytes.push(b'\n');
            Answer {
                model: 0,
                flush: 0,
                kind,
                bytes,
            }
        })
        .collect();
    let [_, file] = test.run_batch(&answers).await;
    let file = file.unwrap();
    let mut blocks = Box::pin(content(&test.store, &file, 0..file.bytes as u64));
    let block = blocks.next().await.unwrap().unwrap();
    assert!(blocks.next().await.is_none());
    // The whole of the memory behind it: it is the only one that holds it now.
    let behind = block.try_into_mut().unwrap().capacity();
    assert!(behind <= 202, "{behind} bytes for a line of 101");
}

#[tokio::test]
async fn a_damaged_chunk_costs_neither_those_before_it_nor_the_other_file() {
    let mut test = TestStore::new().await;
    // Chunks have 512 lines: those of the second have errors, the others answers.
    let answers: Vec<Answer> = (0..3 * 512)
        .map(|line| Answer {
            model: 0,
            flush: 0,
            kind: if line / 512 == 1 {
                Kind::Error
            } else {
                Kind::Output
            },
            bytes: format!("{line}\n").into_bytes(),
        })
        .collect();
    test.damaged_chunk = Some(1);
    let [output, errors] = test.run_batch(&answers).await.map(Option::unwrap);
    assert!(test.read_whole(&output).await == merged(&answers, Kind::Output));
    assert_eq!(read_to_damage(&test, &errors).await, b"");

    let mut test = TestStore::new().await;
    test.damaged_chunk = Some(2);
    let [output, errors] = test.run_batch(&answers).await.map(Option::unwrap);
    let before = merged(&answers[..512], Kind::Output);
    assert!(read_to_damage(&test, &output).await == before);
    assert!(test.read_whole(&errors).await == merged(&answers, Kind::Error));
}

/// What is read of a file until an error comes.
async fn read_to_damage(test: &TestStore, file: &StoredFile) -> Vec<u8> {
    let mut blocks = Box::pin(content(&test.store, file, 0..file.bytes as u64));
    let mut read = Vec::new();
    loop {
        match blocks.next().await.expect("no end before the file's") {
            Ok(block) => read.extend_from_slice(&block),
            Err(error) => {
                assert!(matches!(error, Error::Corrupt { .. }), "{error}");
                return read;
            }
        }
    }
}

fn answer() -> impl Strategy<Value = Answer> {
    let length = prop_oneof![8 => 0_usize..300, 1 => 0_usize..3000];
    (0_u8..4, 0_u8..5, 0_u8..4, length, any::<u64>()).prop_map(
        |(model, flush, kind, length, seed)| {
            let mut bytes = noise(length, seed);
            bytes.push(b'\n');
            let kind = if kind == 0 { Kind::Error } else { Kind::Output };
            Answer {
                model,
                flush,
                kind,
                bytes,
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn the_files_of_a_batch_are_its_lines_in_order(
        answers in prop_oneof![
            proptest::collection::vec(answer(), 1..40),
            proptest::collection::vec(answer(), 500..1300),
        ],
        cuts in proptest::collection::vec(any::<(u32, u32)>(), 12),
    ) {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let test = TestStore::new().await;
            let files = test.run_batch(&answers).await;
            for (file, kind) in files.into_iter().zip([Kind::Output, Kind::Error]) {
                let expected = merged(&answers, kind);
                let Some(file) = file else {
                    assert!(expected.is_empty());
                    continue;
                };
                assert_eq!(file.bytes, expected.len() as i64);
                assert_eq!(test.read_whole(&file).await, expected);
                for (from, length) in &cuts {
                    let from = *from as usize % expected.len();
                    let to = (from + *length as usize % 5000).min(expected.len());
                    let part = test.read(&file, from as u64..to as u64).await;
                    assert_eq!(part, &expected[from..to], "{from}..{to}");
                }
            }
        });
    }
}
