//! API keys: how they are made, stored and shown.

use rand::distr::{Alphanumeric, SampleString};
use secrecy::SecretString;
use sha2::{Digest, Sha256};

/// What every key begins with.
const KEY_PREFIX: &str = "sk-ns-";
/// What the keys of most services begin with.
pub(in crate::api) const KEY_BEGINNING: &str = "sk-";
/// Random characters of a key: 62 to the power of 32 is more than 190 bits.
const KEY_RANDOM_CHARS: usize = 32;
/// A text shorter than this is masked whole.
const MASKED_CHARS_MIN: usize = 20;

/// A key that was made just now.
#[derive(Clone, Debug)]
pub struct NewKey {
    /// The key itself: shown once, stored nowhere.
    pub key: SecretString,
    /// What is stored: see [`hash`].
    pub hash: String,
    /// The key's first and last characters, by which people recognise it.
    pub hint: String,
}

/// A new random key.
#[must_use]
pub fn new_key() -> NewKey {
    let random = Alphanumeric.sample_string(&mut rand::rng(), KEY_RANDOM_CHARS);
    let key = format!("{KEY_PREFIX}{random}");
    NewKey {
        hash: hash(&key),
        hint: masked(&key),
        key: SecretString::from(key),
    }
}

/// The SHA-256 of a key, in hex. No salt: keys are random, and found by their hash.
#[must_use]
pub fn hash(key: &str) -> String {
    hex::encode(Sha256::digest(key))
}

/// The first and last characters of a key: enough to recognise it, and too little to use it.
pub(super) fn masked(key: &str) -> String {
    if key.len() < MASKED_CHARS_MIN || !key.is_ascii() {
        return "***".to_owned();
    }
    let shown = key
        .strip_prefix(KEY_PREFIX)
        .map_or(3, |_| KEY_PREFIX.len() + 2);
    format!("{}***{}", &key[..shown], &key[key.len() - 4..])
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;

    use super::*;

    #[test]
    fn a_new_key_is_random_and_only_hinted_at() {
        let (one, other) = (new_key(), new_key());
        let key = one.key.expose_secret();
        assert_ne!(key, other.key.expose_secret());
        assert!(key.starts_with("sk-ns-") && key.len() == 6 + 32, "{key}");
        assert_eq!(one.hash, hash(key));
        assert_eq!(one.hint, format!("{}***{}", &key[..8], &key[34..]));
    }

    #[test]
    fn a_hash_is_sha_256_in_hex() {
        assert_eq!(
            hash("abc"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }

    #[test]
    fn short_keys_are_masked_whole() {
        assert_eq!(masked("sk-short"), "***");
        assert_eq!(masked("sk-proj-0123456789abcdef"), "sk-***cdef");
        assert_eq!(masked(&"é".repeat(30)), "***");
    }
}
