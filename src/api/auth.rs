//! Who asks: API keys, and what stands in for them where no keys are needed.

/// On whose behalf a request is made. A handler that takes one is open to callers only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    pub tenant: String,
    /// Whether the key was made with `--admin`.
    pub admin: bool,
}

impl<S: Send + Sync> axum::extract::FromRequestParts<S> for Caller {
    type Rejection = super::error::ApiError;

    async fn from_request_parts(
        parts: &mut axum::http::request::Parts,
        _: &S,
    ) -> Result<Self, Self::Rejection> {
        // Put there by the layer that stands before all routes but the open ones.
        parts
            .extensions
            .get::<Caller>()
            .cloned()
            .ok_or_else(super::error::missing_key)
    }
}
