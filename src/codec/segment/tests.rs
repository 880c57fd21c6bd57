use std::collections::BTreeMap;

use proptest::prelude::*;

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
        // Lines of one flush cost what they always did, and are read by each version.
        let table = Table::decode(&segment.entries).unwrap();
        prop_assert_eq!(segment.entries, first_table(&lines, &table.frames));
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
        start in proptest::sample::select(vec![vec![], vec![0, 2], vec![0, 2, 1], vec![1]]),
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
    assert!(Table::decode(&[0, 3, 0]).is_err());
}
