//! `concurrency = "auto"`: how many calls at once a model at an upstream takes, found out while
//! calls are made.
//!
//! | file | has |
//! |---|---|
//! | `window` | one window of the whole fleet: what is stored, and what a process's turn does with it |
//! | `search` | where the search for the best window stands, and what follows from a measurement |
//! | `pace` | how long calls take for their tokens, as sums that processes can add up |
//! | `engine` | what an engine says of its own queue, in the words of five engines |
//! | `meter` | what a process counts of a window, call by call |
//! | `spec` | a window, as the configuration asks for it |
//! | `windows` | all windows of this process |
//! | `reader` | asks engines for their metrics |
//!
//! All but `windows` and `reader` are pure: the time is an argument.

mod engine;
mod meter;
mod pace;
pub(in crate::upstream) mod reader;
mod search;
mod spec;
#[cfg(test)]
mod tests;
mod window;
mod windows;

pub(in crate::upstream) use engine::EngineLoad;
pub(in crate::upstream) use meter::{Ending, Meter, Stamp};
pub(in crate::upstream) use spec::WindowSpec;
pub(in crate::upstream) use windows::Windows;
pub use windows::{StoredWindow, WindowChange, WindowStatus};
