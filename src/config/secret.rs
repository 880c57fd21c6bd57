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

/// A secret, and the variable or file that holds it.
#[derive(Debug)]
pub(super) struct Named {
    pub name: String,
    pub secret: SecretString,
}

/// The keys that `api_key_env`, `api_key_file`, `api_key_envs` and `api_key_files` name; without
/// those that are a fault.
pub(super) fn named_keys<'a>(reader: &mut Reader<'a>) -> Vec<Named> {
    let environment = reader.environment();
    let [env, file, envs, files] = [
        "api_key_env",
        "api_key_file",
        "api_key_envs",
        "api_key_files",
    ]
    .map(|key| reader.take(key));
    let ways = [
        env.is_some(),
        file.is_some(),
        envs.is_some() || files.is_some(),
    ];
    if ways.into_iter().filter(|is_used| *is_used).count() > 1 {
        reader.fault(
            "several of `api_key_env`, `api_key_file`, and the lists `api_key_envs` and \
             `api_key_files` are set: use one",
        );
        return Vec::new();
    }
    let listed = |list: Option<Item<'a>>| {
        let items = list.and_then(Item::array);
        if items.as_ref().is_some_and(Vec::is_empty) {
            reader.fault("a list of keys names no key");
        }
        items.unwrap_or_default()
    };
    let by_variable = env.into_iter().chain(listed(envs));
    let by_file = file.into_iter().chain(listed(files));
    let by_variable = by_variable.map(|item| {
        let secret = variable(&item, environment).and_then(|value| key(&item, value));
        (item, secret)
    });
    let by_file = by_file.map(|item| {
        let secret = from_file(&item);
        (item, secret)
    });
    let mut keys: Vec<Named> = Vec::new();
    for (item, secret) in by_variable.chain(by_file) {
        let (Some(name), Some(secret)) = (item.as_str(), secret) else {
            continue;
        };
        let is_same = |known: &Named| known.secret.expose_secret() == secret.expose_secret();
        if keys
            .iter()
            .any(|known| known.name == name || is_same(known))
        {
            item.fault("the same key is named twice");
            continue;
        }
        let name = name.to_owned();
        keys.push(Named { name, secret });
    }
    keys
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
