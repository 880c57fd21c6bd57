//! Confirms that lines have the same `custom_id`, by the ids themselves: the intake has seen that
//! their hashes are equal.

use memchr::memchr_iter;

use crate::domain::findings::{Findings, KEPT_MAX};
use crate::domain::line;
use crate::intake::Suspect;
use crate::store::{Result, Store, StoredChunk};

/// Adds to the findings those of the suspects, which come by line, that do repeat an id.
pub(super) async fn confirm(
    store: &Store,
    file_id: &str,
    suspects: &[Suspect],
    findings: &mut Findings,
) -> Result<()> {
    // One for each of the two places that are compared: both mostly move forward.
    let mut later = Lines::new(store, file_id);
    let mut before = Lines::new(store, file_id);
    let mut confirmed = 0;
    for suspect in suspects {
        let Some(id) = later.custom_id(suspect.line).await? else {
            continue;
        };
        for &line in &suspect.earlier {
            if before.custom_id(line).await?.as_ref() == Some(&id) {
                findings.duplicate(suspect.line, &id);
                confirmed += 1;
                break;
            }
        }
        if confirmed == KEPT_MAX {
            break;
        }
    }
    Ok(())
}

/// Reads lines from a file that is stored but not shown, and keeps the chunk that it read last.
struct Lines<'a> {
    store: &'a Store,
    file_id: &'a str,
    chunk: Option<(i64, StoredChunk)>,
}

impl<'a> Lines<'a> {
    fn new(store: &'a Store, file_id: &'a str) -> Self {
        Self {
            store,
            file_id,
            chunk: None,
        }
    }

    /// The `custom_id` of a line; `None` if the line has none.
    async fn custom_id(&mut self, line: u64) -> Result<Option<String>> {
        let Some(number) = self.store.chunk_of_line(self.file_id, line).await? else {
            return Ok(None);
        };
        if self.chunk.as_ref().is_none_or(|(held, _)| *held != number) {
            // Dropped before the next is read, so that two are never in memory.
            self.chunk = None;
            let chunk = self.store.chunk(self.file_id, number).await?;
            self.chunk = chunk.map(|chunk| (number, chunk));
        }
        let bytes = self.chunk.as_ref().and_then(|(_, chunk)| text(chunk, line));
        Ok(bytes
            .and_then(|bytes| std::str::from_utf8(bytes).ok())
            .and_then(line::read)
            .map(|envelope| envelope.custom_id.into_owned()))
    }
}

/// A line of a chunk, without its line end.
fn text(chunk: &StoredChunk, line: u64) -> Option<&[u8]> {
    let skip = usize::try_from(line.checked_sub(chunk.first_line)?).ok()?;
    let mut ends = memchr_iter(b'\n', &chunk.bytes);
    let start = match skip.checked_sub(1) {
        None => 0,
        Some(before) => ends.nth(before)? + 1,
    };
    let end = ends.next().unwrap_or(chunk.bytes.len());
    Some(&chunk.bytes[start..end])
}
