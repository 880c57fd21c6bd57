use super::*;
use crate::codec::segment::Table;
use crate::domain::batch::EndReason;
use crate::worker::testing;

/// All lines of a unit with their outcomes.
fn finished() -> Vec<FinishedLine> {
    let (unit, lines) = testing::unit(3, 0, None);
    let end = |line| result::ended(&unit, line, EndReason::Expired, Bill::default());
    lines.iter().map(end).collect()
}

fn text(group: &Group) -> String {
    let segment = group.flush.segment.as_ref();
    let segment = segment.expect("the unit is at its end");
    let table = Table::decode(&segment.entries).unwrap();
    String::from_utf8(table.frame(&segment.data, 0).unwrap()).unwrap()
}

#[test]
fn a_unit_that_makes_the_code_panic_ends_with_an_error_for_each_line() {
    let group = lay_out(finished(), |lines| {
        let fails = lines.iter().any(|line| line.counts.expired > 0);
        assert!(!fails, "on purpose");
        into_group(lines)
    });
    let group = group.expect("errors are laid out");
    assert!(group.flush.finished);
    assert_eq!((group.lines, group.flush.done.count()), (3, 3));
    assert_eq!(group.flush.counts.failed, 3);
    let lines = text(&group);
    for (number, line) in lines.lines().enumerate() {
        assert!(line.contains(&format!("\"id-{number}\"")), "{line}");
        assert!(line.contains("This is a fault of the server."), "{line}");
    }
    assert_eq!(lines.lines().count(), 3);
}

#[test]
fn a_unit_of_which_nothing_can_be_laid_out_is_revoked() {
    assert!(lay_out(finished(), |_| panic!("on purpose")).is_none());
    let error = || io::Error::other("on purpose");
    assert!(lay_out(finished(), |_| Err(error())).is_none());
}

#[test]
fn for_want_of_memory_no_answer_becomes_an_error() {
    let answers = |lines: &[FinishedLine]| lines.iter().any(|line| line.counts.expired > 0);
    let group = lay_out(finished(), |lines| {
        if answers(&lines) {
            Err(io::ErrorKind::OutOfMemory.into())
        } else {
            into_group(lines)
        }
    });
    assert!(group.is_none(), "it is revoked, and its lines run again");
}

#[test]
fn a_units_tail_counts_with_its_new_lines() {
    let lines = finished();
    let new: usize = lines.iter().map(|line| line.line.bytes.len()).sum();
    assert_eq!(raw_size(&lines), new);
    // Compressed, it has few bytes.
    let line = Line {
        line: 7,
        kind: Kind::Output,
        bytes: vec![b'a'; 60_000],
    };
    let tail = crate::codec::segment::encode(&[line]).unwrap();
    assert!(tail.size() < 1_000);
    lines[0].unit.durable().tail = Some(tail);
    assert_eq!(raw_size(&lines), new + 60_000);
}

#[test]
fn what_can_be_laid_out_stays_as_it_is() {
    let group = lay_out(finished(), into_group).expect("lays out");
    assert_eq!(text(&group).matches("batch_expired").count(), 3);
}
