//! `[output]`: what the lines of output and error files say beside OpenAI's keys.

use super::reader::Reader;

/// `[output]`: what holds where a batch says nothing of it.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    /// Whether each line says how it was answered.
    pub details: bool,
}

impl Output {
    pub(super) fn read(mut reader: Reader<'_>) -> Self {
        let details = reader.boolean("details");
        reader.finish();
        Self {
            details: details.unwrap_or_default(),
        }
    }
}
