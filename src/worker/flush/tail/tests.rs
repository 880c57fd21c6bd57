use super::*;
use crate::codec::segment::Table;
use crate::domain::file::Kind;

/// A line of so many bytes that do not compress.
fn line(number: u32, len: usize) -> Line {
    let mut state = u64::from(number) + 1;
    let noise = std::iter::repeat_with(|| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 56) as u8
    });
    Line {
        line: number,
        kind: Kind::Output,
        bytes: noise.take(len).collect(),
    }
}

fn put(tail: Option<Encoded>, lines: &[Line], is_last: bool) -> Settled {
    let lines: Vec<&Line> = lines.iter().collect();
    settle(tail, &lines, is_last).unwrap()
}

/// The lines of a segment or a tail, each with its age.
fn ages(encoded: Option<&Encoded>) -> Vec<(u32, u32)> {
    let table = encoded.map(|encoded| Table::decode(&encoded.entries).unwrap());
    let entries = table.map_or(Vec::new(), |table| table.entries);
    entries
        .iter()
        .map(|entry| (entry.line, entry.age))
        .collect()
}

#[test]
fn few_lines_are_a_tail_until_they_are_worth_a_segment() {
    let first = put(None, &[line(7, 1_000)], false);
    assert_eq!(ages(first.tail.as_ref()), [(7, 0)]);
    assert_eq!(first.segment, None);
    let second = put(first.tail, &[line(2, 1_000)], false);
    assert_eq!(ages(second.tail.as_ref()), [(2, 0), (7, 1)]);
    assert_eq!(second.segment, None);
    let third = put(second.tail, &[line(3, 2_000)], false);
    assert_eq!((third.tail, third.closed_tail), (None, None));
    let expected = [(2, 1), (3, 0), (7, 2)];
    assert_eq!(ages(third.segment.as_ref()), expected);
}

#[test]
fn a_full_tail_is_a_segment_as_it_is() {
    for is_last in [false, true] {
        let full = put(None, &[line(7, 2_500), line(9, 1_000)], false).tail;
        let next = put(full.clone(), &[line(3, 1_000)], is_last);
        assert_eq!(next.closed_tail, full);
        let (rest, none) = if is_last {
            (next.segment, next.tail)
        } else {
            (next.tail, next.segment)
        };
        assert_eq!((ages(rest.as_ref()), none), (vec![(3, 0)], None));
    }
}

#[test]
fn many_lines_are_a_segment_at_once() {
    let lines: Vec<Line> = (0..40).map(|number| line(number, 100)).collect();
    let settled = put(None, &lines, false);
    assert_eq!(
        (settled.tail, ages(settled.segment.as_ref()).len()),
        (None, 40)
    );
}

#[test]
fn a_unit_at_its_end_has_no_tail() {
    let first = put(None, &[line(0, 10)], false);
    let last = put(first.tail, &[line(1, 10)], true);
    assert_eq!(last.tail, None);
    assert_eq!(ages(last.segment.as_ref()), [(0, 1), (1, 0)]);
}

#[test]
fn a_tail_stays_small_when_it_is_decompressed() {
    let zeros = |number| Line {
        bytes: vec![0; 40_000],
        ..line(number, 0)
    };
    let first = put(None, &[zeros(0)], false);
    assert_eq!(ages(first.tail.as_ref()), [(0, 0)]);
    let second = put(first.tail, &[zeros(1)], false);
    assert_eq!(
        (second.tail, ages(second.segment.as_ref()).len()),
        (None, 2)
    );
}

#[test]
fn a_tail_that_is_damaged_is_closed_and_the_new_lines_stand_by_themselves() {
    let tail = put(None, &[line(0, 10)], false).tail.unwrap();
    for damaged in [
        Encoded {
            data: vec![1, 2, 3],
            ..tail.clone()
        },
        Encoded {
            entries: vec![1, 2, 3],
            ..tail.clone()
        },
    ] {
        let settled = put(Some(damaged.clone()), &[line(1, 10)], false);
        assert_eq!(settled.closed_tail, Some(damaged));
        assert_eq!(ages(settled.tail.as_ref()), [(1, 0)]);
    }
}
