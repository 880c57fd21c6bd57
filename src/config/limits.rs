//! `[limits]`: how much of anything.

use super::reader::Reader;
use crate::domain::file::MODELS_MAX;

const FILE_BYTES_MAX: u64 = 1 << 50;
const REQUESTS_MAX: u64 = 1_000_000_000;
/// Both engines hold a value of this size, whatever compression makes of it.
const LINE_BYTES_MAX: u64 = 1 << 29;
const IN_FLIGHT_BYTES_MAX: u64 = 1 << 50;

/// `[limits]`: each at least 1.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Of an uploaded file.
    pub max_file_bytes: u64,
    /// Lines of a batch.
    pub max_requests_per_batch: u64,
    /// Models that the lines of a file may name.
    pub max_models_per_file: usize,
    /// Of one line of a file.
    pub max_line_bytes: usize,
    /// Bodies and answers held in memory by one process: room for one line at least.
    pub max_in_flight_bytes: usize,
}

impl Limits {
    pub(super) fn read(mut reader: Reader<'_>) -> Self {
        reader.later(&["rate_limits", "tenants", "priority"]);
        let file = reader.whole("max_file_bytes", 1, FILE_BYTES_MAX);
        let requests = reader.whole("max_requests_per_batch", 1, REQUESTS_MAX);
        let models = reader.whole("max_models_per_file", 1, MODELS_MAX as u64);
        let line = reader.whole("max_line_bytes", 1, LINE_BYTES_MAX);
        let in_flight = reader.whole("max_in_flight_bytes", 1, IN_FLIGHT_BYTES_MAX);
        if in_flight.is_some() && in_flight < line {
            reader.fault(
                "`max_in_flight_bytes` is less than `max_line_bytes`: the longest line could \
                 never be sent",
            );
        }
        reader.finish();
        Self {
            max_file_bytes: file.unwrap_or_default(),
            max_requests_per_batch: requests.unwrap_or_default(),
            max_models_per_file: models.unwrap_or_default(),
            max_line_bytes: line.unwrap_or_default(),
            max_in_flight_bytes: in_flight.unwrap_or_default(),
        }
    }
}
