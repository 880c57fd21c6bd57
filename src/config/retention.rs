//! `[retention]`: how long files are kept.

use std::time::Duration;

use super::reader::Reader;

/// A file that goes sooner is of no use to anybody.
const KEPT_MIN: Duration = Duration::from_mins(1);
/// Less than this, and what is hidden could be removed before a batch that was created on it just
/// then has begun.
const GRACE_MIN: Duration = Duration::from_mins(1);

/// `[retention]`: what holds where a request says nothing. `None` is for good.
#[derive(Clone, Debug)]
pub struct Retention {
    /// Uploaded for batches: from the upload on.
    pub input_files: Option<Duration>,
    /// A batch's output and error file: from the batch's end on.
    pub output_files: Option<Duration>,
    /// Uploaded for anything else.
    pub other_files: Option<Duration>,
    /// How long the bytes of a file stay that is deleted or has expired: whoever is reading them
    /// may finish. At least a minute.
    pub grace: Duration,
}

impl Retention {
    pub(super) fn read(mut reader: Reader<'_>) -> Self {
        let mut kept = |key| {
            let item = reader.take(key)?;
            if item.as_str() == Some("never") {
                return None;
            }
            item.duration(KEPT_MIN)
        };
        let input_files = kept("input_files");
        let output_files = kept("output_files");
        let other_files = kept("other_files");
        let grace = reader.duration("grace", GRACE_MIN);
        reader.finish();
        Self {
            input_files,
            output_files,
            other_files,
            grace: grace.unwrap_or_default(),
        }
    }
}
