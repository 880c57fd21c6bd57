//! What a run writes, its answers and the requests that failed: where they go, how they get there,
//! and which files a run may overwrite.

pub(super) mod answers;
pub(super) mod beside;
pub(super) mod files;
pub(super) mod fingerprint;
pub(super) mod growing;
pub(super) mod partial;
pub(super) mod stream;
pub(super) mod target;
pub(super) mod written;
