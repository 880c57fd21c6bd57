//! The JSONL that every system is given.

use std::fs::File;
use std::io::{BufWriter, Read as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use crate::text;

/// How long a line is, its line end included: what a short question with some context has.
pub const LINE_BYTES: usize = 670;
/// zstd at level 3 must not make the requests or the answers smaller than this.
const FACTOR_MAX: f64 = 3.0;
/// Of so many bytes the factor is taken.
const SAMPLE_BYTES: u64 = 32 << 20;

/// A file of requests, all different.
#[derive(Debug)]
pub struct Input {
    pub path: PathBuf,
    pub lines: u64,
    pub bytes: u64,
}

impl Input {
    /// Writes it, in lines of so many bytes. The same `first` number gives the same lines.
    pub fn write(path: &Path, lines: u64, first: u64, line_bytes: usize) -> Result<Self> {
        let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
        let mut line = String::with_capacity(line_bytes + 16);
        for number in first..first + lines {
            line.clear();
            push_line(&mut line, number, line_bytes);
            file.write_all(line.as_bytes())?;
        }
        file.flush()?;
        Ok(Self {
            path: path.to_owned(),
            lines,
            bytes: path.metadata()?.len(),
        })
    }
}

fn push_line(line: &mut String, number: u64, bytes: usize) {
    const END: &str = "\"}]}}\n";
    line.push_str("{\"custom_id\":\"request-");
    line.push_str(&number.to_string());
    line.push_str(
        "\",\"method\":\"POST\",\"url\":\"/v1/chat/completions\",\"body\":{\"model\":\"sim\",\
         \"messages\":[{\"role\":\"user\",\"content\":\"",
    );
    let room = bytes - line.len() - END.len();
    text::push(line, room, number.wrapping_mul(0x9e37_79b9));
    line.push_str(END);
}

/// The factor by which zstd at level 3 makes a file's beginning smaller.
///
/// # Errors
/// When it is more than text has: then the figures would flatter whoever compresses.
pub fn compression_factor(path: &Path) -> Result<f64> {
    let mut sample = Vec::new();
    File::open(path)?
        .take(SAMPLE_BYTES)
        .read_to_end(&mut sample)?;
    let compressed = zstd::bulk::compress(&sample, 3).context("zstd fails")?;
    let factor = sample.len() as f64 / compressed.len() as f64;
    ensure!(
        factor <= FACTOR_MAX,
        "zstd -3 makes {} {factor:.2} times smaller: real text is not so easy",
        path.display()
    );
    Ok(factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_as_long_as_asked_and_another_seed_gives_another() {
        let text = |seed| {
            let mut text = String::from("> ");
            text::push(&mut text, 500, seed);
            text
        };
        assert_eq!(text(1).len(), 502);
        assert_eq!(text(1), text(1));
        assert_ne!(text(1), text(2));
    }

    #[test]
    fn requests_are_json_of_one_length_and_hard_to_compress() {
        let directory = tempfile::tempdir().unwrap();
        let input = Input::write(&directory.path().join("in.jsonl"), 5000, 0, LINE_BYTES).unwrap();
        assert_eq!(input.bytes, 5000 * LINE_BYTES as u64);
        let text = std::fs::read_to_string(&input.path).unwrap();
        for line in text.lines() {
            serde_json::from_str::<serde_json::Value>(line).unwrap();
        }
        compression_factor(&input.path).unwrap();
    }
}
