//! `[auth]`: who may ask.

use secrecy::{ExposeSecret, SecretString};

use super::reader::{Item, Reader};
use super::secret;
use super::value::Origin;
use crate::domain::scope::Scopes;

/// Whoever may try a key may guess a shorter one.
const BOOTSTRAP_KEY_CHARS_MIN: usize = 20;

/// `[auth]`
#[derive(Clone, Debug)]
pub struct Auth {
    /// `None`: required exactly when `server.listen` is not loopback.
    pub required: Option<bool>,
    /// A first key, for the tenant `default`.
    pub bootstrap_key: Option<SecretString>,
    /// What the first key opens.
    pub bootstrap_scope: Scopes,
}

impl Auth {
    pub(super) fn read(mut reader: Reader<'_>) -> Self {
        let required = reader.boolean("required");
        let by_file = reader.take("bootstrap_key_file");
        let by_variable = reader.take("bootstrap_key");
        let scope = reader
            .take("bootstrap_scope")
            .and_then(|item| scopes(&item));
        reader.finish();
        if let (Some(_), Some(item)) = (&by_file, &by_variable) {
            item.fault("`bootstrap_key_file` is set as well: use one");
        }
        let by_variable = by_variable.and_then(|item| {
            if let Origin::Variable(_) = item.origin() {
                let key = secret::key(&item, &item.string()?)?;
                return long_enough(&item, key);
            }
            item.fault(
                "a secret is not written here: use `bootstrap_key_file` or the variable \
                 NIGHTSHIFT_AUTH__BOOTSTRAP_KEY",
            );
            None
        });
        Self {
            required,
            bootstrap_scope: scope.unwrap_or(Scopes::API),
            bootstrap_key: by_variable.or_else(|| {
                let item = by_file?;
                let key = secret::from_file(&item)?;
                long_enough(&item, key)
            }),
        }
    }
}

fn scopes(item: &Item<'_>) -> Option<Scopes> {
    match Scopes::parse(&item.string()?) {
        Ok(scopes) => Some(scopes),
        Err(fault) => {
            item.fault(fault);
            None
        }
    }
}

/// The key, if it is long enough to be safe; otherwise a fault is noted.
fn long_enough(item: &Item<'_>, key: SecretString) -> Option<SecretString> {
    // Keys are ASCII.
    if key.expose_secret().len() >= BOOTSTRAP_KEY_CHARS_MIN {
        return Some(key);
    }
    item.fault(format!(
        "the key is too short to be safe: it must have at least {BOOTSTRAP_KEY_CHARS_MIN} \
         random characters"
    ));
    None
}
