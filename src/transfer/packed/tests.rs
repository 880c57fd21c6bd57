use async_compression::Level;
use async_compression::tokio::bufread::{GzipEncoder, ZstdEncoder};
use async_compression::zstd::CParameter;
use futures::stream;

use super::*;

const CONTENT: &[u8] = b"{\"custom_id\":\"a\"}\n{\"custom_id\":\"b\"}\n";

async fn gzip(content: &[u8]) -> Vec<u8> {
    let mut packed = Vec::new();
    let mut encoder = GzipEncoder::new(content);
    encoder.read_to_end(&mut packed).await.expect("compresses");
    packed
}

/// zstd with a window of so many bytes, as a logarithm.
async fn zstd(content: &[u8], window_log: u32) -> Vec<u8> {
    let mut packed = Vec::new();
    let window = CParameter::window_log(window_log);
    let mut encoder = ZstdEncoder::with_quality_and_params(content, Level::Default, &[window]);
    encoder.read_to_end(&mut packed).await.expect("compresses");
    packed
}

/// The content of a file that comes in pieces of that length.
async fn unpack(packed: &[u8], piece: usize) -> Result<Vec<u8>, Unreadable> {
    let packing = Packing::of(packed).expect("is compressed");
    let pieces = packed.chunks(piece).map(Bytes::copy_from_slice);
    let source = stream::iter(pieces.map(Ok::<_, ()>).collect::<Vec<_>>());
    let mut unpacked = Unpacked::new(packing, source);
    let mut content = Vec::new();
    loop {
        match unpacked.next().await {
            Ok(Some(bytes)) => content.extend_from_slice(&bytes),
            Ok(None) => return Ok(content),
            Err(NoContent::Unreadable(why)) => return Err(why),
            Err(NoContent::Source(())) => panic!("the source does not fail"),
        }
    }
}

#[tokio::test]
async fn a_compressed_file_is_read_in_any_pieces_and_of_any_members() {
    for packed in [gzip(CONTENT).await, zstd(CONTENT, 20).await] {
        let twice = packed.repeat(2);
        for piece in [1, 7, usize::MAX] {
            assert_eq!(unpack(&packed, piece).await.as_deref(), Ok(CONTENT));
            assert_eq!(unpack(&twice, piece).await, Ok(CONTENT.repeat(2)));
        }
    }
    assert_eq!(unpack(&gzip(b"").await, 5).await, Ok(Vec::new()));
    assert_eq!(unpack(&zstd(b"", 20).await, 5).await, Ok(Vec::new()));
    // A skippable frame of three bytes, and the content behind it.
    let skipped = [
        b"\x50\x2a\x4d\x18\x03\0\0\0abc",
        &zstd(CONTENT, 20).await[..],
    ]
    .concat();
    assert_eq!(unpack(&skipped, 3).await.as_deref(), Ok(CONTENT));
}

#[tokio::test]
async fn a_file_that_is_cut_off_or_damaged_is_an_error_wherever_it_is() {
    for packed in [gzip(CONTENT).await, zstd(CONTENT, 20).await] {
        let packing = Packing::of(&packed).expect("is compressed");
        for end in Packing::SIGNATURE_BYTES..packed.len() {
            let found = unpack(&packed[..end], 9).await;
            assert_eq!(found, Err(Unreadable::CutOff(packing)), "{end}");
        }
        let behind = [&packed[..], b"rubbish, and more of it"].concat();
        for damaged in [behind, [&packed[..12], &[0xAA; 60][..]].concat()] {
            let found = unpack(&damaged, 9).await;
            assert!(found.is_err(), "{packing}: {found:?}");
        }
    }
}

#[tokio::test]
async fn a_zstd_window_may_have_8_mib_and_no_more() {
    // Content is as large as its window, or the encoder would choose a smaller one.
    let content = vec![b'x'; 17 << 20];
    let fits = unpack(&zstd(&content, 23).await, usize::MAX).await;
    assert_eq!(fits.map(|content| content.len()), Ok(content.len()));
    let larger = unpack(&zstd(&content, 24).await, usize::MAX).await;
    assert_eq!(larger, Err(Unreadable::LargeWindow));
}

#[test]
fn a_file_that_is_not_compressed_has_no_packing() {
    for beginning in [
        &b""[..],
        b"{",
        b"{\"cu",
        b"\x1f",
        b"\x28\xb5\x2f",
        b"PK\x03\x04",
    ] {
        assert_eq!(Packing::of(beginning), None, "{beginning:?}");
    }
}
