//! On whose behalf a request is made, and the extractors by which a handler says whom it is open
//! to.

use axum::extract::FromRequestParts;
use axum::http::request::Parts;

use crate::api::error::{self, ApiError, Result};
use crate::domain::scope::Scopes;

/// On whose behalf a request is made. A handler that takes one is open to a tenant's callers only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Empty where the key belongs to no tenant.
    pub tenant: String,
    /// `None` where no key is needed.
    pub key_id: Option<String>,
    pub scopes: Scopes,
}

impl Caller {
    /// The caller that `authenticate` found, which stands before all but the open routes.
    fn found(parts: &Parts) -> Result<&Caller> {
        let caller = parts.extensions.get::<Caller>();
        caller.ok_or_else(error::missing_key)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self> {
        let caller = Caller::found(parts)?;
        if caller.scopes.open_the_api() {
            Ok(caller.clone())
        } else {
            Err(error::missing_scope("api"))
        }
    }
}

/// A caller who may act on single batches: those of the own tenant, or with the scope `admin` those
/// of every tenant.
pub struct BatchCaller(pub Caller);

impl<S: Send + Sync> FromRequestParts<S> for BatchCaller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self> {
        let caller = Caller::found(parts)?;
        if caller.scopes.open_every_batch() {
            return Ok(BatchCaller(caller.clone()));
        }
        Caller::from_request_parts(parts, state)
            .await
            .map(BatchCaller)
    }
}

/// A caller who may see what was used: of every tenant with an operator's key, and else of the
/// caller's own.
pub struct UsageCaller {
    /// `None`: every tenant.
    pub tenant: Option<String>,
}

impl<S: Send + Sync> FromRequestParts<S> for UsageCaller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self> {
        if Caller::found(parts)?.scopes.open_admin() {
            return Ok(UsageCaller { tenant: None });
        }
        let caller = Caller::from_request_parts(parts, state).await?;
        Ok(UsageCaller {
            tenant: Some(caller.tenant),
        })
    }
}

/// A caller who may read the metrics.
pub struct Scraper;

impl<S: Send + Sync> FromRequestParts<S> for Scraper {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self> {
        if Caller::found(parts)?.scopes.open_metrics() {
            Ok(Scraper)
        } else {
            Err(error::missing_scope("metrics"))
        }
    }
}

/// A caller who may see and do what operators do.
pub struct Admin {
    /// `None` where no key is needed.
    pub key_id: Option<String>,
}

impl<S: Send + Sync> FromRequestParts<S> for Admin {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self> {
        let caller = Caller::found(parts)?;
        if caller.scopes.open_admin() {
            Ok(Admin {
                key_id: caller.key_id.clone(),
            })
        } else {
            Err(error::missing_scope("admin"))
        }
    }
}
