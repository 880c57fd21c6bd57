//! What the room works on: units with their lines, lines with their outcomes, and the queue that
//! finished lines wait in. These modules import nothing of the folders beside this one.

pub(crate) mod completions;
pub(crate) mod isolation;
pub(crate) mod unit;
