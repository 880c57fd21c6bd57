//! Whether keys are needed, and what a process remembers of them.

use std::sync::Arc;

use secrecy::{ExposeSecret, SecretString};
use tokio_util::sync::CancellationToken;

use super::keys::hash;
use super::last_use::LastUse;
use super::lately::Lately;
use super::operators::Operators;
use crate::domain::current::Current;
use crate::domain::scope::Scopes;
use crate::store::Store;

/// Whether requests need a key.
#[derive(Debug)]
pub enum Auth {
    /// None is needed. Every caller is the default tenant, and only programs and pages of this
    /// machine may call.
    Off,
    /// One is needed.
    Keys {
        /// A key that is configured and not stored, to make the first stored keys with.
        bootstrap: Current<Option<BootstrapKey>>,
        operators: Operators,
        lately: Box<Lately>,
        last_use: LastUse,
    },
}

/// A key of the configuration.
#[derive(Debug)]
pub struct BootstrapKey {
    pub(super) hash: String,
    pub(super) scopes: Scopes,
}

impl BootstrapKey {
    fn new(key: Option<&SecretString>, scopes: Scopes) -> Option<Self> {
        let hash = hash(key?.expose_secret());
        Some(Self { hash, scopes })
    }
}

impl Auth {
    /// Keys are needed: the stored ones, and the bootstrap key of the configuration, which has
    /// these scopes.
    #[must_use]
    pub fn keys(bootstrap: Option<&SecretString>, scopes: Scopes) -> Self {
        Auth::Keys {
            bootstrap: Current::new(BootstrapKey::new(bootstrap, scopes)),
            operators: Operators::default(),
            lately: Box::default(),
            last_use: LastUse::default(),
        }
    }

    /// The configuration has another bootstrap key, or none any more. Where no key is needed, this
    /// changes nothing.
    pub fn set_bootstrap(&self, key: Option<&SecretString>, scopes: Scopes) {
        if let Auth::Keys { bootstrap, .. } = self {
            bootstrap.replace(BootstrapKey::new(key, scopes));
        }
    }

    /// Writes to the store when keys were used last, until it is stopped.
    pub async fn write_last_use(self: Arc<Self>, store: Store, stop: CancellationToken) {
        if let Auth::Keys { last_use, .. } = &*self {
            let statement = |uses: Vec<_>| {
                let store = store.clone();
                async move { store.note_use_of_keys(&uses).await }
            };
            last_use.write(statement, &stop).await;
        }
    }
}
