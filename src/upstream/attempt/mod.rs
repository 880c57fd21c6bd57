//! One attempt to have a line answered: the call, how it went, and what its line is to do next.

mod abilities;
pub(super) mod ages;
pub(super) mod bill;
pub(super) mod call;
pub(super) mod client;
pub(super) mod history;
mod notice;
pub(super) mod question;
pub(super) mod result;
pub(super) mod timer;
pub(super) mod trial;
