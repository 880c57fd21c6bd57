//! What calls go to.

pub(super) mod backend;
