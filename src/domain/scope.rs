//! What an API key opens.

use std::fmt;

/// One thing that a key may be for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The files and batches of the key's tenant, and the models.
    Api,
    /// `/metrics`, and nothing else.
    Metrics,
    /// `/metrics`, `/admin`, and any tenant's batches.
    Admin,
    /// `/metrics` and `/admin`: what an operator's key opened before there were scopes. No new key
    /// gets this scope.
    Operator,
}

impl Scope {
    const ALL: [Scope; 4] = [Scope::Api, Scope::Metrics, Scope::Admin, Scope::Operator];
    /// The scopes that a new key can have.
    pub const GRANTED: [Scope; 3] = [Scope::Api, Scope::Metrics, Scope::Admin];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Scope::Api => "api",
            Scope::Metrics => "metrics",
            Scope::Admin => "admin",
            Scope::Operator => "operator",
        }
    }

    fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// The scopes of a key: one at least.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Scopes(u8);

impl Scopes {
    /// A tenant's key, as most are.
    pub const API: Scopes = Scopes(1 << Scope::Api as u8);
    /// What `keys create --admin` grants.
    pub const TENANT_AND_ADMIN: Scopes = Scopes(1 << Scope::Api as u8 | 1 << Scope::Admin as u8);
    /// What everybody on this machine may do where no key is needed.
    pub const WITHOUT_KEYS: Scopes = Scopes(1 << Scope::Api as u8 | 1 << Scope::Operator as u8);

    /// The scopes that somebody asks for: names with commas between them.
    ///
    /// # Errors
    /// When there is none, or a name is not that of a scope that can be granted.
    pub fn parse(text: &str) -> Result<Scopes, String> {
        let of = |name: &str| {
            let found = Scope::GRANTED.iter().find(|s| s.as_str() == name.trim());
            found.copied().ok_or_else(|| {
                let names = Scope::GRANTED.map(Scope::as_str).join(", ");
                format!(
                    "`{name}` is no scope: expected one of {names}, or several of them with commas \
                     between them"
                )
            })
        };
        let mut scopes = text.split(',').map(of);
        scopes.try_fold(Scopes(0), |sum, scope| Ok(Scopes(sum.0 | scope?.bit())))
    }

    /// The scopes of a stored key; `None` where a name is unknown.
    #[must_use]
    pub fn stored(text: &str) -> Option<Scopes> {
        let of = |name| Scope::ALL.into_iter().find(|s| s.as_str() == name);
        let mut scopes = text.split(',').map(of);
        scopes.try_fold(Scopes(0), |sum, scope| Some(Scopes(sum.0 | scope?.bit())))
    }

    #[must_use]
    pub fn has(self, scope: Scope) -> bool {
        self.0 & scope.bit() != 0
    }

    /// The names, in a fixed order.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        let has = Scope::ALL.into_iter().filter(move |scope| self.has(*scope));
        has.map(Scope::as_str)
    }

    /// Whether the key belongs to a tenant: only then can files and batches be made with it.
    #[must_use]
    pub fn open_the_api(self) -> bool {
        self.has(Scope::Api)
    }

    #[must_use]
    pub fn open_metrics(self) -> bool {
        self.has(Scope::Metrics) || self.open_admin()
    }

    #[must_use]
    pub fn open_admin(self) -> bool {
        self.has(Scope::Admin) || self.has(Scope::Operator)
    }

    #[must_use]
    pub fn open_every_batch(self) -> bool {
        self.has(Scope::Admin)
    }
}

impl fmt::Display for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.names().collect();
        f.write_str(&names.join(","))
    }
}

impl fmt::Debug for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Scopes({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_are_written_as_they_are_read() {
        for (text, written) in [
            ("api", "api"),
            ("admin, api", "api,admin"),
            ("metrics,metrics", "metrics"),
        ] {
            let scopes = Scopes::parse(text).unwrap();
            assert_eq!(scopes.to_string(), written);
            assert_eq!(Scopes::stored(written), Some(scopes));
        }
        for wrong in ["", "api,", "operator", "root", "API"] {
            let error = Scopes::parse(wrong).unwrap_err();
            assert!(error.contains("api, metrics, admin"), "{error}");
        }
        assert_eq!(Scopes::stored("of the future"), None);
    }

    #[test]
    fn each_scope_opens_its_own() {
        let opens = |text| {
            let scopes = Scopes::stored(text).unwrap();
            [
                scopes.open_the_api(),
                scopes.open_metrics(),
                scopes.open_admin(),
                scopes.open_every_batch(),
            ]
        };
        assert_eq!(opens("api"), [true, false, false, false]);
        assert_eq!(opens("metrics"), [false, true, false, false]);
        assert_eq!(opens("operator"), [false, true, true, false]);
        assert_eq!(opens("admin"), [false, true, true, true]);
        assert_eq!(opens("api,admin"), [true; 4]);
    }
}
