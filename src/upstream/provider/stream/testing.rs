//! Streams that are cut at every byte, for the tests of those who put streams together.

use bytes::Bytes;
use serde_json::Value;

use super::{Assembly, Fold, Gathered};

/// What comes of a stream, however its bytes are cut.
pub(in crate::upstream::provider) fn gathered(
    fold: impl Fn() -> Box<dyn Fold>,
    stream: &str,
) -> Gathered {
    let gather = |pieces: &[&[u8]]| {
        let mut assembly = Assembly::new(fold());
        for piece in pieces {
            assembly.feed(Bytes::copy_from_slice(piece));
        }
        assembly.finish()
    };
    let bytes = stream.as_bytes();
    let whole = gather(&[bytes]);
    for cut in 0..=bytes.len() {
        let (one, other) = bytes.split_at(cut);
        assert_eq!(gather(&[one, other]), whole, "cut at {cut}");
    }
    let single: Vec<&[u8]> = bytes.chunks(1).collect();
    assert_eq!(gather(&single), whole, "each byte for itself");
    whole
}

/// The answer of a stream: the same wherever its bytes are cut, whichever of the ways to write
/// events is used, and none where the stream breaks off before `mark`, the beginning of the
/// event that marks the end.
pub(in crate::upstream::provider) fn answer(
    fold: impl Fn() -> Box<dyn Fold>,
    stream: &str,
    mark: &str,
) -> Value {
    let whole = gathered(&fold, stream);
    let Gathered::Answer(answer) = &whole else {
        panic!("no answer: {whole:?}");
    };
    let noisy = format!("\u{feff}: hello\n\n{}", stream.replace("\n\n", "\n\n:\n\n"));
    for other in [
        stream.replace('\n', "\r\n"),
        stream.replace('\n', "\r"),
        noisy,
    ] {
        assert_eq!(gathered(&fold, &other), whole);
    }
    let end = stream.rfind(mark).expect("the mark");
    for cut in 0..=end {
        let mut assembly = Assembly::new(fold());
        assembly.feed(Bytes::copy_from_slice(&stream.as_bytes()[..cut]));
        let gathered = assembly.finish();
        let is_none = matches!(gathered, Gathered::Incomplete | Gathered::Empty);
        assert!(is_none, "half an answer: {gathered:?}");
    }
    serde_json::from_slice(answer).expect("is JSON")
}
