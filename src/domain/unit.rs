//! Units: one chunk's lines of one model within one batch, the piece of work that is leased.

use std::fmt;

/// Which unit: chunk `chunk_no` of the batch's input, its lines of the file's model `model_no`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UnitKey {
    pub batch_id: String,
    pub chunk_no: i64,
    pub model_no: i64,
}

impl fmt::Display for UnitKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.batch_id, self.chunk_no, self.model_no)
    }
}

/// A unit under one of its leases. Every lease of a unit has an epoch of its own, which is higher
/// than the one before, so a lost lease is distinct from the one that followed it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UnitLease {
    pub key: UnitKey,
    pub epoch: i64,
}

/// Which lines of a chunk are done: one bit a line, counted from the chunk's first line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bitmap(Vec<u8>);

impl Bitmap {
    /// The bitmap stored as these bytes; lines past its end are not done.
    #[must_use]
    pub fn from_bytes(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    #[must_use]
    pub fn contains(&self, line: u32) -> bool {
        self.0
            .get(line as usize / 8)
            .is_some_and(|byte| byte & (1 << (line % 8)) != 0)
    }

    /// Marks a line as done; false if it was already.
    pub fn insert(&mut self, line: u32) -> bool {
        let (byte, bit) = (line as usize / 8, 1 << (line % 8));
        if self.0.len() <= byte {
            self.0.resize(byte + 1, 0);
        }
        let fresh = self.0[byte] & bit == 0;
        self.0[byte] |= bit;
        fresh
    }

    /// How many lines are done.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.0.iter().map(|byte| byte.count_ones()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bitmap_remembers_what_was_inserted() {
        let mut done = Bitmap::default();
        for line in [0, 7, 8, 511] {
            assert!(!done.contains(line));
            assert!(done.insert(line));
            assert!(!done.insert(line), "the second time it is not fresh");
        }
        let stored = Bitmap::from_bytes(done.as_bytes().to_vec());
        assert_eq!(stored.count(), 4);
        assert!(stored.contains(511) && !stored.contains(510) && !stored.contains(100_000));
    }
}
