//! Text made from a number: the same number, the same text; another number, another text.
//!
//! Words are drawn from a list in order of how common they are, the r-th with a share of about
//! 1/r, with numbers and made-up names between them, so that answers compress as badly as prose:
//! zstd at level 3 makes them about 2.8 times smaller.

use std::sync::LazyLock;

/// Common English words, the most common first.
static WORDS: LazyLock<Vec<&str>> =
    LazyLock::new(|| include_str!("words.txt").split_whitespace().collect());

/// What a draw of [`SLOT_BITS`] bits stands for: a common word has many slots, a rare one few.
static SLOTS: LazyLock<Vec<&str>> = LazyLock::new(slots);

const SLOT_BITS: u32 = 13;

/// A name's letters, the common ones more than once: English text has such words, which no
/// dictionary foretells, and they are what keeps it from being compressed better.
const LETTERS: &[u8; 32] = b"etaoinshrdlcumwfgypbvkjxqzetaoin";
const NAME_LETTERS: u32 = 8;

/// How long a text is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Length {
    /// This many words; one word counts as one token.
    Tokens(usize),
    /// Exactly this many bytes.
    Bytes(usize),
}

/// A stream of numbers that follows from its seed (`SplitMix64`).
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    pub(super) fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let draw = self.next().to_le_bytes();
        std::array::from_fn(|index| draw.get(index).copied().unwrap_or(0))
    }

    /// Letters and digits, as in the ids of OpenAI's answers.
    pub(super) fn id(&mut self) -> String {
        const DIGITS: &[u8; 64] =
            b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0z";
        let draws = [self.next(), self.next(), self.next()];
        draws
            .iter()
            .flat_map(|draw| (0..10).map(move |digit| (draw >> (6 * digit)) % 64))
            .map(|digit| char::from(DIGITS[usize::try_from(digit).unwrap_or(0)]))
            .collect()
    }

    /// A number from 0 (included) to 1 (excluded).
    pub(super) fn share(&mut self) -> f64 {
        let top = u32::try_from(self.next() >> 32).unwrap_or(0);
        f64::from(top) / (f64::from(u32::MAX) + 1.0)
    }
}

/// Spreads every bit of a number over all of them; no two numbers become the same.
fn mix(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

/// What a body's answer follows from. Not a defence against someone who looks for collisions.
pub(super) fn fingerprint(seed: u64, body: &[u8]) -> u64 {
    let (words, rest) = body.as_chunks::<8>();
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    let length = u64::try_from(body.len()).unwrap_or(u64::MAX);
    words
        .iter()
        .chain([&last])
        .fold(mix(seed ^ length), |state, word| {
            mix(state ^ u64::from_le_bytes(*word))
        })
}

/// A text, and how many tokens it has.
pub(super) fn compose(random: &mut Random, length: Length) -> (String, usize) {
    let (tokens, bytes) = match length {
        Length::Tokens(tokens) => (tokens, usize::MAX),
        Length::Bytes(bytes) => (usize::MAX, bytes),
    };
    let mut text = String::with_capacity(tokens.saturating_mul(7).min(bytes.saturating_add(64)));
    let mut written = 0;
    let mut sentence = 0;
    while written < tokens && text.len() < bytes {
        let draw = random.next();
        if sentence == 0 {
            text.push_str(if text.is_empty() { "" } else { ". " });
            sentence = 5 + (draw >> 56) % 16;
            push_capitalised(&mut text, word(draw));
        } else {
            text.push(' ');
            push_token(&mut text, draw);
        }
        sentence -= 1;
        written += 1;
    }
    text.push('.');
    text.truncate(bytes);
    (text, written)
}

/// Mostly a word, now and then a number or a name.
fn push_token(text: &mut String, draw: u64) {
    let rest = draw >> 20;
    match (draw >> SLOT_BITS) % 32 {
        0..=2 => text.push_str(&(rest % 10_000).to_string()),
        3..=8 => push_name(text, rest),
        _ => text.push_str(word(draw)),
    }
}

fn push_capitalised(text: &mut String, word: &str) {
    let start = text.len();
    text.push_str(word);
    if let Some(first) = text.get_mut(start..=start) {
        first.make_ascii_uppercase();
    }
}

fn word(draw: u64) -> &'static str {
    let slot = usize::try_from(draw % (1 << SLOT_BITS)).unwrap_or(0);
    SLOTS.get(slot).copied().unwrap_or("the")
}

fn push_name(text: &mut String, draw: u64) {
    for place in 0..NAME_LETTERS {
        let letter = usize::try_from((draw >> (5 * place)) % 32).unwrap_or(0);
        let letter = char::from(LETTERS[letter]);
        text.push(if place == 0 {
            letter.to_ascii_uppercase()
        } else {
            letter
        });
    }
}

/// Gives each word its share of the slots; those left over go to the rarest.
fn slots() -> Vec<&'static str> {
    let total: usize = 1 << SLOT_BITS;
    let weights = || (1_u32..).map(|rank| 1.0 / f64::from(rank + 8));
    let sum: f64 = weights().take(WORDS.len()).sum();
    let mut slots = Vec::with_capacity(total);
    let mut share = 0.0;
    for (word, weight) in WORDS.iter().zip(weights()) {
        share += weight / sum;
        while slots.len() < total && slot_share(slots.len(), total) < share {
            slots.push(*word);
        }
    }
    slots
}

fn slot_share(slot: usize, total: usize) -> f64 {
    let slot = u32::try_from(slot).unwrap_or(u32::MAX);
    let total = u32::try_from(total).unwrap_or(u32::MAX);
    f64::from(slot) / f64::from(total)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_text_and_another_seed_another() {
        let text = |seed| compose(&mut Random::new(seed), Length::Tokens(50)).0;
        assert_eq!(text(1), text(1));
        assert_ne!(text(1), text(2));
    }

    #[test]
    fn a_text_has_as_many_tokens_or_bytes_as_asked() {
        let (text, tokens) = compose(&mut Random::new(1), Length::Tokens(50));
        assert_eq!((text.split(' ').count(), tokens), (50, 50));
        for bytes in [0, 1, 2, 100, 5000] {
            let (text, _) = compose(&mut Random::new(1), Length::Bytes(bytes));
            assert_eq!(text.len(), bytes);
        }
        assert_eq!(
            compose(&mut Random::new(1), Length::Tokens(0)),
            (".".into(), 0)
        );
    }

    #[test]
    fn text_compresses_no_better_than_prose() {
        let texts: String = (0..2000)
            .map(|seed| compose(&mut Random::new(seed), Length::Tokens(64)).0)
            .collect();
        let compressed = zstd::bulk::compress(texts.as_bytes(), 3).unwrap();
        assert!(compressed.len() * 5 > texts.len() * 2);
    }

    #[test]
    fn every_word_of_the_list_is_drawn_and_the_first_most_often() {
        assert_eq!(SLOTS.len(), 1 << SLOT_BITS);
        let distinct: HashSet<_> = SLOTS.iter().collect();
        assert_eq!(distinct.len(), WORDS.len());
        let share = |word| SLOTS.iter().filter(|slot| **slot == word).count();
        assert!(share("the") > 5 * share("time"));
    }

    #[test]
    fn bodies_that_differ_in_a_digit_or_a_zero_have_other_fingerprints() {
        let bodies: HashSet<u64> = (0..100_000)
            .map(|n| fingerprint(7, format!("{{\"a\":{n},\"again\":\"{n}\"}}").as_bytes()))
            .collect();
        assert_eq!(bodies.len(), 100_000);
        assert_ne!(fingerprint(7, b"a"), fingerprint(7, b"a\0"));
        assert_ne!(fingerprint(7, b"a"), fingerprint(8, b"a"));
    }
}
