//! OpenAI's model object.

use serde::Serialize;
use utoipa::ToSchema;

/// A model.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Model)]
pub struct ModelObject {
    /// What a line's `body.model` says.
    pub id: String,
    /// Always `model`.
    #[schema(example = "model")]
    pub object: &'static str,
    /// When it was made, in Unix seconds; 0 where nobody says.
    pub created: i64,
    pub owned_by: String,
    /// The date on which the model's upstream stops serving it, where the upstream says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shutdown_date: Option<String>,
}
