//! Identifiers: a prefix that names the object, then 22 base-62 digits or 32 hex digits of a
//! version 7 UUID, so that ids made later sort later. Those of output lines are counted instead.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use uuid::Uuid;

const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// `file-…`, as OpenAI's files are called.
#[must_use]
pub fn file() -> String {
    format!("file-{}", base62(Uuid::now_v7().as_u128()))
}

/// `batch_` and 32 hex digits, as OpenAI's batches are called.
#[must_use]
pub fn batch() -> String {
    hex("batch_", Uuid::now_v7())
}

/// `batch_req_` and 32 hex digits: the id of one output line. 20 digits are random, and the same
/// for all lines of this process, and 12 count its lines. So ids that stand together differ in
/// their last digits only: 16 random bytes for each line would be a tenth of what is stored of it.
#[must_use]
pub fn batch_request() -> String {
    const COUNTED: u128 = (1 << 48) - 1;
    static PROCESS: LazyLock<u128> = LazyLock::new(|| Uuid::new_v4().as_u128() & !COUNTED);
    static LINES: AtomicU64 = AtomicU64::new(0);
    let line = u128::from(LINES.fetch_add(1, Ordering::Relaxed)) & COUNTED;
    hex("batch_req_", Uuid::from_u128(*PROCESS | line))
}

/// `req_` and 32 hex digits: what `x-request-id` says, and a line whose upstream sent none.
#[must_use]
pub fn request() -> String {
    hex("req_", Uuid::now_v7())
}

/// `key_…`: the public name of an API key, which is not the key.
#[must_use]
pub fn key() -> String {
    format!("key_{}", base62(Uuid::now_v7().as_u128()))
}

/// A process's incarnation: random, so that no two processes are ever taken for each other.
#[must_use]
pub fn incarnation() -> String {
    Uuid::new_v4().simple().to_string()
}

/// Every line has such an id: `format!` would take twice the time.
fn hex(prefix: &str, id: Uuid) -> String {
    let mut digits = Uuid::encode_buffer();
    let digits: &str = id.simple().encode_lower(&mut digits);
    [prefix, digits].concat()
}

/// 22 digits, most significant first, so that the order of numbers is the order of texts.
fn base62(mut number: u128) -> String {
    let mut digits = [b'0'; 22];
    for digit in digits.iter_mut().rev() {
        *digit = DIGITS[usize::try_from(number % 62).unwrap_or(0)];
        number /= 62;
    }
    digits.iter().map(|&digit| char::from(digit)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_ids_of_their_own_that_differ_in_few_digits() {
        let ids: Vec<String> = (0..1000).map(|_| batch_request()).collect();
        assert!(ids.iter().all(|id| id.len() == "batch_req_".len() + 32));
        assert!(ids.is_sorted_by(|one, next| one < next), "{ids:?}");
        assert!(ids.iter().all(|id| id[..30] == ids[0][..30]));
    }

    #[test]
    fn ids_made_later_sort_later() {
        let ids: Vec<String> = (0..1000).map(|_| file()).collect();
        assert!(ids.is_sorted(), "{ids:?}");
        assert!(ids.iter().all(|id| id.len() == "file-".len() + 22));
    }

    #[test]
    fn ids_in_hex_have_their_prefix_and_32_digits() {
        for (id, prefix) in [
            (batch(), "batch_"),
            (batch_request(), "batch_req_"),
            (request(), "req_"),
        ] {
            let digits = id.strip_prefix(prefix).expect("its prefix");
            let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
            assert!(digits.len() == 32 && digits.bytes().all(is_digit), "{id}");
        }
    }
}
