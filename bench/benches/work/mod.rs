//! The pieces of work that are measured alone, each over real text, and what each needs.

#[path = "../../src/text.rs"]
mod text;

use std::sync::Arc;

use nightshift::internals::codec;
use nightshift::internals::codec::segment::{self, Encoded, Line, Table};
use nightshift::internals::config::{Config, Environment, Overrides};
use nightshift::internals::domain::endpoint::Endpoints;
use nightshift::internals::domain::file::Kind;
use nightshift::internals::domain::line::{self, Check};
use nightshift::internals::intake::{Contents, Intake, Limits, Piece};
use nightshift::internals::upstream::{Acquired, History, Options, Pool, Routes};

/// Of a request and of an answer.
const LINE_BYTES: usize = 670;
/// As many as a chunk has.
const LINES: usize = 390;
const LEVEL: i32 = 1;
/// How often a limit is asked.
const PERMITS: usize = 256;

/// A request, numbered.
pub fn request(number: u64) -> String {
    let mut line = format!(
        "{{\"custom_id\":\"request-{number}\",\"method\":\"POST\",\"url\":\"/v1/chat/completions\",\
         \"body\":{{\"model\":\"sim\",\"messages\":[{{\"role\":\"user\",\"content\":\""
    );
    let room = LINE_BYTES - line.len() - 6;
    text::push(&mut line, room, number);
    line + "\"}]}}\n"
}

/// A chunk's worth of requests.
pub fn requests() -> String {
    (0..LINES as u64).map(request).collect()
}

/// As much in blank lines, for the splitter: beside it there is only the look whether they are
/// blank, and next to nothing to be compressed.
pub fn blank_lines() -> String {
    let blank = format!("{:1$}\n", "", LINE_BYTES - 1);
    blank.repeat(LINES)
}

/// A chunk's worth of finished lines.
pub fn finished() -> Vec<Line> {
    let lines = (0..LINES as u32).zip(0..);
    lines
        .map(|(line, number)| Line {
            line,
            kind: Kind::Output,
            bytes: request(number).into_bytes(),
        })
        .collect()
}

/// Cutting into lines, checking each, compressing chunks. Unchecked, as a file that is no batch's
/// is: the compressing of an upload alone, in pieces of 1 MiB.
pub fn intake(file: &str, contents: Contents) -> Vec<Piece> {
    let limits = Limits {
        max_line_bytes: 16 << 20,
        max_models: 100,
        endpoints: Endpoints::USUAL,
    };
    let mut chunks = Vec::new();
    let mut intake = Intake::new(limits, contents);
    for piece in file.as_bytes().chunks(64 << 10) {
        intake.push(piece, &mut chunks).expect("memory suffices");
    }
    intake.finish(&mut chunks).expect("memory suffices");
    chunks
}

/// What an upload asks of each line.
pub fn check(line: &str) -> bool {
    matches!(
        line::check(line.as_bytes(), Endpoints::USUAL),
        Check::Request(_)
    )
}

/// What the dispatch asks of each line.
pub fn read(line: &str) -> usize {
    line::read(line).expect("it is a request").body.len()
}

/// As a frame of a segment is compressed. An upload has a compressor of its own.
pub fn compress(chunk: &str) -> Vec<u8> {
    codec::compress(chunk.as_bytes(), LEVEL).expect("memory suffices")
}

pub fn decompress(data: &[u8], size: usize) -> Vec<u8> {
    codec::decompress(data, size).expect("it was compressed")
}

pub fn encode(lines: &[Line]) -> Encoded {
    segment::encode(lines).expect("memory suffices")
}

/// Reads the table and every frame.
pub fn decode(segment: &Encoded) -> usize {
    let table = Table::decode(&segment.entries).expect("it was encoded");
    let frames = 0..table.frames.len();
    let bytes = frames.map(|frame| {
        table
            .frame(&segment.data, frame)
            .expect("it is whole")
            .len()
    });
    bytes.sum::<usize>() + table.entries.len()
}

/// A pool of one upstream, and the way to it.
pub fn pool() -> (Arc<Pool>, Arc<Routes>) {
    let overrides = Overrides {
        upstream: Some("http://127.0.0.1:9/v1".to_owned()),
        concurrency: Some(PERMITS),
        ..Overrides::default()
    };
    let config = Config::built_in(&overrides, &Environment::default()).expect("it is valid");
    let pool = Pool::new(&config.upstream_settings(), Options::default()).expect("it is valid");
    let routes = pool.resolve("sim").expect("one upstream serves all");
    (pool, routes)
}

/// Takes all places, is refused one more, and gives them back.
pub fn acquire(pool: &Arc<Pool>, routes: &Arc<Routes>) -> usize {
    let mut permits = Vec::with_capacity(PERMITS);
    let history = History::default();
    while let Acquired::Permit(permit) = pool.try_acquire(routes, &history, 0, None) {
        permits.push(permit);
    }
    permits.len()
}
