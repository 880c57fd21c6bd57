//! One attempt to have a line answered: the call, and what its result means for the line.

pub(super) mod call;
pub(super) mod client;
pub(super) mod history;
pub(super) mod notice;
