//! Which of several targets takes the next line.

pub(super) mod least_busy;
