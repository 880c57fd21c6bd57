//! How long the pieces of work take: `cargo bench -p bench --bench time`.

mod work;

use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};
use nightshift::internals::intake::Contents;

fn main() {
    divan::main();
}

#[divan::bench]
fn intake(bencher: Bencher<'_, '_>) {
    take_in(bencher, &work::requests(), Contents::Requests);
}

#[divan::bench]
fn split(bencher: Bencher<'_, '_>) {
    take_in(bencher, &work::blank_lines(), Contents::Requests);
}

#[divan::bench]
fn compress_upload(bencher: Bencher<'_, '_>) {
    take_in(bencher, &work::requests(), Contents::Opaque);
}

/// A whole mebibyte.
fn take_in(bencher: Bencher<'_, '_>, chunk: &str, contents: Contents) {
    let file = chunk.repeat(4);
    bencher
        .counter(BytesCount::new(file.len()))
        .bench(|| work::intake(black_box(&file), contents));
}

#[divan::bench]
fn check_line(bencher: Bencher<'_, '_>) {
    let line = work::request(1);
    bencher.bench(|| work::check(black_box(&line)));
}

#[divan::bench]
fn read_line(bencher: Bencher<'_, '_>) {
    let line = work::request(1);
    bencher.bench(|| work::read(black_box(&line)));
}

#[divan::bench]
fn compress_frame(bencher: Bencher<'_, '_>) {
    let chunk = work::requests();
    bencher
        .counter(BytesCount::new(chunk.len()))
        .bench(|| work::compress(black_box(&chunk)));
}

#[divan::bench]
fn decompress_chunk(bencher: Bencher<'_, '_>) {
    let chunk = work::requests();
    let data = work::compress(&chunk);
    bencher
        .counter(BytesCount::new(chunk.len()))
        .bench(|| work::decompress(black_box(&data), chunk.len()));
}

#[divan::bench]
fn encode_segment(bencher: Bencher<'_, '_>) {
    let lines = work::finished();
    bencher
        .counter(ItemsCount::new(lines.len()))
        .bench(|| work::encode(black_box(&lines)));
}

#[divan::bench]
fn decode_segment(bencher: Bencher<'_, '_>) {
    let lines = work::finished();
    let segment = work::encode(&lines);
    bencher
        .counter(ItemsCount::new(lines.len()))
        .bench(|| work::decode(black_box(&segment)));
}

#[divan::bench]
fn limiter(bencher: Bencher<'_, '_>) {
    let (pool, routes) = work::pool();
    bencher
        .counter(ItemsCount::new(work::acquire(&pool, &routes)))
        .bench(|| work::acquire(black_box(&pool), &routes));
}
