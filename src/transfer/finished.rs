//! The lines of a batch that are finished, one by one, whether the batch has ended or not.

use bytes::Bytes;

use super::chunk::{Chunk, FETCHED_BYTES_MAX};
use crate::domain::file::Kind;
use crate::store::{Result, Store};

/// The lines of one chunk that were finished when it was opened, in their order.
pub struct FinishedChunk(Chunk);

impl FinishedChunk {
    /// Looks up which lines are finished.
    ///
    /// # Errors
    /// When the database fails, or what is stored is damaged.
    pub async fn open(store: &Store, batch_id: &str, number: i64) -> Result<FinishedChunk> {
        let mut segments =
            Chunk::segments(store, batch_id, number..=number, FETCHED_BYTES_MAX).await?;
        let segments = segments.remove(&number).unwrap_or_default();
        Ok(FinishedChunk(Chunk::open(
            batch_id, number, None, segments,
        )?))
    }

    /// The place in the chunk, from 0, and the kind of the next line.
    #[must_use]
    pub fn peek(&self) -> Option<(u32, Kind)> {
        self.0.peek()
    }

    /// Passes over the lines before a place.
    pub fn pass_to(&mut self, place: u32) {
        while self.peek().is_some_and(|(line, _)| line < place) {
            self.pass();
        }
    }

    /// Passes over the next line.
    pub fn pass(&mut self) {
        self.0.pass();
    }

    /// Reads the next line, with its line end.
    ///
    /// # Errors
    /// When the database fails, or what is stored is damaged.
    pub async fn next(&mut self, store: &Store) -> Result<Option<Bytes>> {
        // A block ends with the line that brings it to the wanted bytes: here with the first.
        self.0.next(store, 1).await
    }
}
