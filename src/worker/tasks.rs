//! What a process does beside sending lines: each file is one task, and `task` is the loop that
//! most of them run in.

pub(crate) mod clean_up;
pub(crate) mod expire;
pub(crate) mod finalize;
pub(crate) mod housekeeping;
pub(crate) mod shares;
pub(crate) mod task;
pub(crate) mod validate;
