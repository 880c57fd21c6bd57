//! Whether keys are needed, and what a process remembers of them.

use std::sync::Arc;

use secrecy::{ExposeSecret, SecretString};
use tokio_util::sync::CancellationToken;

use super::keys::hash;
use super::last_use::LastUse;
use super::lately::Lately;
use super::operators::Operators;
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
        bootstrap: Option<BootstrapKey>,
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

impl Auth {
    /// Keys are needed: the stored ones, and the bootstrap key of the configuration, which has
    /// these scopes.
    #[must_use]
    pub fn keys(bootstrap: Option<&SecretString>, scopes: Scopes) -> Self {
        Auth::Keys {
            bootstrap: bootstrap.map(|key| BootstrapKey {
                hash: hash(key.expose_secret()),
                scopes,
            }),
            operators: Operators::default(),
            lately: Box::default(),
            last_use: LastUse::default(),
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
