//! What a process does beside sending lines. Each file is one task; [`task`] is the loop that most
//! of them run in.

mod attempts;
pub(crate) mod clean_up;
pub(crate) mod expire;
pub(crate) mod finalize;
pub(crate) mod housekeeping;
mod jitter;
pub(crate) mod pauses;
pub(crate) mod progress;
pub(crate) mod rates;
pub(crate) mod shares;
pub(crate) mod switches;
pub(crate) mod task;
pub(crate) mod validate;
pub(crate) mod windows;
