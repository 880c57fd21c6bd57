//! `[worker]`: how long a replica holds its work.

use std::time::Duration;

use super::reader::Reader;

/// `[worker]`
#[derive(Clone, Debug)]
pub struct Worker {
    /// The replica's name. Started again under it, a replica takes up what it held.
    /// `None`: a random one.
    pub name: Option<String>,
    /// How long a replica may be silent before others take its work: at least a second.
    pub lease: Duration,
    /// How long the share of a limit that a vanished process held is held back.
    pub reclaim_after: Duration,
    /// How long calls in flight may go on after a cancel or the window's end; zero cuts them.
    pub settle_timeout: Duration,
    /// How long calls in flight may go on after SIGTERM; zero cuts them.
    pub shutdown_grace: Duration,
}

impl Worker {
    pub(super) fn read(mut reader: Reader<'_>) -> Self {
        let name = reader.string("name");
        let lease = reader.duration("lease", Duration::from_secs(1));
        let reclaim_after = reader.duration("reclaim_after", Duration::ZERO);
        let settle_timeout = reader.duration("settle_timeout", Duration::ZERO);
        let shutdown_grace = reader.duration("shutdown_grace", Duration::ZERO);
        reader.finish();
        Self {
            name,
            lease: lease.unwrap_or_default(),
            reclaim_after: reclaim_after.unwrap_or_default(),
            settle_timeout: settle_timeout.unwrap_or_default(),
            shutdown_grace: shutdown_grace.unwrap_or_default(),
        }
    }
}
