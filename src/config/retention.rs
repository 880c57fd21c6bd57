//! `[retention]`: how long files are kept, and what was used.

use std::time::Duration;

use super::reader::Reader;

/// A file that goes sooner is of no use to anybody.
const KEPT_MIN: Duration = Duration::from_mins(1);
/// Usage is kept by the minute for two days, and is seldom looked at within so few.
const USAGE_KEPT_MIN: Duration = Duration::from_hours(31 * 24);
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
    /// What was used, by the hour. At least a month, so that a month can be paid for.
    pub usage: Option<Duration>,
    /// How long the bytes of a file stay that is deleted or has expired: whoever is reading them
    /// may finish. At least a minute.
    pub grace: Duration,
}

impl Retention {
    pub(super) fn read(mut reader: Reader<'_>) -> Self {
        let mut kept = |key, least| {
            let item = reader.take(key)?;
            if item.as_str() == Some("never") {
                return None;
            }
            item.duration(least)
        };
        let input_files = kept("input_files", KEPT_MIN);
        let output_files = kept("output_files", KEPT_MIN);
        let other_files = kept("other_files", KEPT_MIN);
        let usage = kept("usage", USAGE_KEPT_MIN);
        let grace = reader.duration("grace", GRACE_MIN);
        reader.finish();
        Self {
            input_files,
            output_files,
            other_files,
            usage,
            grace: grace.unwrap_or_default(),
        }
    }
}
