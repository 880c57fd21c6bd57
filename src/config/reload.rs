//! Reading the configuration again while a server runs, and how one configuration is told from
//! another.

use sha2::{Digest as _, Sha256};

use super::source::Source;
use super::{Auth, Config, ConfigErrors, Environment, Limits, Log};

/// How many characters a hash has: enough to tell the configurations of a fleet apart.
const HASH_CHARS: usize = 12;

impl Config {
    /// Reads all layers again, from where they were read. The file may have changed, and the files
    /// that it names.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn read_again(&self) -> Result<Self, ConfigErrors> {
        let Source {
            overrides,
            is_built_in,
        } = &self.source;
        let environment = Environment::capture();
        if *is_built_in {
            Self::built_in(overrides, &environment)
        } else {
            Self::load(overrides, &environment)
        }
    }

    /// What a server runs by that has run by this, and is given `next`: all that can change while a
    /// server runs. Also returns the keys whose values differ and cannot change: they need a
    /// restart.
    #[must_use]
    pub fn reloaded(&self, next: Self) -> (Self, Vec<String>) {
        let keys = self.fixed.differing(&next.fixed);
        let running = Self {
            server: self.server.clone(),
            database: self.database.clone(),
            auth: Auth {
                required: self.auth.required,
                ..next.auth
            },
            limits: Limits {
                max_line_bytes: self.limits.max_line_bytes,
                ..next.limits
            },
            endpoints: self.endpoints,
            log: Log {
                format: self.log.format,
                ..next.log
            },
            worker: self.worker.clone(),
            telemetry: self.telemetry.clone(),
            fixed: self.fixed.clone(),
            ..next
        };
        (running, keys)
    }

    /// Tells configurations apart by what all processes of a fleet have in common: not by what is
    /// one process's own (where it listens, its name, its database, its log), and by no secret.
    #[must_use]
    pub fn hash(&self) -> String {
        let Self {
            limits,
            endpoints,
            upstreams,
            pricing,
            models,
            tasks,
            tenants,
            retry,
            retention,
            reuse,
            output,
            ..
        } = self;
        // Their `Debug` shows all that they say, but for secrets.
        let shown = format!(
            "{limits:?} {endpoints:?} {upstreams:?} {pricing:?} {models:?} {tasks:?} {tenants:?} \
             {retry:?} {retention:?} {reuse:?} {output:?}"
        );
        let mut hash = hex::encode(Sha256::digest(shown));
        hash.truncate(HASH_CHARS);
        hash
    }
}
