//! How many instructions the same pieces of work take, counted by valgrind: the machine's load
//! does not change them. `cargo bench -p bench --bench instructions`; see bench/README.md for what
//! has to be installed.

mod work;

use std::hint::black_box;
use std::sync::Arc;

use gungraun::{library_benchmark, library_benchmark_group, main};
use nightshift::internals::codec::segment::{Encoded, Line};
use nightshift::internals::intake::{Contents, Piece};
use nightshift::internals::upstream::{Pool, Routes};

fn compressed() -> (Vec<u8>, usize) {
    let chunk = work::requests();
    (work::compress(&chunk), chunk.len())
}

fn segment() -> Encoded {
    work::encode(&work::finished())
}

fn line() -> String {
    work::request(1)
}

#[library_benchmark]
#[bench::chunk(setup = work::requests)]
fn intake(file: String) -> Vec<Piece> {
    work::intake(black_box(&file), Contents::Requests)
}

#[library_benchmark]
#[bench::chunk(setup = work::blank_lines)]
fn split(file: String) -> Vec<Piece> {
    work::intake(black_box(&file), Contents::Requests)
}

#[library_benchmark]
#[bench::chunk(setup = work::requests)]
fn compress_upload(file: String) -> Vec<Piece> {
    work::intake(black_box(&file), Contents::Opaque)
}

#[library_benchmark]
#[bench::line(setup = line)]
fn check_line(line: String) -> bool {
    work::check(black_box(&line))
}

#[library_benchmark]
#[bench::line(setup = line)]
fn read_line(line: String) -> usize {
    work::read(black_box(&line))
}

#[library_benchmark]
#[bench::chunk(setup = work::requests)]
fn compress_frame(chunk: String) -> Vec<u8> {
    work::compress(black_box(&chunk))
}

#[library_benchmark]
#[bench::chunk(setup = compressed)]
fn decompress_chunk((data, size): (Vec<u8>, usize)) -> Vec<u8> {
    work::decompress(black_box(&data), size)
}

#[library_benchmark]
#[bench::chunk(setup = work::finished)]
fn encode_segment(lines: Vec<Line>) -> Encoded {
    work::encode(black_box(&lines))
}

#[library_benchmark]
#[bench::chunk(setup = segment)]
fn decode_segment(segment: Encoded) -> usize {
    work::decode(black_box(&segment))
}

#[library_benchmark]
#[bench::all_places(setup = work::pool)]
fn limiter((pool, routes): (Arc<Pool>, Arc<Routes>)) -> usize {
    work::acquire(black_box(&pool), &routes)
}

library_benchmark_group!(
    name = pieces,
    benchmarks = [
        intake,
        split,
        compress_upload,
        check_line,
        read_line,
        compress_frame,
        decompress_chunk,
        encode_segment,
        decode_segment,
        limiter
    ]
);

main!(library_benchmark_groups = pieces);
