//! Text with the entropy of prose, made from a number.

use std::sync::LazyLock;

/// The most common English words, the most common first: the simulator's list.
static WORDS: LazyLock<Vec<&str>> = LazyLock::new(|| {
    include_str!("../../src/simulate/words.txt")
        .split_whitespace()
        .collect()
});

/// The sums of the words' shares up to each, of 2^32: the r-th has a share of about 1/r.
static SHARES: LazyLock<Vec<u64>> = LazyLock::new(|| {
    let weights: Vec<f64> = (0..WORDS.len())
        .map(|rank| 1.0 / (rank + 8) as f64)
        .collect();
    let whole: f64 = weights.iter().sum();
    let mut sum = 0.0;
    let mut add = |weight: &f64| {
        sum += weight / whole;
        (sum * 4_294_967_296.0) as u64
    };
    weights.iter().map(&mut add).collect()
});

const LETTERS: &[u8; 32] = b"etaoinshrdlcumwfgypbvkjxqzetaoin";

/// Appends words, numbers and made-up names until the text has just so many bytes more.
pub fn push(text: &mut String, bytes: usize, seed: u64) {
    let end = text.len() + bytes;
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    };
    while text.len() < end {
        let draw = next();
        match draw % 32 {
            0..=2 => text.push_str(&(draw >> 40).wrapping_rem(10_000).to_string()),
            3..=8 => (0..8).for_each(|place| {
                let letter = draw >> (8 + 5 * place) & 31;
                text.push(char::from(LETTERS[letter as usize]));
            }),
            9 => text.push('.'),
            _ => {
                let word = SHARES.partition_point(|share| *share <= draw >> 32);
                text.push_str(WORDS.get(word).unwrap_or(&"the"));
            }
        }
        text.push(' ');
    }
    text.truncate(end);
}
