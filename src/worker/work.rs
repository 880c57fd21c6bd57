//! What the room works on: the leased unit, its lines, and lines that are finished. These modules
//! import nothing of the folders beside this one.

pub(crate) mod beginnings;
pub(crate) mod finished;
pub(crate) mod isolation;
pub(crate) mod line;
pub(crate) mod packing;
pub(crate) mod settings;
pub(crate) mod unit;
