//! How lines share calls by a route, and how many have.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::upstream::settings::PackLimits;

/// How lines of `/v1/embeddings` share calls by a route.
#[derive(Debug)]
pub(in crate::upstream) struct Pack {
    pub(in crate::upstream) limits: PackLimits,
    calls: AtomicU64,
    lines: AtomicU64,
}

/// How many lines have shared how many calls, since the configuration was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packed {
    /// Inputs that a call may have.
    pub inputs_max: usize,
    /// Calls of lines that may share one, those of a single line included.
    pub calls: u64,
    /// The lines of these calls.
    pub lines: u64,
}

impl Pack {
    pub(super) fn new(limits: PackLimits) -> Self {
        Self {
            limits,
            calls: AtomicU64::new(0),
            lines: AtomicU64::new(0),
        }
    }

    /// A call of so many lines is sent.
    pub(in crate::upstream) fn count(&self, lines: usize) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.lines.fetch_add(lines as u64, Ordering::Relaxed);
    }

    /// What was counted.
    pub(in crate::upstream) fn packed(&self) -> Packed {
        Packed {
            inputs_max: self.limits.inputs,
            calls: self.calls.load(Ordering::Relaxed),
            lines: self.lines.load(Ordering::Relaxed),
        }
    }
}
