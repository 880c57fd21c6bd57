use proptest::prelude::*;

use super::nouns::PIECE_BYTES;
use super::*;
use crate::domain::endpoint::Endpoints;

const LIMITS: Limits = Limits {
    max_line_bytes: 16 * PIECE_BYTES,
    max_models: 100,
    endpoints: Endpoints::USUAL,
};

/// Takes in a file that is pushed in pieces of the given lengths, over and over.
fn take_in(
    file: &[u8],
    lengths: &[usize],
    limits: Limits,
    contents: Contents,
) -> (Vec<Piece>, Report) {
    let mut intake = Intake::new(limits, contents);
    let mut chunks = Vec::new();
    let mut rest = file;
    for &length in lengths.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (piece, behind) = rest.split_at(length.clamp(1, rest.len()));
        intake.push(piece, &mut chunks).expect("pushed");
        rest = behind;
    }
    let report = intake.finish(&mut chunks).expect("finished");
    (chunks, report)
}

fn raw(chunk: &Piece) -> Vec<u8> {
    let raw = zstd::bulk::decompress(&chunk.data, PIECE_BYTES).expect("zstd");
    assert_eq!(raw.len(), chunk.bytes as usize);
    raw
}

fn joined(chunks: &[Piece]) -> Vec<u8> {
    chunks.iter().flat_map(raw).collect()
}

fn request(custom_id: &str, model: &str) -> String {
    format!(
        r#"{{"custom_id":"{custom_id}","method":"POST","url":"/v1/responses","body":{{"model":"{model}"}}}}"#
    )
}

/// What holds for the chunks of every file.
fn assert_whole(file: &[u8], chunks: &[Piece], report: &Report) {
    assert!(
        joined(chunks) == file,
        "joined again they are the same bytes"
    );
    assert_eq!(report.bytes, file.len() as u64);
    let mut offset = 0;
    let mut whole = Vec::new();
    for chunk in chunks {
        assert_eq!(chunk.offset, offset);
        offset += u64::from(chunk.bytes);
        assert!(chunk.bytes > 0);
        match (chunk.piece_no, whole.pop()) {
            (0, last) => {
                whole.extend(last);
                assert_eq!(chunk.chunk_no, whole.len() as i64);
                whole.push((chunk.clone(), u64::from(chunk.bytes)));
            }
            (piece, Some((first, bytes))) => {
                let first: Piece = first;
                assert_eq!(
                    (chunk.chunk_no, chunk.first_line),
                    (first.chunk_no, first.first_line)
                );
                assert_eq!((chunk.lines, chunk.chunk_bytes), (0, 0));
                assert!(chunk.requests.is_empty());
                assert_eq!(
                    bytes,
                    piece as u64 * PIECE_BYTES as u64,
                    "the pieces before are full"
                );
                whole.push((first, bytes + u64::from(chunk.bytes)));
            }
            (_, None) => panic!("the first piece of a chunk is missing"),
        }
    }
    for (chunk, bytes) in whole {
        assert_eq!(chunk.chunk_bytes, bytes);
    }
    assert_eq!(
        chunks.iter().map(|c| u64::from(c.lines)).sum::<u64>(),
        report.lines
    );
}

/// What holds, too, for a checked file without a line that is too long: chunks are whole lines.
fn assert_lines(file: &[u8], chunks: &[Piece], report: &Report) {
    let mut lines = file.split_inclusive(|&byte| byte == b'\n');
    let mut next_line = 1;
    for chunk in chunks.iter().filter(|chunk| chunk.piece_no == 0) {
        assert_eq!(chunk.first_line, next_line);
        assert!((1..=65_536).contains(&chunk.lines));
        assert!(chunk.lines == 1 || chunk.chunk_bytes <= PIECE_BYTES as u64);
        let mut filled = 0;
        let bytes: usize = lines
            .by_ref()
            .take(chunk.lines as usize)
            .map(|line| {
                filled += u32::from(!line.trim_ascii().is_empty());
                line.len()
            })
            .sum();
        assert!(filled <= 512);
        assert_eq!(chunk.chunk_bytes, bytes as u64);
        next_line += u64::from(chunk.lines);
    }
    assert_eq!(lines.next(), None);
    let lines = file.split_inclusive(|&byte| byte == b'\n');
    let filled = lines.filter(|line| !line.trim_ascii().is_empty());
    assert_eq!(report.requests, filled.count() as u64);
    for (no, model) in report.models.iter().enumerate() {
        let requests = chunks.iter().flat_map(|chunk| &chunk.requests);
        let of_model = requests.filter(|(model_no, _)| usize::from(*model_no) == no);
        assert_eq!(
            of_model.map(|(_, count)| u64::from(*count)).sum::<u64>(),
            model.requests
        );
    }
}

#[test]
fn an_empty_file_has_no_chunks() {
    for contents in [Contents::Requests, Contents::Opaque] {
        let (chunks, report) = take_in(b"", &[1], LIMITS, contents);
        assert_eq!(chunks, []);
        assert_eq!((report.bytes, report.lines, report.requests), (0, 0, 0));
        assert_eq!(report.not_jsonl, None);
    }
}

#[test]
fn models_and_lines_are_counted() {
    let file = [
        "",
        &request("a", "small"),
        " \r",
        &request("b", "large"),
        &request("c", "small"),
        &request("a", "small").replace(r#""model":"small""#, ""),
        "oops",
        &request("b", "small"),
    ]
    .join("\n");
    let (chunks, report) = take_in(file.as_bytes(), &[5], LIMITS, Contents::Requests);
    assert_whole(file.as_bytes(), &chunks, &report);
    assert_lines(file.as_bytes(), &chunks, &report);
    assert_eq!((report.lines, report.requests), (8, 6));
    assert_eq!(report.not_jsonl, None);
    let models = report.models.iter();
    let models: Vec<_> = models
        .map(|model| {
            (
                model.name.as_str(),
                model.requests,
                model.first_lines.as_slice(),
            )
        })
        .collect();
    let expected = [
        ("small", 3, &[2, 5, 8][..]),
        ("large", 1, &[4]),
        ("", 1, &[6]),
    ];
    assert_eq!(models, expected);
    assert_eq!(chunks[0].requests, [(0, 3), (1, 1), (2, 1)]);
    let findings = report.findings.for_endpoint("/v1/responses");
    let findings: Vec<_> = findings.iter().map(|f| (f.line, f.code.as_str())).collect();
    let expected = [
        (Some(6), "missing_required_parameter"),
        (Some(7), "invalid_json_line"),
    ];
    assert_eq!(findings, expected);
    let suspect = |line, earlier| Suspect {
        line,
        earlier: vec![earlier],
    };
    assert_eq!(report.suspects, [suspect(6, 2), suspect(8, 4)]);
}

#[test]
fn the_first_line_tells_whether_the_file_is_json() {
    for (file, is_json) in [
        ("{}", true),
        ("\n \n[1]\noops", true),
        ("\u{feff}{}\n", true),
        ("oops\n{}", false),
        ("\u{feff}oops", false),
        ("\u{feff}\n{}", false),
        ("{\"a\":\n1}", false),
        ("\n \r\n", true),
        ("{}\noops", true),
        ("  this line is longer than it may be, whatever it is", true),
    ] {
        let limits = Limits {
            max_line_bytes: 20,
            ..LIMITS
        };
        let (_, report) = take_in(file.as_bytes(), &[7], limits, Contents::Requests);
        assert_eq!(report.not_jsonl.is_none(), is_json, "{file:?}");
    }
}

#[test]
fn a_chunk_that_begins_within_a_line_that_is_too_long_ends_with_it() {
    let limits = Limits {
        max_line_bytes: 20,
        ..LIMITS
    };
    for length in [21, 100, PIECE_BYTES, 2 * PIECE_BYTES + 7] {
        let file = format!("{{}}\n{}\n{{}}\n", "x".repeat(length));
        let (chunks, report) = take_in(file.as_bytes(), &[usize::MAX], limits, Contents::Requests);
        assert_whole(file.as_bytes(), &chunks, &report);
        let last = chunks.last().expect("a chunk");
        let last = (last.first_line, last.lines, last.chunk_bytes);
        if length < PIECE_BYTES {
            assert_eq!(last, (1, 3, file.len() as u64), "all lines share a chunk");
        } else {
            assert_eq!(last, (3, 1, 3));
        }
    }
}

#[test]
fn many_lines_that_are_too_long_are_few_chunks() {
    let limits = Limits {
        max_line_bytes: 1024,
        ..LIMITS
    };
    let file = format!("{}\n", "x".repeat(1100)).repeat(10_000);
    let (chunks, report) = take_in(file.as_bytes(), &[usize::MAX], limits, Contents::Requests);
    assert_whole(file.as_bytes(), &chunks, &report);
    assert_eq!((report.lines, report.requests), (10_000, 10_000));
    // One for each 256 KiB, and at most one more for the end of a line that such a chunk cut.
    let most = 2 * (file.len() / (256 * 1024) + 1);
    assert!(chunks.len() <= most, "{} chunks", chunks.len());
}

#[test]
fn a_chunk_ends_with_the_line_that_fills_it() {
    for (line, count, expected) in [
        ("{}\n", 1100, [512, 512, 76]),
        // What is blank counts for little.
        ("\n{}\n\r\n", 1100, [1535, 1536, 229]),
        ("\n", 2 * 65_536 + 7, [65_536, 65_536, 7]),
    ] {
        let file = line.repeat(count);
        let (chunks, report) = take_in(file.as_bytes(), &[100], LIMITS, Contents::Requests);
        assert_lines(file.as_bytes(), &chunks, &report);
        let lines: Vec<_> = chunks.iter().map(|c| c.lines).collect();
        assert_eq!(lines, expected, "{line:?}");
    }

    let long = format!("{}\n", "x".repeat(100 * 1024 - 1)).repeat(7);
    let (chunks, report) = take_in(long.as_bytes(), &[1 << 20], LIMITS, Contents::Requests);
    assert_lines(long.as_bytes(), &chunks, &report);
    assert_eq!(
        chunks.iter().map(|c| c.lines).collect::<Vec<_>>(),
        [3, 3, 1]
    );
}

#[test]
fn a_long_line_is_a_chunk_of_its_own_in_pieces() {
    let long = request("b", &"m".repeat(5 * PIECE_BYTES / 2));
    let file = format!("{}\n{long}\n{}", request("a", "m"), request("c", "m"));
    for lengths in [[64 * 1024], [usize::MAX]] {
        let (chunks, report) = take_in(file.as_bytes(), &lengths, LIMITS, Contents::Requests);
        assert_whole(file.as_bytes(), &chunks, &report);
        assert_lines(file.as_bytes(), &chunks, &report);
        let places: Vec<_> = chunks
            .iter()
            .map(|c| (c.chunk_no, c.piece_no, c.first_line))
            .collect();
        assert_eq!(
            places,
            [(0, 0, 1), (1, 0, 2), (1, 1, 2), (1, 2, 2), (2, 0, 3)]
        );
    }
}

#[test]
fn a_line_that_is_too_long_passes_through() {
    let limits = Limits {
        max_line_bytes: 3 * PIECE_BYTES / 2,
        ..LIMITS
    };
    for (length, is_fault) in [(0, false), (1, true), (PIECE_BYTES * 3, true)] {
        let line = format!("[{}]", "1".repeat(limits.max_line_bytes - 2 + length));
        let file = format!("{}\n{line}\n{}\n", request("a", "m"), request("b", "m"));
        let (chunks, report) = take_in(file.as_bytes(), &[1000], limits, Contents::Requests);
        assert_whole(file.as_bytes(), &chunks, &report);
        assert_eq!((report.lines, report.requests), (3, 3));
        assert_eq!(report.models[0].first_lines, [1, 3]);
        let findings = report.findings.for_endpoint("/v1/responses");
        assert_eq!(findings.len(), 1);
        assert_eq!(findings[0].line, Some(2));
        assert_eq!(findings[0].code == "line_too_long", is_fault);
        let largest = chunks.iter().map(|chunk| chunk.chunk_bytes).max();
        assert!(
            largest <= Some(limits.max_line_bytes as u64 + 1),
            "it is not held whole"
        );
    }
}

#[test]
fn too_many_models_are_not_told_apart() {
    let lines: Vec<String> = (0..102)
        .chain([0, 101])
        .map(|no| request(&no.to_string(), &format!("model-{no}")))
        .collect();
    let (chunks, report) = take_in(
        lines.join("\n").as_bytes(),
        &[999],
        LIMITS,
        Contents::Requests,
    );
    assert!(report.too_many_models);
    assert_eq!(
        (report.models.len(), report.requests),
        (LIMITS.max_models, 104)
    );
    let counted: u32 = chunks[0].requests.iter().map(|(_, count)| count).sum();
    assert_eq!(counted, 101);
    let (_, report) = take_in(
        lines[..100].join("\n").as_bytes(),
        &[999],
        LIMITS,
        Contents::Requests,
    );
    assert!(!report.too_many_models);
}

#[test]
fn what_is_not_for_a_batch_is_cut_by_size_alone() {
    let file = b"line\n".repeat(PIECE_BYTES);
    let (chunks, report) = take_in(&file, &[77_777], LIMITS, Contents::Opaque);
    assert_whole(&file, &chunks, &report);
    assert_eq!(chunks.len(), 5);
    assert!(
        chunks
            .iter()
            .all(|c| c.chunk_bytes == PIECE_BYTES as u64 && c.lines == 0)
    );
    assert_eq!(report.not_jsonl, None);
}

/// Files of many kinds: lines of every length, in few models, with anything in between.
fn files() -> impl Strategy<Value = Vec<u8>> {
    let line = prop_oneof![
        8 => ("[a-f]", "[xyz]").prop_map(|(id, model)| request(&id, &model).into_bytes()),
        2 => "[ \t]{0,3}\r?".prop_map(String::into_bytes),
        1 => any::<Vec<u8>>(),
        1 => (1..200_000_usize).prop_map(|length| vec![b'x'; length]),
        1 => (PIECE_BYTES - 9..PIECE_BYTES + 9).prop_map(|length| vec![b'x'; length]),
    ];
    let block = (line, prop_oneof![9 => Just(1_usize), 1 => 1..300_usize])
        .prop_map(|(line, times)| ([line, vec![b'\n']].concat(), times))
        .prop_map(|(line, times)| line.repeat(times.min(1 + 4 * PIECE_BYTES / line.len())));
    (proptest::collection::vec(block, 0..20), any::<bool>()).prop_map(|(blocks, ended)| {
        let mut file = blocks.concat();
        file.truncate(file.len() - usize::from(!ended && !file.is_empty()));
        file
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn any_file_in_any_pieces_stays_whole(
        file in files(),
        lengths in proptest::collection::vec(1..100_000_usize, 1..9),
        max_line_bytes in prop_oneof![1..2000_usize, 1..2 * PIECE_BYTES],
    ) {
        let (chunks, report) = take_in(&file, &lengths, LIMITS, Contents::Requests);
        assert_whole(&file, &chunks, &report);
        assert_lines(&file, &chunks, &report);
        let (at_once, _) = take_in(&file, &[usize::MAX], LIMITS, Contents::Requests);
        prop_assert!(chunks == at_once, "the pieces make no difference");

        let limits = Limits {
            max_line_bytes,
            ..LIMITS
        };
        let (chunks, report) = take_in(&file, &lengths, limits, Contents::Requests);
        assert_whole(&file, &chunks, &report);
        let lines = file.split_inclusive(|&byte| byte == b'\n');
        prop_assert_eq!(report.lines, lines.count() as u64);
        for chunk in chunks.iter().filter(|chunk| chunk.piece_no == 0) {
            // Lines are counted where they begin.
            let before = &file[..chunk.offset as usize];
            let begun = before.split_inclusive(|&byte| byte == b'\n').count() as u64;
            prop_assert_eq!(chunk.first_line, begun + 1);
        }

        let (chunks, report) = take_in(&file, &lengths, LIMITS, Contents::Opaque);
        assert_whole(&file, &chunks, &report);
    }
}
