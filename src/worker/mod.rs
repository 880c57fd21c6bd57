//! The duties.
