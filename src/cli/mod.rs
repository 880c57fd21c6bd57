//! The commands.

pub mod progress;
pub mod simulate;
