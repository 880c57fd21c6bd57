//! Secrets are named in the configuration and found elsewhere: in a variable or a file.
//!
//! Faults name the key, not what stands behind it: whoever pastes a secret where its name
//! belongs must not find it in a log.

use std::fs::File;
use std::io::Read;

use secrecy::{ExposeSecret, SecretString};

use super::environment::Environment;
use super::reader::{Item, Reader};

/// A file longer than this is not a secret.
const FILE_BYTES_MAX: u64 = 65_536;

/// The key that `KEY_env` or `KEY_file` names; both at once is a fault.
pub(super) fn named_key(
    reader: &mut Reader<'_>,
    env: &'static str,
    file: &'static str,
) -> Option<SecretString> {
    let environment = reader.environment();
    let by_variable = reader.take(env);
    let by_file = reader.take(file);
    if by_variable.is_some() && by_file.is_some() {
        reader.fault(format!("`{env}` and `{file}` are both set: use one"));
        return None;
    }
    let by_variable = by_variable.and_then(|item| {
        let value = variable(&item, environment)?;
        key(&item, value)
    });
    by_variable.or_else(|| from_file(&by_file?))
}

/// The text of the variable that `item` names.
pub(super) fn variable<'a>(item: &Item<'_>, environment: &'a Environment) -> Option<&'a str> {
    let name = item.string()?;
    let text = environment.get_named(&name);
    if text.is_none() {
        item.fault(missing_variable(&name));
    }
    text
}

/// Whether secrets are usually sent under a name, of a header or of a part of a URL's query. In
/// doubt the guess is yes: `headers_env` can send a header of any name.
pub(super) fn is_secret_name(name: &str) -> bool {
    const PARTS: [&str; 12] = [
        "apikey",
        "api-key",
        "api_key",
        "authorization",
        "cookie",
        "credential",
        "passwd",
        "password",
        "secret",
        "session",
        "signature",
        "token",
    ];
    const LAST_WORDS: [&str; 3] = ["auth", "key", "sig"];
    let name = name.to_ascii_lowercase();
    let last = name.rsplit(['-', '_', '.']).next().unwrap_or_default();
    PARTS.iter().any(|part| name.contains(part)) || LAST_WORDS.contains(&last)
}

/// The key in the file that `item` names, without the line break at its end.
pub(super) fn from_file(item: &Item<'_>) -> Option<SecretString> {
    let path = item.string()?;
    let mut text = String::new();
    let read = File::open(path).and_then(|file| {
        file.take(FILE_BYTES_MAX)
            .read_to_string(&mut text)
            .map(drop)
    });
    if let Err(error) = read {
        item.fault(format!("the file cannot be read: {error}"));
        return None;
    }
    let text = SecretString::from(text);
    key(item, text.expose_secret().trim_end_matches(['\r', '\n']))
}

/// A key that can be sent in a header.
pub(super) fn key(item: &Item<'_>, text: &str) -> Option<SecretString> {
    let message = if text.is_empty() {
        "names an empty secret"
    } else if !text.bytes().all(|b| b.is_ascii_graphic()) {
        "the secret holds what no key can: spaces, line breaks or letters beyond ASCII"
    } else {
        return Some(SecretString::from(text));
    };
    item.fault(message);
    None
}

/// Quotes the name only where it looks like one, and not like a secret in the wrong place.
fn missing_variable(name: &str) -> String {
    let usual = |b: u8| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_';
    if name.len() <= 64 && name.bytes().all(usual) {
        format!("the variable {name} is not set, or empty")
    } else {
        "names a variable that is not set, or empty (write a variable's name here, never the \
         secret itself)"
            .to_owned()
    }
}
