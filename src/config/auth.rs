//! `[auth]`: who may ask.

use secrecy::SecretString;

use super::reader::Reader;
use super::secret;
use super::value::Origin;

/// `[auth]`
#[derive(Clone, Debug)]
pub struct Auth {
    /// `None`: required exactly when `server.listen` is not loopback.
    pub required: Option<bool>,
    /// A first key, for the tenant `default`.
    pub bootstrap_key: Option<SecretString>,
}

impl Auth {
    pub(super) fn read(mut reader: Reader<'_>) -> Self {
        let required = reader.boolean("required");
        let by_file = reader.take("bootstrap_key_file");
        let by_variable = reader.take("bootstrap_key");
        reader.finish();
        if let (Some(_), Some(item)) = (&by_file, &by_variable) {
            item.fault("`bootstrap_key_file` is set as well: use one");
        }
        let by_variable = by_variable.and_then(|item| {
            if let Origin::Variable(_) = item.origin() {
                return secret::key(&item, &item.string()?);
            }
            item.fault(
                "a secret is not written here: use `bootstrap_key_file` or the variable \
                 NIGHTSHIFT_AUTH__BOOTSTRAP_KEY",
            );
            None
        });
        Self {
            required,
            bootstrap_key: by_variable.or_else(|| secret::from_file(&by_file?)),
        }
    }
}
