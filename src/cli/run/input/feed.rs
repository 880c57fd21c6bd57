//! The lines of an input, one by one, as they are sent.

use std::borrow::Cow;

use bytes::Bytes;
use memchr::memchr;

use super::reshape::Reshape;
use super::{Content, Input};
use crate::cli::run::result::fingerprint::Hashing;
use crate::config::Config;
use crate::domain::json;
use crate::intake::Limits;

/// What the lines of an input must keep to.
pub(in crate::cli::run) fn limits(config: &Config) -> Limits {
    Limits {
        max_line_bytes: config.limits.max_line_bytes,
        max_models: config.limits.max_models_per_file,
        endpoints: config.endpoints,
    }
}

/// Reads an input line by line.
pub(in crate::cli::run) struct Feed<'a> {
    content: Content,
    splitter: Splitter,
    reshape: &'a Reshape,
}

impl<'a> Feed<'a> {
    pub(in crate::cli::run) async fn open(
        input: &Input,
        reshape: &'a Reshape,
        limits: Limits,
    ) -> anyhow::Result<Feed<'a>> {
        Ok(Feed {
            content: input.open().await?,
            splitter: Splitter::new(limits.max_line_bytes, reshape.limit),
            reshape,
        })
    }

    /// Reads some more, and shows each line that is complete, with its number from 1. `false`: that
    /// was all but the last line.
    pub(in crate::cli::run) async fn read(
        &mut self,
        mut each: impl FnMut(Cow<'_, [u8]>, u64) -> anyhow::Result<()>,
    ) -> anyhow::Result<bool> {
        let Some(bytes) = self.content.next().await? else {
            return Ok(false);
        };
        let reshape = self.reshape;
        self.splitter.push(&bytes, |line, number| {
            each(reshape.line(line, number), number)
        })?;
        Ok(true)
    }

    /// Shows the last line, which needs no line end, and returns the hash of the whole content.
    pub(in crate::cli::run) fn finish(
        self,
        mut each: impl FnMut(Cow<'_, [u8]>, u64) -> anyhow::Result<()>,
    ) -> anyhow::Result<String> {
        let reshape = self.reshape;
        self.splitter
            .finish(|line, number| each(reshape.line(line, number), number))
    }
}

/// Cuts an input into lines, and hashes it as a whole.
struct Splitter {
    /// A line that is longer is cut: it is not valid, and the check of the input says so.
    max_line_bytes: usize,
    line: Vec<u8>,
    hash: Hashing,
    number: u64,
    requests: u64,
    limit: u64,
}

impl Splitter {
    fn new(max_line_bytes: usize, limit: Option<u64>) -> Splitter {
        Splitter {
            max_line_bytes,
            line: Vec::new(),
            hash: Hashing::default(),
            number: 0,
            requests: 0,
            limit: limit.unwrap_or(u64::MAX),
        }
    }

    /// Takes the next bytes, and shows each line that they complete, without its line end.
    fn push(
        &mut self,
        bytes: &[u8],
        mut each: impl FnMut(&[u8], u64) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        self.hash.update(bytes);
        let mut rest = bytes;
        while let Some(end) = memchr(b'\n', rest) {
            self.extend(&rest[..end]);
            rest = &rest[end + 1..];
            self.end_line(&mut each)?;
        }
        self.extend(rest);
        Ok(())
    }

    fn extend(&mut self, bytes: &[u8]) {
        let room = (self.max_line_bytes + 1).saturating_sub(self.line.len());
        self.line.extend_from_slice(&bytes[..room.min(bytes.len())]);
    }

    /// Hands on the line that has come to its end, if it is within what is to be sent.
    fn end_line(
        &mut self,
        each: &mut impl FnMut(&[u8], u64) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let is_blank = self.line.iter().all(|&byte| json::is_space(byte));
        self.requests += u64::from(!is_blank);
        self.number += 1;
        if self.requests <= self.limit {
            each(&self.line, self.number)?;
        }
        self.line.clear();
        Ok(())
    }

    /// Ends the input, whose last line needs no line end, and returns its hash.
    fn finish(
        mut self,
        mut each: impl FnMut(&[u8], u64) -> anyhow::Result<()>,
    ) -> anyhow::Result<String> {
        if !self.line.is_empty() {
            self.end_line(&mut each)?;
        }
        Ok(self.hash.finish())
    }
}

/// Lines on their way into the store.
#[derive(Default)]
pub(in crate::cli::run) struct Gathered(Vec<u8>);

impl Gathered {
    pub(in crate::cli::run) fn line(&mut self, line: &[u8]) {
        self.0.extend_from_slice(line);
        self.0.push(b'\n');
    }

    pub(in crate::cli::run) fn take(&mut self) -> Bytes {
        std::mem::take(&mut self.0).into()
    }
}
