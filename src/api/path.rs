//! What stands in a request's path.

use axum::extract::{FromRequestParts, Path};
use axum::http::request::Parts;

use super::error::{self, ApiError};
use crate::store::storable;

/// The one id in a path, percent-decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Id(pub String);

impl<S: Send + Sync> FromRequestParts<S> for Id {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Path(id) = Path::<String>::from_request_parts(parts, state)
            .await
            .map_err(|_| error::bad_request("The path of the URL is not valid UTF-8."))?;
        Ok(Id(storable(id)))
    }
}
