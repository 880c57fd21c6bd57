use std::collections::BTreeMap;

use proptest::prelude::*;
use sha2::{Digest as _, Sha256};

use super::*;

/// The table that each version of the program has written for lines of one flush.
fn first_table(lines: &[Line], frames: &[Frame]) -> Vec<u8> {
    let mut table = Vec::new();
    put(&mut table, frames.len() as u64);
    for frame in frames {
        put(&mut table, frame.size as u64);
        put(&mut table, frame.compressed as u64);
    }
    let mut before = 0;
    for line in lines {
        put(&mut table, u64::from(line.line - before));
        let is_error = u64::from(line.kind == Kind::Error);
        put(&mut table, line.bytes.len() as u64 * 2 + is_error);
        before = line.line;
    }
    table
}

/// Each line with its place, its kind, its age and its bytes.
fn read(segment: &Encoded) -> Vec<(u32, Kind, u32, Vec<u8>)> {
    let table = Table::decode(&segment.entries).unwrap();
    let frames = (0..table.frames.len()).map(|frame| table.frame(&segment.data, frame));
    let frames: Vec<Vec<u8>> = frames.collect::<io::Result<_>>().unwrap();
    let line = |entry: &Entry| {
        let bytes = &frames[entry.frame][entry.offset..entry.offset + entry.len];
        (entry.line, entry.kind, entry.age, bytes.to_vec())
    };
    table.entries.iter().map(line).collect()
}

fn line(number: u32, is_error: bool, len: usize) -> Line {
    let kind = if is_error { Kind::Error } else { Kind::Output };
    Line {
        line: number,
        kind,
        bytes: vec![number as u8; len],
    }
}

proptest! {
    #[test]
    fn what_is_encoded_is_read_again(
        sizes in proptest::collection::vec((1_u32..40, any::<bool>(), 1_usize..400_000), 0..20),
    ) {
        let mut number = 0;
        let lines: Vec<Line> = sizes.iter().map(|&(step, is_error, len)| {
            number += step;
            line(number, is_error, len)
        }).collect();
        let segment = encode(&lines).unwrap();
        let expected: Vec<_> = lines.iter()
            .map(|line| (line.line, line.kind, 0, line.bytes.clone()))
            .collect();
        prop_assert_eq!(read(&segment), expected);
        // Many lines of one flush cost what they always did, and are read by each version.
        let table = Table::decode(&segment.entries).unwrap();
        if table.size() > DICTIONARY_RAW_MAX {
            prop_assert_eq!(segment.entries, first_table(&lines, &table.frames));
        }
    }

    #[test]
    fn merged_lines_stand_in_order_and_keep_the_number_of_their_flush(
        written in proptest::collection::btree_map(
            0_u32..600, (1_u32..9, any::<bool>(), 1_usize..2_000), 1..60),
    ) {
        let mut flushes: BTreeMap<u32, Vec<Line>> = BTreeMap::new();
        for (&number, &(flush, is_error, len)) in &written {
            flushes.entry(flush).or_default().push(line(number, is_error, len));
        }
        // A flush without a line of the unit is none of the unit's flushes.
        let mut segment: Option<Encoded> = None;
        let mut last = 0;
        let mut numbers = BTreeMap::new();
        for (&flush, lines) in &flushes {
            last += 1;
            numbers.insert(flush, last);
            segment = Some(match &segment {
                None => encode(lines).unwrap(),
                Some(earlier) => merge(&earlier.decode().unwrap(), lines).unwrap(),
            });
        }
        let segment = segment.unwrap();
        let expected: Vec<_> = written.iter().map(|(&number, &(flush, is_error, len))| {
            let line = line(number, is_error, len);
            (number, line.kind, last - numbers[&flush], line.bytes)
        }).collect();
        prop_assert_eq!(read(&segment), expected);
        let raw: usize = written.values().map(|&(_, _, len)| len).sum();
        prop_assert_eq!(segment.decode().unwrap().size(), raw);
    }

    #[test]
    fn damaged_segments_are_errors_not_panics(
        start in proptest::sample::select(
            vec![vec![], vec![0, 2], vec![0, 2, 1], vec![0, 3, 1], vec![1]],
        ),
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let entries = [start, bytes.clone()].concat();
        if let Ok(table) = Table::decode(&entries) {
            prop_assume!(table.size() < 1 << 24);
        }
        let _ = Encoded { entries, data: bytes }.decode();
    }
}

#[test]
fn a_table_of_a_later_version_is_refused() {
    assert!(Table::decode(&[0, 2, 0]).is_ok());
    assert!(Table::decode(&[0, 3, 0]).is_ok());
    assert!(Table::decode(&[0, 4, 0]).is_err());
}

#[test]
fn segments_of_earlier_versions_are_read() {
    let lines = [line(3, false, 500), line(5, true, 40)];
    let raw = [&*lines[0].bytes, &lines[1].bytes].concat();
    let data = crate::codec::compress(&raw, LEVEL).unwrap();
    let frame = Frame {
        size: raw.len(),
        start: 0,
        compressed: data.len(),
    };
    let first = first_table(&lines, &[frame]);
    let mut second = vec![0, 2];
    put(&mut second, 1);
    put(&mut second, raw.len() as u64);
    put(&mut second, data.len() as u64);
    second.extend([3, 0xe8, 0x07, 4, 2, 81, 0]);
    for (entries, age) in [(first, 0), (second, 4)] {
        let data = data.clone();
        let [one, other] = &read(&Encoded { entries, data })[..] else {
            panic!("two lines");
        };
        assert_eq!(*one, (3, Kind::Output, age, lines[0].bytes.clone()));
        assert_eq!(*other, (5, Kind::Error, 0, lines[1].bytes.clone()));
    }
}

#[test]
fn few_answers_are_as_small_as_many() {
    let answer = |number: u32| {
        let content = format!("{:x}", u64::from(number) * 0x9e37_79b9_7f4a_7c15);
        let line = [
            format!(r#"{{"id":"batch_req_{number:032x}","custom_id":"request-{number}","#),
            format!(r#""response":{{"status_code":200,"request_id":"req_{number}","body":{{"#),
            format!(r#""id":"chatcmpl-{number}","object":"chat.completion","created":17{number},"#),
            r#""model":"small","choices":[{"index":0,"message":{"role":"assistant","#.to_owned(),
            format!(r#""content":"{content}"}},"logprobs":null,"finish_reason":"stop"}}],"#),
            format!(r#""usage":{{"prompt_tokens":{number},"completion_tokens":9,"#),
            format!(r#""total_tokens":{number}}}}}}},"error":null}}"#),
        ]
        .concat();
        let bytes = line.into_bytes();
        let kind = Kind::Output;
        Line {
            line: number,
            kind,
            bytes,
        }
    };
    let one = encode(&[answer(1)]).unwrap();
    let raw = crate::codec::compress(&answer(1).bytes, LEVEL).unwrap();
    assert!(
        one.data.len() * 2 < raw.len(),
        "{} {}",
        one.data.len(),
        raw.len()
    );
}

#[test]
fn the_dictionary_is_part_of_the_format() {
    // Segments that are stored need the dictionary they were written with. Another one is another
    // version of the table.
    let hash = hex::encode(Sha256::digest(DICTIONARY.bytes));
    assert_eq!(
        hash,
        "edd32b02acde05afcce310c66621f6a9d9c5729b6cc5946fc496830e122fa6d5"
    );
}
